"""Tables of lowpeft's registries: families, kinds, recipes, experiments, layouts, degradations, protocols."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .base import first_line, made_by, need, table, yes


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
