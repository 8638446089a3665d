"""What are the facts of a network? Given by the user, known from its family, or measured by running a copy of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ... import checks
from ...errors import PlanError
from ...families import Recognised
from ...ports.base import original_class
from ...ports.facts import Backbone, Facts, ImageFacts
from ...ports.layouts import Size
from ..attachment.calls import image_in, to_network
from ..attachment.record import has_record, module_of, pieces, record_of, root_of, unwrap
from ..attachment.running import in_force
from ..attachment.settings import is_off
from .examples import Example, examples
from .trial import MOST_RUNS, Trial

MULTIPLES_PX = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
"""Candidates for `size_multiple`, in pixels, in the order of trial; the first at which the network runs is used."""

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)
"""Factors of test sizes: sides m·p and m·q with two primes p and q have no common divisors but those of m.

E.g. m = 8 and sides of at least 32 px: 40 and 56 px, which a network that needs a multiple of 16 does not take.
"""


_SIDES = ("size_multiple", "min_px", "fixed_px", "square")
"""Facts about the sides of images."""


def describe(  # noqa: PLR0913  (one argument for each fact)
    module: object,
    *,
    scale: int | None = None,
    value_range: tuple[float, float] | None = None,
    output_range: tuple[float, float] | None = None,
    channels: int | None = None,
    maps: tuple[float, ...] | None = None,
    size_multiple: int | None = None,
    min_px: int | None = None,
    square: bool | None = None,
    fixed_px: int | None = None,
    strips: bool | None = None,
    output: str | int | None = None,
    architecture: str | None = None,
    example: Any = None,
) -> Backbone:
    """Return a network with its facts, as a `Backbone`, which every function of lowpeft accepts.

    Facts that are not given are those of the network's family. Without a family, scale, channels and size multiple are
    measured by running a copy of the network on small random images, and the value range is assumed to be 0..1. The
    source of each fact is in `.notes`, and in the output of `print(lowpeft.plan(…))` and `print(lowpeft.summary(…))`.

    Args:
        module: A network, adapted or not, or a `Backbone` some of whose facts are to be changed.
        scale: Output sides divided by input sides.
        value_range: Lowest and highest value of input and output images.
        output_range: Lowest and highest value of output images, if they differ from those of input images.
        channels: Number of channels of input images.
        maps: Values of the constant maps that the network takes as extra channels behind the image's channels (e.g. a
            noise level), in the network's own units.
        size_multiple: Number of pixels that input sides must be a multiple of.
        min_px: Smallest input side, in pixels.
        square: True if the network takes square images only.
        fixed_px: Only side of (square) images that the network takes, in pixels.
        strips: True if an image may be processed in strips.
        output: Part of the network's output that is the image: an attribute's name, or an item's index.
        architecture: Display name; the class name by default.
        example: Input used instead of random images, in the network's own value range: an N,C,H,W tensor. For networks
            with other inputs: a list (the only argument), a tuple or a dict of arguments.

    Raises:
        PlanError: `module` is not a network, or a fact is invalid.
    """
    given = {n: value for n, value in locals().items() if n not in ("module", "example") and value is not None}
    _check(given)
    given |= {n: tuple(map(float, given[n])) for n in ("value_range", "output_range", "maps") if n in given}
    root, known = root_of(module), _known(module)
    trial = Trial(root, None if example is None else Example.of(example))
    if trial.example is not None and trial.example.image is None and {"scale", "channels"} & given.keys():
        raise PlanError(
            "scale and channels are facts of networks that take one N,C,H,W tensor, and example= is something else"
        )
    if known is None:
        facts = _measured(trial, given)
    else:
        facts = Facts(**{**known.values, **given, "notes": _without(known.notes, given)})
    if given.get("strips") and (whole := _whole_image_kinds(module)):
        facts = replace(facts, notes=(*facts.notes, _allowed(whole)))
    making = module.making if isinstance(module, Backbone) else None
    return Backbone(
        module=module_of(module),
        making=None if making is None else making.described(given),
        **_with_whole_images(facts, module).values,
    )


def _check(given: Mapping[str, Any]) -> None:
    whole = ("scale", "channels", "size_multiple", "min_px", "fixed_px")
    problems = [problem for name in whole if name in given for problem in checks.whole(name, given[name], least=1)]
    for name in ("value_range", "output_range"):
        limits = given.get(name, (0, 1))
        if not _are_numbers(limits) or len(limits) != 2 or not limits[0] < limits[1]:
            problems.append(f"{name} must be two numbers, the lowest and the highest value, not {limits!r}")
    if not _are_numbers(given.get("maps", ())):
        problems.append(f"maps must be a tuple of numbers, one for each map, not {given['maps']!r}")
    types = {
        "output": ("a string or an index", (str, int)),
        "architecture": ("a string", (str,)),
        "square": ("True or False", (bool,)),
        "strips": ("True or False", (bool,)),
    }
    for name, (words, allowed) in types.items():
        if name in given and type(given[name]) not in allowed:
            problems.append(f"{name} must be {words}, not {given[name]!r}")
    if problems:
        raise PlanError("these facts of the network are invalid:", problems=problems)


def _are_numbers(values: object) -> bool:
    return isinstance(values, (tuple, list)) and all(checks.is_number(v, above=-math.inf) for v in values)


def _known(model: object) -> Facts | None:
    """Return the facts that come with the model: a `Backbone`'s, or those in an adapted network's record; else None."""
    if isinstance(model, Backbone):
        return model.facts
    if not has_record(model):
        return None
    root = root_of(model)
    # A user's module around the adapted network may change its input and output.
    return record_of(root).facts if unwrap(model) is root else None


def is_described(model: object) -> bool:
    """Return whether facts come with the model, so that nothing has to be measured."""
    return _known(model) is not None


def contradictions(base: Backbone, given: Collection[str]) -> list[str]:
    """List given facts that runs of a copy of the network contradict, each with what was measured.

    Args:
        base: Network with its facts.
        given: Names of the facts that were given. Only channels, scale and sides can be told by running; of a network
            that cannot be run on images, nothing is contradicted.
    """
    if not set(given) & {"channels", "scale", *_SIDES}:
        return []
    network = _Measuring(Trial(root_of(base)), base.output, base.maps)
    try:
        x = network.first(None)
    except PlanError:
        return []
    size, measured = (x.shape[-2], x.shape[-1]), network.scale_of(x)
    if "channels" in given and base.channels not in (None, x.shape[1]):
        other = x[:, :1].expand(1, base.channels, *size)
        if network.scale_at(other, size) is None:
            return [f"channels={base.channels}, but it runs on {x.shape[1]} channels, and not on {base.channels}"]
        x, measured = other, network.scale_at(other, size)
    if "scale" in given and base.scale != measured:
        return [f"scale={base.scale}, but the network's scale is {measured}, measured on {size[0]}x{size[1]} px"]
    return network.problems_of_sides(base, given, x, measured)


def facts_of(model: object, trial: Trial | None = None) -> Facts:
    """Return the facts that come with a network, or measure them (see `describe`), which takes some forward passes.

    Args:
        model: The network.
        trial: Existing trial of the network, to reuse.
    """
    return _known(model) or _measured(trial or Trial(root_of(model)), {})


def image_facts(model: object) -> ImageFacts:
    """Return the facts of a network whose input and output are images.

    Raises:
        PlanError: Scale or channels are unknown; they can be given with `lowpeft.describe`.
    """
    facts = _with_whole_images(facts_of(model), model)
    if facts.scale is None or facts.channels is None:
        missing = [name for name in ("scale", "channels") if getattr(facts, name) is None]
        raise PlanError(
            f"{facts.architecture} cannot be run on images: unknown {' and '.join(missing)}. If it maps one N,C,H,W "
            "tensor to another, give the facts with lowpeft.describe(module, scale=…, channels=…) (on the command line "
            "--network-fact); otherwise call it yourself",
            problems=facts.notes,
        )
    return ImageFacts(**facts.values)


def _whole_image_kinds(model: object) -> list[str]:
    """Return the kinds of the adapters that act here and now and read the whole image."""
    if not has_record(model):
        return []
    root = unwrap(model)
    acting = {name for name, strength in in_force(record_of(root).switches).values.items() if not is_off(strength)}
    attached = [piece for name, _, piece in pieces(root) if name in acting]
    return sorted({piece.kind for piece in attached if getattr(piece, "whole_image", False)})


def _allowed(kinds: list[str]) -> str:
    """Return the note of facts whose user lets images be cut into strips, though adapters read the whole image.

    Who allowed strips before such an adapter was attached did not mean it.
    """
    return f"strips: allowed by the caller, with {', '.join(kinds)} adapters"


def _with_whole_images(facts: Facts, model: object) -> Facts:
    """Return the facts without strips if an adapter reads the whole image, unless the user has allowed them."""
    whole = _whole_image_kinds(model)
    if not whole or not facts.strips or _allowed(whole) in facts.notes:
        return facts
    note = f"strips: {', '.join(whole)} adapters read the whole image"
    return replace(facts, strips=False, notes=(*_without(facts.notes, {"strips": None}), note))


def _without(notes: tuple[str, ...], given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(n for n in notes if not n.startswith(tuple(f"{name}:" for name in given)))


def _measured(trial: Trial, given: Mapping[str, Any]) -> Facts:
    root = trial.root
    family = trial.recognised
    known: dict[str, Any] = {
        "architecture": original_class(root).__name__,
        "family": family.family.name if family else None,
        **family_facts(root, family),
        **given,
    }
    notes: list[str] = list(known.pop("notes", ()))
    complete = {"scale", "channels"} <= known.keys() and known.keys() & {"size_multiple", "fixed_px"}
    if not complete or (family is not None and family.family.output is not None and "output" not in known):
        measured, how = _run(trial, known, family)
        known, notes = {**measured, **known}, [*notes, *how]
    if "value_range" not in known:
        notes.append("value_range: assumed to be 0..1")
    low, high = known.get("value_range", (0.0, 1.0))
    return Facts(**{**known, "value_range": (float(low), float(high)), "notes": _without(tuple(notes), given)})


def _passes_on(found: Recognised) -> bool:
    """Return whether no other module around the family's network could change its input or output."""
    return found.prefix == found.family.inside


