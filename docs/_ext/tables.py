"""A Sphinx directive, `{generated} NAME`, that writes what the package itself knows.

The tables of families, kinds, recipes and experiments come from lowpeft's registries and files, the command line from
its parser, the API from `lowpeft.__all__`, the table of published networks from a results file. Every function here
returns Markdown. Where the package does not have a thing, the page says so.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import ExtensionMetadata

import evidence_figures
import same_budget_figures
from claims import CLAIMS, directions, with_spread
from cost_figures import MEMORY_HEAD, attention_rows, memory_rows, networks_with, reasons, time_head, time_rows
from method_figures import MERGE_HEAD, TRAINING_HEAD, merge_rows, training_rows, trap_rows

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples?):$")
ENTRY = re.compile(r"    (\*{0,2}\w[\w.]*): (.*)")
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def need(module: str, name: str) -> Any:
    """`lowpeft.module.name`; LookupError where the package does not have it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LookupError(f"{module}.{name}") from error


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return str(need("lowpeft.tables", "markdown")([header, *rows]))


# --- The registries


def families() -> str:
    def row(family: Any) -> list[str]:
        places = {name: f"`{name}`" for name in (place.name for place in family.places)}
        layouts = dict.fromkeys(layout_of(place) for place in family.places)
        return [family.title, f"`{family.name}`", ", ".join(places.values()), ", ".join(layouts), family.source]

    header = ["network", "family", "places", "feature layouts", "source of the facts"]
    return table(header, map(row, need("lowpeft.families", "families")()))


def sites() -> str:
    """Of every family: how a network is recognised, and where its places are."""
    return "\n\n".join(map(family_sites, need("lowpeft.families", "families")()))


def family_sites(family: Any) -> str:
    facts = [f"Family `{family.name}`, recognised by {'; or by '.join(map(recognised_by, family.signature))}."]
    facts += ["Scale, value range or sizes are read off the network."] * (family.facts is not None)
    facts += [f"The image is the output's `.{family.output}`."] * (family.output is not None)
    rows = [[f"`{p.name}`", f"`{p.path}`", layout_of(p), read_by_adapter(p)] for p in family.places]
    heading = f"```{{rubric}} {family.title}\n```"
    header = ["place", "module", "layout", "what the adapter reads"]
    return "\n\n".join([heading, " ".join(facts), table(header, rows)])


def recognised_by(signature: Sequence[str]) -> str:
    """One alternative of a signature, in words."""
    there = [f"`{p}`" for p in signature if not p.startswith("!")]
    absent = [f"`{p.removeprefix('!')}`" for p in signature if p.startswith("!")]
    return ", ".join(there) + (f", with no {' and no '.join(absent)}" if absent else "")


def layout_of(place: Any) -> str:
    return str(place.layout) if place.layout is not None else "the block's"


def read_by_adapter(place: Any) -> str:
    if place.block is not None:
        return f"the port `{place.port}` of its forward (`{place.block}`)"
    what = "its input" if place.source == "input" else "its output"
    what = what if place.item is None else f"element {place.item} of {what}"
    return f"{what}, on a square grid" if place.square else what


def published() -> str:
    """Counts of published networks, from the results of a benchmark."""
    file = RESULTS / "backbones.json"
    if not file.exists():
        raise LookupError(f"benchmarks/results/{file.name}")
    results = json.loads(file.read_text(encoding="utf-8"))
    kinds = list(dict.fromkeys(kind for row in results["networks"] for kind in row["by_kind"]))
    trips = {row["name"]: row["loaded_equals_trained"] for row in results["round_trips"]}

    def row(each: Any) -> list[str]:
        trained = sum(each["by_kind"].values())
        counts = [f"{n:,}" for n in (each["frozen"], *(each["by_kind"].get(kind, 0) for kind in kinds), trained)]
        share = f"{100 * trained / each['frozen']:.2f} %"
        trip = {True: "bit-equal", False: "differs", None: ""}[trips.get(each["name"])]
        return [each["name"], f"`{each['family']}`", *counts, share, trip, each["source"]]

    header = ["network", "family", "frozen", *(f"`{kind}`" for kind in kinds), "trained", "share", "round trip"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    made = f"Recipe `{results['recipe']}`. Made by `{results['command']}` on {results['date']} ({versions})."
    return f"{table([*header, 'configuration'], map(row, results['networks']))}\n\n{made}"


def fingerprint() -> str:
    """The fields of a fingerprint, each with its entry in the docstring."""
    cls = need("lowpeft.core.observation.fingerprint", "Fingerprint")
    entries = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(cls) or "", re.MULTILINE))
    return table(
        ["field", "what"], [[f"`{f.name}`", " ".join(entries[f.name].split())] for f in dataclasses.fields(cls)]
    )


COMMON_FIELDS = ("target", "item", "skip_stages")
"""Fields that all kinds, or all that act on features, have."""


