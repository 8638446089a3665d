"""Registry class for adapter kinds, families, block forwards, recipes, protocols and layouts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from .errors import LowpeftError, did_you_mean


class Named(Protocol):
    """Protocol of a registry's entries."""

    @property
    def name(self) -> str:
        """Unique name."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Thread-safe mapping of entries by name, in the order of registration.

    Each change builds a new dict and then replaces the old one. A reading thread therefore never sees half of a change,
    and a call that raises changes nothing.
    """

    def __init__(self, what: str, *entries: T, error: type[LowpeftError], advice: str = "") -> None:
        """Create a registry.

        Args:
            what: Name of the sort of entries for error messages, e.g. "adapter kind".
            entries: Initial entries.
            error: Class of the errors for names that are taken or unknown.
            advice: Text to append to the error for an unknown name.
        """
        self._what, self._error, self._advice = what, error, advice
        self._entries: dict[str, T] = {}
        self._lock = threading.Lock()
        self.register(*entries)

    def register(self, *entries: T) -> None:
        """Add all entries, or none if one of them raises.

        Raises:
            LowpeftError: A name is taken. The registry's error class is raised.
        """
        with self._lock:
            changed = dict(self._entries)
            for entry in entries:
                if entry.name in changed:
                    raise self._error(f"the {self._what} {entry.name!r} is registered already; choose another name")
                changed[entry.name] = entry
            self._entries = changed

    def unregister(self, name: str) -> T:
        """Remove an entry and return it; objects that were created with it are unchanged.

        Raises:
            LowpeftError: No entry has this name. The registry's error class is raised.
        """
        with self._lock:
            entry = self.find(name)
            self._entries = {key: value for key, value in self._entries.items() if key != name}
        return entry

    def find(self, name: str) -> T:
        """Return the entry with this name.

        Raises:
            LowpeftError: No entry has this name. The message has the nearest names, then all known names.
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
