"""Adapters from the Hub: fetched into its cache, at one commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ....errors import AdapterError, and_more
from ..about import MOST_PICTURE_BYTES, PICTURE_NAMES
from ..contents import CARD, CONFIG, MOST_CONFIG_BYTES, TENSORS
from ..reading import read_json
from .client import TIMEOUT_S, path_in_repo, talking

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

MOST_TENSOR_BYTES, MOST_BASE_BYTES = 2**32, 2**33
"""Of an adapter's tensors, and of a file of a base."""

WAITS_S = (1.0, 3.0)
"""Seconds between the tries to fetch a file that the Hub cannot give now; the client itself does not try again."""

COMMON_TAGS = {"lowpeft", "safetensors", "image-restoration", "image-to-image"}


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An adapter of the Hub in the local cache.

    Attributes:
        folder: Its folder; of a cache, so nothing should be written there.
        repo_id: The repository, `owner/name`.
        commit: The commit that its files are of.
    """

    folder: Path
    repo_id: str
    commit: str


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Pulled:
    """Fetch an adapter from the Hub into its cache, unless it is there.

    The revision is resolved once, and all files are of that commit. If the Hub cannot be reached, what the cache has of
    the revision is used.

    Args:
        repo_id: Repository, `owner/name`.
        revision: Commit, tag or branch; None for the default branch.
        subfolder: Folder of the adapter in the repository; None for its top.
        token: Token for private repositories; by default that of `hf auth login` or of `HF_TOKEN`.
        cache_dir: Folder of the cache; by default the Hub's own.
        local_files_only: True to ask nobody, and take what the cache has.

    Raises:
        AdapterError: The repository, the revision or the folder does not exist, has no adapter, or cannot be read; or
            the Hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path_in_repo(subfolder)
    with _files_of(repo_id, revision, token, cache_dir, local_files_only=local_files_only) as fetched:
        try:
            folder = fetched(path_in_repo(subfolder, CONFIG), revision, MOST_CONFIG_BYTES).parent
            commit = folder.parts[-1 - len(PurePosixPath(subfolder or "").parts)]  # …/snapshots/COMMIT/SUBFOLDER
            fetched(path_in_repo(subfolder, TENSORS), commit, MOST_TENSOR_BYTES)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            where = f"the folder {subfolder!r} of {repo_id!r}" if subfolder else f"{repo_id!r}"
            others = adapters_of(repo_id, revision=revision, token=token)
            named = f"; there are some in {and_more(others)}: subfolder= (--subfolder)" if others else ""
            raise AdapterError(f"{where} has no adapter{named}") from error
        said = (read_json(folder / CONFIG) or {}).get("about")
        picture = said.get("picture") if isinstance(said, dict) else None
        for name in (CARD, *([picture] if picture in PICTURE_NAMES else [])):
            with contextlib.suppress(EntryNotFoundError):
                fetched(path_in_repo(subfolder, name), commit, MOST_PICTURE_BYTES)
    return Pulled(folder=folder, repo_id=repo_id, commit=commit)


