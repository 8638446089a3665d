"""Model cards of adapter folders: summary, usage, results, facts. Only known values are written."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import AdapterError
from ...kinds import get_kind
from ...ports.facts import Making
from ...recipes.recipe import config_from_dict
from .about import About, Result, about_from_dict

TEXT = """\
---
{metadata}---

# {name} adapter for {base[model]}

{summary}
Only the adapter is here: {mb:.2f} MB, for a frozen base of {base[parameters]:,} parameters.

{picture}{use}```python
{code}
```

| adapter | sites | parameters | settings |
|---|---|---|---|
{kinds}
{results}{training}## Base

The adapter is refused on any other base than this one.

| | |
|---|---|
| class | {base[model]} |
| parameters | {base[parameters]:,} |
| structure (SHA-256) | `{base[structure]}` |
| weights (SHA-256) | `{base[weights]}` |
{source}
{facts}Written by lowpeft {version}.
"""

TASKS = {"noise": "denoising", "poisson": "denoising", "jpeg": "jpeg-artifact-removal", "blur": "deblurring"}
"""Tags of what an adapter of scale 1 was trained on, by the step of the degradation."""
METRICS = ("psnr", "ssim", "lpips", "dists")
"""Types of metrics that the Hub knows, which names of columns begin with."""
MOST_CARD_BYTES = 2**20
MOST_CODE = 2_000
"""Characters of the code that makes a base, and of its imports."""
HUB_NAME = r"[\w.-]+(/[\w.-]+)?"
"""What a data set of the Hub may be named; others are on the card alone."""
TRAINING = {
    "steps": "steps",
    "batch": "batch",
    "crop_height_px": "crop height in px of the clean image",
    "crop_width_px": "crop width in px of the clean image",
    "loss": "loss",
    "optimizer": "optimiser",
    "learning_rate": "peak learning rate",
    "schedule": "schedule",
    "warmup_steps": "warm-up steps",
    "weight_decay": "weight decay",
    "clip_norm": "gradient clipping, norm",
    "precision": "precision",
    "seed": "seed",
}
"""Settings of training that the card shows, and what they are called there."""


def model_card(config: Mapping[str, Any], size_bytes: int, place: str, making: Making | None = None) -> str:
    """Return the text of an adapter's README.md.

    Args:
        config: Contents of `adapter_config.json`.
        size_bytes: Total size of the adapter's tensors, in bytes.
        place: Arguments of `load_adapter` as Python code: a folder, or a Hub repository and a folder in it.
        making: How the base was made, as shown there; None if that is not known.
    """
    recipe, facts = config["recipe"], config["facts"]
    about = about_from_dict(config.get("about") or {})
    configs = [config_from_dict(group["adapter"]) for group in config["sites"]]
    training = recipe["training"] if "training" in facts else {}  # otherwise it was trained by other code
    if about.datasets:
        facts = {"data sets": ", ".join(about.datasets), **facts}
    if any(get_kind(c.kind).needs_data(c) for c in configs):
        facts = {"calibrated": "yes" if config.get("calibrated") else "no, its start is not learned from data", **facts}
    views = max((c.views for c in configs), default=1)
    return TEXT.format(
        metadata=_metadata(config, about, views),
        base={key: value if isinstance(value, int) else _plain(value) for key, value in config["base"].items()},
        name=_plain(recipe["name"]),
        summary=_summary(about, recipe),
        use=_use(config, about, place),
        mb=size_bytes / 1e6,
        picture=f"![Results]({about.picture})\n\n" if about.picture else "",
        code=_code(config, about, place, making, views),
        kinds=_kinds(config["sites"]),
        results="".join(map(_results, about.results)),
        training=_section("Training", {TRAINING[k]: training[k] for k in TRAINING if k in training}.items()),
        source=f"| weights from | {_link(about.base_model)} |\n" if about.base_model else "",
        facts=_section("Facts", facts.items()) + _licence(about),
        version=_plain(config["lowpeft"]),
    )


def repository_card(config: Mapping[str, Any], repo_id: str) -> str:
    """Return the card of a repository whose adapters are in folders, by which the Hub finds it.

    Args:
        config: Config of its first adapter.
        repo_id: The repository.
    """
    about = about_from_dict(config.get("about") or {})
    views = max((config_from_dict(group["adapter"]).views for group in config["sites"]), default=1)
    metadata = _metadata(config, replace(about, results=()), views)
    text = f"Each folder holds an adapter, with a card of its own: `lowpeft list {repo_id}` shows them."
    return f"---\n{metadata}---\n\n# Adapters for lowpeft\n\n{text}\n"


def is_repository_card(card: str) -> bool:
    """Return whether a card is one that `repository_card` wrote."""
    return "---\n\n# Adapters for lowpeft\n\nEach folder holds an adapter" in card


def card_text(path: Path) -> str:
    """Return the text of a card, which a stranger may have written.

    Raises:
        AdapterError: It is larger than 1 MiB.
        OSError: It cannot be read.
    """
    if (size := path.stat().st_size) > MOST_CARD_BYTES:
        raise AdapterError(f"the card {path} has {size:,} bytes; at most {MOST_CARD_BYTES:,} are read")
    return path.read_text(encoding="utf-8", errors="replace")


def making_in(card: str) -> Making | None:
    """Return how the base is made in a card that `model_card` wrote; None if it does not say that, or in other code.

    What is taken over is imports of names, and one call with plain values or such calls as arguments.
    """
    _, begun, code = card.partition("\nimport lowpeft\n")
    imports, found, rest = code.partition("\nbackbone = ")
    expression, _, after = rest.partition("\n")
    if not found:  # the base is fetched; of a network of the author's own, the card has its code
        imports, found, rest = code.partition("\nmodel = lowpeft.load_pretrained(")
        after, (_, own, network) = "model = ", rest.partition("\n")[0].partition(", network=")
        expression = f'lowpeft.load_backbone("network", network={network.removesuffix(")")})' if own else "None"
    if not begun or not found or not after.startswith("model = ") or max(map(len, (imports, expression))) > MOST_CODE:
        return None
    lines = imports.split("\n")[:-1] if imports else []
    names = [_imported(line) for line in lines]
    try:
        parsed = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if None in names or "#" in expression or not _is_making(parsed, {"lowpeft", *filter(None, names)}):
        return None
    return Making(expression=expression, imports=tuple(lines))


def _imported(line: str) -> str | None:
    """Return the name that a line of `Making.imports` brings; "" if it brings none, None if it is another line.

    What Python itself has is no network.
    """
    if not line or re.fullmatch(r"network = \.\.\.  # fill in: [\w., ]+", line):
        return "network" if line else ""
    found = re.fullmatch(r"from (?P<root>[A-Za-z_]\w*)(\.[A-Za-z_]\w*)* import (?P<name>[A-Za-z_]\w*)", line)
    return None if found is None or found["root"] in sys.stdlib_module_names else found["name"]


def _is_making(node: ast.AST, names: Collection[str]) -> bool:
    """Return whether an expression is a call of what one of the names has, with plain values or such calls."""
    match node:
        case ast.Call(func=function, args=args, keywords=keywords):
            given = [*args, *(each.value for each in keywords)]
            return _root_of(function) in names and all(_is_argument(each, names) for each in given)
    return False


def _root_of(node: ast.AST) -> str | None:
    """Return the first name of a dotted one; None for other expressions."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_argument(node: ast.AST, names: Collection[str]) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return (isinstance(node, ast.Name) and node.id in names) or _is_making(node, names)
    return True


