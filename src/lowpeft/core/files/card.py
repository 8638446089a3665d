"""Model cards of adapter folders: summary, base, usage, facts. Only known values are written."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...kinds import get_kind
from ...ports.facts import Making, literal
from ...recipes.recipe import config_from_dict

TEXT = """\
---
library_name: lowpeft
pipeline_tag: image-to-image
tags:
- lowpeft
- image-restoration
{view_tag}---

# {name} adapter for {base[model]}

{summary}.
Only the adapter is here: {mb:.2f} MB, for a frozen base of {base[parameters]:,} parameters.

```python
{imports}

{backbone}
model = lowpeft.load_adapter(backbone, {place})
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


_VIEW_TAG = {(True, True): "- stereo-super-resolution\n", (True, False): "- stereo\n"}
"""Tag of an adapter, by whether it is for pairs, and whether the network enlarges images."""


def model_card(config: dict[str, Any], size_bytes: int, place: str, making: Making | None = None) -> str:
    """Return the text of an adapter's README.md.

    Args:
        config: Contents of `adapter_config.json`.
        size_bytes: Total size of the adapter's tensors, in bytes.
        place: Folder or Hub repository to load, as shown in the usage example.
        making: How the base was made, as shown there; None if that is not known.
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
    views = max((c.views for c in configs), default=1)
    network = config.get("network") or {}
    imports, call = _call(network, views)
    rows = [f"| {_cell(key)} | {_cell(value)} |\n" for key, value in facts.items()]
    return TEXT.format(
        base=config["base"],
        name=_plain(recipe["name"]),
        summary=_plain(recipe["summary"] or recipe["name"]),
        mb=size_bytes / 1e6,
        place=literal(place),
        view_tag=_VIEW_TAG.get((views == 2, (network.get("scale") or 1) > 1), ""),
        imports="\n".join([*imports, "import lowpeft", *(() if making is None else making.imports)]),
        backbone=_backbone(config["base"]["model"], making),
        call=call,
        kinds="".join(
            f"| {kind} | {count} | {parameters[kind]:,} | {_cell('; '.join(sorted(settings[kind])))} |\n"
            for kind, count in sites.items()
        ),
        facts="".join(["## Facts\n\n| | |\n|---|---|\n", *rows, "\n"]) if facts else "",
        version=config["lowpeft"],
    )


def _backbone(name: str, making: Making | None) -> str:
    """Return the line that makes the base; of a network that lowpeft did not make, the line that a reader completes.

    The lines after it run as they are.
    """
    if making is None:
        return f"backbone = ...  # fill in: your {_plain(name)}, with its weights (checksums below)"
    return f"backbone = {making.expression}"


def _call(network: dict[str, Any], views: int) -> tuple[list[str], str]:
    """Return the imports and the lines that run the model: on random images, or only a call for other inputs."""
    names = {1: ["image"], 2: ["left", "right"]}.get(views, [f"view_{number}" for number in range(1, views + 1)])
    scale, given = network.get("scale"), ", ".join(names)
    ending = "output" if not scale else "restored" if scale == 1 or views == 1 else "sr"
    results = ending if views == 1 else ", ".join(f"{name}_{ending}" for name in names)
    if not scale or not network.get("channels"):
        return [], f"{results} = model({given})"
    first = f"{views}, " if views > 1 else ""
    images = f"{given} = torch.rand({first}{network['channels']}, 48, 64)  # your own: C,H,W, of values 0..1"
    return ["import torch", ""], f"{images}\n{results} = lowpeft.enhance(model, {given})"


def _cell(value: object) -> str:
    """Return a value as the text of one Markdown table cell."""
    return _plain(value).replace("|", "\\|")


def _plain(value: object) -> str:
    """Return a value on one line, without what Markdown takes for HTML or code."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")
