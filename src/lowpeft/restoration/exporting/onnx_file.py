"""Export as an ONNX file, compared in onnxruntime before it is put in its place."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.attachment.copies import copy_of
from ...core.attachment.record import is_adapted, pieces, unwrap
from ...core.operations.merging import merge
from ...errors import LowpeftError, PlanError
from ...ports.facts import ImageFacts
from ...storage import new_file
from ..inference.network import run_padded
from .onnx_graph import BATCH, OPSET, OPSETS, Graph, in_half, set_dimension, traced
from .result import Exported, Size, Source, checked_path, largest_difference, random_images, sizes_to_try, tolerance


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
    file = checked_path(path, (".onnx",))
    _require_packages()
    source = Source.of(model)
    if problems := _problems(source.facts, opset, fixed):
        raise LowpeftError(f"{source.facts.architecture} cannot be exported as asked:", problems=problems)
    sizes = sizes_to_try(source.facts) if fixed is None else (fixed,)
    graph = Graph(_merged_as_far_as_possible(source.network), source.facts)
    made = traced(graph, sizes[0], opset, open_sides=len(sizes) > 1)
    comparison = _Comparison(source, graph, in_half(made) if half else made, tolerance(half=half))
    notes = [*comparison.limit_batch(sizes[0]), *_notes(graph, sizes)]
    difference = comparison.largest(sizes)
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
        sizes=sizes,
        difference=difference,
        tolerance=comparison.most,
        inputs=_shapes(comparison.model.graph.input),
        outputs=_shapes(comparison.model.graph.output),
        notes=tuple(notes),
    )


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


def _shapes(values: Any) -> dict[str, list[int | str]]:
    """Return the shapes of a graph's inputs or outputs by name; sides of any length are names."""
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


class _Comparison:
    """An ONNX model, run by onnxruntime on the CPU beside the network that it was made of.

    Attributes:
        model: The ONNX model.
        most: Difference up to which an output is accepted.
    """

    def __init__(self, source: Source, graph: Graph, model: Any, most: float) -> None:
        self.source = source
        self.graph = graph
        self.model = model
        self.most = most
        self._set_batch(BATCH)

    def limit_batch(self, size: Size) -> list[str]:
        """Let the model take one image at a time if it is wrong for two, and say so."""
        if self._difference(size, batch=2) <= self.most:
            return []
        self._set_batch(1)
        return ["one image at a time"]

    def largest(self, sizes: tuple[Size, ...]) -> float:
        """Return the largest difference at any of the sizes, of which the first was traced.

        Raises:
            LowpeftError: It is too large.
        """
        differences = [self._difference(size) for size in sizes]
        if (worst := max(differences)) <= self.most:
            return worst
        height, width = sizes[differences.index(worst)]
        found = f"differs by {worst:.3g} of the largest value at {height}x{width} px (at most {self.most:.3g})"
        if differences[0] <= self.most:
            raise LowpeftError(
                f"the graph of {self.source.facts.architecture} is right only at the size at which it was traced: its "
                f"output {found}. Export it for the size that you need: --fixed HxW, fixed=(height, width)"
            )
        raise LowpeftError(
            f"the graph of {self.source.facts.architecture} computes something else: its output {found}. "
            "Leave out half (--half), or try another version of the operators (--opset)"
        )

    def describe(self, notes: list[str]) -> None:
        """Write the facts of the network into the model's metadata."""
        import onnx

        padding = {"padding": "in the graph", "notes": "; ".join(notes)}
        onnx.helper.set_model_props(self.model, {**self.source.metadata, **padding})

    def _difference(self, size: Size, batch: int = 1) -> float:
        """Return the difference at one size; infinite if the model does not run there."""
        images = random_images(self.source.facts, size, views=self.graph.views, batch=batch)
        with torch.no_grad():
            expected = run_padded(self.source.network, images, self.source.facts)
        given = {name: image.numpy() for name, image in zip(self.graph.names, images, strict=True)}
        try:
            found = self._session.run(None, given)
        except Exception:  # noqa: BLE001  (onnxruntime raises a kind of its own for each of its states)
            return float("inf")
        return largest_difference(expected, map(torch.from_numpy, found))

    def _set_batch(self, batch: int | str) -> None:
        """Set the first dimension of inputs and outputs: a number, or a name for any number."""
        import onnxruntime

        for value in (*self.model.graph.input, *self.model.graph.output):
            set_dimension(value, 0, batch)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and said by us
        content = self.model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            raise LowpeftError(
                f"onnxruntime does not take the graph of {self.source.facts.architecture}: {reason[:300]}. Try another "
                "version of the operators (--opset), or leave out half (--half) if you gave it"
            ) from error
