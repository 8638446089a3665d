"""A Hub of one repository, in a folder, in place of huggingface_hub's API."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub.errors import HfHubHTTPError


class Hub:
    """A Hub of one repository, in a folder; `calls` are what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, Any] = {}
        self.refuses: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if self.refuses:
            raise self.refuses
        if self.folder.exists():
            raise self.answer(409)
        self.calls["create_repo"] = (repo_id, options)

    def answer(self, status: int) -> HfHubHTTPError:
        response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
        return HfHubHTTPError(f"{status} it said", response=response)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls["create_branch"] = (repo_id, options)

    def file_exists(self, repo_id: str, filename: str, **_: Any) -> bool:
        return (self.folder / filename).exists()

    def hf_hub_download(self, repo_id: str, filename: str, **_: Any) -> str:
        return str(self.folder / filename)

    def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
        self.calls["upload_folder"] = options
        self.sent = sorted(p.name for p in folder_path.iterdir())
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return SimpleNamespace(commit_url="https://hub/commit/1")
