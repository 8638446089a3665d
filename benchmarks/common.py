"""What every results file records of its run."""

from __future__ import annotations

import datetime
import json
import platform
from importlib import metadata
from pathlib import Path

import torch

import lowpeft


def provenance(command: str, *packages: str) -> dict[str, object]:
    """The command, date, device and versions of a run on the CPU; `packages` are those beside lowpeft and torch."""
    versions = {"lowpeft": lowpeft.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": {**versions, **{name: metadata.version(name) for name in packages}},
    }


def write(results: dict[str, object], out: Path | None) -> None:
    """Print results as JSON, and write them to `out` where one is named."""
    text = json.dumps(results, indent=2) + "\n"
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
