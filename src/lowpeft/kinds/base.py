"""What every adapter kind is made of: a frozen config, and a module that knows its own parameters.

A kind is one file: a config class (its *type* chooses the code), a module class, and one `register_adapter` call.
There are two shapes of module: a `FeatureAdapter` returns what is added to features, a `WeightAdapter` returns what is
added to a weight tensor. Both must return exactly zero when new, so that an adapted network starts as its base.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from ..errors import PlanError
from ..layouts import Layout, Size


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Base of every kind's config.

    Attributes:
        target: Patterns (see `lowpeft.patterns`) that choose the sites; None means the place that the family names
            for this kind.
    """

    kind: ClassVar[str]

    target: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        """Normalise `target` to a tuple, so that equal configs compare equal, and check the values."""
        if self.target is not None:
            value = (self.target,) if isinstance(self.target, str) else self.target
            if not isinstance(value, (list, tuple)) or not all(isinstance(p, str) for p in value):
                raise PlanError(
                    f"{self.kind} adapter: target must be a pattern or a list of patterns, not {self.target!r}"
                )
            object.__setattr__(self, "target", tuple(value))
        self.check()

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            PlanError: A field has a value that cannot work.
        """

    @property
    def places(self) -> tuple[str, ...]:
        """The family's places (`attention`, `mlp`, `parallel`, `stage`) that a feature kind goes to by default."""
        return ("attention",)

    def thin(self, count: int) -> range:
        """Which of the `count` chosen sites are adapted: all, unless the kind says otherwise."""
        return range(count)


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Where on its module an adapter acts.

    Attributes:
        form: `feature`, `branch` or `weight`.
        layout: Of the features.
        source: Whether the adapter reads the module's output or its first argument.
        item: The element of a tuple output that holds the features.
        square: Tokens lie on a square grid where the module is not told the size.
        branch: The family-specific forward.
        tensor: The parameter that a weight adapter changes.
    """

    form: Literal["feature", "branch", "weight"]
    layout: Layout = Layout.NCHW
    source: Literal["output", "input"] = "output"
    item: int | None = None
    square: bool = False
    branch: str | None = None
    tensor: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, which a damaged file could hold.

        Raises:
            PlanError: Naming the first.
        """
        tests = {
            "form": self.form in ("feature", "branch", "weight"),
            "layout": isinstance(self.layout, Layout),
            "source": self.source in ("output", "input"),
            "item": self.item is None or (type(self.item) is int and self.item >= 0),
            "square": isinstance(self.square, bool),
            "branch": isinstance(self.branch, str) if self.form == "branch" else self.branch is None,
            "tensor": isinstance(self.tensor, str) if self.form == "weight" else self.tensor is None,
        }
        for name, right in tests.items():
            if not right:
                raise PlanError(f"an attachment of form {self.form!r} cannot have {name}={getattr(self, name)!r}")


class Adapter(nn.Module, ABC):
    """One adapter at one site.

    Attributes:
        attachment: Where on its module it acts; set when it is attached.
        strength: Factor of what the adapter adds, 0..1 (1 when new).
        enabled: False inside `lowpeft.disabled`.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.attachment = Attachment(form="feature")
        self.strength = 1.0
        self.enabled = True

    @property
    def active(self) -> bool:
        """Whether the adapter adds anything at all."""
        return self.enabled and self.strength != 0.0


class FeatureAdapter(Adapter):
    """An adapter that adds to the features of a module."""

    pairs_views: ClassVar[bool] = False
    row_local: ClassVar[bool] = True
    """Whether each image row's delta depends on that row alone (then memory can be bounded row by row)."""

    @abstractmethod
    def delta(self, features: Tensor, layout: Layout, size: Size | None) -> Tensor:
        """What is added to `features`, same shape.

        Args:
            features: In the given layout; for a kind that pairs views, left and right of a pair are neighbours
                in the batch.
            layout: Of `features`.
            size: Height and width, where `layout` is of tokens and the kind needs rows.
        """


class WeightAdapter(Adapter):
    """An adapter that adds to one weight tensor of a module; it can be merged."""

    @classmethod
    @abstractmethod
    def tensors(cls, module: nn.Module) -> tuple[str, ...]:
        """The names of the module's own parameters that this kind can adapt; empty if none."""

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """What is added to the weight, in the weight's shape."""


def is_number(value: object, *, above: float) -> bool:
    """Whether the value is a finite number, not a bool, that is greater than `above`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < math.inf


def at_least(config: AdapterConfig, **minimum: int) -> None:
    """Refuse integer fields below a minimum."""
    for name, low in minimum.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise PlanError(f"{config.kind} adapter: {name} must be a whole number of at least {low}, not {value!r}")
