"""The pattern dialect again, slow and plain: components by recursion, characters one at a time, no regular expression.

Written from the description in the design, not from `lowpeft.ports.patterns`.
"""

from __future__ import annotations


def matches(pattern: str, path: str) -> bool:
    """Whether a glob over dotted paths means `path`."""
    return _components(pattern.split("."), path.split("."))


def _components(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_components(pattern[1:], path[taken:]) for taken in range(len(path) + 1))
    return bool(path) and _characters(pattern[0], path[0]) and _components(pattern[1:], path[1:])


def _characters(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_characters(pattern[1:], text[taken:]) for taken in range(len(text) + 1))
    if not text:
        return False
    if pattern[0] == "?":
        return _characters(pattern[1:], text[1:])
    end = pattern.find("]", 2)
    if pattern[0] == "[" and end > 0:
        inside = pattern[1:end]
        wanted = not inside.startswith("!")
        return (_in_set(inside.removeprefix("!"), text[0]) is wanted) and _characters(pattern[end + 1 :], text[1:])
    return pattern[0] == text[0] and _characters(pattern[1:], text[1:])


def _in_set(inside: str, character: str) -> bool:
    """`a-c` is a range; every other character stands for itself."""
    while inside:
        if len(inside) >= 3 and inside[1] == "-":
            if inside[0] <= character <= inside[2]:
                return True
            inside = inside[3:]
        else:
            if inside[0] == character:
                return True
            inside = inside[1:]
    return False
