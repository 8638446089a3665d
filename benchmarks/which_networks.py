"""Which networks lowpeft adapts by itself, and whether what it accepts is right.

    python benchmarks/which_networks.py --official FOLDER --out benchmarks/results/networks.json

Small networks with random weights take the recipes `stereo`, `spatial`, `lora` and `full` without a site being named.
Where lowpeft refuses and prints a ready call, that call is tried. What is accepted goes through every rule of
`networks_checks.py`. Networks are those of the tests' table (spandrel's), timm's, transformers', diffusers' where it is
installed, and, with `--official`, those of their authors' code: FOLDER holds a checkout of every repository that
`networks_official.py` names, under the repository's name. Each recipe of each network runs in a process of its own,
with a limit of time. Needs the extras `spandrel` and `transformers`; takes about half an hour on one core. Runs side by
side (`--only`) are put together by one more (`--add A.json B.json --only NOTHING`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import multiprocessing
import re
import subprocess
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowpeft
import networks_checks as checks
from common import options_of, provenance
from lowpeft.recipes import bundled, load_recipe
from lowpeft.storage import write_json
from networks_case import Case, Limit, State, Wrong, pieces, use
from networks_rows import Row, sizes, takes

RECIPES = ("stereo", "spatial", "lora", "full")
READY = re.compile(r"lowpeft\.(?:adapt|wrap_stereo|inject_spatial_adapters)\(")
LIMIT_S = 300
COVERED = 0.5
"""A recipe whose sites lie in groups that hold less of the parameters than this is listed as a doubt."""

Make = Callable[[nn.Module], nn.Module]


# --- adapting


def ready_call(message: str) -> str | None:
    """The first call in a refusal, up to the parenthesis that closes it."""
    for found in READY.finditer(message):
        depth = 0
        for end in range(found.end() - 1, len(message)):
            depth += {"(": 1, ")": -1}.get(message[end], 0)
            if not depth:
                return " ".join(message[found.start() : end + 1].split())
    return None


def by_recipe(row: Row, recipe: str) -> Make:
    """`lowpeft.adapt(network, recipe)`, with an example of the input where it is no plain image."""
    takes_example = "example" in inspect.signature(lowpeft.adapt).parameters
    more = {"example": row.example} if takes_example and not row.plain else {}
    return lambda network: lowpeft.adapt(network, recipe, **more)


def by_call(row: Row, call: str) -> Make:
    """What a refusal printed."""
    names = {"lowpeft": lowpeft, "example": row.example, "__builtins__": {}}
    code = compile(call.replace("example=...", "example=example"), "<printed call>", "eval")
    return lambda network: eval(code, {**names, "model": network})  # lowpeft's own words


def mixed(network: nn.Module) -> nn.Module:
    """The network with one layer in training mode and one parameter frozen, which `restore` must not forget."""
    layer = next((m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if layer is not None:
        layer.train()
        layer.weight.requires_grad_(False)
    return network


def kinds_of(recipe: str) -> set[str]:
    """The kinds of adapters in a bundled recipe."""
    return {config.kind for config in load_recipe(recipe).adapters}


def covered(network: nn.Module, paths: list[str]) -> float:
    """The share of the parameters of repeated modules that lies in groups (`layers` of `layers.1.conv`) with sites."""
    groups = set()
    for path in paths:
        parts = path.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        groups.add(".".join(parts[: max(1, first)]))
    inside = {id(p): p.numel() for g in groups for p in network.get_submodule(g).parameters()}
    every = dict(inside)
    for module in network.modules():
        classes = Counter(type(child) for child in module.children() if next(child.children(), None) is not None)
        alike = [child for child in module.children() if classes[type(child)] > 1]
        every |= {id(p): p.numel() for child in alike for p in child.parameters()}
    return sum(inside.values()) / max(1, sum(every.values()))


# --- judging


def judge(row: Row, recipe: str) -> dict[str, Any]:
    """What comes of a recipe: a verdict, what was attached, what refused, and the outcome of every check."""
    if recipe not in bundled():
        return {"verdict": "refused", "reason": f"no recipe {recipe!r} here"}
    network = mixed(row.network())
    before = State.of(network)
    try:
        model = by_recipe(row, recipe)(network)
    except lowpeft.LowpeftError as error:
        refusal: dict[str, Any] = {"verdict": "refused", "reason": short(str(error)), "message": str(error)[:2000]}
        changed = before.differs(State.of(network))
        refusal["checks"] = {"untouched": f"failed: {changed}" if changed else "ok"}
        call = ready_call(str(error))
        return refusal if call is None else refusal | with_call(row, recipe, call, refusal["checks"])
    except Exception as error:  # noqa: BLE001  # that a crash is no refusal is what is looked for
        return {"verdict": "crashed", "reason": place_of(error)}
    return {"verdict": "adapts", **accepted(row, network, model, before)}


def with_call(row: Row, recipe: str, call: str, so_far: dict[str, str]) -> dict[str, Any]:
    """What comes of the call that a refusal printed."""
    network = mixed(row.network())
    before = State.of(network)
    try:
        model = by_call(row, call)(network)
        if found := {p.kind for _, p in pieces(model)} ^ kinds_of(recipe):
            raise Wrong(f"kinds of adapters that are not those of {recipe}: {sorted(found)}")
    except Exception as error:  # noqa: BLE001  # a printed call that does not work is a finding
        return {"call": call, "checks": {**so_far, "printed call": f"failed: {short(str(error))}"}}
    found = accepted(row, network, model, before)
    return {"verdict": "call", "call": call, **found, "checks": {**so_far, **found["checks"]}}


def accepted(row: Row, network: nn.Module, model: nn.Module, before: State) -> dict[str, Any]:
    """Facts of an adapted network, and the outcome of every check."""
    base = row.network().requires_grad_(False)  # frozen as the adapted one: torch.matmul rounds by this flag
    case = Case(row=row, model=model, network=network, base=base, before=before, fresh=row.network, sizes=[])
    case.sizes = sizes(row, base)
    attached = pieces(model)
    paths = list(dict.fromkeys(path for path, _ in attached))
    return {
        "sites": dict(Counter(piece.kind for _, piece in attached)),
        "trained": sum(p.numel() for _, p in lowpeft.adapter_parameters(model)),
        "covered": round(covered(base, paths), 3),
        "paths": paths if len(paths) <= 12 else [*paths[:6], "…", *paths[-5:]],
        "checks": checked(case),
    }


def checked(case: Case) -> dict[str, str]:
    """Every check by name: `ok`, or what failed, or what kept it from being tried."""
    if not takes(case.row, case.base, case.row.px):
        return {"identity": "limit: the base itself does not take a batch of two images"}
    found = {check.__name__: outcome(check, case) for check in checks.NEW}
    found["use"] = outcome(use, case)
    if found["identity"].startswith("failed: cannot be run"):
        return found
    return found | {check.__name__: outcome(check, case) for check in checks.USED}


def outcome(check: Callable[[Case], Any], case: Case) -> str:
    """The outcome of one check."""
    try:
        check(case)
    except Wrong as wrong:
        return f"failed: {wrong}"
    except Limit as limit:
        return f"limit: {limit}"
    except Exception as error:  # noqa: BLE001  # a crash of any sort is a failure of the check
        return f"failed: {place_of(error)}"
    return "ok"


def short(message: str) -> str:
    """The first 240 characters, in one line."""
    line = " ".join(message.split())
    return line if len(line) <= 240 else line[:239] + "…"


def place_of(error: Exception) -> str:
    """An error and the last line of code that it came through."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {short(str(error))} ({Path(last.filename).name}:{last.lineno})"


