"""Forwards of the root of an adapted network: what wraps its own, outermost `switched_forward`; see `specialise`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...families.quirks import CHECKPOINT_SWITCHES
from ...kinds import Adapter, Forward, RootPart
from ...ports.capture import captured, tracing
from ...ports.facts import RECORD
from .adding import laid_out_like, scaled
from .batches import run_by_image
from .calls import image_in, with_image
from .running import exporting, in_force, run, running_in, strengths_in
from .settings import Setting, Strength, is_off
from .slots import Acting, acting_in, pieces_in, root_parts, slot_of, slots, switches_of
from .switches import Switches, hold
from .views import ViewBatch, arguments


def can_checkpoint(root: nn.Module) -> bool:
    """Return whether the root or a module below has an attribute that switches activation checkpointing, on or off."""
    return any(hasattr(module, switch) for module in root.modules() for switch in CHECKPOINT_SWITCHES)


def _checkpoints(root: nn.Module) -> bool:
    return any(module.__dict__.get(switch) is True for module in root.modules() for switch in CHECKPOINT_SWITCHES)


def _trains_inside(root: nn.Module) -> bool:
    """Return whether an adapter that is trained acts inside the network; a side network takes no gradient from it."""
    inside = (p for _, _, slot in slots(root) for p in pieces_in(slot) if not isinstance(p, RootPart))
    return any(
        parameter.requires_grad for p in inside if not getattr(p, "reads_only", False) for parameter in p.parameters()
    )


def live_input_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Let the input require a gradient while a module below checkpoints."""

    def live(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.detach().requires_grad_()
        return value

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Checkpointing may be switched on after adapters were attached, so read the switch in every forward pass.
        if not torch.is_grad_enabled() or captured() or not _checkpoints(self) or not _trains_inside(self):
            return inner(self, *args, **kwargs)
        args, kwargs = tuple(map(live, args)), {k: live(v) for k, v in kwargs.items()}
        return inner(self, *args, **kwargs)

    return forward


def acting_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Let root parts see the input, set strengths and add to the output."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slot = slot_of(self)
        parts = root_parts(slot) if slot is not None else []
        if slot is None or not parts:
            return inner(self, *args, **kwargs)
        under_way = Forward(args=args, kwargs=kwargs, strengths={}, seen=[])
        for part in parts:
            _begin(self, part.adapter, under_way)
        switches, strengths = switches_of(slot), strengths_in(switches_of(slot))
        routed = {n: _product(strengths[n], s) for n, s in under_way.strengths.items() if not is_off(strengths.get(n))}
        setting = Setting({**strengths, **routed})
        call = functools.partial(inner, self, *args, **kwargs)
        output = run(switches, setting, call, (args, kwargs), forward=under_way)
        for part in parts:
            output = _with_addition(part, under_way, output)
        return output

    return forward


def _product(strength: Strength, factor: Strength) -> Strength:
    """Return a strength times the factor that a root part has set for it."""
    if isinstance(strength, Tensor) and isinstance(factor, Tensor):
        return strength.to(factor.dtype).to(factor.device) * factor
    return strength * factor


def _begin(root: nn.Module, part: RootPart, under_way: Forward) -> None:
    """Call a part's `begin`; raise if it sets strengths without `routes`, or of adapters that are not attached."""
    before = dict(under_way.strengths)
    part.begin(under_way)
    changed = [n for n, s in under_way.strengths.items() if n not in before or before[n] is not s]
    if not changed:
        return
    if not part.routes:
        raise PlanError(f"a {part.kind} part sets strengths ({', '.join(changed)}), so its class needs `routes = True`")
    attached = {name for _, _, slot in slots(root) for name, _ in slot.named_children()}
    unknown = sorted(set(changed) - attached)
    if unknown:
        raise PlanError(
            f"a {part.kind} part sets the strength of {', '.join(unknown)}; attached: {', '.join(sorted(attached))}"
        )


def _with_addition(acting: Acting[RootPart], under_way: Forward, output: Any) -> Any:
    """Return the network's output after a root part has added to its image."""
    part, strength = acting
    image = image_in(output, part.output)
    added = part.finish(under_way, image)
    if added is None:
        return output
    if added.shape != image.shape:
        raise PlanError(f"a {part.kind} part must add to images of {tuple(image.shape)}, not {tuple(added.shape)}")
    return with_image(output, part.output, image + laid_out_like(scaled(added, strength, images=0), image))


def views_forward(inner: Callable[..., Any], views: int) -> Callable[..., Any]:
    """Accept a `ViewBatch` of this many views, and nothing else while an adapter below mixes views."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], ViewBatch):
            if args[0].views != views:
                raise PlanError(f"this network was adapted for {views} views of a scene, not {args[0].views}")
            given, named = arguments(args[0].batch)
            return inner(self, *given, *args[1:], **named, **kwargs)
        if any(a.adapter.attachment.views > 1 for _, _, slot in slots(self) for a in acting_in(slot, Adapter)):
            raise PlanError(
                f"the adapters of this backbone read a batch as scenes of {views} views: call the model that `adapt` "
                "returned with all views (a StereoModel: left, right), or use `with lowpeft.disabled(model):` to run "
                "single images through the frozen network"
            )
        return inner(self, *args, **kwargs)

    return forward


REPLICA = "_lowpeft_replica"
"""Name of the attribute with the setting of a call, on the replicas that DataParallel makes for that call."""


def switched_forward(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Read the setting in force once, and block changes of the structure while the forward runs."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        record = getattr(self, RECORD, None)
        if record is None:
            return inner(self, *args, **kwargs)
        switches: Switches = record.switches
        if torch.compiler.is_dynamo_compiling():  # no locks: the compiled graph is not affected by changes
            if not _several(in_force(switches), switches):
                if exporting():
                    _say_what_is_kept(in_force(switches))
                return inner(self, *args, **kwargs)
            torch._dynamo.graph_break(msg=SEVERAL)
        if running_in(switches) is not None:  # a nested call is part of the outer forward
            return inner(self, *args, **kwargs)
        return hold(switches.passing(), functools.partial(_run_gated, self, inner, switches, args, kwargs))

    return forward


def _run_gated(
    root: nn.Module, inner: Callable[..., Any], switches: Switches, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    setting = _setting_for(root, switches)
    if setting.images is not None:
        return run_by_image(switches, setting, functools.partial(inner, root), args, kwargs)
    return run(switches, setting, functools.partial(inner, root, *args, **kwargs), (args, kwargs))


def _setting_for(root: nn.Module, switches: Switches) -> Setting:
    """Return the setting of a forward that starts here; raise if it names adapters that are no longer attached."""
    setting: Setting = root.__dict__.get(REPLICA) or in_force(switches)
    if gone := setting.values.keys() - switches.default.values.keys():
        raise PlanError(
            f"{', '.join(sorted(gone))} is in use here, but was removed or renamed; attached: "
            f"{', '.join(switches.default.values) or 'none'}"
        )
    if exporting() or tracing():
        if _several(setting, switches):
            raise PlanError(SEVERAL)
        _say_what_is_kept(setting)
    return setting


SWITCHED_CODE = switched_forward(nn.Module.forward).__code__
"""Code object of the outermost forward of every adapted root; `changes` looks for it in the stacks of threads."""


SEVERAL = (
    "strengths by image need one forward for each group of images with equal strengths if adapters change weights or "
    "read windows, but a captured forward (fullgraph=True, torch.export, tracing) is only one: give one number"
)


def _several(setting: Setting, switches: Switches) -> bool:
    """Return whether the setting needs several forwards of the network, one for each group of images."""
    return not switches.in_groups.isdisjoint(setting.by_image)


def _say_what_is_kept(setting: Setting) -> None:
    """Warn which setting an exported or traced network is fixed to, unless all its adapters are at full strength."""
    if not setting.full:
        warnings.warn(f"the exported network is fixed to the setting of this call: {setting}", stacklevel=2)
