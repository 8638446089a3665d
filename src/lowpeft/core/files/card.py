"""The model card of an adapter folder: what it is, which base it needs, how to use it; nothing that is not known."""

from __future__ import annotations

from typing import Any


def model_card(config: dict[str, Any], size_bytes: int, place: str = "path/to/this/folder") -> str:
    """The text of README.md for an adapter.

    Args:
        config: As in `adapter_config.json`.
        size_bytes: Of the adapter's tensors.
        place: What its users load: a folder, or a Hub repository.
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
    """A value as the text of one table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
