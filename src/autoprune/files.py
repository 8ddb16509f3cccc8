"""Folders that are written whole or not at all, and the place of caches."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from autoprune.errors import AutopruneError

SIDECAR = "autoprune.json"
"""The record beside a result; also the mark by which a folder is known to be one."""

_LOCK = "lock"
_PARTIAL = ".partial-"


def cache_folder(kind: str) -> Path:
    """Folder for cached results, not created here: $AUTOPRUNE_CACHE, else $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("AUTOPRUNE_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoprune"
    return base / kind


def check_output(out: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse an output folder that cannot or should not be written, before any work is done.

    `force` permits replacing a folder of results, never any other one, nor one that holds or lies in an input.
    """
    target = out.resolve()
    with writing_to(out):
        _settle(target)
    for source in (path.resolve() for path in inputs):
        inside = source.is_dir() and source in target.parents
        if target == source or target in source.parents or inside:
            raise AutopruneError(
                f"the output folder and the input {source} overlap", where=str(out), remedy="choose another --out"
            )
    if out.exists() and not out.is_dir():
        raise AutopruneError("is a file, not a folder", where=str(out), remedy="choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise AutopruneError(
                "the folder is not empty", where=str(out), remedy="choose another --out, or add --force"
            )
        if not (out / SIDECAR).is_file():
            raise AutopruneError(
                f"the folder is not a result (it has no {SIDECAR}), so --force does not replace it",
                where=str(out),
                remedy="choose another --out",
            )
    check_space(out, 0)


def check_space(out: Path, bytes_needed: int) -> None:
    """Refuse a place that is not writable or has too little room."""
    existing = next(parent for parent in out.resolve().parents if parent.exists())
    with writing_to(out):
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is not a folder")
        if not os.access(existing, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        raise AutopruneError(
            f"{bytes_needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free on that disk",
            where=str(out),
            remedy="free some space, or choose another --out",
        )


def bytes_on_disk(folder: Path) -> int:
    """What the files of a folder take, holes aside; 0 where there is none."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in found)


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends without an error.

    On any error, and on Ctrl-C, the temporary folder is removed and what was at `out` is left as it was. What a process
    that was killed has left is taken over; where another one is at work, that is an error.
    """
    out = out.resolve()
    partial = out.parent / f".{out.name}.partial"
    with writing_to(out):
        partial.mkdir(parents=True, exist_ok=True)
        with exclusive(partial / _LOCK, "another process is writing this output"):
            try:
                clear(partial, but=_LOCK)
                yield partial
                (partial / _LOCK).unlink()
                replace_folder(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def cached_file(path: Path, make: Callable[[Path], None], waits: Callable[[], None]) -> Path:
    """A file of a folder that `make` fills, whole or not at all, if the file is not there. Processes that want the same
    wait for the one that makes it, and call `waits` before."""
    folder = path.parent
    if not path.is_file():
        with writing_to(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.parent / f".{folder.name}.lock", waits):
            if not path.is_file():
                with finished_folder(folder) as unfinished:
                    make(unfinished)
    return path


def clear(folder: Path, *, but: str) -> None:
    """Remove all that is in a folder but for one file."""
    for path in folder.iterdir():
        if path.name != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_folder(made: Path, out: Path) -> None:
    """Put a folder in place of another, or where none is. Wrap it in `writing_to`."""
    replaced = _replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if out.exists():
            out.rename(replaced)
        made.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(out: Path) -> Path:
    """Where a folder is while another one takes its place."""
    return out.parent / f".{out.name}.replaced"


def _settle(out: Path) -> None:
    """A process that was killed while it put a folder in place of `out` may have left that one beside it: put it back,
    or remove it where the new one is in place."""
    replaced = _replaced(out)
    if replaced.exists():
        shutil.rmtree(replaced) if out.exists() else replaced.rename(out)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a failed write (disk full, no permission) into one clear line."""
    try:
        yield
    except OSError as error:
        raise AutopruneError(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            remedy="free some space or choose another place",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8; its folder is made where it is not there. Wrap it in `writing_to`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_PARTIAL}{os.getpid()}")
    try:
        partial.write_bytes(text.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, otherwise: str | Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, as long as this process lives at most. Where another one holds it: refused with a message, or
    `otherwise` is called and this process waits. Files beside it that a process which was killed has written in part
    (`write_text`) are removed."""
    with writing_to(path):
        file = path.open("a")
    with file:
        _lock(file, path, otherwise)
        with writing_to(path):
            for partial in path.parent.glob(f".*{_PARTIAL}*"):
                partial.unlink()
        yield


def _lock(file: TextIO, path: Path, otherwise: str | Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not isinstance(otherwise, str):
            otherwise()
            fcntl.flock(file, fcntl.LOCK_EX)
            return
        raise AutopruneError(otherwise, where=str(path.parent), remedy="wait for it, or choose another") from None
    except OSError:  # a file system without locks
        pass
