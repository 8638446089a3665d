"""Base classes of adapter kinds: configs, feature and weight adapters, and root parts.

A kind is one file with a config class (its *type* chooses the code), a module class, and one `register_adapter` call.
There are two sorts of module. Both must add exactly zero when new, so that an adapted network starts as its base:

* a `FeatureAdapter` returns the delta that is added to features at one site;
* a `WeightAdapter` returns the change that is added to parameters of one layer.

A kind may also have a `RootPart` (tensors shared by all sites, or code that acts on the whole network), a `Calibrator`
(initial values learned from data) and a `TrainingPart` (hooks in each training step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from .. import checks
from ..errors import PlanError
from ..ports.attachment import Attachment, Layer
from ..ports.facts import Facts
from ..ports.layouts import ExtraTokens, Features, Layout, Matches
from .learning import Calibrator, TrainingPart

LAYERS = "layers"
"""Place that means every weight that the kind fits; the default of low-rank kinds."""

# --- configs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Base class of all configs. Field values are plain: numbers, strings, None, and sequences of these.

    Attributes:
        target: Patterns (see `ports.patterns`) that choose the sites. None means the kind's default `places`.
    """

    kind: ClassVar[str]

    target: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        """Check the values, and turn lists (from TOML and JSON) into tuples, so that equal configs compare equal."""
        for field in fields(self):
            value = _frozen(f"{self.kind} adapter: {field.name}", getattr(self, field.name))
            if field.type in (bool, "bool") and not isinstance(value, bool):
                raise PlanError(f"{self.kind} adapter: {field.name} must be true or false, not {value!r}")
            object.__setattr__(self, field.name, value)
        if self.target is not None:
            target = (self.target,) if isinstance(self.target, str) else self.target
            if not isinstance(target, tuple) or not all(isinstance(p, str) for p in target):
                raise PlanError(
                    f"{self.kind} adapter: target must be a pattern or a list of patterns, not {self.target!r}"
                )
            object.__setattr__(self, "target", target)
        self.check()

    def check(self) -> None:
        """Raise if a value is out of range.

        Raises:
            PlanError: A field has an invalid value.
        """

    @property
    def settings(self) -> str:
        """Settings as text, e.g. "rank=4, alpha=8.0": the fields that have a value, without the target."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "target"}
        return ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)

    @property
    def places(self) -> tuple[str, ...]:
        """Places that the kind adapts if no target is given.

        Feature kinds name places of the family (`attention`, `mlp`, `parallel`, `stage`, …). Weight kinds name
        `layers`, which means every weight that the kind fits; a weight kind without it needs a target.
        """
        return ("attention",)

    @property
    def without_place(self) -> str | None:
        """What to do where a network lacks one of the `places`, as an instruction; None for the general advice."""
        return None

    @property
    def sizes(self) -> tuple[str, Sequence[float]] | None:
        """Field that sets the number of parameters, and its values, smallest number first; None for a fixed size.

        `adapt(…, budget="1%")` chooses among them.
        """
        return None

    def resized(self, value: float) -> Self:
        """Return the config with another value of the field that `sizes` names."""
        changes: dict[str, Any] = {} if self.sizes is None else {self.sizes[0]: value}
        return replace(self, **changes)

    @property
    def needs_data(self) -> bool:
        """True if adapters with these settings learn their initial values from data: see `Kind.needs_data`."""
        return False

    @property
    def views(self) -> int:
        """Number of views of a scene that the adapter mixes; 1 for a kind that treats each image separately."""
        return 1

    def thin(self, count: int) -> range:
        """Return the indices of the sites to adapt, out of `count` chosen ones; by default all."""
        return range(count)


@dataclass(frozen=True, kw_only=True)
class LayersConfig(AdapterConfig):
    """Base class of the configs of weight kinds that go, without a target, to everything that they fit."""

    @property
    def places(self) -> tuple[str, ...]:
        """Place `layers`."""
        return (LAYERS,)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(AdapterConfig):
    """Base class of the configs of feature kinds.

    Attributes:
        item: Index of the features in the tuple or list that a target module returns; needed where several elements
            could be the features.
        skip_stages: Number of the network's first stages that get no adapters (AdapterDrop, arXiv 2010.11918): the
            backward pass ends before them, and so does the adapters' cost. None for all stages.
    """

    item: int | None = None
    skip_stages: int | None = None

    def __post_init__(self) -> None:
        """Check the values, and raise if `item` is not an index or `skip_stages` not a number of stages."""
        super().__post_init__()
        given = {name: value for name in ("item", "skip_stages") if (value := getattr(self, name)) is not None}
        at_least(self, **dict.fromkeys(given, 0))


def _frozen(name: str, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(name, v) for v in value)
    if isinstance(value, (Mapping, set)):
        raise PlanError(f"{name} must be a plain value or a list, not {value!r}")
    return value


# --- modules ---------------------------------------------------------------------------------------------------------


class Adapter(nn.Module, ABC):
    """Base class of adapters; one instance per site.

    Attributes:
        attachment: Position on the module where the adapter acts; set when it is attached.
        root_part: Part that the adapter shares with the other sites of its kind; None if the kind has no
            `root_part_class`.
        root_part_class, calibrator_class, training_part_class: Classes of the kind's optional parts. The last two may
            be set on an instance, if they depend on its config, whose `needs_data` then says if there is a calibrator.
        zero_gradients: Names of the parameters whose gradient is zero by construction; `check_trainable` accepts it.
    """

    kind: ClassVar[str]
    root_part_class: ClassVar[type[RootPart] | None] = None
    calibrator_class: type[Calibrator] | None = None
    training_part_class: type[TrainingPart] | None = None
    zero_gradients: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.attachment = Attachment(form="output", layout=Layout.NCHW)

    @property
    def root_part(self) -> Any:
        """Part that this site shares with the others of its kind; None if the kind has none."""
        return self.__dict__.get("_root_part")

    def problem(self) -> str | None:
        """Return what is wrong with tensors that were loaded into the adapter, as a sentence's end; else None.

        Shapes, NaN and infinity are checked before; a kind that stores indices checks their range here.
        """
        return None

    def join(self, part: RootPart) -> None:
        """Give the adapter access to the shared part. It stays a child of the root's slot, so that it is saved once."""
        self.__dict__["_root_part"] = part


