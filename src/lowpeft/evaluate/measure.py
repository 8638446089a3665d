"""Measuring what enlarges images on scenes, by a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from ..data import Example
from ..errors import DataError, LowpeftError
from ..facts import Backbone
from ..images import bicubic_upscale, eight_bit, to_float
from ..inference import Tiling, is_out_of_memory, super_resolve
from ..metrics import PROTOCOLS, Protocol, get_protocol
from .report import Report, Row

Views = tuple[Tensor, ...]
Upscale = Callable[[Example], Views]
"""Gives the HR views of an example from its LR views: uint8 or float 0..1, on the CPU."""
Seen = Callable[[Example, Views], None]

WHOLE = Tiling()
LITERATURE = PROTOCOLS["literature"]


def evaluate(
    model: nn.Module,
    examples: Iterable[Example],
    *,
    backbone: Backbone,
    protocol: str = LITERATURE.name,
    ensemble: bool = False,
    tiling: Tiling = WHOLE,
    seen: Seen | None = None,
) -> Report:
    """Run a network on whole scenes and measure it.

    Args:
        model: The network of `backbone`, adapted or not.
        examples: At least one, with as many views as the protocol measures; read one by one.
        backbone: The facts.
        protocol: Of `lowpeft.metrics.PROTOCOLS`.
        ensemble: As in `lowpeft.super_resolve`.
        tiling: Likewise.
        seen: Called with each scene and its results, after it was measured.

    Returns:
        The figures of every scene, and their means.

    Raises:
        DataError: There is no such protocol, there are no scenes, two have one name, or one has another number of
            views.
        LowpeftError: A scene cannot be run or measured; it is named. No scene is ever left out of a mean.
    """
    upscale = by_network(model, backbone, ensemble=ensemble, tiling=tiling)
    return measure(upscale, examples, scale=backbone.scale, protocol=get_protocol(protocol), seen=seen)


def by_network(model: nn.Module, backbone: Backbone, *, ensemble: bool = False, tiling: Tiling = WHOLE) -> Upscale:
    """Enlarging by a network."""

    def upscale(example: Example) -> Views:
        views = map(to_float, example.lr)
        found = super_resolve(model, *views, backbone=backbone, ensemble=ensemble, tiling=tiling)
        return (found,) if isinstance(found, Tensor) else found

    return upscale


def by_network_alone(model: nn.Module, backbone: Backbone, *, tiling: Tiling = WHOLE) -> Upscale:
    """Enlarging by a stereo network that gets each view twice: what is lost is what it takes from the other view."""

    def upscale(example: Example) -> Views:
        left, right = map(to_float, example.lr)
        left_sr, _ = super_resolve(model, left, left, backbone=backbone, tiling=tiling)
        _, right_sr = super_resolve(model, right, right, backbone=backbone, tiling=tiling)
        return left_sr, right_sr

    return upscale


def by_bicubic(scale: int) -> Upscale:
    """Enlarging by MATLAB's bicubic interpolation."""
    return lambda example: tuple(bicubic_upscale(view, scale) for view in example.lr)


def measure(
    upscale: Upscale,
    examples: Iterable[Example],
    *,
    scale: int,
    protocol: Protocol = LITERATURE,
    method: str = "network",
    seen: Seen | None = None,
) -> Report:
    """Measure whatever enlarges images.

    Args:
        upscale: What does it.
        examples: At least one.
        scale: HR sides over LR sides.
        protocol: What is measured.
        method: Heads the table.
        seen: As in `evaluate`.

    Raises:
        DataError: There are no scenes, two have one name, or one has another number of views than the protocol
            measures.
        LowpeftError: A scene cannot be run or measured; it is named. Any other error gets the name as a note.
    """
    rows: dict[str, Row] = {}
    for example in examples:
        if example.name in rows:
            raise DataError(f"two scenes are called {example.name}: tables and files know them by their names")
        if len(example.hr) != protocol.views:
            raise DataError(
                f"scene {example.name}: has {len(example.hr)} views, but the protocol {protocol.name!r} is about "
                f"{protocol.views}"
            )
        try:
            results = upscale(example)
            rounded = tuple(map(eight_bit, results))
            values = tuple(column.measure(rounded, example.hr, scale) for column in protocol.columns)
        except LowpeftError as error:
            raise type(error)(f"scene {example.name}: {error.message}", problems=error.problems) from error
        except Exception as error:
            if is_out_of_memory(error):
                advice = "does not fit into memory: set a bound (memory_mb)"
                raise LowpeftError(f"scene {example.name}: {advice}") from error
            error.add_note(f"while scene {example.name} was measured")
            raise
        rows[example.name] = Row(scene=example.name, values=values)
        if seen is not None:
            seen(example, results)
    if not rows:
        raise DataError("there are no scenes to measure on")
    return Report(method=method, protocol=protocol, rows=tuple(rows.values()))