def kinds() -> str:
    def row(kind: Any) -> list[str]:
        fields = [f for f in dataclasses.fields(kind.config) if f.name not in COMMON_FIELDS]
        return [
            f"`{kind.name}`",
            first_line(kind.config),
            ", ".join(f"`{f.name}={f.default!r}`" for f in fields) or "–",
            yes(kind.on_weights),
        ]

    return table(["kind", "what", "fields and defaults", "mergeable"], map(row, need("lowpeft.kinds", "kinds")()))


def recipes() -> str:
    """Every bundled recipe, as `lowpeft recipes` shows it."""
    made = need("lowpeft.recipes", "counts")()

    def row(each: Any) -> list[str]:
        shares = [str(each.shares.get(network, "–")) for network in made["networks"]]
        adapters = ", ".join(f"`{kind}`" for kind in each.adapters) or "–"
        where = "; ".join(f"`{place}`" if "*" in place else place for place in each.where)
        merges = "–" if each.mergeable is None else yes(each.mergeable)
        return [f"`{each.name}`", each.summary, adapters, where, *shares, merges, yes(each.needs_data), each.paper]

    header = ["recipe", "what", "adapters", "where", *made["networks"], "mergeable", "needs data", "paper"]
    names = need("lowpeft.recipes", "bundled")()
    rows = [row(each) for each in need("lowpeft.recipes", "overview")() if each.name in names]
    return f"{table(header, rows)}\n\n{made_by(made)}"


def yes(answer: bool) -> str:
    return "yes" if answer else "no"


def kinds_on(on: tuple[str, ...]) -> Callable[[], str]:
    """A table of the kinds that act on some part of a network: what they train, where, and how they start."""

    def write() -> str:
        rows = [row for row in need("lowpeft", "methods")() if row.acts_on in on]
        named = {kind.name: kind for kind in need("lowpeft.kinds", "kinds")()}
        weights = on == ("weights",)
        header = ["kind", f"trained parameters per {'layer' if weights else 'site'}", "sized by", "zero when new"]
        header += ["needs data"] if weights else ["acts on", "places", "needs rows", "needs data"]
        return table(header, [cells(row, named[row.kind], weights) for row in rows])

    def cells(row: Any, kind: Any, weights: bool) -> list[str]:
        size = "fixed" if row.sized_by is None else f"`{row.sized_by}`"
        zero = ", ".join(f"`{name}`" for name in row.zero) or "–"
        first = [f"`{row.kind}`", row.parameters or "–", size, zero]
        places = ", ".join(f"`{place}`" for place in row.places)
        where = [] if weights else [row.acts_on, places, yes(row.needs_rows)]
        return [*first, *where, needs_data(kind, kind.config())]

    return write


def needs_data(kind: Any, config: Any) -> str:
    """Whether a kind learns its initial values from data, or with which of its settings."""
    if kind.needs_data(config):
        return "yes"
    choices = {
        name: get_args(hint) for name, hint in get_type_hints(kind.config).items() if get_origin(hint) is Literal
    }
    settings = [
        f"`{name}={value!r}`"
        for name, values in choices.items()
        for value in values
        if kind.needs_data(dataclasses.replace(config, **{name: value}))
    ]
    return f"with {' or '.join(settings)}" if settings else "no"


def experiments() -> str:
    """Each experiment: the paper's table as printed, what readers of it must know, and the rows that are run."""
    load, show = (
        need("lowpeft.paper.experiments", "load_experiment"),
        importlib.import_module("lowpeft.paper.experiments.show"),
    )
    head = ["row", "what", "file of the network's authors", "recipe", "HR crop"]

    def row(each: Any) -> list[str]:
        training = each.recipe.training
        crop = f"{training.crop_height_px}x{training.crop_width_px}"
        return [f"`{each.name}`", each.summary, f"`{each.weights}`", f"`{each.recipe.name}`", crop]

    def section(name: str) -> str:
        found = load(name)
        about = f"**`{name}`**: {found.summary}. Printed in {found.source}; {found.metric}."
        header, *lines = show.paper_table(found)
        notes = "\n".join(f"* {remark}" for remark in show.remarks(found))
        return "\n\n".join(filter(None, [about, table(header, lines), notes, table(head, map(row, found.rows))]))

    return "\n\n".join(map(section, need("lowpeft.paper.experiments", "bundled_experiments")()))


def layouts() -> str:
    """The folder layouts that `find_scenes` recognises."""

    def row(each: Any) -> list[str]:
        files = "; or ".join(f"`{line}`" for line in each.shown.split("; or "))
        return [f"`{each.name}`", each.title, "pairs" if each.views == 2 else "single images", files]

    return table(
        ["layout", "who uses it", "scenes", "files"], map(row, need("lowpeft.restoration.data", "LAYOUTS").values())
    )


def degradations() -> str:
    """The steps of `--degrade`, and the chains that have a name."""
    steps, presets = (need("lowpeft.restoration.degradations", name) for name in ("STEPS", "PRESETS"))
    rows = [[f"`{name}:VALUE`" if step.valued else f"`{name}`", step.text] for name, step in steps.items()]
    return table(["step", "what it does"], [*rows, *([f"`{name}`", row.text] for name, row in presets.items())])


