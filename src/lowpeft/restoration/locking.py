"""The lock on a run's folder, so that no two runs write into it at once."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, TrainingError

LOCK = ".lowpeft.lock"

_held: set[Path] = set()
_holding = threading.Lock()

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 20
    """Offset of the byte that is locked: beyond the text, which others can then read."""

    def _lock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

    def _release(handle: int, path: Path) -> None:
        """Unlock, as Windows may take its time to do so after a file is closed, and remove the file once closed."""
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        with contextlib.suppress(OSError):  # a file system without locks
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        os.close(handle)
        with contextlib.suppress(OSError):  # another run has opened it since
            path.unlink()
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(handle: int, path: Path) -> None:
        """Remove the file while it is locked, so that no other run locks a file that is about to go."""
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, error: type[TrainingError | DataError]) -> Iterator[None]:
    """Hold the folder, which is made, within the block; the lock ends with the process, however that ends.

    It is a lock of the operating system, which processes forked from this one do not inherit, on a file that is removed
    afterwards. Where the file system has no locks, only runs of this process are kept apart.

    Args:
        folder: The folder.
        error: Class of the error.

    Raises:
        TrainingError | DataError: Another run, of this process or another, holds it.
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    with _holding:  # such a lock is of the whole process, so threads are kept apart by what it holds
        if path in _held:
            raise error(_taken(folder, "this process"))
        handle = _opened(path, folder, error)
        _held.add(path)
    try:
        yield
    finally:
        with _holding:
            _release(handle, path)
            _held.discard(path)


def _opened(path: Path, folder: Path, error: type[TrainingError | DataError]) -> int:
    """Return the handle of the lock file, locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try(handle, folder, error)
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one that held it has removed the file since it was opened here


def _try(handle: int, folder: Path, error: type[TrainingError | DataError]) -> None:
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        os.lseek(handle, 0, os.SEEK_SET)
        raise error(_taken(folder, os.read(handle, 300).decode(errors="replace") or "another process")) from None
    except OSError:
        return  # a file system without locks, as some of clusters


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _taken(folder: Path, who: str) -> str:
    return f"another run is writing into {folder} ({who}): wait for its end, or choose another folder"
