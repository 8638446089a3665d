"""What every call of the Hub's client needs: one error for whatever it raises, and an end to waiting."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from ....errors import AdapterError, LowpeftError

TIMEOUT_S = 30.0
"""Seconds without a word from the Hub after which a request ends, where the client's own settings have no limit."""

MOST_ADVICE = 600
"""Characters of the Hub's own message that an error shows."""


def is_repo_id(source: object) -> bool:
    """Return whether a text could be the id of a repository, `owner/name`, rather than a path."""
    return isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def path_in_repo(subfolder: str | None, name: str = "") -> str:
    """Return the path of a file in a folder of a repository.

    Raises:
        AdapterError: The folder is no relative path within the repository.
    """
    if subfolder is None:
        return name
    parts = PurePosixPath(subfolder).parts if isinstance(subfolder, str) else ()
    if not parts or subfolder.startswith("/") or {"..", "."} & set(parts):
        raise AdapterError(f"subfolder must be a path within the repository such as 'x4/noise', not {subfolder!r}")
    if not subfolder.isprintable() or re.search(r"[*?\[\]\\]", subfolder):
        raise AdapterError(f"subfolder {subfolder!r} has characters that no folder of a repository should have")
    return "/".join((*parts, name)) if name else "/".join(parts)


def is_on_hub(source: str | Path, **asked: str | None) -> bool:
    """Return whether an adapter is to be had from the Hub: from a repository `owner/name`, if no path is called so.

    Args:
        source: Folder or repository.
        asked: Options that only repositories have: `revision`, `subfolder`.

    Raises:
        AdapterError: It is a path, and such options are given.
    """
    if is_repo_id(source) and not os.path.lexists(source):
        return True
    if given := [f"{option}= (--{option})" for option, value in asked.items() if value is not None]:
        raise AdapterError(f"{' and '.join(given)}: for Hub repositories only; {source} is a path")
    return False


@contextlib.contextmanager
def talking(doing: str, *, token: str | None = None) -> Iterator[None]:
    """Turn whatever the client raises within the block into one AdapterError, and let no request wait for ever.

    A server that is not the Hub (a captive portal, a proxy) makes the client raise anything: its HTTP library's errors,
    JSON's, KeyError, AssertionError.

    Args:
        doing: Start of the message, e.g. "the adapter was not pushed to 'owner/name'".
        token: Token that no message may show.
    """
    with _patience():
        try:
            yield
        except LowpeftError:
            raise
        except Exception as error:  # noqa: BLE001  (see above)
            raise AdapterError(f"{doing}: {_reason(error, token)}") from _without(error, token)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Give the client's shared session a limit for silence, if it has none."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before = getattr(session, "timeout", None)
    waits_for_ever = before is not None and getattr(before, "read", 0) is None
    try:
        if waits_for_ever:
            session.timeout = TIMEOUT_S
        yield
    finally:
        if waits_for_ever:
            session.timeout = before


def _reason(error: BaseException, token: str | None) -> str:
    """Return what the client says, on one line, with the Hub's advice and without secrets."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # the client wraps errors of its threads
        chain.append(error)
        error = error.__cause__  # type: ignore[assignment]
    lines = [str(each) or type(each).__name__ for each in (chain[0], chain[-1])]
    if not isinstance(chain[0], (OSError, ValueError)):
        lines[0] = f"{type(chain[0]).__name__}: {lines[0]}"
    said = lines[0] if len(chain) == 1 or lines[1] in lines[0] else f"{lines[0]} ({lines[1]})"
    text = " ".join(_hidden(said, token).split())
    status = getattr(getattr(chain[0], "response", None), "status_code", None)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{text[:MOST_ADVICE]} (`hf auth login` stores a token; it needs write access to push)"
    return text if len(text) <= MOST_ADVICE else f"{text[:MOST_ADVICE]}…"


def _hidden(text: str, token: str | None) -> str:
    """Return a text without tokens."""
    from huggingface_hub import get_token

    secrets = (token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"), get_token())
    for secret in filter(None, (form for each in secrets if each for form in (each, each.strip(), repr(each)[1:-1]))):
        text = text.replace(secret, "***")
    return re.sub(r"\bhf_[\w.-]{8,}", "***", text)


def _without(error: Exception, token: str | None) -> Exception | None:
    """Return the error as the cause of another one; None if it shows a token."""
    shown = f"{error} {error.args!r}"
    return error if _hidden(shown, token) == shown else None
