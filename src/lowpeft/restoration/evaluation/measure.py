"""Measuring networks and other image-enhancing functions on scenes, by a protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import nn

from ...core.attachment.record import is_adapted, module_of
from ...core.observation.describe import image_facts
from ...core.operations.switching import disabled
from ...errors import DataError, LowpeftError, PlanError
from ...ports.facts import ImageFacts
from ..data import Example
from ..images import bicubic_upscale, eight_bit, to_float
from ..inference import Tiling, is_out_of_memory
from ..inference.network import Views
from ..inference.whole import WHOLE, enhance_views
from ..metrics import PROTOCOLS, Protocol, usual_protocol
from .journal import Figures
from .report import Report, ReportRow

Enhance = Callable[[Example], Views]
"""Function from an example to its HR views, made from the LR views: uint8 or float 0..1, on the CPU."""
Seen = Callable[[Example, Views], None]


class Method(NamedTuple):
    """A way of making images, and the protocol that measures it."""

    enhance: Enhance
    protocol: Protocol


def evaluate(
    model: object,
    examples: Iterable[Example],
    *,
    protocol: Protocol | str | None = None,
    method: str = "network",
    ensemble: bool = False,
    tiling: Tiling = WHOLE,
    seen: Seen | None = None,
) -> Report:
    """Run a network on whole scenes and measure its results.

    Args:
        model: A network (a `Backbone` or a module), adapted or not, or a stereo model.
        examples: One or more scenes with the protocol's number of views; read one by one.
        protocol: Protocol, or name of one in `lowpeft.restoration.metrics.PROTOCOLS`; None for the usual one:
            `literature` for pairs; for single images `single-image`, or at scale 1 `rgb`.
        method: Name of the network in tables.
        ensemble: True averages several passes; see `lowpeft.enhance`.
        tiling: Tiling that bounds memory; see `lowpeft.enhance`.
        seen: Called with each scene and its results after it is measured.

    Returns:
        The figures of every scene; `means()` of the report averages them.

    Raises:
        DataError: The protocol is unknown, there are no scenes, two have the same name, or one has another number of
            views.
        LowpeftError: A scene cannot be run or measured; it is named. No scene is ever left out of a mean.
        PlanError: The network does not take and give images.
    """
    facts = image_facts(model)
    enhance = _by_facts(module_of(model), facts, ensemble=ensemble, tiling=tiling)
    return measure(enhance, examples, scale=facts.scale, protocol=protocol, method=method, seen=seen)


def by_network(model: object, *, ensemble: bool = False, tiling: Tiling = WHOLE) -> Enhance:
    """Return a function that enhances by a network; the network's facts are read now, not at each call.

    Raises:
        PlanError: The network does not take and give images.
    """
    return _by_facts(module_of(model), image_facts(model), ensemble=ensemble, tiling=tiling)


def _by_facts(module: nn.Module, facts: ImageFacts, *, ensemble: bool, tiling: Tiling) -> Enhance:
    def enhance(example: Example) -> Views:
        return enhance_views(module, tuple(map(to_float, example.lr)), facts, ensemble=ensemble, tiling=tiling)

    return enhance


def by_network_alone(model: object, *, ensemble: bool = False, tiling: Tiling = WHOLE) -> Enhance:
    """Return a function that gives a multi-view model copies of one view, once for each view, without the other views.

    Raises:
        PlanError: The network does not take and give images.
    """
    module, facts = module_of(model), image_facts(model)

    def enhance(example: Example) -> Views:
        views = tuple(map(to_float, example.lr))
        count = len(views)
        return tuple(
            enhance_views(module, (view,) * count, facts, ensemble=ensemble, tiling=tiling)[i]
            for i, view in enumerate(views)
        )

    return enhance


def by_frozen(model: object, *, ensemble: bool = False, tiling: Tiling = WHOLE) -> Enhance:
    """Return a function that enhances by the frozen network of an adapted model.

    Raises:
        PlanError: The network does not take and give images, or has no adapters.
    """
    network = by_network(model, ensemble=ensemble, tiling=tiling)
    if not is_adapted(model):
        raise PlanError("the model has no adapters, so it is the frozen network itself")

    def enhance(example: Example) -> Views:
        with disabled(model):
            return network(example)

    return enhance


def by_bicubic(scale: int) -> Enhance:
    """Return a function that upscales by MATLAB's bicubic interpolation; with scale 1, that returns its input."""
    if scale == 1:
        return lambda example: example.lr
    return lambda example: tuple(bicubic_upscale(view, scale) for view in example.lr)


