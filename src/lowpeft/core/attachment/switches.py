"""The switches of one network: its default setting, and the gate between its forwards and changes of its structure."""

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
"""How long a change first holds new forwards back while it waits for those that are under way."""


class Switches:
    """The default setting of one adapted network, and the gate between its forwards and changes of its structure.

    Attributes:
        default: What is in force where `using` says nothing: every attached adapter by name. Replaced, never written.
        owners: Something for each attached adapter that stays the same when it is renamed, by name.
        in_groups: Adapters that cannot have strengths by image in one forward (they change weights, say).
        views: How many views of a scene the network runs as one batch.
        structure: Held by whoever reads or changes the structure of the network; forwards do not take it.
    """

    def __init__(self) -> None:
        self.default = Setting({})
        self.owners: dict[str, object] = {}
        self.in_groups: frozenset[str] = frozenset()
        self.views = 1
        self.renew_locks()
        _ALL.add(self)

    def renew_locks(self) -> None:
        """Have locks that nobody holds; in a process that was forked, other threads' locks stay held for ever."""
        self.structure = threading.RLock()
        self._door = threading.RLock()
        self._own = threading.local()
        self._locks: list[weakref.ref[Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is of another network: it has the default, and locks of its own."""
        return _copied, (self.default.values, self.in_groups, self.views)

    def state(self) -> dict[str, Any]:
        """What a change may change, by attribute."""
        return {name: getattr(self, name) for name in ("default", "owners", "in_groups", "views")}

    def owners_of(self, setting: Setting) -> dict[str, object]:
        """Those of the adapters that a setting names."""
        return {name: self.owners[name] for name in setting.values if name in self.owners}

    def attach(self, names: Iterable[str], in_groups: frozenset[str], views: int) -> None:
        """Have these adapters attached and no others: those that are new at full strength."""
        values = self.default.values
        self.in_groups, self.views = in_groups, views
        self.owners = {name: self.owners.get(name) or object() for name in names}
        self.default = Setting({name: values.get(name, 1.0) for name in self.owners})

    def rename(self, name: str, new: str) -> None:
        """Give an adapter another name."""
        self.owners = {new if n == name else n: owner for n, owner in self.owners.items()}
        self.default = self.default.renamed({name: new})

    def passing(self) -> Any:
        """The lock of this thread, to be held during a forward; waits while the structure is changed.

        Each thread has its own, so that forwards do not wait for each other.
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
        """Run `body` when no forward is under way, and let none start meanwhile; not to be called within one."""
        patience_s = FIRST_PATIENCE_S
        while True:
            done, result = hold(self._door, functools.partial(self._try_alone, body, patience_s))
            if done:
                return cast(Result, result)
            # A forward that is under way may itself wait for one that waits here: let those in, and wait longer then.
            time.sleep(POLL_S)
            patience_s *= 2

    def _try_alone(self, body: Callable[[], Result], patience_s: float) -> tuple[bool, Result | None]:
        until = time.monotonic() + patience_s
        while True:
            locks = [lock for known in self._locks if (lock := known())]
            # What a lock prints says whether it is free; taking it to find out could be interrupted before giving back.
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
    """Run `body` while a lock is held; on one line, so that no interruption comes between its end and giving back."""
    with lock: return body()  # fmt: skip  # noqa: E701


def _is_mine(lock: Any) -> bool:
    return f"owner={threading.get_ident()} " in repr(lock)


def _hold_all(locks: list[Any], body: Callable[[], Result]) -> Result:
    return hold(locks[0], lambda: _hold_all(locks[1:], body)) if locks else body()