def image_words() -> str:
    """The words by which names of folders and files say what their images are."""
    rows = [
        [role, ", ".join(f"`{word}`" for word in need("lowpeft.restoration.data.roles", words))]
        for role, words in (("clean", "CLEAN"), ("degraded", "DEGRADED"))
    ]
    return table(["images", "words in names of folders and files"], rows)


def protocols() -> str:
    """How PSNR and SSIM are taken, by name."""

    def row(each: Any) -> list[str]:
        views = "pairs" if each.views == 2 else "single images"
        return [f"`{each.name}`", views, ", ".join(c.name for c in each.columns), each.summary, each.source]

    every = need("lowpeft.restoration.metrics", "PROTOCOLS").values()
    return table(["protocol", "scenes", "columns", "how", "as in"], map(row, every))


# --- Figures that a benchmark measured


def results_of(name: str) -> Any:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        raise LookupError(f"benchmarks/results/{file.name}")
    return json.loads(file.read_text(encoding="utf-8"))


def made_by(results: Any) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"Made by `{results['command']}` on {results['date']} ({versions}; {results['device']})."


def attacks(results: Any) -> str:
    """What became of attacks on adapter folders, in lowpeft and in peft."""
    both = ("lowpeft", "peft")
    names = {
        "refused": "refused",
        "same": "the same adapter",
        "other": "another one, without a word",
        "warned": "another one, with a warning",
        "slow": "after more than 5 s",
        "whole": "whole",
    }

    def told(cell: dict[str, Any]) -> str:
        found = [f"{cell[name]} {text}" for name, text in names.items() if cell.get(name)]
        return ", ".join(found) + ("; the base was changed" if cell.get("base changed") else "")

    cells = results["attacks"].items()
    rows = [
        [name, str(each["lowpeft"].get("cases", each["lowpeft"].get("kills"))), *(told(each[n]) for n in both)]
        for name, each in cells
    ]
    errors = {n: sorted({error for _, each in cells for error in each[n].get("errors", ())}) for n in both}
    slowest, grown = (max(each["lowpeft"].get(key, 0) for _, each in cells) for key in ("slowest_s", "grown_mb"))
    said = (
        f"Every refusal of lowpeft is an `{'`, `'.join(errors['lowpeft'])}`; those of peft are "
        f"{', '.join(errors['peft'])}. The slowest answer of lowpeft took {slowest:g} s, and its process grew by "
        f"{grown} MB at most, with what writes the attack."
    )
    return f"{table(['attack', 'cases', 'lowpeft', 'peft'], rows)}\n\n{said}"


def anchors() -> str:
    """Plain bicubic beside the printed figures."""
    results = results_of("bicubic_anchors")
    other = "SSIM of unrounded bicubic, population covariance"

    def psnr_ssim(row: Any, name: str) -> str:
        return f"{row[f'PSNR {name}']:.2f} / {row[f'SSIM {name}']:.4f}"

    def row(each: Any) -> list[str]:
        sources = (each["printed"], each["literature"], each["asteisr"])
        cells = [psnr_ssim(s, "Left") for s in sources] + [psnr_ssim(s, "(L+R)/2") for s in sources[:2]]
        both = f"{each[other]['SSIM Left']:.4f}, {each[other]['SSIM (L+R)/2']:.4f}"
        return [f"{each['set']} x{each['scale']}", each["lr"], *cells, both]

    header = ["set", "LR files", "Left: printed", "`literature`", "`asteisr`", "(L+R)/2: printed", "measured"]
    rows = table(
        [*header, "SSIM of unrounded bicubic, population covariance: Left, (L+R)/2"], map(row, results["rows"])
    )
    return f"{rows}\n\nPrinted in: {results['printed_in']}. {made_by(results)}"


def measured(section: str) -> Callable[[], str]:
    """A table of one section of inference.json: what its rows hold, with their keys as heads."""

    def write() -> str:
        results = results_of("inference")
        rows = results[section] if isinstance(results[section], list) else [results[section]]
        heads = [key.replace("_", " ") for key in rows[0]]
        cells = [["–" if value is None else str(value) for value in row.values()] for row in rows]
        return f"{table(heads, cells)}\n\n{made_by(results)}"

    return write


def ablation(name: str) -> Callable[[], str]:
    """An ablation at a small scale: a table for each test set."""

    def write() -> str:
        results = results_of(name)
        psnr, ssim = "PSNR (L+R)/2", "SSIM (L+R)/2"
        keys = ("over_frozen_db", "from_other_view_db")
        sections = []
        for test_set, gains in results["gains"].items():

            def row(each: Any, test_set: str = test_set, gains: Any = gains) -> list[str]:
                outcomes, gain = each["outcomes"], gains.get(each["row"], {})
                figures = [outcome["figures"][test_set] for outcome in outcomes]
                cells = [each["row"], f"{outcomes[0]['trained']:,}", str(len(outcomes)) if gain else "–"]
                cells += [with_spread([f[psnr] for f in figures]), with_spread([f[ssim] for f in figures], digits=4)]
                return cells + [with_spread(gain[key], sign="+") if key in gain else "–" for key in keys]

            head = ["row", "trained", "seeds", psnr, ssim, "over frozen, dB", "from the other view, dB"]
            sections.append(f"**{test_set}**\n\n{table(head, map(row, results['rows']))}")
        return "\n\n".join([*sections, f"{results['spread'].capitalize()} behind ±. {made_by(results)}"])

    return write


