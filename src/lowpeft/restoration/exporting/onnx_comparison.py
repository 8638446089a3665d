"""The comparison of an ONNX model, run by onnxruntime, with the network that it was made of."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ...errors import LowpeftError
from ..inference.network import Views, run_padded
from .onnx_graph import BATCH, Graph, set_dimension
from .result import LARGE, Size, Source, largest_difference, other_images, random_images, tolerance

MOST_S = 60
"""Longest time, in seconds, that one of the more thorough comparisons may take."""


class Comparison:
    """An ONNX model, run by onnxruntime on the CPU beside the network that it was made of.

    Attributes:
        model: The ONNX model.
        most: Difference up to which an output is accepted.
        advice: What to do if the model is not right.
        sizes: Heights and widths, in pixels, that were compared.
        difference: Largest difference that was found.
        left_out: A note on each comparison that would have taken too long.
    """

    def __init__(self, source: Source, graph: Graph, model: Any, *, half: bool) -> None:
        self.source = source
        self.graph = graph
        self.model = model
        self.most = tolerance(half=half)
        self.advice = "try another version of the operators (--opset)"
        if half:
            self.advice = f"leave out half (--half), or {self.advice}"
        self.sizes: tuple[Size, ...] = ()
        self.difference = 0.0
        self.left_out: list[str] = []
        self._set_batch(BATCH)

    def limit_batch(self, size: Size) -> list[str]:
        """Let the model take one image at a time if it is wrong for two, and say so."""
        if self._difference(random_images(self.source.facts, size, views=self.graph.views, batch=2)) <= self.most:
            return []
        self._set_batch(1)
        return ["one image at a time"]

    def compare(self, sizes: tuple[Size, ...]) -> None:
        """Compare random images of several sizes, of which the first was traced, then other images, then a large one.

        The last two are left out where they would take longer than `MOST_S`.

        Raises:
            LowpeftError: A difference is too large.
        """
        largest = max(sizes, key=math.prod)
        for size in sizes:
            started = time.perf_counter()
            self._accept_size(size, traced=size == sizes[0])
            if size == largest:
                seconds_per_px = (time.perf_counter() - started) / math.prod(size)
        others = other_images(self.source.facts, sizes[0], views=self.graph.views)
        if self._in_time("dark, bright and smooth images", seconds_per_px * len(others) * math.prod(sizes[0])):
            for kind, images in others.items():
                self._accept_kind(kind, images)
        height, width = LARGE
        larger = len(sizes) > 1 and self.source.facts.min_px <= min(LARGE) and math.prod(LARGE) > math.prod(largest)
        if larger and self._in_time(f"images of {height}x{width} px", seconds_per_px * math.prod(LARGE)):
            self._accept_size(LARGE, traced=False)

    def _in_time(self, what: str, seconds: float) -> bool:
        if seconds > MOST_S:
            self.left_out.append(f"not compared for {what}, which would take about {seconds:.0f} s")
        return seconds <= MOST_S

    def _accept_size(self, size: Size, *, traced: bool) -> None:
        images = random_images(self.source.facts, size, views=self.graph.views)
        if found := self._found(images):
            height, width = size
            if traced:
                raise LowpeftError(
                    f"the graph of {self.source.facts.architecture} computes something else: its output {found}. "
                    f"{self.advice[0].upper()}{self.advice[1:]}"
                )
            raise LowpeftError(
                f"the graph of {self.source.facts.architecture} is not right at every size: its output {found} at "
                f"{height}x{width} px, which is not the size at which it was traced. Export it for the size that you "
                "need: --fixed HxW, fixed=(height, width)"
            )
        self.sizes += (size,)

    def _accept_kind(self, kind: str, images: Views) -> None:
        if found := self._found(images):
            raise LowpeftError(
                f"the graph of {self.source.facts.architecture} is right for random noise, but not for every image: "
                f"its output {found} for a {kind} image. If the network's code decides by values of the image (if, "
                f"float, item), write that with torch.where; otherwise {self.advice}"
            )

    def _found(self, images: Views) -> str:
        """Describe the difference for some images if it is too large."""
        difference = self._difference(images)
        if difference <= self.most:
            self.difference = max(self.difference, difference)
            return ""
        return f"differs by {difference:.3g} of the largest value (at most {self.most:.3g})"

    def describe(self, notes: list[str]) -> None:
        """Write the facts of the network into the model's metadata."""
        import onnx

        padding = {"padding": "in the graph", "notes": "; ".join(notes)}
        onnx.helper.set_model_props(self.model, {**self.source.metadata, **padding})

    def _difference(self, images: Views) -> float:
        """Return the difference for some images, one per view; infinite if the model does not run for them."""
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
                f"onnxruntime does not take the graph of {self.source.facts.architecture}: {reason[:300]}. "
                f"{self.advice[0].upper()}{self.advice[1:]}"
            ) from error
