"""Functions that adapt a network: `adapt`, `inject_spatial_adapters`, `wrap_stereo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from ...kinds import AdapterConfig, SpatialConfig, StereoConfig
from ...kinds.spatial import Placement
from ...ports.patterns import Patterns
from ...recipes import Recipe
from ..attachment.views import StereoModel
from ..planning.plan import plan
from .injection import inject


def adapt(
    model: object,
    recipe: str | Path | Recipe | AdapterConfig | Sequence[AdapterConfig] = "stereo",
    *,
    name: str = "default",
    example: Any = None,
    **overrides: Any,
) -> nn.Module:
    """Freeze a network and attach a recipe's adapters to it, in place.

    Random starts are drawn from torch's default generators, which are then put back: with the same seed, adapters start
    the same, and what is drawn later does not depend on them.

    Args:
        model: A network, a `Backbone`, or an adapted network or `StereoModel` that gets one more adapter. It may be
            wrapped in DataParallel, `torch.compile` or `AveragedModel`.
        recipe: Name of a bundled recipe (`lowpeft.recipes.bundled()` lists them), path to a TOML recipe, a `Recipe`, or
            adapter configs.
        name: Name of the adapter. One base can have several adapters; their effects add up.
        example: Arguments of one call with one image or more, for a network that takes anything other than one N,C,H,W
            tensor: a tensor or a list (the one argument), a tuple (positional arguments) or a dict (keyword arguments).
        overrides: Fields of the recipe's adapters (`every=1`, `spatial={"reduction": 8}`), `train_also=[patterns]` for
            layers of the base that are trained too, or `budget="1%"` for the rank, width or share that comes nearest to
            this share of trained parameters (also a fraction, or a number of parameters).

    Returns:
        The same object. For a recipe with stereo adapters, a `StereoModel` whose `.backbone` is the same object. Until
        it is trained, its output equals the original network's, bit for bit.

    Raises:
        PlanError: The recipe does not fit; the model is unchanged. `lowpeft.plan` with the same arguments shows what
            would be done.
    """
    return inject(model, plan(model, recipe, name=name, example=example, **overrides))


def inject_spatial_adapters(
    model: object,
    target: Patterns | None = None,
    *,
    reduction: int = 4,
    placement: Placement = "attention",
    name: str = "default",
    example: Any = None,
) -> nn.Module:
    """Attach spatial adapters (a bottleneck on each position's channels) and freeze the rest.

    Args:
        model: A network or `Backbone`.
        target: Patterns of module paths or places (`stage=0`); None means every block.
        reduction: Divisor of the channels: the bottleneck has C // reduction channels.
        placement: `attention`, `mlp`, `both`, `parallel` or `parallel_both`; see `lowpeft.kinds.SpatialConfig`.
        name: Name of the adapter.
        example: Arguments of one call of the network; see `adapt`.

    Returns:
        The same object.

    Raises:
        PlanError: Same conditions as `adapt`.
    """
    config = SpatialConfig(target=target, reduction=reduction, placement=placement)
    return inject(model, plan(model, config, name=name, example=example))


def wrap_stereo(
    model: object,
    target: Patterns | None = None,
    *,
    every: int = 2,
    logit_scale: float = 1.5,
    name: str = "default",
    example: Any = None,
) -> StereoModel:
    """Attach stereo adapters (the views attend to each other along image rows) and freeze the rest.

    Args:
        model: A network or `Backbone`.
        target: Patterns of module paths or places (`stage=1:4`); None means the output of every stage.
        every: Step through the matched sites, in order: 1 adapts all, 2 adapts sites 1, 3, 5, … (counted from 0).
        logit_scale: Factor of the attention logits.
        name: Name of the adapter.
        example: Arguments of one call of the network; see `adapt`.

    Returns:
        A model that takes and returns two views; its `.backbone` is the object that was passed.

    Raises:
        PlanError: Same conditions as `adapt`.
    """
    config = StereoConfig(target=target, every=every, logit_scale=logit_scale)
    return cast(StereoModel, inject(model, plan(model, config, name=name, example=example)))
