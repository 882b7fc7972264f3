"""Which of several signals ends a process."""

from __future__ import annotations

import signal

import pytest

from kdtrain.errors import Terminated
from kdtrain.runtime.signals import queue_signals


@pytest.mark.parametrize("more", [1, 2])
def test_ctrl_c_is_the_cause_although_a_launcher_has_sent_sigterm_as_well(more: int) -> None:
    with queue_signals() as signals:
        for number in (*[signal.SIGTERM] * more, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(Terminated) as first:
            signals.raise_first()
        assert type(signals.cause_of(first.value, 10.0)) is KeyboardInterrupt


def test_sigterm_alone_is_the_cause() -> None:
    with queue_signals() as signals:
        assert type(signals.cause_of(Terminated(), 0.01)) is Terminated