def findings(name: str) -> Callable[[], str]:
    """The paper's findings of an ablation, and whether ours agree."""

    def write() -> str:
        results = results_of(name)
        found = directions(name, need("lowpeft.paper.experiments", "load_experiment")(name), results)

        def row(each: Any) -> list[str]:
            paper = "–" if each["paper_db"] is None else f"{each['paper_db']:+.2f}"
            ours = [f"{with_spread(o['db'], sign='+', digits=4)}: {o['verdict']}" for o in each["sets"].values()]
            return [each["says"], paper, *ours]

        return table(["the paper finds", "its figures, dB", *results["gains"]], map(row, found))

    return write


def beside_paper() -> str:
    """The paper's ways to train beside the small matrix: gains over frozen, and shares of the cost of `full`."""
    experiment, results = need("lowpeft.paper.experiments", "load_experiment")("finetuning"), results_of("finetuning")
    rows = {row.name: row for row in experiment.rows}
    full = rows["full"].paper.adapted
    (printed_on,) = experiment.test_sets

    def row(name: str) -> list[str]:
        ours, paper = rows[name], rows[name].paper
        scores = [line.on(printed_on).mean for line in (paper.adapted, paper.frozen)]
        gains = [f"{scores[0].db - scores[1].db:+.2f}", f"{scores[0].ssim - scores[1].ssim:+.4f}"]
        cost = [f"{getattr(paper.adapted, key) / getattr(full, key):.2f}" for key in ("hours", "memory_gb")]
        measured = [with_spread(gains[name]["over_frozen_db"], sign="+") for gains in results["gains"].values()]
        return [f"`{ours.name}`", *gains, *cost, *measured, f"{results['cost'][name]['of_full']:.2f}"]

    head = [
        "row",
        f"paper: over frozen, dB, {printed_on}",
        "SSIM over frozen",
        "hours, of full",
        "memory, of full",
        *(f"here: over frozen, dB, {name}" for name in results["gains"]),
        "time per step, of full",
    ]
    return f"{table(head, map(row, rows))}\n\n{experiment.source}: HAT-L x4. Here: DCTLSA x4. {made_by(results)}"


def speed() -> str:
    """Time and memory of a forward over the number of stereo adapters."""
    results = results_of("speed")

    def row(each: Any) -> list[str]:
        times = [f"{each[key]['median']:.3f} ± {each[key]['spread']:.3f}" for key in ("seconds", "time_ratio")]
        memory = [f"{each['peak_mb']:.0f}", f"{each['peak_ratio']:.3f}"]
        return [f"`{each['row']}`", f"{each['trained']:,}", *times, *memory]

    of = f"of row `{results['ratios_to']}`"
    height, width = results["size_px"]
    about = (
        f"{results['network']}; two views of {height}x{width} LR px; median ± deviation of {results['rounds']} rounds."
    )
    rows = table(["row", "trained", "seconds", of, "peak, MB", of], map(row, results["rows"]))
    return f"{rows}\n\n{about} {made_by(results)}"


def training_cost() -> str:
    """Time and memory of the small fine-tuning matrix."""
    results = results_of("finetuning")

    def row(each: Any) -> list[str]:
        cost, peak = results["cost"][each["row"]], max(o["peak_mb"] for o in each["outcomes"])
        times = [f"{cost['seconds_per_step']:.2f}", f"{cost['of_full']:.2f}"]
        return [each["row"], f"{each['outcomes'][0]['trained']:,}", *times, f"{peak:.0f}"]

    head = ["row", "trained", "seconds per step", "of full", "peak of the process, MB"]
    return table(head, map(row, results["rows"][1:]))


def stereo_start() -> str:
    """Random and sharp starts of stereo adapters."""
    results = results_of("stereo_start")

    def row(start: str) -> list[str]:
        runs = [run for run in results["runs"] if run["start"] == start]

        def peak(when: str) -> str:
            return with_spread([a["peak_over_even"] for run in runs for a in run[f"attention_{when}"]], digits=1)

        gains = [with_spread([run[key] for run in runs], sign="+") for key in ("over_frozen_db", "from_other_view_db")]
        return [start, peak("before"), peak("after"), *gains]

    head = ["start", "peak before", "peak after", "over frozen, dB", "from the other view, dB"]
    return f"{table(head, map(row, ('random', 'sharp')))}\n\n{made_by(results)}"


