"""The ports of a kind: a frozen config, and modules that know their own parameters.

A kind is one file: a config class (its *type* chooses the code), a module class, and one `register_adapter` call.
There are two shapes of module, and both must add exactly zero when new, so that an adapted network starts as its base:

* a `FeatureAdapter` returns what is added to features at one place of the network;
* a `WeightAdapter` returns what is added to parameters of one layer.

Beside its modules a kind may have a `RootPart` (tensors that all sites share; a part that acts on the whole network), a
`Calibrator` (a start that is learned from data) and a `TrainingPart` (a share in each step of training).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import PlanError
from ..ports.layouts import ExtraTokens, Features, Layout
from .learning import Calibrator, TrainingPart
from .site import Attachment, Layer

LAYERS = "layers"
"""The default place of low-rank changes."""

# --- configs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Base of every kind's config. Values of fields are plain: numbers, strings, None, and sequences of these.

    Attributes:
        target: Patterns (see `ports.patterns`) that choose the sites; None means the places that the family names for
            this kind.
    """

    kind: ClassVar[str]

    target: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        """Turn lists, which TOML and JSON give, into tuples, so that equal configs are equal, and check the values."""
        for field in fields(self):
            object.__setattr__(
                self, field.name, _frozen(f"{self.kind} adapter: {field.name}", getattr(self, field.name))
            )
        if self.target is not None:
            target = (self.target,) if isinstance(self.target, str) else self.target
            if not isinstance(target, tuple) or not all(isinstance(p, str) for p in target):
                raise PlanError(
                    f"{self.kind} adapter: target must be a pattern or a list of patterns, not {self.target!r}"
                )
            object.__setattr__(self, "target", target)
        self.check()

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            PlanError: A field has a value that cannot work.
        """

    @property
    def places(self) -> tuple[str, ...]:
        """The places that the kind goes to by default.

        For features those of the family (`attention`, `mlp`, `parallel`, `stage`, …); for weights `layers`, every
        weight that the kind fits, or none: then there must be a target.
        """
        return ("attention",)

    @property
    def views(self) -> int:
        """How many views of a scene the adapter mixes; 1 for a kind that acts on each image by itself."""
        return 1

    def thin(self, count: int) -> range:
        """Which of the `count` chosen sites are adapted: all, unless the kind says otherwise."""
        return range(count)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(AdapterConfig):
    """Base of the configs of feature kinds.

    Attributes:
        item: Which element of a tuple or list that a named module gives holds the features, where several could.
    """

    item: int | None = None

    def __post_init__(self) -> None:
        """As every config; and refuse an item that is no index."""
        super().__post_init__()
        if self.item is not None:
            at_least(self, item=0)


def _frozen(name: str, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(name, v) for v in value)
    if isinstance(value, (Mapping, set)):
        raise PlanError(f"{name} must be a plain value or a list, not {value!r}")
    return value


# --- modules ---------------------------------------------------------------------------------------------------------


class Adapter(nn.Module, ABC):
    """One adapter at one site.

    Attributes:
        attachment: Where on its module it acts; set when it is attached.
        root_part: What it shares with the other sites of its kind, where the kind has a `root_part_class`.
        root_part_class, calibrator_class, training_part_class: Further parts of the kind.
        zero_gradients: Names of its parameters whose gradient is zero by construction; `check_trainable` does not
            count them.
    """

    kind: ClassVar[str]
    root_part_class: ClassVar[type[RootPart] | None] = None
    calibrator_class: ClassVar[type[Calibrator] | None] = None
    training_part_class: ClassVar[type[TrainingPart] | None] = None
    zero_gradients: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.attachment = Attachment(form="output", layout=Layout.NCHW)

    @property
    def root_part(self) -> Any:
        """The part that this site shares with the others of its kind; None where the kind has none."""
        return self.__dict__.get("_root_part")

    def join(self, part: RootPart) -> None:
        """Let the adapter see the shared part. It is a child of the root's slot alone, so that it is saved once."""
        self.__dict__["_root_part"] = part


class FeatureAdapter(Adapter):
    """An adapter that adds to features; built as `cls(channels, config)`.

    Attributes:
        needs_rows: Whether it has to know rows and columns; then it is planned only where they are known.
        row_local: Whether each image row's delta depends on that row alone. Then memory can be bounded row by row; set
            it to False for anything that looks up or down.
        reads_only: Whether it adds nothing and only shows its features to the kind's root part (`Forward.seen`).
    """

    needs_rows: ClassVar[bool] = False
    row_local: ClassVar[bool] = True
    reads_only: ClassVar[bool] = False

    @abstractmethod
    def delta(self, features: Features) -> Tensor:
        """What is added to the features: a tensor of the shape and layout of `features.values`."""


