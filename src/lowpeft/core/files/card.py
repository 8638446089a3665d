"""Model cards of adapter folders: summary, base, usage, facts. Only known values are written."""

from __future__ import annotations

from typing import Any


def model_card(config: dict[str, Any], size_bytes: int, place: str = "path/to/this/folder") -> str:
    """Return the text of an adapter's README.md.

    Args:
        config: Contents of `adapter_config.json`.
        size_bytes: Total size of the adapter's tensors, in bytes.
        place: Folder or Hub repository to load, as shown in the usage example.
    """
    base, recipe = config["base"], config["recipe"]
    kinds: dict[str, list[int]] = {}
    for group in config["sites"]:
        row = kinds.setdefault(group["adapter"]["kind"], [0, 0])
        row[0] += len(group["places"])
        row[1] += len(group["places"]) * group["parameters"]
    stereo = "stereo" in kinds
    call = "left_sr, right_sr = model(left, right)" if stereo else "restored = model(image)"
    tags = ["lowpeft", "image-restoration", *(["stereo-super-resolution"] if stereo else [])]
    lines = [
        "---",
        "library_name: lowpeft",
        "pipeline_tag: image-to-image",
        "tags:",
        *[f"- {t}" for t in tags],
        "---",
        "",
        f"# {recipe['name']} adapter for {base['model']}",
        "",
        f"{recipe['summary'] or recipe['name']}.",
        f"Only the adapter is here: {size_bytes / 1e6:.2f} MB, for a frozen base of {base['parameters']:,} parameters.",
        "",
        "```python",
        "import lowpeft",
        "",
        'backbone = lowpeft.load_backbone("path/to/the/base/weights")',
        f'model = lowpeft.load_adapter(backbone, "{place}")',
        call,
        "```",
        "",
        "| adapter | sites | parameters |",
        "|---|---|---|",
        *[f"| {kind} | {sites} | {count:,} |" for kind, (sites, count) in kinds.items()],
        "",
        "## Base",
        "",
        "The adapter is refused on any other base than this one.",
        "",
        "| | |",
        "|---|---|",
        f"| class | {base['model']} |",
        f"| parameters | {base['parameters']:,} |",
        f"| structure (SHA-256) | `{base['structure']}` |",
        f"| weights (SHA-256) | `{base['weights']}` |",
        "",
    ]
    if config["facts"]:
        lines += ["## Facts", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in config["facts"].items()] + [""]
    lines += [f"Written by lowpeft {config['lowpeft']}.", ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Return a value as the text of one Markdown table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