def parallax_demo() -> str:
    """The demo with seeds: the recipe `parallax`, its control, and the published recipe."""
    results = results_of("demo")
    cells, head = results["cells"], ["recipe", "trained", "frozen", "adapted", "same view", "control", "over it"]

    def row(recipe: str) -> list[str]:
        names = [name for name in cells if re.fullmatch(rf"{recipe}/seed-\d+", name)]
        of = {method: [cells[name]["db"][method] for name in names] for method in ("frozen", "adapted", "same view")}
        pairs = [
            (cells[n]["db"]["adapted"], cells[f"{n}/control"]["db"]["same view"])
            for n in names
            if f"{n}/control" in cells
        ]
        strict = ["–", "–"]
        if pairs:
            strict = [with_spread([control for _, control in pairs]), with_spread([a - c for a, c in pairs], sign="+")]
        figures = [f"{of['frozen'][0]:.3f}", with_spread(of["adapted"]), with_spread(of["same view"])]
        return [f"`{recipe}`", f"{cells[names[0]]['parameters']:,}", *figures, *strict]

    recipes = dict.fromkeys(name.split("/")[0] for name in cells)
    return f"{table(head, map(row, recipes))}\n\n{made_by(results)}"


def parallax_steps() -> str:
    """What runs of the demo of other lengths give."""
    cells = results_of("demo")["cells"]
    found = {int(m[1]): cells[name] for name in cells if (m := re.fullmatch(r"parallax/seed-0/steps-(\d+)", name))}
    found[results_of("demo")["settings"]["steps"]] = cells["parallax/seed-0"]

    def row(steps: int) -> list[str]:
        db = found[steps]["db"]
        return [str(steps), f"{db['adapted']:.3f}", f"{db['same view']:.3f}", f"{db['adapted'] - db['same view']:+.3f}"]

    return table(["steps", "adapted", "same view", "difference"], map(row, sorted(found)))


def parallax_forms() -> str:
    """Forms of the adapter that were tried on the demo."""
    results = results_of("parallax_forms")

    def row(item: tuple[str, Any]) -> list[str]:
        name, cell = item
        adapted, same = cell["adapted_db"], cell["same_view_db"]
        return [name, f"{cell['parameters']:,}", f"{adapted:.3f}", f"{same:.3f}"]

    rows = sorted(results["cells"].items(), key=lambda item: item[1]["adapted_db"])
    head = ["form", "trained", "adapted", "same view"]
    return f"{table(head, map(row, rows))}\n\n{made_by(results)}"


