"""A live view of a fit on one screen."""

from __future__ import annotations

import time

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from kdtrain import BatchEnd, Callback, EvalEnd, FitEnd, Run, claim_terminal

_LEVELS = " ▁▂▃▄▅▆▇█"


class Dashboard(Callback):
    """Draws losses, accuracy, progress and the time left, on a terminal, instead of progress bars.

    Without a terminal, and with several fits side by side, it draws nothing: a line per epoch is printed.

    Args:
        seconds: the least time between two drawings, in seconds; each waits for the losses to be computed.
    """

    def __init__(self, seconds: float = 0.25) -> None:
        self.seconds = seconds
        self.live: Live | None = None
        self.losses: dict[str, float] = {}
        self.means: dict[str, float] = {}
        self.accuracies: list[float] = []
        self.first_step = 0
        self.started = self.drawn = 0.0

    def on_fit_start(self, run: Run) -> None:
        """Starts drawing if the terminal is free."""
        self.started, self.first_step = time.perf_counter(), run.step
        if claim_terminal():
            # Without a thread of its own: on_batch draws.
            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self.live.start()

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Draws, unless the last drawing is too recent."""
        if self.live is None or time.perf_counter() - self.drawn < self.seconds:
            return
        self.losses = {name: loss.item() for name, loss in event.losses.items()}
        self._draw(run)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Keeps the epoch's accuracy and mean losses, and draws."""
        self.accuracies.append(event.metrics["val/accuracy"])
        self.means = {
            name.removeprefix("loss/"): value
            for name, value in event.metrics.items()
            if name.startswith("loss/")
        }
        if self.live is not None:
            self._draw(run)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Clears the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _draw(self, run: Run) -> None:
        self.drawn = time.perf_counter()
        if self.live is not None:
            self.live.update(self.screen(run, self.drawn - self.started), refresh=True)

    def screen(self, run: Run, elapsed: float) -> RenderableType:
        """Returns the screen's content after ``elapsed`` seconds."""
        steps = len(run.train)
        progress = Table.grid(padding=(0, 1))
        in_epoch = run.step - (run.epoch - 1) * steps
        rows = (("epoch", run.epoch, run.epochs, in_epoch / steps), ("step", run.step, run.total_steps, None))
        for name, done, total, part in rows:
            share = done / total if part is None else part
            progress.add_row(name, f"{done}/{total}", ProgressBar(total=1.0, completed=share, width=40))
        losses = Table("loss", box=box.SIMPLE_HEAD)
        for title in ("now", "last epoch"):
            losses.add_column(title, justify="right", min_width=8)
        for name in self.losses | self.means:
            losses.add_row(name, _number(self.losses.get(name)), _number(self.means.get(name)))
        done = run.step - self.first_step
        left = elapsed / done * (run.total_steps - run.step) if done else None
        accuracy = "accuracy comes after the first epoch"
        if self.accuracies:
            best = max(self.accuracies)
            accuracy = f"accuracy {self.accuracies[-1]:.2%}, best {best:.2%}  {bars(self.accuracies[-40:])}"
        clock = f"{_time(elapsed)} gone, {_time(left)} left, learning rate {run.learning_rate:.2g}"
        return Panel(Group(progress, losses, accuracy, clock), title=str(run.directory), expand=False)


def bars(values: list[float]) -> str:
    """Returns a bar per value, scaled from the least value to the greatest."""
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_LEVELS[1 + round((value - low) / span * (len(_LEVELS) - 2))] for value in values)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
