"""Locks on folders, so that no two runs, and no two savers, write into one at once."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import LowpeftError

LOCK = ".lowpeft.lock"
"""Name of the file that a run locks."""

WAIT_S = 0.02

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
def locked(folder: Path, error: type[LowpeftError], *, name: str = LOCK, wait_s: float = 0) -> Iterator[None]:
    """Hold the folder, which is made, within the block; the lock ends with the process, however that ends.

    It is a lock of the operating system, which processes forked from this one do not inherit, on a file that is removed
    afterwards. Where the file system has no locks, only runs of this process are kept apart.

    Args:
        folder: The folder.
        error: Class of the error.
        name: Name of the locked file: what holds one name does not exclude what holds another.
        wait_s: Seconds to wait for another holder to end.

    Raises:
        LowpeftError: Another run, of this process or another, holds it; of the class `error`.
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, until = folder.resolve() / name, time.monotonic() + wait_s
    while isinstance(handle := _acquired(path), str):
        if time.monotonic() >= until:
            who = f"another run is writing into {folder} ({handle})"
            raise error(f"{who}: wait for its end, or choose another folder")
        time.sleep(WAIT_S)
    try:
        yield
    finally:
        with _holding:
            _release(handle, path)
            _held.discard(path)


def _acquired(path: Path) -> int | str:
    """Return the handle of the lock file, locked; or who holds it, if another does."""
    with _holding:  # such a lock is of the whole process, so threads are kept apart by what it holds
        if path in _held:
            return "this process"
        handle = _opened(path)
        if isinstance(handle, int):
            _held.add(path)
        return handle


def _opened(path: Path) -> int | str:
    while True:
        # A link could lead to a file of somebody else's, which the lock's text would overwrite.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OSError(errno.EINVAL, "it is not a file of its own, which a lock is: remove it", str(path))
            holder = _holder(handle)
            if holder is None and _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if holder is not None:
            return holder
        # The one that held it has removed the file since it was opened here.


def _holder(handle: int) -> str | None:
    """Lock an open file; return who holds it instead, None if it is locked now."""
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        os.lseek(handle, 0, os.SEEK_SET)
        return os.read(handle, 300).decode(errors="replace") or "another process"
    except OSError:
        return None  # a file system without locks, as some of clusters
    return None


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