class FeatureAdapter(Adapter):
    """Base class of adapters that add to features; built as `cls(channels, config)`.

    Attributes:
        needs_rows: True if the adapter needs the height and width of the features. It then goes only to sites where
            they are known.
        row_local: True if the delta of an image row depends on that row only. The delta may then be computed some rows
            at a time to save memory. Set it to False if a row reads the rows above or below it.
        whole_image: True if the delta depends on the whole image, e.g. through a Fourier transform. Images are then not
            cut into strips (`lowpeft.enhance`) unless the user allows it with `lowpeft.describe(model, strips=True)`.
        reads_only: True if the adapter adds nothing and only passes its features to the root part (`Forward.seen`).
    """

    needs_rows: ClassVar[bool] = False
    row_local: ClassVar[bool] = True
    whole_image: ClassVar[bool] = False
    reads_only: ClassVar[bool] = False

    @abstractmethod
    def delta(self, features: Features) -> Tensor:
        """Return the delta: a tensor with the shape and layout of `features.values` that is added to the features."""

    def read(self, features: Features) -> Features:
        """Return what `Forward.seen` keeps for the root part, with `reads_only`; by default the features themselves.

        It is called at once, when the network comes to the site. Networks may overwrite features later, and features
        that are kept take memory, so a part that needs only a little of them should compute it here.
        """
        return features

    def matches(self, features: Features) -> Matches | None:
        """Return where each position looks in the other view, for kinds of two views that can tell; else None.

        `restoration.evaluation.attended_disparity` calls it with the features that `delta` gets.
        """
        return None


class TokenAdapter(FeatureAdapter):
    """Base class of adapters that give attention extra keys and values; only for block forwards' port `tokens`."""

    @abstractmethod
    def tokens(self, features: Features) -> ExtraTokens:
        """Return keys, values and their gate; the gate of a new adapter is zero.

        Args:
            features: Input of attention. The tokens may be computed per image from it, or be the same for all images.
        """

    def delta(self, features: Features) -> Tensor:
        """Raise, because tokens are not added to features.

        Raises:
            PlanError: Always.
        """
        raise PlanError(f"a {self.kind} adapter gives attention extra tokens; it has no delta of features")


