"""constraints.txt: it pins the versions that are installed and tested, all of them and no other."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata

import tomli
from packaging.requirements import Requirement

from tests.tools import ROOT


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict[str, object]:
    content: dict[str, dict[str, object]] = tomli.loads((ROOT / "pyproject.toml").read_text())
    return content["project"]


def closure(requirements: list[str]) -> dict[str, str]:
    """Returns the installed version of all that the requirements lead to, as pip would follow them."""
    versions: dict[str, str] = {}
    waiting = [Requirement(line) for line in requirements]
    seen: set[str] = set()
    while waiting:
        needed = waiting.pop()
        if str(needed) in seen:
            continue
        seen.add(str(needed))
        versions[normal(needed.name)] = metadata.version(needed.name)
        for line in metadata.requires(needed.name) or []:
            further = Requirement(line)
            extras = needed.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return versions


def test_every_version_in_use_is_pinned_and_every_pin_is_in_use() -> None:
    """NVIDIA's libraries, which only GPUs need, may not be installed."""
    about = project()
    dependencies, extras = about["dependencies"], about["optional-dependencies"]
    assert isinstance(dependencies, list)
    assert isinstance(extras, dict)
    cuda = {name: version for name, version in pins().items() if name.startswith("nvidia-")}
    assert {name: version for name, version in pins().items() if name not in cuda} == closure(
        [*dependencies, *extras["dev"]]
    )
    needed = [Requirement(line) for line in extras["cuda"]]
    assert [line.name for line in needed if not line.specifier.contains(cuda[line.name])] == []
    with contextlib.suppress(metadata.PackageNotFoundError):
        assert cuda == closure(extras["cuda"])