def _metadata(config: Mapping[str, Any], about: About, views: int) -> str:
    """Return the metadata that the Hub finds adapters by, as YAML."""
    from huggingface_hub import ModelCardData

    network, recipe = config.get("network") or {}, config["recipe"]
    name = f"{recipe['name']} adapter for {config['base']['model']}"
    data = ModelCardData(
        library_name="lowpeft",
        license=about.license,
        base_model=about.base_repo,
        datasets=[name for name in about.datasets if re.fullmatch(HUB_NAME, name)] or None,
        pipeline_tag="image-to-image",
        tags=_tags(network.get("scale"), views, config["facts"], (recipe["name"], config.get("family"))),
        metrics=sorted({metric for metric, *_ in _figures(about.results)}) or None,
        model_name=_plain(name) if about.results else None,
        eval_results=_model_index(about.results) or None,
    )
    return f"{data.to_yaml()}\n"


def _tags(scale: int | None, views: int, facts: Mapping[str, Any], names: Iterable[str | None]) -> list[str]:
    """Return tags: of the library, the task, the scale, the recipe and the family."""
    tasks = []
    if (scale or 1) > 1:
        tasks = ["super-resolution", *["stereo-super-resolution"] * (views == 2), f"x{scale}"]
    else:
        steps = re.findall(r"[a-z]+", str(facts.get("degraded by", "")))
        tasks = [*dict.fromkeys(TASKS[step] for step in steps if step in TASKS), *["stereo"] * (views == 2)]
    return [*dict.fromkeys(["lowpeft", "image-restoration", *tasks, *(_plain(name) for name in names if name)])]


def _figures(results: Iterable[Result]) -> list[tuple[str, str, float, Result]]:
    """Return type, name and value of what was measured of adapted images, of the metrics that the Hub knows."""
    found = []
    for result in results:
        for column, value in result.means.get("adapted", {}).items():
            if (metric := column.split(" ")[0].lower()) in METRICS:
                found.append((metric, column, value, result))
    return found


def _model_index(results: Iterable[Result]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-to-image",
            dataset_name=result.data,
            dataset_type=re.sub(r"\W+", "-", result.data.lower()).strip("-") or "images",
            dataset_args={"images": result.degraded},
            metric_type=metric,
            metric_name=column,
            metric_value=round(value, 4),
        )
        for metric, column, value, result in _figures(results)
    ]