class TokenAdapter(FeatureAdapter):
    """An adapter that gives attention extra keys and values, for the port `tokens` of block forwards alone."""

    @abstractmethod
    def tokens(self, features: Features) -> ExtraTokens:
        """Keys, values and their gate; a new adapter's gate is zero.

        Args:
            features: What attention reads. Each image has tokens of its own, from its own features, or all have the
                same.
        """

    def delta(self, features: Features) -> Tensor:
        """Refuse, because tokens are not added to features.

        Raises:
            PlanError: Always.
        """
        raise PlanError(f"a {self.kind} adapter gives tokens to attention and adds nothing to features")


class WeightAdapter(Adapter):
    """An adapter that adds to parameters of one layer; built as `cls(layer, config)`. It can be merged.

    Adapted = base + change, while the base is frozen; merged = base + change, written. A kind that scales or rotates
    writes that as a change: (1 + s)·W is the change s·W.
    """

    @classmethod
    @abstractmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Names of the module's own parameters that this kind can adapt, in groups that one adapter changes together.

        Example: `(("weight",), ("bias",))` makes two adapters, `(("weight", "bias"),)` one. Empty for other modules.
        """

    def start(self, base: Mapping[str, Tensor]) -> None:
        """Take what the kind needs from the frozen parameters, once, when the adapter is attached.

        What is learned here belongs into parameters or buffers, so that it is saved; it is not repeated when an adapter
        file is loaded.
        """

    @abstractmethod
    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is added to each parameter of the group, in its shape; exactly zero when new.

        Args:
            base: The frozen parameters by name. Autocast is off.
        """


class RootPart(Adapter):
    """The part that all sites of one kind share, built once for an adapter as `cls(shape, config)`.

    `shape_for` has to be written: it says what the shared tensors' shapes depend on. A kind that has only such a part
    still needs sites: a `FeatureAdapter` with `reads_only = True` on the stages, say.

    Its parameters and buffers are saved with the adapter. With `acts` it takes part in every forward of the network:
    `begin` sees the input (several views as one batch, the views of a scene next to each other) and, where the class
    says `routes`, may set strengths of other adapters: a number or a tensor each. `finish` sees the features of
    reading sites and may add to the output. A network with such a part cannot be compiled with `fullgraph=True`.

    Attributes:
        acts: Whether it takes part in every forward.
        routes: Whether `begin` sets strengths of other adapters; these are on or off with the part, whatever its own
            strength.
        output: The attribute or the index of the network's output that is the image, None where the output is it.
    """

    acts: ClassVar[bool] = False
    routes: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.output: str | int | None = None

    @classmethod
    @abstractmethod
    def shape_for(cls, config: Any, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """What the shared tensors' shapes depend on, from the channels or layers of all sites.

        Example: VeRA's shared matrices are as large as the largest layer: (rows, columns).
        """

    def begin(self, forward: Forward) -> None:
        """Called before the network runs, where the part acts."""

    def finish(self, forward: Forward, output: Tensor) -> Tensor | None:
        """What is added to the network's output image, in its shape; None for nothing. Called where the part acts."""
        return None


@dataclass
class Forward:
    """One forward of an adapted network, as its acting root parts see it; nothing outlives the call.

    Attributes:
        args: Arguments of the network.
        kwargs: Keyword arguments of the network.
        strengths: Factors of the strengths of other adapters during this forward, by adapter name: a number, a 0-dim
            tensor, or (for adapters of features) a tensor (N,) with one for each image of the batch; to be set in
            `begin`.
        seen: What the reading sites saw, in the order of their calls.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    strengths: dict[str, float | Tensor]
    seen: list[tuple[FeatureAdapter, Features]]


def is_number(value: object, *, above: float) -> bool:
    """Whether the value is a finite number, not a bool, that is greater than `above`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < math.inf


def at_least(config: AdapterConfig, **minimum: int) -> None:
    """Refuse integer fields below a minimum."""
    for name, low in minimum.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise PlanError(f"{config.kind} adapter: {name} must be a whole number of at least {low}, not {value!r}")
