"""Optional parts of a kind: initial values learned from data (`Calibrator`), hooks in training (`TrainingPart`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from ..ports.layouts import Features
    from .base import Adapter

Wanted = Literal["inputs", "outputs", "gradients"]


class Calibrator(ABC):
    """Base class of parts that learn the initial values of a kind's adapters from data, for all sites together.

    Each call of `lowpeft.calibrate` makes one, with the new adapters by site. It may choose other shapes: `settle`
    returns the config of each site, the adapters are rebuilt from these configs, and `fill` writes the learned values
    into each.

    Attributes:
        wants: Data that the part needs. `inputs` and `outputs`: the first tensors that go into and come out of each
            call of the site's module (for a feature adapter both are the features at its site). A module that is never
            called, because its network reads the weight directly, shows none. `gradients`: gradients of the loss with
            respect to the frozen parameters, for one image (or scene) at a time.
        notes: Remarks for people on what was learned, shown in the adapter's summary; `settle` may add some.
    """

    wants: ClassVar[frozenset[Wanted]] = frozenset({"inputs"})

    def __init__(self, adapters: Mapping[str, Adapter], configs: Mapping[str, Any]) -> None:
        self.adapters = adapters
        self.configs = configs
        self.notes: list[str] = []

    def see_parameters(self, site: str, parameters: Mapping[str, Tensor]) -> None:  # noqa: B027  (optional)
        """Take the frozen parameters of a weight adapter's site, by name; called once, before the data."""

    def see(self, site: str, inputs: Tensor, outputs: Tensor) -> None:  # noqa: B027  (optional)
        """Take the data of one call of a site's module."""

    def see_features(self, site: str, features: Features) -> None:
        """Take the features of one call of a feature adapter's site; by default `see` takes their values."""
        self.see(site, features.values, features.values)

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:  # noqa: B027  (optional)
        """Take the gradients of one image's loss with respect to the site's frozen parameters."""

    def settle(self) -> Mapping[str, Any]:
        """Return the config of each site, chosen from all the data; by default the configs are unchanged.

        Raises:
            PlanError: The data do not suffice.
        """
        return self.configs

    @abstractmethod
    def fill(self, site: str, adapter: Any) -> None:
        """Write the learned values into a site's new adapter; called under no_grad. It must still add exactly zero."""


class TrainingPart:
    """Hooks of a kind in `lowpeft.restoration.training.train`; one instance for all adapters of the kind.

    Every method is optional. A step is: forward pass, loss + `penalty`, backward, `before_step`, clipping, optimiser
    step, `after_step`, gradients set to None.
    """

    def __init__(self, adapters: Mapping[str, Adapter], steps: int) -> None:
        self.adapters = adapters
        self.steps = steps

    def rates(self) -> Mapping[str, float]:
        """Return learning-rate factors by parameter name (site + the name in the adapter); 1 for all others."""
        return {}

    def penalty(self) -> Tensor | None:
        """Return a term to add to the loss, or None."""
        return None

    def before_step(self, step: int) -> None:
        """Act after backward, when the gradients are complete; `step` counts from 1."""

    def after_step(self, step: int) -> None:
        """Act after the optimiser step; the gradients still exist."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs besides parameters and buffers; resuming writes them in place."""
        return {}
