"""Export as a state dict in the network's own names, as if the network had been trained as a whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...backbones.opening import load_backbone
from ...core.attachment.copies import copy_of
from ...core.attachment.record import is_adapted
from ...core.operations.merging import merged_copy
from ...errors import DataError, LowpeftError, PlanError
from ...storage import new_file
from ..inference.network import run_padded
from .result import Exported, Source, checked_path, largest_difference, random_images, sizes_to_try, tolerance

SUFFIXES = (".safetensors", ".pth", ".pt")
INSTEAD = (
    "a state dict contains weights alone: write an ONNX file (--onnx, export_onnx), which contains the adapters as "
    "they are, or keep the adapter's folder beside the network's file (lowpeft enhance, lowpeft.load_adapter)"
)


def export_state_dict(model: object, path: str | Path, *, half: bool = False) -> Exported:
    """Write a network with its adapters merged, as a state dict in the network's own names; the model is unchanged.

    Before the file is put in its place, it is opened again, by spandrel if spandrel knows the network, and its output
    on a random image is compared with the adapted network's.

    Args:
        model: A network (`Backbone`, module), adapted or not.
        path: File to write: `.safetensors`, `.pth` or `.pt`. An existing file is replaced.
        half: True to store floating-point tensors in float16.

    Returns:
        The file's size, and what was compared.

    Raises:
        PlanError: Some adapters cannot be merged (stereo, spatial, tokens, …), or the model is no network from images
            to images.
        LowpeftError: The path does not fit, the file cannot be written, a weight is too large for float16, or the
            network in the file computes something else. No file is written then.
    """
    file = checked_path(path, SUFFIXES)
    source = Source.of(model)
    merged = _merged(source.network)
    tensors = {key: _stored(key, tensor, half=half) for key, tensor in merged.state_dict().items()}
    try:
        with new_file(file) as temporary:
            if file.suffix.lower() == ".safetensors":
                save_file(tensors, temporary, {"format": "pt", **source.metadata})
            else:
                torch.save(tensors, temporary)
            exported = _checked(temporary, file, source, merged, half=half)
    except (OSError, SafetensorError) as error:
        raise LowpeftError(f"cannot write {file}: {error}") from error
    return exported


def _merged(network: nn.Module) -> nn.Module:
    if not is_adapted(network):
        return network
    try:
        return merged_copy(network)
    except PlanError as error:
        raise PlanError(f"{error.message}; {INSTEAD}", problems=error.problems) from error


def _stored(key: str, tensor: Tensor, *, half: bool) -> Tensor:
    plain = tensor.detach().contiguous().clone()
    if not (half and plain.is_floating_point()):
        return plain
    rounded = plain.half()
    if bool(rounded.isinf().any() & plain.isfinite().all()):
        raise LowpeftError(f"{key} has values above 65,504, which float16 does not hold: leave out half (--half)")
    return rounded


def _checked(written: Path, file: Path, source: Source, merged: nn.Module, *, half: bool) -> Exported:
    """Compare the network in a file with the adapted one.

    Raises:
        LowpeftError: They compute something else.
    """
    facts, size = source.facts, sizes_to_try(source.facts)[0]
    program, opened = _opened(written, merged)
    images = random_images(facts, size)
    with torch.no_grad():
        expected = run_padded(source.network, images, facts)
        try:
            difference = largest_difference(expected, run_padded(opened, images, facts))
        except DataError:  # it returns images of another size, e.g. an IPT that runs another of its tasks
            difference = float("inf")
    most = tolerance(half=half)
    if not difference <= most:
        raise LowpeftError(
            f"{file} was not written: opened by {program}, its output differs by {difference:.3g} of the largest value "
            f"(at most {most:.3g}), so the tensors alone do not make this network. {INSTEAD[0].upper()}{INSTEAD[1:]}"
        )
    return Exported(
        path=file,
        bytes=written.stat().st_size,
        program=program,
        sizes=(size,),
        difference=difference,
        tolerance=most,
        inputs={},
        outputs={},
    )


def _opened(written: Path, merged: nn.Module) -> tuple[str, nn.Module]:
    """Open a file by its tensors alone; a network that is not recognised is loaded into a copy of itself."""
    try:
        opened = load_backbone(written, allow_half=True)
        return ("lowpeft" if opened.architecture == "EDT" else "spandrel"), opened.module
    except LowpeftError:
        opened = load_backbone(written, network=copy_of(merged), allow_half=True)
        return "PyTorch, loaded into the network's own code", opened.module
