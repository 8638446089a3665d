"""Switches of a network: its default setting, and the gate between its forwards and changes of its structure."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from .settings import Setting, Strength

Result = TypeVar("Result")

POLL_S = 0.001
FIRST_PATIENCE_S = 1.0
"""Seconds for which a change, at its first try, blocks new forwards while it waits for running ones."""


class Switches:
    """Default setting of one adapted network, and the gate between its forwards and changes of its structure.

    Attributes:
        default: Setting in force outside `using` blocks, with every attached adapter. It is replaced, never mutated.
        owners: Mapping from adapter name to an object that identifies the adapter and stays the same when the adapter
            is renamed.
        in_groups: Names of adapters that cannot have strengths by image in one forward, e.g. weight adapters.
        views: Number of views of a scene that the network runs as one batch.
        structure: Lock for reading or changing the structure of the network; forwards do not take it.
    """

    def __init__(self) -> None:
        self.default = Setting({})
        self.owners: dict[str, object] = {}
        self.in_groups: frozenset[str] = frozenset()
        self.views = 1
        self.renew_locks()
        _ALL.add(self)

    def renew_locks(self) -> None:
        """Create new, free locks. In a forked process, locks held by other threads would never be released."""
        self.structure = threading.RLock()
        self._door = threading.RLock()
        self._own = threading.local()
        self._locks: list[weakref.ref[Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the default setting, `in_groups` and `views`; a copy is for another network and gets new locks."""
        return _copied, (self.default.values, self.in_groups, self.views)

    def state(self) -> dict[str, Any]:
        """Return the attributes that a change may write, by name."""
        return {name: getattr(self, name) for name in ("default", "owners", "in_groups", "views")}

    def owners_of(self, setting: Setting) -> dict[str, object]:
        """Return the owners of the adapters that a setting names."""
        return {name: self.owners[name] for name in setting.values if name in self.owners}

    def attach(self, names: Iterable[str], in_groups: frozenset[str], views: int) -> None:
        """Register exactly these adapters as attached; known ones keep their strength, new ones get strength 1."""
        values = self.default.values
        self.in_groups, self.views = in_groups, views
        self.owners = {name: self.owners.get(name) or object() for name in names}
        self.default = Setting({name: values.get(name, 1.0) for name in self.owners})

    def rename(self, name: str, new: str) -> None:
        """Rename an adapter."""
        self.owners = {new if n == name else n: owner for n, owner in self.owners.items()}
        self.default = self.default.renamed({name: new})

    def passing(self) -> Any:
        """Return the lock that this thread holds during a forward; waits while the structure is being changed.

        Each thread has its own lock, so forwards do not wait for each other.
        """
        return hold(self._door, self._lock_of_thread)

    def _lock_of_thread(self) -> Any:
        lock = getattr(self._own, "lock", None)
        if lock is None:
            self._locks = [known for known in self._locks if known() is not None]
            lock = self._own.lock = threading.RLock()
            self._locks.append(weakref.ref(lock))
        return lock

    def alone(self, body: Callable[[], Result]) -> Result:
        """Run `body` while no forward is running, and block new ones meanwhile; do not call within a forward."""
        patience_s = FIRST_PATIENCE_S
        while True:
            done, result = hold(self._door, functools.partial(self._try_alone, body, patience_s))
            if done:
                return cast(Result, result)
            # A running forward may itself wait for a forward that is blocked at the door (in another thread). So open
            # the door for a moment, and be more patient next time.
            time.sleep(POLL_S)
            patience_s *= 2

    def _try_alone(self, body: Callable[[], Result], patience_s: float) -> tuple[bool, Result | None]:
        until = time.monotonic() + patience_s
        while True:
            locks = [lock for known in self._locks if (lock := known())]
            # Read from a lock's repr whether it is free: an interruption after acquiring it could leave it locked.
            if all(repr(lock).startswith("<unlocked") or _is_mine(lock) for lock in locks):
                return True, _hold_all(locks, body)
            if time.monotonic() > until:
                return False, None
            time.sleep(POLL_S)


_ALL: weakref.WeakSet[Switches] = weakref.WeakSet()


def _renew_all_locks() -> None:
    for switches in list(_ALL):
        switches.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all_locks)


def _copied(values: Mapping[str, Strength], in_groups: frozenset[str], views: int) -> Switches:
    switches = Switches()
    switches.attach(values, in_groups, views)
    switches.default = Setting(values)
    return switches


def hold(lock: Any, body: Callable[[], Result]) -> Result:
    """Run `body` while holding a lock. All on one line, so that no interruption comes before the lock is released."""
    with lock: return body()  # fmt: skip  # noqa: E701


def _is_mine(lock: Any) -> bool:
    return f"owner={threading.get_ident()} " in repr(lock)


def _hold_all(locks: list[Any], body: Callable[[], Result]) -> Result:
    return hold(locks[0], lambda: _hold_all(locks[1:], body)) if locks else body()