def _summary(about: About, recipe: Mapping[str, Any]) -> str:
    """Return what the author says that the adapter is for, and what the recipe is."""
    sentences = [about.summary, recipe["summary"] or recipe["name"]]
    plain = [_plain(each).rstrip(".") for each in sentences if each]
    return " ".join(f"{each[:1].upper()}{each[1:]}." for each in plain)


def _use(config: Mapping[str, Any], about: About, place: str) -> str:
    """Return the command that uses the adapter, where lowpeft finds its base; nothing otherwise."""
    opening = config.get("opening")
    found = opening is not None and ("demo" in opening or about.base_file is not None)
    if not found or not (config.get("network") or {}).get("scale"):
        return ""
    repo, _, folder = place.partition(", subfolder=")
    words = [shlex.quote(ast.literal_eval(each)) for each in (repo, folder) if each]
    options = [f"{name} {word}" for name, word in zip(("--adapter", "--subfolder"), words, strict=False)]
    command = f"lowpeft enhance IMAGE {' '.join(options)} --out restored"
    return f"```bash\npip install 'lowpeft[train,spandrel]'\n{command}\n```\n\n"


def _code(config: Mapping[str, Any], about: About, place: str, making: Making | None, views: int) -> str:
    """Return the lines that load and run the model."""
    imports, run = _call(config.get("network") or {}, views)
    own = None if making is None or about.base_file is None else _network_of(making.expression)
    if about.base_file is not None and (config.get("opening") is not None or own is not None):
        lines = [*imports, "import lowpeft", *(making.imports if making is not None and own is not None else ()), ""]
        network = "" if own is None else f", network={own}"
        return "\n".join([*lines, f"model = lowpeft.load_pretrained({place}{network})", run])
    lines = [*imports, "import lowpeft", *(() if making is None else making.imports), ""]
    lines += [_backbone(config["base"]["model"], making), f"model = lowpeft.load_adapter(backbone, {place})", run]
    return "\n".join(lines)


def _network_of(expression: str) -> str | None:
    """Return the code of the user's network that `load_backbone(FILE, network=…)` fills; None if there is none."""
    for node in ast.walk(ast.parse(expression, mode="eval")):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lowpeft.load_backbone":
            return next((ast.unparse(each.value) for each in node.keywords if each.arg == "network"), None)
    return None


def _licence(about: About) -> str:
    return f"Licence of the adapter: {about.license}.\n\n" if about.license else ""


def _kinds(groups: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows of the kinds of adapters."""
    sites: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    settings: dict[str, set[str]] = {}
    for group in groups:
        kind, count = group["adapter"]["kind"], len(group["places"])
        sites[kind] += count
        parameters[kind] += count * group["parameters"]
        settings.setdefault(kind, set()).add(config_from_dict(group["adapter"]).settings)
    return "".join(
        f"| {kind} | {count} | {parameters[kind]:,} | {_cell('; '.join(sorted(settings[kind])))} |\n"
        for kind, count in sites.items()
    )


def _results(result: Result) -> str:
    """Return the section of a result: a row for each method."""
    columns = [*dict.fromkeys(column for means in result.means.values() for column in means)]
    rows = [
        [method, *(_figure(means[column]) if column in means else "" for column in columns)]
        for method, means in result.means.items()
    ]
    heading, *lines = (f"| {' | '.join(map(_cell, row))} |\n" for row in [["", *columns], *rows])
    text = "".join([heading, "|---" * (1 + len(columns)), "|\n", *lines])
    count = "" if result.scenes is None else f", {result.scenes:,} scenes"
    verdict = f"{_plain(result.verdict)}\n\n" if result.verdict else ""
    how = f"{_plain(result.degraded)}; {_plain(result.protocol)}"
    return f"## Results on {_plain(result.data)}{count}\n\n{how}\n\n{verdict}{text}\n"


def _figure(value: float) -> str:
    """Return a mean with the digits that papers print: two for dB, four for what is below 2."""
    return f"{value:.2f}" if abs(value) > 2 else f"{value:.4f}"


def _section(title: str, values: Iterable[tuple[str, object]]) -> str:
    """Return a section with a table of two columns; nothing if it would be empty."""
    rows = [f"| {_cell(key)} | {_cell(value)} |\n" for key, value in values]
    return "".join([f"## {title}\n\n| | |\n|---|---|\n", *rows, "\n"]) if rows else ""


def _link(base_model: str) -> str:
    """Return where the weights of the base are, as Markdown: an address as it is, a place on the Hub as code."""
    return f"<{base_model}>" if "://" in base_model else f"`{base_model}` on the Hub"


def _backbone(name: str, making: Making | None) -> str:
    """Return the line that makes the base; of a network that lowpeft did not make, the line that a reader completes.

    The lines after it run as they are.
    """
    if making is None:
        return f"backbone = ...  # fill in: your {_plain(name)}, with its weights (checksums below)"
    return f"backbone = {making.expression}"


def _call(network: Mapping[str, Any], views: int) -> tuple[list[str], str]:
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
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("<", "&lt;").replace("`", "'")
    text = text.replace("[", "\\[").replace("~", "\\~")
    return f"\\{text}" if text[:1] in set("#>-+*=") else text
