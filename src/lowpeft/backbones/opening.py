"""Open pre-trained checkpoints as a network with its facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.observation.describe import family_facts
from ..errors import LowpeftError, did_you_mean
from ..families import recognise
from ..ports.facts import Backbone
from . import timm_reader
from .checkpoints import RAW_ASKED, Choice, in_full_precision, read_checkpoint, said, the_one, wanted
from .timm_reader import PREFIX
from .weights import State, Weights


def load_backbone(
    path: str | Path,
    *,
    task: str | None = None,
    weights: Choice = "ema",
    allow_half: bool = False,
    pretrained: bool = False,
    **options: Any,
) -> Backbone:
    """Open a checkpoint file (lowpeft reads EDT, spandrel all other networks), or create a timm network.

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
        options: Further arguments of `timm.create_model`, e.g. img_size=64; only for timm networks.

    Returns:
        The network, ready to be adapted: `.module` is a plain trainable module on the CPU in eval mode.

    Raises:
        LowpeftError: The file does not exist; it cannot be read as plain tensors (the message says what the file is);
            raw weights were requested and it has none; it contains several networks; its architecture is not
            recognised (the message names the nearest one and the missing keys); its tensors do not fit that
            architecture; it has no such task; or spandrel is not installed. For timm: there is no network of that name
            (the message names the nearest), or timm cannot create it with these options.
    """
    if str(path).startswith(PREFIX):
        if task is not None or allow_half or weights != "ema":
            raise LowpeftError(f"{path} is a network of timm, which takes none of task=, weights= and allow_half=")
        backbone = timm_reader.load(str(path).removeprefix(PREFIX), pretrained=pretrained, options=options)
        found = recognise(backbone.module)
        return replace(backbone, family=found.family.name if found else None)
    if pretrained or options:
        given = ", ".join([*(["pretrained"] if pretrained else []), *options])
        raise LowpeftError(f"{given}: only networks of timm ({PREFIX}NAME) take that, and {path} is the path of a file")
    file = Path(path)
    held = read_checkpoint(file)
    sought = wanted(held, weights, file)
    try:
        taken = recognised(sought)
        backbone = backbone_of(in_full_precision(taken.state, allow_half=allow_half), task)
        return replace(backbone, notes=(*backbone.notes, *said(taken, held)))
    except LowpeftError as error:
        averaged = ""
        if sought[0].averaged:
            averaged = f"of its averaged weights (EMA), {sought[0].place} ({RAW_ASKED} takes raw ones): "
        raise LowpeftError(
            f"{file} is not a checkpoint that can be opened: {averaged}{error.message}", problems=error.problems
        ) from error


def backbone_of(state: State, task: str | None = None) -> Backbone:
    """Build the network of a recognised state dict.

    Raises:
        LowpeftError: The tensors do not fit the architecture, or the network has no such task.
    """
    return _edt(state, task) if _is_edt(state) else _spandrel(state, task)


def recognised(sought: Sequence[Weights]) -> Weights:
    """Return the one state dict that belongs to a known architecture.

    Raises:
        LowpeftError: No state dict is recognised, or several different ones are.
    """
    if edts := [weights for weights in sought if _is_edt(weights.state)]:
        return the_one(edts)
    if any(".S_Adapter." in key for weights in sought for key in weights.state):
        raise LowpeftError(
            "it holds a network in the layout of ASteISR's authors, with its adapters: take it apart with "
            "lowpeft convert asteisr FILE --out FOLDER, or lowpeft.convert_asteisr(path, folder)"
        )
    if any(key.startswith("swin2sr.encoder.") for weights in sought for key in weights.state):
        raise LowpeftError(
            "it holds transformers' Swin2SR, whose shape is in the config.json beside it: open it with "
            "Swin2SRForImageSuperResolution.from_pretrained(folder), and pass that to adapt"
        )
    try:
        from .spandrel_reader import is_known, nearest
    except ImportError as error:
        raise LowpeftError("opening public checkpoints needs spandrel: pip install 'lowpeft[spandrel]'") from error
    if known := [weights for weights in sought if is_known(weights.state)]:
        return the_one(known)
    if nameless := [weights for weights in sought if weights.nameless]:
        raise LowpeftError(f"{nameless[0].nameless}, and no raw weights beside them give the names back")
    raise nearest([weights.state for weights in sought])


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
    found = recognise(module)
    own = family_facts(module, found)
    facts = facts_of(descriptor)
    facts |= {name: own[name] for name in ("value_range", "fixed_px", "strips") if name in own}
    if found and found.family.name == "ipt":
        facts |= _choose_ipt_task(module, task)
    elif task is not None:
        raise LowpeftError(f"task {task!r} was asked for, and a {descriptor.architecture.name} has a single one")
    if facts.get("fixed_px") is not None:
        facts |= {"min_px": 1}
    return Backbone(
        module=module,
        architecture=descriptor.architecture.name,
        family=found.family.name if found else None,
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
