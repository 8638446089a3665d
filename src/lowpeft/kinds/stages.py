"""Settings that the kinds after the stages of a network share, between two views."""

from __future__ import annotations

from dataclasses import dataclass

from .base import FeatureConfig, at_least


@dataclass(frozen=True, kw_only=True)
class StageConfig(FeatureConfig):
    """Base class of the configs of kinds that exchange features between two views, after every n-th stage.

    Attributes:
        every: Step n through the chosen sites: sites n-1, 2n-1, … are adapted, counted from 0. 1 adapts all.
    """

    every: int = 1

    def check(self) -> None:
        """Raise if the step is below 1."""
        at_least(self, every=1)

    @property
    def places(self) -> tuple[str, ...]:
        """Place `stage`: the outputs of the network's stages."""
        return ("stage",)

    @property
    def views(self) -> int:
        """Number of views: 2, left and right."""
        return 2

    def thin(self, count: int) -> range:
        """Return the indices of every n-th of the chosen sites."""
        return range(self.every - 1, count, self.every)
