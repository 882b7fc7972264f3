"""Arguments of the plugins: a value that makes no sense is refused, and the error names it."""

from __future__ import annotations

import re

import pytest

from kdtrain import UsageError, load_plugin
from tests.tools import ROOT

AT_LEAST_1 = ": it must be at least 1."
POSITIVE = ": it must be above 0, and finite."
FRACTION = ": it must be from 0 to below 1."
NOT_NEGATIVE = ": it must be at least 0"
BOTH = ": neither may be below 0, nor both be 0."

REFUSED: dict[str, dict[str, str]] = {
    "attention:Attention": {POSITIVE: "weight=-1.0 weight=nan weight=inf"},
    "calibration:Calibration": {AT_LEAST_1: "bins=0 bins=-1 every=0 every=-1"},
    "confusion:Confusion": {AT_LEAST_1: "every=0 every=-1"},
    "ctkd:Ctkd": {POSITIVE: "lowest=0.0 span=inf", AT_LEAST_1: "epochs=0"},
    "dist:Dist": {POSITIVE: "weight=0.0 temperature=inf"},
    "dkd:Dkd": {
        POSITIVE: "temperature=0.0",
        NOT_NEGATIVE: "warmup=-1",
        BOTH: "alpha=-1.0,beta=8.0 alpha=0.0,beta=0.0 alpha=1.0,beta=nan",
    },
    "dropout:DropoutRates": {FRACTION: "hidden=-0.1 hidden=1.0 hidden=nan inputs=-0.1 inputs=1.0 inputs=nan"},
    "ema:Ema": {FRACTION: "decay=-0.1 decay=1.0 decay=nan"},
    "fitnet:FitNet": {POSITIVE: "weight=-1.0 weight=nan weight=inf"},
    "grad_norm:GradNorm": {AT_LEAST_1: "every=0 every=-1"},
    "histograms:Histograms": {AT_LEAST_1: "every=0 every=-1"},
    "label_smoothing:LabelSmoothing": {FRACTION: "epsilon=-0.1 epsilon=1.0 epsilon=2.0 epsilon=nan"},
    "logit_mse:LogitMse": {POSITIVE: "weight=-1.0"},
    "logit_std:LogitStd": {POSITIVE: "temperature=-2.0 weight=nan"},
    "max_norm:MaxNorm": {POSITIVE: "limit=0.0 limit=-1.0 limit=inf limit=nan"},
    "nkd:Nkd": {POSITIVE: "gamma=0.0 temperature=nan"},
    "norm_kd:NormKd": {POSITIVE: "temperature=0.0"},
    "pkt:Pkt": {POSITIVE: "weight=-1.0 weight=nan weight=inf"},
    "review_kd:ReviewKd,student_layers=a+b,teacher_layers=a+b": {
        POSITIVE: "weight=nan",
        NOT_NEGATIVE: "warmup=-1",
    },
    "review_kd:ReviewKd": {
        ": give the same number of names, at least 2,": (
            "student_layers=a+b,teacher_layers=a student_layers=a,teacher_layers=a"
        )
    },
    "rkd:Rkd": {BOTH: "distance=-1.0,angle=1.0 distance=nan,angle=1.0 distance=inf,angle=1.0"},
    "similarity:Similarity": {POSITIVE: "weight=-1.0 weight=nan weight=inf"},
    "srrl:Srrl": {POSITIVE: "weight=0.0", NOT_NEGATIVE: "judge=-1.0"},
    "vid:Vid": {POSITIVE: "weight=-1.0 weight=nan weight=inf"},
    "wsld:Wsld": {POSITIVE: "temperature=0.0 weight=-1.0"},
    "wttm:Wttm": {POSITIVE: "weight=inf", ": it must be above 0 and at most 1.": "gamma=1.5 gamma=0.0"},
}


@pytest.mark.parametrize("plugin", REFUSED)
def test_impossible_arguments_are_refused(plugin: str) -> None:
    name, target = plugin.split(":")
    for reason, values in REFUSED[plugin].items():
        for words in values.split():
            message = re.escape(words.replace(",", ", ") + reason)
            with pytest.raises(UsageError, match=message):
                load_plugin(f"{ROOT}/plugins/{name}.py:{target},{words}")
