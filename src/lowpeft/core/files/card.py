"""Model cards of adapter folders: summary, base, usage, facts. Only known values are written."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...kinds import get_kind
from ...recipes.recipe import config_from_dict

TEXT = """\
---
library_name: lowpeft
pipeline_tag: image-to-image
tags:
- lowpeft
- image-restoration
{stereo_tag}---

# {name} adapter for {base[model]}

{summary}.
Only the adapter is here: {mb:.2f} MB, for a frozen base of {base[parameters]:,} parameters.

```python
import lowpeft

backbone = lowpeft.load_backbone("path/to/the/base/weights")
model = lowpeft.load_adapter(backbone, "{place}")
{call}
```

| adapter | sites | parameters | settings |
|---|---|---|---|
{kinds}
## Base

The adapter is refused on any other base than this one.

| | |
|---|---|
| class | {base[model]} |
| parameters | {base[parameters]:,} |
| structure (SHA-256) | `{base[structure]}` |
| weights (SHA-256) | `{base[weights]}` |

{facts}Written by lowpeft {version}.
"""


def model_card(config: dict[str, Any], size_bytes: int, place: str = "path/to/this/folder") -> str:
    """Return the text of an adapter's README.md.

    Args:
        config: Contents of `adapter_config.json`.
        size_bytes: Total size of the adapter's tensors, in bytes.
        place: Folder or Hub repository to load, as shown in the usage example.
    """
    recipe, facts = config["recipe"], config["facts"]
    sites: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    settings: dict[str, set[str]] = {}
    for group in config["sites"]:
        kind, count = group["adapter"]["kind"], len(group["places"])
        sites[kind] += count
        parameters[kind] += count * group["parameters"]
        settings.setdefault(kind, set()).add(config_from_dict(group["adapter"]).settings)
    configs = [config_from_dict(group["adapter"]) for group in config["sites"]]
    if any(get_kind(c.kind).needs_data(c) for c in configs):
        facts = {"calibrated": "yes" if config.get("calibrated") else "no, its start is not learned from data", **facts}
    stereo = any(c.views == 2 for c in configs)
    rows = [f"| {_cell(key)} | {_cell(value)} |\n" for key, value in facts.items()]
    return TEXT.format(
        base=config["base"],
        name=_plain(recipe["name"]),
        summary=_plain(recipe["summary"] or recipe["name"]),
        mb=size_bytes / 1e6,
        place=place,
        stereo_tag="- stereo-super-resolution\n" if stereo else "",
        call="left_sr, right_sr = model(left, right)" if stereo else "restored = model(image)",
        kinds="".join(
            f"| {kind} | {count} | {parameters[kind]:,} | {_cell('; '.join(sorted(settings[kind])))} |\n"
            for kind, count in sites.items()
        ),
        facts="".join(["## Facts\n\n| | |\n|---|---|\n", *rows, "\n"]) if facts else "",
        version=config["lowpeft"],
    )


def _cell(value: object) -> str:
    """Return a value as the text of one Markdown table cell."""
    return _plain(value).replace("|", "\\|")


def _plain(value: object) -> str:
    """Return a value on one line, without what Markdown takes for HTML or code."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")