class WeightAdapter(Adapter):
    """Base class of adapters that add to parameters of one layer; built as `cls(layer, config)`. They can be merged.

    The adapted weight is base + change, computed in each forward pass. Merging writes base + change into the parameter.
    A kind that scales or rotates returns the difference: for (1 + s)·W the change is s·W.

    Attributes:
        scales_outputs: True for a kind whose formula holds only where the output goes with weight and bias; layers in
            which it does not (a standardised weight) are left out.
    """

    scales_outputs: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return the names of the module's own parameters that this kind can adapt, grouped: one adapter per group.

        Example: `(("weight",), ("bias",))` makes two adapters, `(("weight", "bias"),)` makes one. Return an empty tuple
        for a module that the kind does not fit.
        """

    @classmethod
    def named_groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Return further groups, which only a pattern that names the parameter selects; by default none.

        Example: position tables, which users rarely mean when they adapt all layers.
        """
        return ()

    def start(self, base: Mapping[str, Tensor]) -> None:
        """Initialise the adapter from the frozen parameters; called once, when the adapter is attached.

        Store results in parameters or buffers, so that they are saved: loading an adapter file does not call this
        again.
        """

    @abstractmethod
    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the change of each parameter of the group, by name and in its shape; exactly zero when new.

        Args:
            base: Frozen parameters by name. Autocast is off.
        """

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return (a, b), (rank, columns) and (rows, rank), if the change of the weight, flattened from axis 1, is b·a.

        A linear layer or convolution then runs x·aᵀ·bᵀ beside the frozen layer in training. None means that the change
        is not known as a product of two.
        """
        return None


class RootPart(Adapter):
    """Base class of the part that all sites of one kind share; built once per adapter as `cls(shape, config)`.

    Its parameters and buffers are saved with the adapter. Subclasses must implement `shape_for`. A kind whose work is
    all in its root part still needs sites, e.g. a `FeatureAdapter` with `reads_only = True` on the stages.

    With `acts` the part takes part in every forward pass of the network. `begin` gets the input (several views come as
    one batch, the views of a scene next to each other) and, with `routes`, may set strengths of other adapters, each a
    number or a tensor. `finish` gets the features of the sites with `reads_only` and may add to the output. A network
    with an acting part cannot be compiled with `fullgraph=True`.

    Attributes:
        acts: True if the part takes part in every forward pass.
        routes: True if `begin` sets strengths of other adapters. They apply whenever the part is on, whatever the
            part's own strength.
        output: Attribute or index of the image in the network's output; None if the output is the image.
    """

    acts: ClassVar[bool] = False
    routes: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.output: str | int | None = None

    @classmethod
    @abstractmethod
    def shape_for(cls, config: Any, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """Return the numbers that set the shapes of the shared tensors, from the channels or layers of all sites.

        Example: VeRA returns (rows, columns), the largest of any layer.
        """

    @classmethod
    def shape_on(cls, network: Surroundings, config: Any, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """Return what `shape_for` returns, or more if shapes depend on the network, e.g. on its scale.

        Raises:
            PlanError: The kind does not suit the network.
        """
        return cls.shape_for(config, sites)

    def begin(self, forward: Forward) -> None:
        """Do what is needed before the network runs; called only with `acts`."""

    def finish(self, forward: Forward, output: Tensor) -> Tensor | None:
        """Return what to add to the output image, in its shape, or None for nothing; called only with `acts`."""
        return None


@dataclass(frozen=True)
class Surroundings:
    """What a root part may ask about the network that it is planned for.

    Attributes:
        facts: Facts of the network.
        pixels_per_position: Function that runs the network once and returns, for each site on features, the number of
            pixels of the input image's sides per position of the features; None where the features do not lie on the
            image's grid (another size, or unknown height and width).
    """

    facts: Facts
    pixels_per_position: Callable[[], Sequence[int | None]]


@dataclass
class Forward:
    """State of one forward pass of an adapted network, for its acting root parts; discarded after the call.

    Attributes:
        args: Positional arguments of the network.
        kwargs: Keyword arguments of the network.
        strengths: Factors for the strengths of other adapters in this forward pass, by adapter name; set in `begin`.
            Each is a number, a 0-dim tensor, or (feature adapters only) a tensor (N,), one per image of the batch.
        seen: Adapters with `reads_only` and what they `read`, in the order of the calls.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    strengths: dict[str, float | Tensor]
    seen: list[tuple[FeatureAdapter, Features]]


def at_least(config: AdapterConfig, **minimum: int) -> None:
    """Raise if a field is not an integer or is below its minimum."""
    for name, least in minimum.items():
        if problems := checks.whole(name, getattr(config, name), least=least):
            raise PlanError(f"{config.kind} adapter: {problems[0]}")
