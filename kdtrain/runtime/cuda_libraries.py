"""NVIDIA's libraries that oneflow's library names: the real ones, or stubs in their place.

The loader wants cuBLAS and cuDNN before oneflow runs, although oneflow calls them on a GPU only. A stub has
the name, the functions and the symbol versions that oneflow wants. Each of its functions ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

STUBS = Path(__file__).parent / "cuda_stubs"
REMEDY = "install kdtrain[cuda] (in a clone: scripts/bootstrap --cuda)"


def library_names() -> list[str]:
    """Returns the names of the libraries that have a stub."""
    return sorted(path.name for path in STUBS.glob("*.so.*"))


@functools.cache
def load_stubs() -> tuple[str, ...]:
    """Loads a stub for each library that the loader would not find; returns their names.

    oneflow's library is loaded afterwards. The loader takes a library that is there already by its name.
    """
    spec = importlib.util.find_spec("oneflow")
    folders = spec.submodule_search_locations if spec is not None else None
    # The search path of oneflow's library begins with these folders. The packages nvidia-* are in them.
    nvidia = [path for folder in folders or () for path in (Path(folder).parent / "nvidia").glob("*/lib/*")]
    found = {path.name for path in nvidia}
    return tuple(name for name in library_names() if name not in found and _load_stub(name))


def _load_stub(name: str) -> bool:
    """Loads a stub unless the system has the library; returns whether it did."""
    try:
        ctypes.CDLL(name)
    except OSError:
        ctypes.CDLL(str(STUBS / name))
        return True
    return False
