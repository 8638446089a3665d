"""The graph that is exported: images 0..1 of any size in, images of about 0..1 out, padded and cropped inside."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.attachment.calls import image_in, to_network, to_plain
from ...errors import LowpeftError
from ...ports.facts import ImageFacts
from ..inference.network import multi_view
from .result import Size, random_images

OPSETS = range(13, 21)
"""Versions of ONNX's operators that PyTorch's tracing exporter writes."""
OPSET = 17
BATCH, HEIGHT, WIDTH = "batch", "height", "width"
"""Names of the sides of the input that may be of any length."""


class Graph(nn.Module):
    """What is traced: images 0..1 of any size to the network's images, about 0..1; no Python code depends on sizes."""

    def __init__(self, network: nn.Module, facts: ImageFacts) -> None:
        super().__init__()
        self.network = network
        self.facts = facts
        together = multi_view(network)
        self.views = 1 if together is None else together.views

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        if self.views == 1:
            return ("image",)
        return ("left", "right") if self.views == 2 else tuple(f"view_{i + 1}" for i in range(self.views))

    @property
    def result_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("result",) if self.views == 1 else tuple(f"{name}_result" for name in self.names)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        height, width = (side * self.facts.scale for side in images[0].shape[-2:])
        outputs = self.network(*(to_network(_padded(image, self.facts), self.facts) for image in images))
        if self.views == 1:
            outputs = (image_in(outputs, self.facts.output),)
        return tuple(to_plain(output, self.facts)[..., :height, :width] for output in outputs)


def _padded(image: Tensor, facts: ImageFacts) -> Tensor:
    """Pad as `pad_to` does, to the sides of `Facts.sides_for`, with operations that stay true at other sizes."""
    height, width = image.shape[-2:]
    least, multiple = facts.fixed_px or facts.min_px, facts.size_multiple
    rows, columns = (side + -side % multiple for side in (_at_least(height, least), _at_least(width, least)))
    if facts.square:
        rows, columns = _at_least(rows, columns), _at_least(columns, rows)
    if (least, multiple, facts.square) == (1, 1, False):
        return image
    across = image.index_select(-2, _mirrored(height, rows, image.device))
    return across.index_select(-1, _mirrored(width, columns, image.device))


def _at_least(side: Any, least: Any) -> Any:
    """Return the larger of two sides, which are numbers, or tensors while a graph is traced."""
    return side + (least - side) * (least > side)


def _mirrored(side: Any, padded: Any, device: torch.device) -> Tensor:
    """Return the index of the pixel that each place of a padded side repeats: a reflection, then the last of it."""
    places = torch.arange(padded, device=device)
    return torch.where(places < side, places, (2 * (side - 1) - places).clamp(min=0))


def traced(graph: Graph, size: Size, opset: int, *, open_sides: bool) -> tuple[Any, list[str]]:
    """Trace a graph with PyTorch's exporter of traces: the newer one takes ten times as long, and fails on windows.

    Returns:
        The ONNX model; and where the network's code decides by values or sizes of its input, as file and line.

    Raises:
        LowpeftError: The exporter fails.
    """
    import onnx

    images = random_images(graph.facts, size, views=graph.views)
    shapes = {
        **{name: {0: BATCH, 2: HEIGHT, 3: WIDTH} for name in graph.names},
        **{name: {0: BATCH, 2: f"result_{HEIGHT}", 3: f"result_{WIDTH}"} for name in graph.result_names},
    }
    with torch.no_grad():
        shape = graph.eval()(*images)[0].shape
    # The exporter switches on a log that prints the whole graph when it fails; the first forward is after that.
    quiet = graph.register_forward_pre_hook(lambda *_: torch._C._jit_set_onnx_log_enabled(False))
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            torch.no_grad(),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            written = Path(folder) / "graph.onnx"
            torch.onnx.export(
                graph,
                images,
                written,
                dynamo=False,
                opset_version=opset,
                input_names=[*graph.names],
                output_names=[*graph.result_names],
                dynamic_axes=shapes if open_sides else {name: {0: BATCH} for name in shapes},
            )
            model = onnx.load(written)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise LowpeftError(
            f"{graph.facts.architecture} cannot be exported with ONNX's operators of version {opset}: "
            f"{type(error).__name__}: {reason[:300]}. {_instead(error, opset)}; adapters that can be merged also "
            "go into a state dict (--torch)"
        ) from error
    finally:
        quiet.remove()
    for result in model.graph.output:
        for index in (1,) if open_sides else (1, 2, 3):
            set_dimension(result, index, shape[index])
    decisions = [w for w in warned if "to a Python boolean" in str(w.message)]
    return model, [*dict.fromkeys(f"{Path(w.filename).name}:{w.lineno}" for w in decisions)]


def _instead(error: Exception, opset: int) -> str:
    """Return what to do when the exporter fails; its error says in which version an operator was added, if in any."""
    in_none = isinstance(error, torch.onnx.errors.UnsupportedOperatorError) and "added in version" not in str(error)
    if in_none or opset == OPSETS[-1]:
        return "No later version has it: run the network in lowpeft"
    return f"A later version may have what it needs (--opset {OPSETS[-1]})"


def decides_by_values(graph: Graph, size: Size) -> str:
    """Return where a network's code reads values of its input, as file and line; "" if it does not, or cannot be told.

    The graph runs on tensors without values, and may keep some of them: it is of no use afterwards.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    images = [mode.from_tensor(image) for image in random_images(graph.facts, size, views=graph.views)]
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            graph(*images)
    except DataDependentOutputException as error:
        library = Path(torch.__file__).parent
        frames = [f for f in traceback.extract_tb(error.__traceback__) if library not in Path(f.filename).parents]
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    except Exception:  # noqa: BLE001  (code of any network, on tensors that it does not expect)
        return ""
    return ""


def set_dimension(value: Any, index: int, size: int | str) -> None:
    """Set one dimension of a graph's input or output: a number, or a name for any number."""
    dimension = value.type.tensor_type.shape.dim[index]
    if isinstance(size, int):
        dimension.dim_value = size
    else:
        dimension.dim_param = size


def in_half(model: Any) -> Any:
    """Return a graph with weights and computation in float16; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are too small for float16 become 0
        return convert_float_to_float16(model, keep_io_types=True)