# --- a process for each network and recipe


def about(row: Row) -> dict[str, Any]:
    """Class and size of a network."""
    network = row.network()
    return {"class": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}


def examine(row: Row, recipes: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    """A network with every recipe, each in a process that may crash or take too long."""
    start = time.perf_counter()
    found = {"name": row.name, "source": row.source, "px": list(row.px), **in_process(about, (row,), limit_s)}
    if "error" not in found:
        found["recipes"] = {recipe: in_process(judge, (row, recipe), limit_s) for recipe in recipes}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _child(call: Callable[..., dict[str, Any]], args: tuple[Any, ...], answer: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some networks print
            found = call(*args)
    except Exception as error:  # noqa: BLE001  # as of a network that cannot be built
        found = lost(place_of(error))
    answer.send(found)


def lost(reason: str) -> dict[str, Any]:
    """What is said of a call that gave no result."""
    return {"verdict": "crashed", "reason": reason, "error": reason}


def in_process(call: Callable[..., dict[str, Any]], args: tuple[Any, ...], limit_s: float) -> dict[str, Any]:
    """What a call returns in a process of its own."""
    context = multiprocessing.get_context("fork")
    answer, other = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(call, args, other), daemon=True)
    process.start()
    other.close()
    try:
        found = answer.recv() if answer.poll(limit_s) else lost(f"took more than {limit_s:g} s")
    except EOFError:
        process.join()
        found = lost(f"the process ended with code {process.exitcode}")
    process.kill()
    process.join()
    return found


# --- the report


def failures(network: dict[str, Any]) -> list[str]:
    """Every check of a network that failed."""
    found = [f"error: {network['error']}"] if "error" in network else []
    for recipe, result in network.get("recipes", {}).items():
        if result["verdict"] == "crashed":
            found.append(f"{recipe}: crashed: {result['reason']}")
        found += [f"{recipe}: {n}: {o}" for n, o in result.get("checks", {}).items() if o.startswith("failed")]
    return found


def doubts(network: dict[str, Any]) -> list[str]:
    """Recipes whose sites lie in a small part of the network."""
    results = {r: x for r, x in network.get("recipes", {}).items() if r in ("stereo", "spatial")}
    return [f"{r}: {x['covered']:.0%} of the parameters" for r, x in results.items() if x.get("covered", 1) < COVERED]


def totals(networks: list[dict[str, Any]], recipes: tuple[str, ...]) -> dict[str, Any]:
    """How many networks have which verdict."""
    count = {r: dict(Counter(n["recipes"][r]["verdict"] for n in networks if "recipes" in n)) for r in recipes}
    wrong = sum(bool(failures(n)) for n in networks)
    return {"networks": len(networks), "verdicts": count, "with a failed check": wrong}


def line(network: dict[str, Any]) -> str:
    """A network in one line, and its failures below it."""
    words = []
    for recipe, result in network.get("recipes", {}).items():
        sites = "+".join(str(n) for n in result.get("sites", {}).values())
        words.append(f"{recipe} {result['verdict']}{f' ({sites})' if sites else ''}")
    more = [f"\n      {problem[:300]}" for problem in failures(network)]
    more += [f"\n      doubt: {doubt}" for doubt in doubts(network)]
    return f"{network['name']:<28} {network.get('seconds', 0):>6} s  {', '.join(words)}{''.join(more)}"


def commit() -> str:
    """The commit of this code, for the record."""
    folder = Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def all_rows(official: Path | None) -> list[Row]:
    """Every network that can be had here."""
    import networks_packages  # a test of the checks needs none of them

    rows = networks_packages.rows()
    if official is not None:
        import networks_official

        rows += networks_official.rows(official)
    return rows


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--official", type=Path, help="folder of checkouts of the authors' code")
    parser.add_argument("--only", default="", help="regular expression that a network's name or source must hold")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each recipe of a network")
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="results of other networks, to put together")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    recipes = tuple(options.recipes)
    found = []
    for file in options.add:
        before = json.loads(file.read_text())
        if before["commit"] != commit():
            parser.error(f"{file} was made at the commit {before['commit']}, and this is {commit()}")
        found += before["networks"]
    for row in all_rows(options.official):
        if re.search(options.only, f"{row.name} {row.source}"):
            found.append(examine(row, recipes, options.limit))
            print(line(found[-1]), flush=True)
    packages = ["spandrel", "timm", "transformers"] + ["diffusers"] * (util.find_spec("diffusers") is not None)
    packages = [name for name in packages if name in {d.name for d in metadata.distributions()}]
    results: dict[str, Any] = {
        **provenance("python benchmarks/which_networks.py --official FOLDER", *packages),
        "commit": commit(),
        "totals": totals(found, recipes),
        "networks": found,
    }
    if options.out:
        write_json(options.out, results)
    print(results["totals"])


if __name__ == "__main__":
    main()
