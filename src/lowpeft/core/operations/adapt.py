"""The three calls that adapt a network."""

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

    Args:
        model: A network, a `Backbone`, or an adapted network or `StereoModel` that gets one more adapter; also inside
            DataParallel, `torch.compile` or `AveragedModel`.
        recipe: A bundled name (`lowpeft.recipes.bundled()` lists them), a path to a TOML recipe, a `Recipe`, or
            adapter configs.
        name: Of the adapter; one base can hold several, whose effects add up.
        example: What the network is called with, for one that does not take one N,C,H,W tensor: a tensor or a list (the
            one argument), a tuple (positional arguments) or a dict (keyword arguments), of one image or more.
        overrides: Fields of the recipe's adapters (`every=1`, `spatial={"reduction": 8}`), or `train_also=[patterns]`
            for layers of the base that are trained too.

    Returns:
        The same object; for a recipe with stereo adapters a `StereoModel` whose `.backbone` is the same object. What
        it computes is what the network computed before, bit for bit, until it is trained.

    Raises:
        PlanError: The recipe does not fit; the model is as it was. `lowpeft.plan` with the same arguments says what
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
        reduction: The bottleneck has C // reduction channels.
        placement: `attention`, `mlp`, `both`, `parallel` or `parallel_both`: see `lowpeft.kinds.SpatialConfig`.
        name: Of the adapter.
        example: As for `adapt`.

    Returns:
        The same object.

    Raises:
        PlanError: As `adapt`.
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
        every: Of these, in order, 2 adapts numbers 1, 3, 5, … counted from 0, 1 adapts all.
        logit_scale: Multiplies the attention logits.
        name: Of the adapter.
        example: As for `adapt`.

    Returns:
        A model that takes and gives two views; its `.backbone` is the object that was passed.

    Raises:
        PlanError: As `adapt`.
    """
    config = StereoConfig(target=target, every=every, logit_scale=logit_scale)
    return cast(StereoModel, inject(model, plan(model, config, name=name, example=example)))