def measure(
    enhance: Enhance,
    examples: Iterable[Example],
    *,
    scale: int,
    protocol: Protocol | str | None = None,
    method: str = "network",
    seen: Seen | None = None,
) -> Report:
    """Measure any function that enhances images.

    Args:
        enhance: The function to measure: it gets an example, and returns the HR views that it makes from the LR views.
        examples: One or more scenes; read one by one.
        scale: HR sides divided by LR sides.
        protocol: As for `evaluate`.
        method: Name of the method in tables.
        seen: Called with each scene and its results after it is measured.

    Raises:
        DataError: The protocol is unknown, there are no scenes, two have the same name, or one has another number of
            views than the protocol.
        LowpeftError: A scene cannot be run or measured, or does not fit into memory; it is named. Other errors get
            the scene's name as a note.
    """
    asked = PROTOCOLS.find(protocol) if isinstance(protocol, str) else protocol
    methods: dict[str, Method] = {}
    rows: dict[str, Figures] = {}
    channels = set[int]()
    for example in examples:
        methods = methods or {method: Method(enhance, asked or usual_protocol(scale, len(example.hr)))}
        if example.name in rows:
            raise DataError(f"two scenes are called {example.name}, but reports need unique names: rename one")
        channels.add(len(example.hr[0]))
        results, rows[example.name] = measure_scene(methods, example, scale=scale)
        if seen is not None:
            seen(example, results[method])
    return reports_of(methods, rows, channels=max(channels, default=3))[method]


def measure_scene(
    methods: Mapping[str, Method], example: Example, *, scale: int
) -> tuple[dict[str, Views], dict[str, tuple[float, ...]]]:
    """Measure one scene by several methods.

    Args:
        methods: Methods by name.
        example: The scene.
        scale: HR sides divided by LR sides.

    Returns:
        The results and the figures of each method. Results are rounded to 8 bits before they are measured.

    Raises:
        DataError: The scene has another number of views than a protocol.
        LowpeftError: The scene cannot be run or measured, or does not fit into memory; it is named. Other errors get
            the scene's name as a note.
    """
    results, figures = {}, {}
    for name, method in methods.items():
        if method.protocol.views not in (None, len(example.hr)):
            raise DataError(_other_views(example, method.protocol))
        try:
            results[name] = method.enhance(example)
            rounded = tuple(map(eight_bit, results[name]))
            figures[name] = tuple(column.measure(rounded, example.hr, scale) for column in method.protocol.columns)
            wrong = [c.name for c, v in zip(method.protocol.columns, figures[name], strict=True) if math.isnan(v)]
            if wrong:
                raise LowpeftError(f"{' and '.join(wrong)} of {name} is not a number")
        except LowpeftError as error:
            raise type(error)(f"scene {example.name}: {error.message}", problems=error.problems) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise LowpeftError(f"scene {example.name}: out of memory; set a bound (memory_mb)") from error
            error.add_note(f"while scene {example.name} was measured")
            raise
    return results, figures


def reports_of(methods: Mapping[str, Method], rows: Mapping[str, Figures], *, channels: int) -> dict[str, Report]:
    """Return the report of each method.

    Args:
        methods: Methods by name.
        rows: Figures of each scene, as `measure_scene` returns them.
        channels: Channels of the images, 3 or 1.

    Raises:
        DataError: There are no scenes.
    """
    if not rows:
        raise DataError("no scenes were given to measure")
    return {
        name: Report(
            method=name,
            protocol=method.protocol.of_channels(channels),
            rows=tuple(ReportRow(scene=scene, values=tuple(figures[name])) for scene, figures in rows.items()),
        )
        for name, method in methods.items()
    }


def _other_views(example: Example, protocol: Protocol) -> str:
    """Return the message for a scene that has another number of views than the protocol; it names those that fit."""
    count = len(example.hr)
    fitting = " or ".join(f"protocol={name!r}" for name, row in PROTOCOLS.items() if row.views in (None, count))
    return (
        f"scene {example.name}: has {count} view{'s' * (count > 1)}, but protocol {protocol.name!r} measures scenes of "
        f"{protocol.views}" + (f"; measure it with {fitting}" if fitting else "")
    )
