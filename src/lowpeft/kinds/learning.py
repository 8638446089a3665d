"""The parts that a kind may have in learning: a start from data, and a share in each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from .base import Adapter

Wanted = Literal["inputs", "outputs", "gradients"]


class Calibrator(ABC):
    """Learns from data how the adapters of one kind start, for all its sites together.

    One is made for each call of `lowpeft.calibrate` with the new adapters by site. It may choose other shapes: `settle`
    returns the config of each site, the adapters are built anew by these, and `fill` writes what was learned into each.

    Attributes:
        wants: The data that it is shown. `inputs` and `outputs` of each call of the site's module (the first tensors;
            for a feature adapter both are the features at its place). A module that is never called, because its
            network reads the weight itself, shows none. `gradients` of the loss by the frozen parameters, for one image
            (or scene) at a time.
    """

    wants: ClassVar[frozenset[Wanted]] = frozenset({"inputs"})

    def __init__(self, adapters: Mapping[str, Adapter], configs: Mapping[str, Any]) -> None:
        self.adapters = adapters
        self.configs = configs

    def see(self, site: str, inputs: Tensor, outputs: Tensor) -> None:  # noqa: B027  (optional)
        """One call of a site's module."""

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:  # noqa: B027  (optional)
        """The gradients of one image's loss by the site's frozen parameters."""

    def settle(self) -> Mapping[str, Any]:
        """The config of each site, from all that was seen; by default unchanged.

        Raises:
            PlanError: What was seen does not suffice.
        """
        return self.configs

    @abstractmethod
    def fill(self, site: str, adapter: Any) -> None:
        """Write what was learned into a site's new adapter, without gradients; its change must stay exactly zero."""


class TrainingPart:
    """A kind's share in a run of `lowpeft.restoration.training.train`, made once for all adapters of the kind.

    Every method is optional. A step is: forward, loss + `penalty`, backward, `before_step`, clipping, optimiser step,
    `after_step`, gradients set to None.
    """

    def __init__(self, adapters: Mapping[str, Adapter], steps: int) -> None:
        self.adapters = adapters
        self.steps = steps

    def rates(self) -> Mapping[str, float]:
        """Factors of the learning rate by parameter name (site + the adapter's own name); 1 for all others."""
        return {}

    def penalty(self) -> Tensor | None:
        """What is added to the loss."""
        return None

    def before_step(self, step: int) -> None:
        """Gradients are complete; `step` counts from 1."""

    def after_step(self, step: int) -> None:
        """The optimiser has moved the parameters; gradients are still there."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, beside parameters and buffers; written in place by `load`."""
        return {}