def measured_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a benchmark that may not have got there yet."""
    return table(header, rows) if rows else "*These cells are not measured yet.*"


def other_view(task: str) -> Callable[[Any], str]:
    """What each way to train gives on real pairs."""

    def section(results: Any) -> str:
        rows = measured_table(evidence_figures.HEAD, evidence_figures.task_rows(results, task))
        steps = evidence_figures.steps_of(results, task)
        return f"{rows}\n\n{steps:,} steps each." if steps else rows

    return section


def hours(results: Any) -> str:
    """How long the trainings of a benchmark took."""
    seconds = [cell["seconds"] for cell in results["cells"].values() if "seconds" in cell]
    return (
        f"So far {len(seconds)} trainings, {sum(seconds) / 3600:.1f} hours by the clock, each on one core of a machine "
        "that did other things too."
    )


def kitti(results: Any) -> str:
    """KITTI 2015 x4, beside a published network."""
    return measured_table(evidence_figures.KITTI_HEAD, evidence_figures.kitti_rows(results))


def parallax_rigs() -> str:
    """Rigs that are not ideal."""
    results = results_of("rigs")
    cases = results["db"]

    def cell(db: Any) -> str:
        return f"{db['adapted'] - db['frozen']:+.3f} / {db['adapted'] - db['same view']:+.3f}"

    rigs = list(next(iter(cases.values())))
    rows = [[rig, *(cell(case[rig]) for case in cases.values())] for rig in rigs]
    return f"{table(['rig', *cases], rows)}\n\n{made_by(results)}"


def own_offsets() -> str:
    """Rectified pairs that have a vertical offset of their own."""
    results = results_of("check_pair")
    offsets = {each["scene"]: each["offset_px"] for each in results["untouched"]}
    large = {scene: px for scene, px in offsets.items() if abs(px) > 0.5}
    rest = max(abs(px) for scene, px in offsets.items() if scene not in large)
    named = ", ".join(f"`{scene}` {px:+.2f} px" for scene, px in large.items())
    return (
        f"Of our {len(offsets)} rectified training pairs, {named} have a large offset; the others have up to {rest} px."
    )


def found_in_pairs(figure: str) -> Callable[[], str]:
    """What `check_pair` finds of an added offset or gain."""

    def write() -> str:
        results = results_of("check_pair")
        runs, of_gain = results["runs"], figure == "gain"

        def found(run: Any) -> float:
            value = run["found_gain"] / run["own_gain"] if of_gain else run["found_offset_px"]
            return float(value)

        def row(by: int, noise: int, true: float) -> list[str]:
            those = [r for r in runs if (r["reduced_by"], r["noise"], r[figure]) == (by, noise, true)]
            values = [found(run) for run in those]
            error = max(abs(value - true) for value in values)
            fewest = min(run["points"] for run in those)
            return [size[by], str(noise), f"{true:g}", with_spread(values), f"{error:.3f}", str(fewest)]

        size = {1: "as they are", 4: "reduced by 4"}
        keys = sorted({(run["reduced_by"], run["noise"], run[figure]) for run in runs})
        head = ["views", "noise, of 255", "true", "found", "largest error", "fewest points"]
        return f"{table(head, [row(*key) for key in keys])}\n\n{made_by(results)}"

    return write


def networks() -> str:
    """Which networks are adapted without naming a site, with the three recipes that people ask for first."""
    command = "python benchmarks/which_networks.py --official FOLDER --out benchmarks/results/networks.json"
    try:
        results = results_of("networks")
    except LookupError:
        return f"*Not measured yet: `{command}` writes this table.*"
    recipes = ("stereo", "spatial", "lora")
    rows = [
        [each["name"], each["source"], *(verdict_of(each.get("recipes", {}).get(r)) for r in recipes)]
        for each in results["networks"]
    ]
    header = ["network", "source", *(f"`{recipe}`" for recipe in recipes)]
    counts = "; ".join(
        f"`{r}`: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(results["totals"]["verdicts"][r].items()))
        for r in recipes
    )
    of = f"Of {results['totals']['networks']} networks: {counts}."
    return f"{table(header, rows)}\n\n{of} {made_by(results)}"


def probing() -> str:
    """What planning costs, against a forward and against the weights."""
    results = results_of("probing")
    recipes = ("stereo", "spatial", "lora")

    def row(each: Any) -> list[str]:
        times = [f"{each[f'{recipe}: of a forward']:.1f}" for recipe in recipes]
        memory = f"{each['peak above the forward, of the weights']:.1f}"
        return [each["network"], each["planned as"], f"{each['parameters'] / 1e6:.1f} M", *times, memory]

    header = [
        "network",
        "planned as",
        "parameters",
        *(f"`{recipe}`, forwards" for recipe in recipes),
        "memory, weights",
    ]
    live = results["beside a running network"]
    beside = (
        f"Beside a thread that planned {live['plans']} times, {live['that differ']} of {live['forwards']} forwards of "
        "the same network differed by a bit."
    )
    return f"{table(header, map(row, results['networks']))}\n\n{beside} {made_by(results)}"


def verdict_of(result: Any) -> str:
    """What came of a recipe, in a few words."""
    if result is None:
        return "–"
    failed = [name for name, outcome in result.get("checks", {}).items() if outcome.startswith("failed")]
    sites = " + ".join(str(n) for n in result.get("sites", {}).values())
    words = {"adapts": f"✓ {sites}", "call": f"✓ {sites}, by the printed call", "refused": "refused"}
    said = words.get(result["verdict"], result["verdict"])
    if result["verdict"] in ("refused", "crashed"):
        told = result["reason"].removeprefix("this network is of no known family, and running it showed ")
        reason = re.split(r": |; | - |, |\. | \(", told)[0]
        said += f": {reason if len(reason) <= 80 else reason[:79] + '…'}"
    return said + (f" (**wrong**: {', '.join(failed)})" if failed else "")


# --- What training and inference cost


def cost_section(name: str, write: Callable[[Any], str]) -> Callable[[], str]:
    """A section of what a cost benchmark measured; before it was run, the command that measures it."""

    def section() -> str:
        try:
            results = results_of(name)
        except LookupError:
            command = f"python benchmarks/{name}.py --out benchmarks/results/{name}.json"
            return f"*Not measured yet: `{command}` writes this table.*"
        return f"{write(results)}\n\n{made_by(results)}"

    return section


def cost_memory(results: Any) -> str:
    """A table of bytes and FLOPs for each network, and the rows that could not be had."""
    parts = [
        f"**{results['networks'][network]}**\n\n{table(MEMORY_HEAD, memory_rows(results, network))}"
        for network in networks_with(results, "count")
        if memory_rows(results, network)
    ]
    left_out = "\n".join(f"* {reason} ({', '.join(rows)})" for reason, rows in reasons(results).items())
    return "\n\n".join([*parts, *([f"Not measured:\n\n{left_out}"] if left_out else [])])


def cost_times(part: str) -> Callable[[Any], str]:
    return lambda results: table(time_head(results, part), time_rows(results, part))


def cost_attention(results: Any) -> str:
    return table(["attention", "kernels", "peak, MB", "ms, forward and backward"], attention_rows(results))


# --- Weight methods


def merge_parity(results: Any) -> str:
    """Merged against unmerged outputs of every layer, and the traps."""
    head = ["trap", "lowpeft", "peft"]
    return f"{table(MERGE_HEAD, merge_rows(results))}\n\n{table(head, trap_rows(results))}"


def hundred_steps(results: Any) -> str:
    """What every recipe for single images gives in a hundred steps, and what it costs."""
    return table(TRAINING_HEAD, training_rows(results, results_of("cost")))


def denoiser(results: Any) -> str:
    """What adapters and full fine-tuning give on Kodak24, from networks that were trained on noise of sigma 15."""
    titles = {"base": "NAFNet", "own": "own network"}
    tasks = {"noise-25": "noise, sigma 25", "jpeg-30": "JPEG, quality 30"}
    rows = []
    for (base, title), (task, words) in itertools.product(titles.items(), tasks.items()):
        cells = {method: results["cells"].get(f"{base}/{task}/{method}") for method in ("lora", "full")}
        if not all(cells.values()):
            continue
        lora, full = (cells[method]["psnr_db"] for method in ("lora", "full"))
        share = int(cells["lora"]["trained parameters"]) / int(cells["full"]["trained parameters"])
        figures = (lora["input"], lora["frozen"], lora["adapted"], full["adapted"])
        steps = cells["lora"]["training"].split()[0]
        rows.append([title, words, steps, *(f"{figure:.2f}" for figure in figures), f"{100 * share:.0f} %"])
    head = ["network", "task", "steps", "input", "frozen", "LoRA", "full", "parameters of LoRA, of full"]
    return table(["PSNR in dB" if name == "network" else name for name in head], rows)


SAME_BUDGET = ("dctlsa", "2%")
"""Network and budget of the table of methods in the documentation."""


def same_budget(task: str) -> Callable[[Any], str]:
    """Methods at one budget of trained parameters."""
    return lambda results: measured_table(
        same_budget_figures.HEAD, same_budget_figures.task_rows(results, *SAME_BUDGET, task)
    )


def same_budget_rates(results: Any) -> str:
    """The learning rates that were best, and what others lose."""
    tasks = list(results["tasks"])
    return measured_table(["row", *tasks], same_budget_figures.rate_rows(results, *SAME_BUDGET, tasks))


def same_budget_cost(results: Any) -> str:
    """What the methods cost at one budget."""
    return measured_table(same_budget_figures.COST_HEAD, same_budget_figures.cost_rows(results, *SAME_BUDGET))


def plot(image: str, command: str, title: str) -> Callable[[], str]:
    """A plot, where it was drawn."""

    def section() -> str:
        if not (Path(__file__).resolve().parents[1] / "images" / image).exists():
            return f"*Not drawn yet: `{command}` draws it from the results.*"
        return f"![{title}](images/{image})"

    return section


# --- The command line


def cli() -> str:
    parser = need("lowpeft.cli", "parser")()
    with mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
        return "\n\n".join(
            f"```{{rubric}} {name}\n```\n\n```text\n{each.format_help().rstrip()}\n```"
            for name, each in commands(parser)
        )


def exit_codes() -> str:
    """What each exit code of the command line means."""
    return table(["code", "meaning"], [[f"`{code}`", text] for code, text in need("lowpeft.cli", "EXIT_CODES").items()])


def commands(parser: Any) -> Iterator[tuple[str, Any]]:
    """A parser and its subparsers, each with its full name."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for each in dict.fromkeys(action.choices.values()):
                yield from commands(each)