def family_facts(root: nn.Module, found: Recognised | None) -> dict[str, Any]:
    """Return the facts that the family knows of this network; empty if modules around it could change its images."""
    if found is None or not _passes_on(found):
        return {}
    if found.family.facts is None:
        return {"output": found.family.output}
    names = {field.name for field in fields(Facts)}
    try:
        facts = dict(found.family.facts(root.get_submodule(found.prefix)))
    except (AttributeError, KeyError, IndexError, TypeError):  # another copy of the code, with other attributes
        return {}
    if unknown := sorted(facts.keys() - names):
        raise PlanError(f"the family {found.family.name!r} gives unknown facts: {', '.join(unknown)}")
    return {"output": found.family.output, **facts}


def _run(trial: Trial, known: Mapping[str, Any], family: Recognised | None) -> tuple[dict[str, Any], list[str]]:
    """Measure scale, channels and sizes by running a copy of the network; return them and a note on each."""
    output = known.get("output", family.family.output if family else None)
    try:
        network = _Measuring(trial, output, known.get("maps", ()))
        x = network.first(known.get("channels"))
    except PlanError as error:
        missing = [name for name in ("scale", "channels") if name not in known]
        notes = [f"{', '.join(missing)}: {error}"] if missing else []
        sized = not known.keys().isdisjoint(("size_multiple", "fixed_px"))
        return dict.fromkeys(missing), notes if missing or sized else ["size_multiple: assumed to be 1 px"]
    scale = known.get("scale") or network.scale_of(x)
    facts: dict[str, Any] = {"scale": scale, "channels": x.shape[1], "output": network.output}
    notes = [f"scale: x{scale}, measured", f"channels: {x.shape[1]}, measured"]
    if known.keys().isdisjoint(("size_multiple", "fixed_px")):
        sizes, note = network.sizes(x, scale)
        facts, notes = facts | sizes, [*notes, note]
    return facts, list(_without(tuple(notes), known))


