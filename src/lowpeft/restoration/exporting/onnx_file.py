"""Export as an ONNX file, compared in onnxruntime before it is put in its place."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

from torch import nn

from ...core.attachment.copies import copy_of
from ...core.attachment.record import is_adapted, pieces, root_of, unwrap
from ...core.observation.describe import image_facts
from ...core.operations.merging import merge
from ...errors import LowpeftError, PlanError
from ...ports.facts import ImageFacts
from ...storage import new_file
from ..inference.pooling import LocalAvgPool2d
from .onnx_comparison import Comparison
from .onnx_graph import OPSET, OPSETS, Graph, decides_by_values, in_half, traced
from .result import Exported, Size, Source, checked_path, sizes_to_try


def export_onnx(
    model: object, path: str | Path, *, half: bool = False, opset: int = OPSET, fixed: Size | None = None
) -> Exported:
    """Write a network as an ONNX graph; the model is unchanged.

    Adapters are merged where they can be, and part of the graph otherwise. Inputs and outputs are float32 images
    (N,C,H,W), values 0..1, not clamped: `image` and `result`, or one of each per view (`left`, `right`, `left_result`,
    `right_result`). The graph converts values and pads and crops by itself. Height, width and, where the network
    allows, batch are open. onnxruntime runs it at several sizes, and its output is compared with the network's.

    Args:
        model: A network (`Backbone`, module), adapted or not.
        path: File to write, `.onnx`. An existing file is replaced.
        half: True for weights and computation in float16; inputs and outputs stay float32.
        opset: Version of ONNX's operators, one of `OPSETS`.
        fixed: Height and width in pixels of the only size that the graph takes; None for any size.

    Returns:
        The file's size, shapes of inputs and outputs, and what was compared.

    Raises:
        PlanError: The model is no network from images to images.
        LowpeftError: The path, opset or size does not fit, onnx or onnxruntime is not installed, the network uses
            operators that ONNX has not, the file cannot be written, or the graph computes something else, at one of
            the sizes. No file is written then.
    """
    file = check_onnx(model, path, opset=opset, fixed=fixed)
    source = Source.of(model)
    sizes = sizes_to_try(source.facts) if fixed is None else (fixed,)
    graph = Graph(_merged_as_far_as_possible(source.network), source.facts)
    made, decisions = traced(graph, sizes[0], opset, open_sides=len(sizes) > 1)
    comparison = Comparison(source, graph, in_half(made) if half else made, half=half)
    notes = [*comparison.limit_batch(sizes[0]), *_notes(graph, sizes)]
    comparison.compare(sizes)
    notes += [*comparison.left_out, *_decisions(graph, decisions, comparison.sizes)]
    comparison.describe(notes)
    content = comparison.model.SerializeToString()
    try:
        with new_file(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise LowpeftError(f"cannot write {file}: {error.strerror or error}") from error
    return Exported(
        path=file,
        bytes=len(content),
        program="onnxruntime",
        sizes=comparison.sizes,
        difference=comparison.difference,
        tolerance=comparison.most,
        inputs=_shapes(comparison.model.graph.input),
        outputs=_shapes(comparison.model.graph.output),
        notes=tuple(notes),
    )


def check_onnx(model: object, path: str | Path, *, opset: int = OPSET, fixed: Size | None = None) -> Path:
    """Return the path that `export_onnx` would write to, or raise what can be told without running the network.

    Raises:
        PlanError: The model is no network from images to images.
        LowpeftError: The path, opset or size does not fit, the network's pools are local (`local_pooling`) and no size
            is given, or onnx or onnxruntime is not installed.
    """
    file = checked_path(path, (".onnx",))
    _require_packages()
    facts = image_facts(model)
    problems = _problems(facts, opset, fixed)
    local = any(isinstance(module, LocalAvgPool2d) for module in root_of(model).modules())
    if local and fixed is None and facts.fixed_px is None:
        problems.append(
            "its pools are local (local_pooling), so what it computes depends on the size of the image: export it for "
            "one size (--fixed HxW, fixed=(height, width)), or outside the block"
        )
    if problems:
        raise LowpeftError(f"{facts.architecture} cannot be exported as asked:", problems=problems)
    return file


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise LowpeftError("exporting to ONNX needs onnx and onnxruntime: pip install 'lowpeft[onnx]'") from error


def _problems(facts: ImageFacts, opset: int, fixed: Size | None) -> list[str]:
    problems = []
    if opset not in OPSETS:
        problems.append(f"opset {opset}: PyTorch's exporter writes {OPSETS[0]} to {OPSETS[-1]}")
    if fixed is not None and min(fixed) < 1:
        problems.append(f"a size of {fixed[0]}x{fixed[1]} px: both sides must be at least 1 px")
    if fixed is not None and facts.fixed_px not in (None, *fixed):
        problems.append(f"a size of {fixed[0]}x{fixed[1]} px: the network takes {facts.fixed_px}x{facts.fixed_px} only")
    return problems


def _merged_as_far_as_possible(network: nn.Module) -> nn.Module:
    """Return a copy with the adapters merged that can be; if `merge` refuses, with all of them attached."""
    copied = copy_of(network)
    if is_adapted(copied):
        with contextlib.suppress(PlanError):
            merge(copied)
    return copied


def _notes(graph: Graph, sizes: tuple[Size, ...]) -> list[str]:
    """Return notes on what the graph takes and contains."""
    notes = [] if len(sizes) > 1 else ["images of {}x{} px only".format(*sizes[0])]
    if is_adapted(graph.network):
        kinds = sorted({piece.kind for _, _, piece in pieces(unwrap(graph.network))})
        notes.append(f"not merged, so part of the graph: {', '.join(kinds)}")
    return notes


def _decisions(graph: Graph, places: list[str], sizes: tuple[Size, ...]) -> list[str]:
    """Return a note if the network's code decides something by its input: a graph contains one way only.

    Args:
        graph: The graph.
        places: Where its code turns tensors, or sides of images, into true or false.
        sizes: Sizes that were compared.
    """
    if place := decides_by_values(graph, sizes[0]):
        return [f"its code decides by values of the image ({place}): the graph always goes the way of random noise"]
    if not places or len(sizes) == 1:
        return []
    height, width = max(sizes, key=math.prod)
    return [
        f"its code decides by sizes ({', '.join(places[:3])}): larger images than {height}x{width} px were not tried"
    ]


def _shapes(values: Any) -> dict[str, list[int | str]]:
    """Return the shapes of a graph's inputs or outputs by name; sides of any length are names."""
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