def pull_file(
    repo_id: str,
    path: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch one file of a Hub repository into the cache, unless it is there, and return its path.

    Args:
        repo_id: Repository, `owner/name`.
        path: Path of the file in it.
        revision: As for `pull`.
        token: As for `pull`.
        cache_dir: As for `pull`.
        local_files_only: As for `pull`.

    Raises:
        AdapterError: As for `pull`.
    """
    with _files_of(repo_id, revision, token, cache_dir, local_files_only=local_files_only) as fetched:
        return fetched(path_in_repo(path), revision, MOST_BASE_BYTES)


@contextlib.contextmanager
def _files_of(
    repo_id: str, revision: str | None, token: str | None, cache_dir: str | Path | None, *, local_files_only: bool
) -> Iterator[Callable[[str, str | None, int], Path]]:
    """Yield a function that fetches a file of a repository at a revision, and returns its path in the cache.

    Its last argument is the most bytes that the file may have: a larger one is refused before it is fetched.
    Whatever the client raises within the block becomes one error. If the Hub cannot be reached, the cache is asked.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unreachable: Exception | None = None
    sizes: dict[str, int] = {}

    def fetched(path: str, at: str | None, most: int) -> Path:
        if (size := sizes.get(path, 0)) > most:
            raise AdapterError(f"{path} of {repo_id!r} has {size:,} bytes; at most {most:,} are fetched")
        for wait in (*WAITS_S, None):
            try:
                file = hf_hub_download(
                    repo_id,
                    path,
                    revision=at,
                    token=token,
                    cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
                    local_files_only=local_files_only or unreachable is not None,
                    etag_timeout=TIMEOUT_S,
                )
                return Path(file)
            except HfHubHTTPError as error:
                if wait is None or not _passes(error):
                    raise
                time.sleep(wait)
        raise AssertionError

    with talking(f"the Hub repository {repo_id!r} cannot be read", token=token):
        if not local_files_only:
            unreachable, sizes = _asked(repo_id, revision, token)
        try:
            yield fetched
        except LocalEntryNotFoundError:
            if unreachable is not None:
                raise unreachable from None
            raise


def _asked(repo_id: str, revision: str | None, token: str | None) -> tuple[Exception | None, dict[str, int]]:
    """Return why the Hub cannot be asked, None if it answers; and what it says of the sizes of files, in bytes.

    Asked before the files are, because the client waits for minutes for a server that is silent about them.

    Raises:
        HfHubHTTPError: The Hub says that there is no such repository or revision, or that it is not for this token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
        return None, {file.rfilename: file.size or 0 for file in info.siblings or ()}
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        if not _passes(error):
            raise
        return error, {}
    except Exception as error:  # noqa: BLE001  (what is no Hub makes the client raise anything)
        return error, {}


def _passes(error: HfHubHTTPError) -> bool:
    """Return whether a later request could be answered otherwise."""
    passing = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    status = None if error.response is None else error.response.status_code
    return status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in passing


def adapters_of(repo_id: str, *, revision: str | None = None, token: str | None = None) -> list[str]:
    """Return the folders of a Hub repository that hold an adapter; `.` is its top.

    Raises:
        AdapterError: The repository cannot be read.
    """
    with talking(f"the Hub repository {repo_id!r} cannot be read", token=token):
        unreachable, files = _asked(repo_id, revision, token)
        if unreachable is not None:
            raise unreachable
    tensors = {str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == TENSORS}
    configs = {str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == CONFIG}
    return sorted(tensors & configs)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A repository of the Hub that is tagged as lowpeft's.

    Attributes:
        repo_id: The repository, `owner/name`.
        changed: Day of its last change, as YYYY-MM-DD; None if the Hub does not say.
        downloads: Downloads within a month, as the Hub counts them.
        tags: Its tags, without those that all have.
    """

    repo_id: str
    changed: str | None
    downloads: int
    tags: tuple[str, ...]


def search(words: str | None = None, *, most: int = 50, token: str | None = None) -> list[Listed]:
    """Return repositories of the Hub that are tagged `lowpeft`, those with most downloads first.

    Args:
        words: Words that the name of the repository has; None for all.
        most: Largest number of them.
        token: Token for private repositories.

    Raises:
        AdapterError: The Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    with talking("the Hub cannot be searched", token=token):
        found = [*HfApi(token=token).list_models(filter="lowpeft", search=words, sort="downloads", limit=most)]
    return [
        Listed(
            repo_id=each.id,
            changed=None if each.last_modified is None else f"{each.last_modified:%Y-%m-%d}",
            downloads=each.downloads or 0,
            tags=tuple(tag for tag in each.tags or () if tag not in COMMON_TAGS),
        )
        for each in found
    ]
