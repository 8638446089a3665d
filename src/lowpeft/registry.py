"""The one class behind every open table: adapter kinds, families, block forwards, recipes, protocols, layouts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from .errors import LowpeftError, did_you_mean


class Named(Protocol):
    """An entry of a table."""

    @property
    def name(self) -> str:
        """Unique name."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name, in the order of registration.

    Every change makes a new table and puts it in place of the old one, so a thread that reads never sees half of a
    change, and a call that raises changes nothing.
    """

    def __init__(self, what: str, *entries: T, error: type[LowpeftError], advice: str = "") -> None:
        """Make a table.

        Args:
            what: An entry in the words of errors, as "adapter kind".
            entries: The first entries.
            error: Raised for names that are taken or unknown.
            advice: Appended where a name is unknown.
        """
        self._what, self._error, self._advice = what, error, advice
        self._entries: dict[str, T] = {}
        self._lock = threading.Lock()
        self.register(*entries)

    def register(self, *entries: T) -> None:
        """Add entries, all or none.

        Raises:
            LowpeftError: A name is taken, of the class that the table was made with.
        """
        with self._lock:
            changed = dict(self._entries)
            for entry in entries:
                if entry.name in changed:
                    raise self._error(f"the {self._what} {entry.name!r} is registered already")
                changed[entry.name] = entry
            self._entries = changed

    def unregister(self, name: str) -> T:
        """Remove an entry and return it; what was made with it stays as it is.

        Raises:
            LowpeftError: There is no such entry.
        """
        with self._lock:
            entry = self.find(name)
            self._entries = {key: value for key, value in self._entries.items() if key != name}
        return entry

    def find(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            LowpeftError: There is none; the known names are listed, the nearest first.
        """
        entries = self._entries
        if name not in entries:
            near, known = did_you_mean(str(name), entries), ", ".join(sorted(entries))
            raise self._error(f"no {self._what} {name!r}{near}; known: {known}{self._advice}")
        return entries[name]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