class _Measuring:
    """A trial of a network, its constant maps, and the location of the image in its output."""

    def __init__(self, trial: Trial, output: str | int | None, maps: tuple[float, ...]) -> None:
        self.trial = trial
        self.output = output
        self.maps = Facts(architecture="", scale=None, channels=None, maps=maps)

    def image(self, x: Tensor) -> Tensor | None:
        """Return the image that the network computes from `x`; None if its output is something else."""
        result = self.trial.call(Example((to_network(x.clone(), self.maps),), {}))
        if isinstance(result, Tensor):
            self.output = None
        elif self.output is not None:
            result = image_in(result, self.output)
        plain = isinstance(result, Tensor) and result.dim() == 4 and len(result) == len(x)
        return result if plain and result.is_floating_point() else None

    def scale_of(self, x: Tensor) -> int | None:
        """Return output sides divided by input sides; None if that is not one integer or the output is not an image."""
        image = self.image(x)
        if image is None:
            return None
        (h, w), (rows, columns) = x.shape[-2:], image.shape[-2:]
        return rows // h if rows >= h and rows % h == 0 and rows * w == columns * h else None

    def first(self, channels: int | None) -> Tensor:
        """Return an input for which the network's output is an image.

        Raises:
            PlanError: No tried input gives an image.
        """
        tried: dict[str, None] = {}
        refused = 0
        given = self.trial.example
        if given is not None and given.image is None:
            raise PlanError("the example is not a single N,C,H,W tensor")
        for example in [given] if given is not None else examples(self.trial.root, batch=1):
            x = example.image
            if x is None or channels not in (None, x.shape[1]):
                continue
            if refused == MOST_RUNS:
                break
            try:
                if self.scale_of(x) is not None:
                    return x
                tried[f"{tuple(x.shape)}: the output is not an image of a whole multiple of its size"] = None
                refused += 1
            except Exception as error:  # noqa: BLE001  (any error means that it does not take this input)
                tried[f"{tuple(x.shape)}: {type(error).__name__}"] = None
        raise PlanError("none of the inputs that were tried gives an image (" + "; ".join([*tried][:3]) + ")")

    def sizes(self, x: Tensor, scale: int | None) -> tuple[dict[str, Any], str]:
        """Find the sides that the network takes, on images not smaller than `x`; return facts and a note."""
        least = min(x.shape[-2:])
        for multiple in MULTIPLES_PX:
            p, q = next((p, q) for p, q in pairwise(PRIMES) if p * multiple >= least)
            if self.scale_at(x, (p * multiple, q * multiple)) == scale:
                return {"size_multiple": multiple}, f"size_multiple: {multiple} px, measured"
        height, width = x.shape[-2:]
        if height == width and self.scale_at(x, (2 * height, 2 * width)) != scale:
            return {"fixed_px": height}, f"fixed_px: {height} px, measured: no other size that was tried runs"
        return {"size_multiple": least}, f"size_multiple: {least} px, the smallest side that was seen to run"

    def scale_at(self, x: Tensor, size: Size) -> int | None:
        """Return the scale on another image like `x`, of another size; None if the network does not take it."""
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, x.shape[1], *size, generator=generator, device="cpu").to(x.device, x.dtype)
        try:
            return self.scale_of(image)
        except Exception:  # noqa: BLE001  (any error means that it does not take this image)
            return None

    def problems_of_sides(self, facts: Facts, given: Collection[str], x: Tensor, scale: int | None) -> list[str]:
        """List given facts about sides that let through an image which the network does not take.

        Tried are the smallest image that they let through and, as without `min_px` that may be smaller than the
        network takes, one not smaller than `x` whose sides have no other common divisors than `size_multiple`.
        """
        named = [f"{name}={getattr(facts, name)}" for name in _SIDES if name in given]
        step, sizes = facts.size_multiple, []
        if {"min_px", "fixed_px"} & set(given):
            sizes.append(facts.sides_for(1, 1))
        if named and facts.fixed_px is None:
            p, q = next((p, q) for p, q in pairwise(PRIMES) if p * step >= min(x.shape[-2:]))
            sizes.append(facts.sides_for(p * step, q * step))
        wrong = [f"{height}x{width} px" for height, width in sizes if self.scale_at(x, (height, width)) != scale]
        if not wrong:
            return []
        return [f"{', '.join(named)}, but the network fails on {' and '.join(wrong)}; {self.sizes(x, scale)[1]}"]