# --- The API


def api() -> str:
    names = [name for name in need("lowpeft", "__all__") if not name.startswith("__")]
    return "\n\n".join(description(name, need("lowpeft", name)) for name in names)


def description(name: str, thing: object) -> str:
    if inspect.isclass(thing):
        members = [member(n, m) for n, m in vars(thing).items() if not n.startswith("_")]
        body = "\n\n".join([markdown(thing), *filter(None, members)])
        plain = issubclass(thing, (Exception, enum.Enum))  # their constructors say nothing
        kind = "exception" if issubclass(thing, Exception) else "class"
        shown = "" if plain else signature(thing).removesuffix(" -> None")
        return directive(kind, f"lowpeft.{name}{shown}", body, ticks=8)
    if inspect.isroutine(thing):
        return directive("function", f"lowpeft.{name}{signature(thing)}", markdown(thing), ticks=8)
    return directive("data", f"lowpeft.{name}", "", ticks=8)


def member(name: str, thing: object) -> str:
    """A documented method or property of a class; empty for anything else."""
    if isinstance(thing, property):
        return directive("property", name, markdown(thing), ticks=6)
    if isinstance(thing, (classmethod, staticmethod)):
        thing = thing.__func__
    if not inspect.isfunction(thing) or not thing.__doc__:
        return ""
    return directive("method", name + signature(thing, drop_first=True), markdown(thing), ticks=6)


def directive(kind: str, argument: str, body: str, *, ticks: int) -> str:
    fence = "`" * ticks
    return f"{fence}{{py:{kind}}} {argument}\n{body}\n{fence}"


def signature(thing: Callable[..., object], *, drop_first: bool = False) -> str:
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    parameters = list(found.parameters.values())
    return stringify_signature(found.replace(parameters=parameters[1:] if drop_first else parameters))


