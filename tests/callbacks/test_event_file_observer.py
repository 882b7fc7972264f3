"""The base of observers: an event file of their own, up to date on disk."""

from __future__ import annotations

from pathlib import Path

from kdtrain import EvalEnd, EventFileObserver, Run
from kdtrain.callbacks import TensorBoard
from tests.conftest import Fit
from tests.tools import Scalars, read_scalars


def test_a_point_is_on_disk_as_soon_as_it_is_added_beside_the_run_s_own(fit: Fit, tmp_path: Path) -> None:
    on_disk: list[Scalars] = []

    class Observer(EventFileObserver):
        suffix = ".mine"

        def on_eval(self, run: Run, event: EvalEnd) -> None:
            self.add_scalars({"mine/accuracy": 0.5}, event.step)
            on_disk.append(read_scalars(run.directory))

    fit(TensorBoard(), Observer(), epochs=2)
    assert [curves["mine/accuracy"] for curves in on_disk] == [{4: 0.5}, {4: 0.5, 8: 0.5}]
    assert list(on_disk[1]["val/accuracy"]) == [4, 8]
    assert sorted(path.suffix == ".mine" for path in tmp_path.glob("events.*")) == [False, True]
