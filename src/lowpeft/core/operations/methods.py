"""All kinds of adapters side by side: what each is, and what it would train and keep on a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...kinds import (
    LAYERS,
    AdapterConfig,
    FeatureAdapter,
    FullConfig,
    Kind,
    Surroundings,
    TokenAdapter,
    WeightAdapter,
    kinds,
)
from ...ports.base import base_parameters
from ...ports.facts import Facts
from ..attachment.copies import twin_of
from ..attachment.record import root_of
from ..observation.describe import facts_of
from ..observation.examples import Example
from ..observation.trial import Trial
from ..planning.choosing import layer_of
from ..planning.plan import plan
from .adapt import adapt

IMAGES_PX = ((48, 64), (64, 64), (64, 96), (128, 128))
"""Sizes of the image with which bytes are counted; the first that the network takes."""

CHANNELS = 32
"""Channels of the features and layers of which a new adapter is built to see which of its tensors are zero."""


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One kind of adapter with its default settings, and what it does on a network if one was given.

    Attributes:
        kind: Name of the kind.
        acts_on: What it changes: `weights`, `features`, `tokens` (keys and values of attention), or `image` (the output
            only, from features that it reads).
        places: Places that it adapts without a target; empty for a kind that needs one.
        zero: Names of the tensors that are zero in a new adapter, so that it changes nothing.
        mergeable: True if `lowpeft.merge` writes it into the weights.
        needs_rows: True if it needs the height and width of features.
        needs_data: True if it learns its initial values from data (`lowpeft.calibrate`).
        views: Number of views of a scene that it mixes.
        parameters: Formula of the number of trained parameters.
        sized_by: Field that sets this number; None for a fixed size.
        trained: Number of parameters that it trains on the network; None without a network, or if it does not fit.
        share: `trained` over the parameters of the network.
        kept: Bytes that a forward keeps for backward, over those of full fine-tuning; None if they were not counted.
        problem: Why it does not fit the network; None if it does, or without a network.
    """

    kind: str
    acts_on: str
    places: tuple[str, ...]
    zero: tuple[str, ...]
    mergeable: bool
    needs_rows: bool
    needs_data: bool
    views: int
    parameters: str
    sized_by: str | None
    trained: int | None = None
    share: float | None = None
    kept: float | None = None
    problem: str | None = None


def methods(model: object | None = None, *, memory: bool = True) -> tuple[MethodRow, ...]:
    """Return a row for each registered kind of adapter, with its default settings. The model is not changed.

    Args:
        model: A network or `Backbone`, adapted or not: rows then say what each kind would train on it, beside none of
            the adapters that it has. None for no network.
        memory: True to count the bytes that are kept for backward too, which runs the network once for each kind, on
            one image of about 48x64 px.

    Raises:
        PlanError: The network cannot be copied.
    """
    rows = [_row(kind) for kind in kinds()]
    if model is None:
        return tuple(rows)
    facts, network = facts_of(model), twin_of(root_of(model))
    total = sum(parameter.numel() for _, parameter in base_parameters(network))
    measured = _Memory(network, facts) if memory else None
    with torch.random.fork_rng(devices=[]):
        return tuple(_on_network(row, network, facts, total, measured) for row in rows)


def _row(kind: Kind) -> MethodRow:
    config = kind.config()
    return MethodRow(
        kind=kind.name,
        acts_on=_acts_on(kind),
        places=() if kind.on_weights and LAYERS not in config.places else config.places,
        zero=_zero(kind, config),
        mergeable=kind.on_weights,
        needs_rows=bool(getattr(kind.module, "needs_rows", False)),
        needs_data=kind.needs_data(config),
        views=config.views,
        parameters=kind.parameters,
        sized_by=None if config.sizes is None else config.sizes[0],
    )


def _acts_on(kind: Kind) -> str:
    if kind.on_weights:
        return "weights"
    if issubclass(kind.module, TokenAdapter):
        return "tokens"
    return "image" if cast(type[FeatureAdapter], kind.module).reads_only else "features"


# --- what is zero in a new adapter -----------------------------------------------------------------------------------


def _zero(kind: Kind, config: AdapterConfig) -> tuple[str, ...]:
    """Return the tensors of a new adapter that are zero, without statistics and the biases of layers with a weight."""
    zero: list[str] = []
    for module in _new(kind, config):
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        for name, tensor in tensors.items():
            parent, _, last = name.rpartition(".")
            is_bias = (last == "bias" and f"{parent}.weight" in tensors) or last.endswith(("_bias", "running_mean"))
            if tensor.numel() and tensor.is_floating_point() and not is_bias and not tensor.any():
                zero.append(parent if last == "weight" and parent else name)
    return tuple(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in zero))


def _new(kind: Kind, config: AdapterConfig) -> Iterator[nn.Module]:
    """Yield a new adapter of a kind on a small layer or on features, and the part that its sites share."""
    make: Any = kind.module
    site: Any = CHANNELS
    if kind.on_weights:
        layers = (nn.Linear(CHANNELS, CHANNELS), nn.LayerNorm(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3))
        groups = ((layer, cast(type[WeightAdapter], make).groups(layer)) for layer in layers)
        site = next((layer_of(layer, names[0]) for layer, names in groups if names), None)
    if site is None:  # of another sort of layer
        return
    with torch.random.fork_rng(devices=[]):
        yield make(site, config)
        if make.root_part_class is not None:
            facts = Facts(architecture="", scale=1, channels=3)
            part = make.root_part_class
            yield part(part.shape_on(Surroundings(facts, lambda: [1]), config, [site]), config)


# --- on a network ----------------------------------------------------------------------------------------------------


class _Memory:
    """Counts bytes that networks keep for backward, on one image that the network takes.

    Attributes:
        full: Bytes that full fine-tuning keeps; None if the network takes no image that was tried.
    """

    def __init__(self, network: nn.Module, facts: Facts) -> None:
        self.example: Example | None = None
        self.full: int | None = None
        trial = Trial(network, None, facts)
        try:
            self.example = trial.first_run(1, trial.run, sizes=IMAGES_PX)[0].of_images(1)
        except PlanError:
            return
        whole = twin_of(network).requires_grad_(True).train()
        self.full = kept_bytes(whole, lambda: self._run(whole, 1))

    def share(self, model: nn.Module, views: int) -> float | None:
        """Return the bytes that an adapted network keeps over those of full fine-tuning, for one image or scene."""
        if self.full is None:
            return None
        return kept_bytes(model.train(), lambda: self._run(model, views)) / (views * self.full)

    def _run(self, model: nn.Module, views: int) -> Any:
        example = cast(Example, self.example)
        return model(*[example.first.clone() for _ in range(views)]) if views > 1 else example.call(model)


def _on_network(row: MethodRow, network: nn.Module, facts: Facts, total: int, memory: _Memory | None) -> MethodRow:
    config = next(kind for kind in kinds() if kind.name == row.kind).config()
    if isinstance(config, FullConfig):
        config = FullConfig(target="**")
    try:
        trained = plan(network, config).parameters
        row = replace(row, trained=trained, share=trained / total)
        if memory is not None:
            row = replace(row, kept=memory.share(adapt(twin_of(network), config), row.views))
    except PlanError as error:
        row = replace(row, problem=error.message)
    except RuntimeError as error:  # the others are shown all the same
        row = replace(row, problem=f"the adapted network cannot be run: {str(error).splitlines()[0]}")
    return row


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return the bytes of the tensors that a forward keeps for backward, without the model's parameters and buffers.

    Args:
        model: The model.
        run: Function that runs it and returns its output.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(kept.values())