def markdown(thing: object) -> str:
    """A docstring as Markdown: its Google-style sections become lists."""
    out: list[str] = []
    inside = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if SECTION.match(line):
            inside = True
            out += ["", f"**{line[:-1]}**", ""]
        elif inside and line and not line.startswith(" "):
            inside = False
            out += ["", line]
        elif inside and (entry := ENTRY.match(line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            out.append("  " + line.strip() if inside else line)
    return "\n".join(out)


# --- The directive


def switches() -> str:
    """The costs of settings per call, from the results of benchmarks/switches.py."""
    found = json.loads((RESULTS / "switches.json").read_text())
    forward, at_once = found["forward"], found["at_once_ten_minutes"]
    runs = [run for run in at_once.values() if isinstance(run, dict)]
    places = [call["interrupted"] for call in found["interruptions"].values()]
    between = sum(call["left between"] for call in found["interruptions"].values())
    rows = [[f"one switch: `{name}`", f"{value} µs"] for name, value in found["switch_microseconds"].items()]
    rows += [[name, f"{forward[name]:.3f}"] for name in forward if " over " in name]
    rows += [[f"graphs compiled: {name}", str(value)] for name, value in found["graphs_compiled"].items()]
    wrong, results = (sum(run[what] for run in runs) for what in ("wrong", "results"))
    beside = "threads that plan, check, adapt, load, rename, delete and restore"
    rows += [
        [
            f"{at_once['minutes']:g} minutes of calls beside {beside}",
            f"{wrong} of {results:,} results differ from serial",
        ],
        [
            f"{sum(places):,} interruptions of {len(places)} calls",
            f"{between} left the network between before and after",
        ],
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    source = f"`{found['command']}`, {found['date']}, {found['device']}, {versions}. Ratios of {forward['network']}."
    return table(["what", "measured"], rows) + f"\n\n{source}"


GENERATED: dict[str, Callable[[], str]] = {
    "anchors": anchors,
    "api": api,
    "beside": beside_paper,
    "cli": cli,
    "exit_codes": exit_codes,
    "cost": training_cost,
    "cost-attention": cost_section("cost_cuda", cost_attention),
    "cost-inference": cost_section("cost", cost_times("infer")),
    "cost-inference-cuda": cost_section("cost_cuda", cost_times("infer")),
    "cost-memory": cost_section("cost", cost_memory),
    "cost-plot": plot(
        "performance.png",
        "python benchmarks/cost.py --plot",
        "Time of a step over peak memory, both as shares of full fine-tuning",
    ),
    "cost-steps": cost_section("cost", cost_times("train")),
    "cost-steps-cuda": cost_section("cost_cuda", cost_times("train")),
    "degradations": degradations,
    "denoiser": cost_section("denoiser", denoiser),
    "ensemble": measured("ensemble"),
    "experiments": experiments,
    "families": families,
    **{name: ablation(name) for name in CLAIMS},
    **{f"{name}-findings": findings(name) for name in CLAIMS},
    "fingerprint": fingerprint,
    "found-gains": found_in_pairs("gain"),
    "found-offsets": found_in_pairs("offset_px"),
    "attacks": cost_section("attacks", attacks),
    "kinds": kinds,
    "parallax-demo": parallax_demo,
    "parallax-forms": parallax_forms,
    "parallax-rigs": parallax_rigs,
    "parallax-steps": parallax_steps,
    "layouts": layouts,
    "image-words": image_words,
    "memory": measured("memory_of_a_pair"),
    "networks": networks,
    "own-offsets": own_offsets,
    "pools": measured("pools"),
    "probing": probing,
    "protocols": protocols,
    "published": published,
    "recipes": recipes,
    "sites": sites,
    "speed": speed,
    "starts": stereo_start,
    "strips": measured("strips"),
    "switches": switches,
    "merge-parity": cost_section("merge_parity", merge_parity),
    "other-view-noise": cost_section("evidence", other_view("noise10")),
    "other-view-clean": cost_section("evidence", other_view("clean")),
    "other-view-kitti": cost_section("evidence", kitti),
    "other-view-hours": cost_section("evidence", hours),
    "other-view-plot": plot(
        "other-view.png",
        "python benchmarks/evidence.py --plot",
        "Gains over the steps, and over the control in every test scene",
    ),
    "same-budget-far": cost_section("methods", same_budget("far")),
    "same-budget-near": cost_section("methods", same_budget("near")),
    "same-budget-rates": cost_section("methods", same_budget_rates),
    "same-budget-hours": cost_section("methods", hours),
    "same-budget-cost": cost_section("methods", same_budget_cost),
    "same-budget-plot": plot(
        "same-budget.png",
        "python benchmarks/methods.py --plot",
        "Gain of each row over the frozen network, with its trained parameters",
    ),
    "weight-kinds": kinds_on(("weights",)),
    "feature-kinds": kinds_on(("features", "tokens", "image")),
    "hundred-steps": cost_section("hundred_steps", hundred_steps),
}


class Generated(SphinxDirective):
    """`{generated} NAME`: the Markdown of one of the functions above, parsed in place."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            text = GENERATED[self.arguments[0]]()
        except LookupError as missing:
            text = f"*Not available: `{missing}` was not found when these pages were built.*"
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True, "env_version": 1}
