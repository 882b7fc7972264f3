"""Downloads of published files into the cache folder, by pooch: mirrors, checksums, time limits."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtrain.errors import DataError, os_reason
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.files import temporary_folder

logger = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds to connect, and between two pieces of a body
_RETRIES = 1  # of a file, before the next mirror is tried
_CHUNK = 1 << 16  # bytes


def default_cache_dir() -> Path:
    """Returns ``$XDG_CACHE_HOME/kdtrain``, or ``~/.cache/kdtrain`` without an absolute XDG_CACHE_HOME."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "kdtrain"


def download(dataset: str, sha256: Mapping[str, str], mirrors: Sequence[str], folder: Path) -> None:
    """Downloads the files that a folder lacks; files that it has stay as they are.

    A file gets its name when it is complete and has its checksum. The mirrors are tried in turn.

    Args:
        dataset: the name of the data set, for messages.
        sha256: the SHA-256 (hex) of each file, by file name.
        mirrors: addresses that file names are appended to.
        folder: where the files go; it is made if need be.

    Raises:
        DataError: no mirror has a file, or the folder cannot be written.
    """
    try:
        missing = [file for file in sha256 if not (folder / file).exists()]
        if not missing:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            reasons = _try_mirrors({file: sha256[file] for file in missing}, mirrors, temporary, folder)
    except OSError as error:
        raise DataError(
            f"{dataset} cannot be stored in {folder}: {os_reason(error)}. "
            "Fix that, or set XDG_CACHE_HOME to another folder."
        ) from error
    if reasons:
        raise DataError(
            f"{dataset} cannot be downloaded ({'; '.join(reasons)}). Try again where there is a network, or "
            f"get {', '.join(sha256)} elsewhere and name their folder with --data-dir."
        )


def _try_mirrors(
    sha256: Mapping[str, str], mirrors: Sequence[str], temporary: Path, folder: Path
) -> list[str]:
    """Downloads each file to ``temporary``, and moves it to ``folder`` when it is complete.

    Returns:
        Why each mirror failed, with its address; empty if all files have arrived.
    """
    from requests import RequestException

    reasons = []
    missing = list(sha256)
    for mirror in mirrors:
        try:
            while missing:
                file = missing[0]
                logger.info(f"Downloading {mirror}{file}")
                os.replace(_fetch(mirror, file, sha256[file], temporary), folder / file)
                missing.pop(0)
            return []
        except (RequestException, ValueError) as error:  # ValueError: pooch's, for a wrong checksum
            reasons.append(f"{mirror}{file}: {_reason(error)}")
    return reasons


def _fetch(mirror: str, file: str, sha256: str, folder: Path) -> Path:
    """Returns the path of a file that pooch has downloaded to ``folder`` and checked."""
    import pooch  # type: ignore[import-untyped]

    pooch.get_logger().setLevel(logging.WARNING)  # it has a handler of its own, which would print each step
    source = pooch.create(folder, mirror, registry={file: f"sha256:{sha256}"}, retry_if_failed=_RETRIES)
    # pooch sets the total, and would ignore a bar whose total is 0
    with progress_bar(file, 1, "B", unit_scale=True, bar_format=None) as bar:
        http = pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK, timeout=_TIMEOUT)
        path = Path(source.fetch(file, downloader=http))
    path.chmod(0o644)  # pooch's temporary files are for their owner alone
    return path


def _reason(error: Exception) -> str:
    """Returns in a few words why a download failed; requests wraps the cause several times."""
    from requests.exceptions import ChunkedEncodingError, HTTPError

    if isinstance(error, HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}, {error.response.reason}"
    if type(error) in (ValueError, ChunkedEncodingError):
        return "it arrived incomplete or damaged"
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return str(getattr(cause, "strerror", None) or cause)
