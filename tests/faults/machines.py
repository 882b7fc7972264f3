"""Two machines on one: network namespaces joined by a cable that can be cut, a fit on each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.tools import ROOT, is_alive

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500

# Trains slowly, and writes the number of the process that trains.
SLOW = """
import os, time
from pathlib import Path

from kdtrain import Callback

class Slow(Callback):
    def __init__(self, seconds: float = 0.02):
        self.seconds = seconds

    def on_batch(self, run, event):
        Path("worker").write_text(str(os.getpid()))
        time.sleep(self.seconds)
"""


class Fit:
    """A fit on one of the machines; what it writes is in ``folder``."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self._known = [process.pid]  # those of a launcher that has ended are no longer its children

    @property
    def said(self) -> list[str]:
        """The fit's own lines on stderr, without the traceback that OneFlow's launcher adds."""
        lines = (self.folder / "stderr").read_text().splitlines()
        return [line for line in lines if line.startswith(("kdtrain: ", "Waiting "))]

    def worker(self) -> int:
        """Waits until the fit trains; returns the number of the process that does."""
        file = self.folder / "worker"
        for _ in range(600):
            if file.exists() and file.read_text():
                return int(file.read_text())
            time.sleep(0.05)
        raise AssertionError((self.folder / "stderr").read_text())

    def processes(self) -> list[int]:
        """Returns all running processes of the fit, the one that was started first."""
        for number in self._known:
            try:
                children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            except OSError:
                continue
            self._known += [child for child in map(int, children) if child not in self._known]
        return list(filter(is_alive, self._known))

    def signal(self, number: signal.Signals, whom: str) -> None:
        """Sends a signal to the ``worker``, to ``all`` processes, or to the terminal's ``group``."""
        processes = [self.worker()] if whom == "worker" else self.processes()
        if whom == "group":
            os.killpg(self.process.pid, number)
        for process in processes if whom != "group" else []:
            os.kill(process, number)

    def wait(self, seconds: float) -> int:
        """Waits until all processes have ended; returns the exit code of the one that was started."""
        deadline = time.monotonic() + seconds
        self.processes()
        code = self.process.wait(seconds)
        while self.processes():
            assert time.monotonic() < deadline, "a process has been left behind"
            time.sleep(0.02)
        return code


class Machines:
    """Two network namespaces, made and removed by this context manager, and fits in them."""

    def __init__(self, number: int = 0) -> None:
        self.names = [f"kdtrain{os.getpid()}-{number}-{rank}" for rank in (0, 1)]
        self.fits: list[Fit] = []

    def __enter__(self) -> Machines:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            one, other = self.names
            _ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", other)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fit in self.fits:
            for process in reversed(fit.processes()):
                if is_alive(process):
                    os.kill(process, signal.SIGKILL)
            fit.process.wait()
        self._remove()

    def cut(self, machine: int, *, cut: bool = True) -> None:
        """Takes one machine's end of the cable down, or up again."""
        _ip("-n", self.names[machine], "link", "set", "cable", "down" if cut else "up")

    def start(
        self, machine: int, folder: Path, *words: str | Path, launcher: bool = False, **variables: str
    ) -> Fit:
        """Starts ``kdtrain fit`` with these words as rank ``machine`` of two, in a folder of its own.

        Args:
            machine: 0 or 1.
            folder: is made.
            words: the flags.
            launcher: by oneflow's launcher, instead of with the variables that it sets.
            variables: of the environment.
        """
        (folder / "tmp").mkdir(parents=True)
        (folder / "slow.py").write_text(SLOW)
        where = ["--node-rank", str(machine), "--master-addr", ADDRESSES[0], "--master-port", str(PORT)]
        launch = ["launch", "--nnodes", "2", *where]
        if not launcher:
            variables |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT), "WORLD_SIZE": "2"}
            variables |= {"RANK": str(machine), "LOCAL_RANK": "0"}
        fit = ["-m", "kdtrain", *(launch if launcher else []), "fit", *map(str, words)]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[machine], sys.executable, *fit],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")} | variables,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.fits.append(Fit(process, folder))
        return self.fits[-1]

    def _remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def obstacle() -> str | None:
    """Returns why there can be no such machines here, or None."""
    try:
        with Machines(-1):
            return None
    except FileNotFoundError:
        return "there is no `ip` here"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.decode().strip()}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True, timeout=10)
