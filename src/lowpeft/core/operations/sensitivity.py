"""Sensitive places: which matrices get a low-rank adapter, which vectors are trained whole, which entries alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from ...checks import number
from ...errors import PlanError
from ...kinds import AdapterConfig, FishConfig, FullConfig, LoRAConfig, get_kind
from ...kinds.roles import is_vector
from ...kinds.sensitivity import FisherStart, entries_of
from ...ports.facts import Backbone
from ..attachment.changes import one_at_a_time
from ..attachment.copies import copy_of
from ..attachment.record import module_of, unwrap
from ..planning.sites import Site, count_parameters
from .adapt import adapt
from .calibration import Batch, Calibration, LossFunction, observed

NAME = "sensitive_places"


@dataclass(frozen=True, kw_only=True)
class SensitivePlaces:
    """Places of a network where a loss is most sensitive to the parameters; from `lowpeft.sensitive_places`.

    Attributes:
        matrices: Weights that get a low-rank adapter: path of the parameter, and the number of its sensitive entries.
        vectors: Biases, norms and other vectors that are trained whole, likewise.
        rest: Parameters of which only the sensitive entries are trained, likewise.
        low_rank: Config of the adapters on the matrices, without their target.
        low_rank_parameters: Number of parameters that these have.
        vector_parameters: Number of parameters of the vectors.
        rest_parameters: Number of all parameters of the tensors in `rest`.
    """

    matrices: Mapping[str, int]
    vectors: Mapping[str, int]
    rest: Mapping[str, int]
    low_rank: AdapterConfig
    low_rank_parameters: int
    vector_parameters: int
    rest_parameters: int

    @property
    def parameters(self) -> int:
        """Number of parameters that the adapters of `configs` train, once calibrated."""
        return self.low_rank_parameters + self.vector_parameters + sum(self.rest.values())

    def configs(self) -> list[AdapterConfig]:
        """Return adapters for `lowpeft.adapt`: low-rank ones on the matrices, `full` ones on vectors, `fish` elsewhere.

        With a `fish` adapter among them, call `lowpeft.calibrate` with the same batches and loss: it then has the
        sensitive entries of `rest`.
        """
        configs: list[AdapterConfig] = []
        if self.matrices:
            configs.append(dataclasses.replace(self.low_rank, target=list(self.matrices)))
        if self.vectors:
            configs.append(FullConfig(target=list(self.vectors)))
        if self.rest:
            configs.append(FishConfig(target=list(self.rest), share=sum(self.rest.values()) / self.rest_parameters))
        return configs

    def __str__(self) -> str:
        return (
            f"{len(self.matrices)} matrices with {self.low_rank.kind} ({self.low_rank_parameters:,} parameters), "
            f"{len(self.vectors)} vectors whole ({self.vector_parameters:,}), single entries of {len(self.rest)} "
            f"others ({sum(self.rest.values()):,})"
        )


def sensitive_places(
    model: object,
    batches: Iterable[Batch],
    *,
    loss: LossFunction,
    share: float = 0.005,
    low_rank: AdapterConfig | None = None,
    alpha: float = 5.0,
    beta: float = 5.0,
) -> SensitivePlaces:
    """Return where adapters pay most, from gradients of the loss, by the rule of SPT. The model is not changed.

    The entries with the largest Σ (dL/dp)² over single images, among all parameters of the network, are its sensitive
    ones. A weight of which at least P / alpha entries are sensitive, P being the number of parameters of a low-rank
    adapter on it, gets one; a vector of which at least 1 / beta of the entries are sensitive is trained whole; of all
    other parameters only the sensitive entries are trained.

    Source: SPT (arXiv 2303.08566), with the defaults of the authors' code. There the gradients are those of the mean
    loss of 16 batches; here, as for `fish`, those of single images.

    Args:
        model: A network or `Backbone`; of an adapted one, the parameters of its frozen base.
        batches: Pairs (inputs, target), as for `lowpeft.calibrate`.
        loss: Function of the model's output and the target that returns one number.
        share: Share of all parameters that is sensitive, above 0 and at most 1.
        low_rank: Config of the adapters for matrices, of any kind that changes single weights; its target is replaced.
            None means `LoRAConfig()`.
        alpha: Divisor of the size of a low-rank adapter, positive.
        beta: Divisor of the size of a vector, positive.

    Raises:
        PlanError: A value is out of range, `low_rank` is of a kind that does not change weights, or the gradients
            cannot be computed (see `lowpeft.calibrate`).
    """
    low_rank = LoRAConfig() if low_rank is None else low_rank
    if not isinstance(low_rank, AdapterConfig) or not get_kind(low_rank.kind).on_weights:
        raise PlanError(f"low_rank must be the config of a kind that changes weights, not {low_rank!r}")
    if problems := number("alpha", alpha, above=0) + number("beta", beta, above=0):
        raise PlanError(problems[0])
    twin = _sparse_copy(model, FishConfig(share=share))
    (run,) = observed(twin, batches, loss=loss, name=NAME)
    squares = cast(FisherStart, run.calibrator).squares
    total = max(1, round(share * sum(sums.numel() for sums in squares.values())))
    return _sorted(unwrap(twin), run, entries_of(squares, total), low_rank, (alpha, beta))


@one_at_a_time
def _sparse_copy(model: object, config: FishConfig) -> nn.Module:
    """Return a copy of the model with sparse adapters on all its parameters."""
    copied = copy_of(module_of(model))
    described = dataclasses.replace(model, module=copied) if isinstance(model, Backbone) else copied
    return adapt(described, config, name=NAME)


def _sorted(
    root: nn.Module,
    run: Calibration,
    entries: Mapping[str, int],
    low_rank: AdapterConfig,
    divisors: tuple[float, float],
) -> SensitivePlaces:
    """Sort the parameters by the rule of SPT."""
    alpha, beta = divisors
    matrices, vectors, rest = dict[str, int](), dict[str, int](), dict[str, int]()
    parameters = dict.fromkeys(("low_rank", "vector", "rest"), 0)
    for at, site in run.sites.items():
        count, (path,), size = entries[at], site.tensors, math.prod(site.shape)
        adapter = _low_rank_size(root, site, low_rank)
        if not count:
            continue
        if adapter is not None and count >= adapter / alpha:
            matrices[path], parameters["low_rank"] = count, parameters["low_rank"] + adapter
        elif adapter is None and is_vector(site.shape) and count >= size / beta:
            vectors[path], parameters["vector"] = count, parameters["vector"] + size
        else:
            rest[path], parameters["rest"] = count, parameters["rest"] + size
    return SensitivePlaces(
        matrices=matrices,
        vectors=vectors,
        rest=rest,
        low_rank=low_rank,
        **{f"{name}_parameters": number for name, number in parameters.items()},
    )


def _low_rank_size(root: nn.Module, site: Site, low_rank: AdapterConfig) -> int | None:
    """Return the number of parameters of a low-rank adapter on a parameter; None if it does not fit."""
    fits = get_kind(low_rank.kind).module.groups(root.get_submodule(site.path))  # type: ignore[union-attr]
    if site.attachment.tensors not in fits:
        return None
    try:
        return count_parameters(low_rank, site.shape, site.layer, "weight")
    except PlanError:  # e.g. the rank is too large
        return None
