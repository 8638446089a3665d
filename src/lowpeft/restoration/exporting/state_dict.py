"""Export as a state dict in the network's own names, as if the network had been trained as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
MOST_NAMED = 5
"""Largest number of tensors that a note names."""


def export_state_dict(
    model: object, path: str | Path, *, half: bool = False, anew: Callable[[], nn.Module] | None = None
) -> Exported:
    """Write a network with its adapters merged, as a state dict in the network's own names; the model is unchanged.

    Before the file is put in its place, it is opened again, by spandrel if spandrel knows the network, and its output
    on a random image is compared with the adapted network's.

    Args:
        model: A network (`Backbone`, module), adapted or not.
        path: File to write: `.safetensors`, `.pth` or `.pt`. An existing file is replaced.
        half: True to store floating-point tensors in float16.
        anew: Function that builds the network with any weights, to open the file in if spandrel does not know it;
            None for a copy of the network, which also has what no file of weights contains.

    Returns:
        The file's size, and what was compared. With a copy, the notes name tensors that are not in the file.

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
            _write(tensors, temporary, file, source.metadata)
            exported = _checked(temporary, file, source, _Opener(merged, anew), half=half)
    except OSError as error:
        raise LowpeftError(f"cannot write {file}: {error.strerror or error}") from error
    return exported


def _write(tensors: dict[str, Tensor], temporary: Path, file: Path, metadata: dict[str, str]) -> None:
    try:
        if file.suffix.lower() == ".safetensors":
            save_file(tensors, temporary, {"format": "pt", **metadata})
        else:
            torch.save(tensors, temporary)
    except (SafetensorError, RuntimeError) as error:  # PyTorch says nothing of the disk
        reason = str(error).splitlines()[0]
        raise LowpeftError(f"cannot write {file}, perhaps because the disk is full: {reason}") from error


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


def _checked(written: Path, file: Path, source: Source, opener: _Opener, *, half: bool) -> Exported:
    """Compare the network in a file with the adapted one.

    Raises:
        LowpeftError: They compute something else.
    """
    facts, size = source.facts, sizes_to_try(source.facts)[0]
    opened = opener.open(written, file)
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
            f"{file} was not written: opened by {opener.program}, its output differs by {difference:.3g} of the "
            f"largest value (at most {most:.3g}), so the tensors alone do not make this network. "
            f"{INSTEAD[0].upper()}{INSTEAD[1:]}",
            problems=opener.left_out,
        )
    return Exported(
        path=file,
        bytes=written.stat().st_size,
        program=opener.program,
        sizes=(size,),
        difference=difference,
        tolerance=most,
        inputs={},
        outputs={},
        notes=() if opener.is_new else tuple(opener.left_out),
    )


class _Opener:
    """Opens a file by its tensors alone.

    Attributes:
        program: What opened it.
        is_new: Whether the network that was opened had nothing of the exported one but the file.
        left_out: A line on tensors of the network that the file does not contain, if any.
    """

    def __init__(self, merged: nn.Module, anew: Callable[[], nn.Module] | None) -> None:
        self.merged = merged
        self.anew = anew
        self.program = ""
        self.is_new = True
        names = [*_outside_state_dict(merged)]
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        text = f"not in the file, so the network's code must make the same: {', '.join(names[:MOST_NAMED])}{more}"
        self.left_out = [text] if names else []

    def open(self, written: Path, file: Path) -> nn.Module:
        """Return the network in a file; one that is not recognised is loaded into its own code.

        Raises:
            LowpeftError: The tensors do not fit a network that was built anew.
        """
        try:
            opened = load_backbone(written, allow_half=True)
            self.program = "lowpeft" if opened.architecture == "EDT" else "spandrel"
            return opened.module
        except LowpeftError:
            self.program = "PyTorch, loaded into the network's own code"
        self.is_new = self.anew is not None
        with torch.random.fork_rng(devices=[]):
            torch.seed()  # what is random there and not in the file must not be as in the original
            network = copy_of(self.merged) if self.anew is None else self.anew()
        try:
            return load_backbone(written, network=network, allow_half=True).module.cpu().float()
        except LowpeftError as error:
            raise LowpeftError(
                f"{file} was not written, because the network's own code does not take its tensors: {INSTEAD}",
                problems=error.problems,
            ) from error


def _outside_state_dict(network: nn.Module) -> Iterator[str]:
    """Yield the names of tensors of a network that its state dict does not contain: attributes, unsaved buffers."""
    saved, of_any_module = network.state_dict().keys(), vars(nn.Module()).keys()
    for path, module in network.named_modules():
        parameters = [name for name, _ in module.named_parameters(recurse=False)]
        for name, value in {**vars(module), **dict(module.named_buffers(recurse=False))}.items():
            full = f"{path}.{name}" if path else name
            # A normalised or pruned `weight` is made of parameters `weight_g`, `weight_orig`, …
            made = any(parameter.startswith(f"{name}_") for parameter in parameters)
            if full not in saved and name not in of_any_module and not made and _holds_tensor(value):
                yield full


def _holds_tensor(value: object) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, Tensor) for each in values)
