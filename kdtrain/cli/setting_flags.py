"""The flags of ``kdtrain fit``: one for every setting."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from kdtrain.experiment.config import FitConfig, flag_of, kind_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting; a flag that is not given leaves no trace in the namespace."""
    for field in dataclasses.fields(FitConfig):
        kind, repeatable = kind_of(field.name)
        options: dict[str, Any] = {"action": "append"} if repeatable else {}
        options |= {"dest": field.name, "default": argparse.SUPPRESS}
        text, choices = field.metadata["help"], field.metadata["choices"]
        if field.default not in (None, ()) and field.default is not False:
            text += f" [{field.default}]"
        if kind is bool:
            parser.add_argument(flag_of(field.name), help=text, action="store_true", **options)
            continue
        options["type"] = kind
        # The choices are checked by load_config, whose error says more than argparse's.
        metavar = (
            f"{{{','.join(choices)}}}" if choices else field.metadata["metavar"] or kind.__name__.upper()
        )
        parser.add_argument(flag_of(field.name), help=text, metavar=metavar, **options)
        for spelling in field.metadata["also"]:
            parser.add_argument(spelling, help=argparse.SUPPRESS, **options)
        if field.metadata["short"]:
            _add_short_flags(parser.add_mutually_exclusive_group(), field)


def _add_short_flags(group: argparse._MutuallyExclusiveGroup, field: dataclasses.Field[Any]) -> None:
    """Adds the flags that stand for one value of a setting each."""
    for spelling, value in field.metadata["short"].items():
        group.add_argument(
            spelling,
            help=f"the same as {flag_of(field.name)} {value}",
            action="store_const",
            const=value,
            dest=field.name,
            default=argparse.SUPPRESS,
        )
