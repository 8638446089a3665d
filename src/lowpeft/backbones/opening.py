"""Open pre-trained checkpoints as a network with its facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.observation.describe import family_facts
from ..errors import LowpeftError, did_you_mean
from ..families import recognise
from ..ports.facts import Backbone, Making, call, literal
from . import timm_reader
from .checkpoints import RAW_ASKED, Choice, in_full_precision, read_checkpoint, said, the_one, wanted
from .own import load_into
from .timm_reader import PREFIX
from .weights import State, Weights


def load_backbone(
    path: str | Path,
    *,
    task: str | None = None,
    weights: Choice = "ema",
    allow_half: bool = False,
    pretrained: bool = False,
    network: nn.Module | Backbone | None = None,
    **options: Any,
) -> Backbone:
    """Open a checkpoint file (lowpeft reads EDT, spandrel all other networks), or create a timm network.

    With `network`, load the file into that network, whatever its architecture.

    The state dict may be at the top level or under the usual keys of trainers (`params_ema`, `state_dict`, `netG`, …).
    Its names may have the prefix of a training wrapper (`module.`, Lightning's `model.`, …). If the file has averaged
    weights, `.notes` says which weights were loaded. Masks of window attention depend on the training crop's size, so
    those in the file are dropped and computed anew.

    Args:
        path: Path of a safetensors or `torch.save` file with any suffix; code in a file is never run. Or `timm:NAME`
            for `timm.create_model(NAME, features_only=True)`, which returns features instead of an image.
        task: Task to keep of a network for several tasks. `sr_x4` keeps one head and one tail of an EDT, which then
            returns one image; `2_x4` makes an IPT run its head number 2, of scale 4. By default, an EDT for several
            tasks returns a list, and an IPT runs its largest scale.
        weights: Weights to load: "ema" for the running average if the file has one and the raw weights otherwise;
            "raw" for the weights of the last training step.
        allow_half: True to load half-precision weights as float32 instead of raising. They were rounded, so an adapter
            made on them does not fit the float32 network.
        pretrained: True to let timm download pre-trained weights; otherwise a timm network has random weights.
        network: Network of your own to load the tensors into, strictly; without it, the network is recognised by its
            tensors. The file may be wrapped, and averaged, as other files. Masks and indices that the network computes
            (`attn_mask`, `relative_position_index`) stay its own. Facts are its own, or measured (`lowpeft.describe`).
        options: Further arguments of `timm.create_model`, e.g. img_size=64; only for timm networks.

    Returns:
        The network, ready to be adapted: `.module` is a plain trainable module on the CPU in eval mode.

    Raises:
        LowpeftError: The file does not exist; it cannot be read as plain tensors (the message says what the file is);
            its tensors are not those of `network` (missing, unexpected and mis-shaped ones are listed);
            raw weights were requested and it has none; it contains several networks; its architecture is not
            recognised (the message names the nearest one and the missing keys); its tensors do not fit that
            architecture; it has no such task; or spandrel is not installed. For timm: there is no network of that name
            (the message names the nearest), or timm cannot create it with these options.
    """
    if str(path).startswith(PREFIX):
        if task is not None or allow_half or weights != "ema" or network is not None:
            raise LowpeftError(
                f"{path} is a timm network; task=, weights='raw' (--raw-weights), allow_half= and network= are for "
                "checkpoint files only"
            )
        return timm_reader.load(str(path).removeprefix(PREFIX), pretrained=pretrained, options=options)
    if given := [*["pretrained"] * pretrained, *options]:
        raise LowpeftError(f"{path} is the path of a file; {', '.join(given)} is for timm networks only ({PREFIX}NAME)")
    if network is None:
        return _from_file(Path(path), task, weights, allow_half=allow_half)
    if task is not None:
        raise LowpeftError(f"leave out task={task!r} (--task): a network of your own does what it was built for")
    return load_into(network, Path(path), weights=weights, allow_half=allow_half)


def _from_file(file: Path, task: str | None, choice: Choice, *, allow_half: bool) -> Backbone:
    in_file = read_checkpoint(file)
    candidates = wanted(in_file, choice, file)
    try:
        taken = recognised(candidates)
        backbone = backbone_of(in_full_precision(taken.state, allow_half=allow_half), task)
        notes = (*backbone.notes, *said(taken, in_file))
        return replace(backbone, notes=notes, making=_making(file, task=task, weights=choice, allow_half=allow_half))
    except LowpeftError as error:
        averaged = ""
        if candidates[0].averaged:
            averaged = f"of its averaged weights (EMA), {candidates[0].place} ({RAW_ASKED} takes raw ones): "
        raise LowpeftError(
            f"{file} is not a checkpoint that can be opened: {averaged}{error.message}", problems=error.problems
        ) from error


def _making(file: Path, **options: Any) -> Making:
    """Return how the checkpoint is opened, in the folder where it is."""
    given = {name: value for name, value in options.items() if value not in (None, "ema", False)}
    return Making(expression=call("lowpeft.load_backbone", literal(file.name), **given), opening=given)


def backbone_of(state: State, task: str | None = None) -> Backbone:
    """Build the network of a recognised state dict.

    Raises:
        LowpeftError: The tensors do not fit the architecture, or the network has no such task.
    """
    if (layer := _impossible_layer(state)) is not None:
        raise LowpeftError(f"it has {len(state):,} tensors, and {layer[:100]!r} is numbered as of far more layers")
    return _edt(state, task) if _is_edt(state) else _spandrel(state, task)


def recognised(candidates: Sequence[Weights]) -> Weights:
    """Return the one state dict that belongs to a known architecture.

    Raises:
        LowpeftError: No state dict is recognised, or several different ones are.
    """
    states = [weights.state for weights in candidates]
    if edts := [weights for weights in candidates if _is_edt(weights.state)]:
        return the_one(edts)
    if any(".S_Adapter." in key for state in states for key in state):
        raise LowpeftError(
            "it is a HAT with adapters in the layout of ASteISR's authors; convert it with "
            "lowpeft convert asteisr FILE --out FOLDER, or lowpeft.convert_asteisr(path, folder)"
        )
    if any(key.startswith("swin2sr.encoder.") for state in states for key in state):
        raise LowpeftError(
            "it is transformers' Swin2SR, whose shape is in the config.json beside it; open it with "
            "Swin2SRForImageSuperResolution.from_pretrained(folder), and pass that to adapt"
        )
    try:
        from .spandrel_reader import is_known, nearest
    except ImportError as error:
        raise LowpeftError("opening public checkpoints needs spandrel: pip install 'lowpeft[spandrel]'") from error
    if known := [weights for weights in candidates if is_known(weights.state)]:
        return the_one(known)
    if nameless := next((weights.nameless for weights in candidates if weights.nameless), None):
        raise LowpeftError(f"{nameless}, and the file has no raw weights from which to take the names")
    raise nearest(states)


def _impossible_layer(state: State) -> str | None:
    """Return a name whose number is too large for the number of tensors; the network would have as many layers."""
    most = 100 + 10 * len(state)
    numbered = ((name, part) for name in state for part in name.split(".") if part.isdecimal())
    return next((name for name, part in numbered if len(part) > 9 or int(part) > most), None)


def _is_edt(state: State) -> bool:
    return any(k.startswith("body.layers.") and ".attns." in k for k in state)


def _edt(state: State, task: str | None) -> Backbone:
    from .networks import EDT, EDTConfig

    tasks = EDTConfig.from_state_dict(state).tasks
    if task is not None:
        _check_task(task, tasks)
        kept = (f"head_{task}.", f"tail_{task}.", "body.")
        state = {key: tensor for key, tensor in state.items() if key.startswith(kept)}
    module = EDT.from_state_dict(state).eval()
    return Backbone(
        module=module,
        architecture="EDT",
        family="edt",
        scale=max(map(module.scale, module.config.tasks)),
        size_multiple=module.size_multiple,
        channels=3,
        tasks=tasks if len(tasks) > 1 else (),
    )


def _spandrel(state: State, task: str | None) -> Backbone:
    from .spandrel_reader import facts_of, load

    descriptor = load(state)
    module = descriptor.model.eval()
    family = recognise(module)
    own = family_facts(module, family)
    facts = facts_of(descriptor)
    facts |= {name: own[name] for name in ("value_range", "fixed_px", "strips") if name in own}
    if family and family.family.name == "ipt":
        facts |= _choose_ipt_task(module, task)
    elif task is not None:
        raise LowpeftError(
            f"task={task!r} cannot be chosen, because a {descriptor.architecture.name} has only one task"
        )
    if facts.get("fixed_px") is not None:
        facts |= {"min_px": 1}
    return Backbone(
        module=module,
        architecture=descriptor.architecture.name,
        family=family.family.name if family else None,
        **facts,
    )


def _choose_ipt_task(module: Any, task: str | None) -> dict[str, Any]:
    """Set the head and tail that an IPT runs, and return the facts that depend on them."""
    tasks = tuple(f"{i}_x{scale}" for i, scale in enumerate(module.scale))
    if task is not None:
        _check_task(task, tasks)
    index = tasks.index(task) if task is not None else module.scale.index(max(module.scale))
    module.set_scale(index)
    facts = {"scale": module.scale[index], "fixed_px": module.patch_size}
    return facts | {"tasks": tasks if len(tasks) > 1 else ()}


def _check_task(task: str, known: Sequence[str]) -> None:
    if task not in known:
        raise LowpeftError(f"it has no task {task!r}; its tasks are {', '.join(known)}{did_you_mean(task, known)}")
