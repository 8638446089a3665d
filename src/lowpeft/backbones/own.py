"""Networks of one's own: import the function that builds one, and fill it with the tensors of a checkpoint."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.attachment.record import module_of
from ..core.observation.describe import contradictions, describe
from ..errors import LowpeftError, did_you_mean
from ..importing import cause, function_named
from ..ports.facts import Backbone, Making, call, literal
from .checkpoints import Choice, in_full_precision, read_checkpoint, said, the_one, wanted
from .weights import State, Weights

MOST_NAMED = 20
"""Largest number of tensors of each sort that an error names."""
COMPUTED = (".attn_mask", ".relative_position_index")
"""Ends of the names of buffers that networks compute themselves, and whose size may depend on that of a crop."""
SEED = 0
"""Seed for weights that a function leaves random, so that they are the same each time."""


@dataclass(frozen=True, kw_only=True)
class Factory:
    """Function that builds a network, by name, with the arguments to call it with.

    Attributes:
        name: Module and function, `package.module:function`; the function may be inside a class (`module:Net.small`).
        arguments: Keyword arguments of the function.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def load(
        self,
        file: str | Path | None = None,
        *,
        weights: Choice = "ema",
        allow_half: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> Backbone:
        """Build the network, in eval mode, with the weights of a file or those that the function gives it.

        Weights that the function leaves random are drawn with seed 0; the global random state is unchanged.

        Args:
            file: Checkpoint of the network, as for `lowpeft.load_backbone`; None to keep the function's weights.
            weights: As for `lowpeft.load_backbone`.
            allow_half: As for `lowpeft.load_backbone`.
            facts: Facts in place of those that would be measured, as for `lowpeft.describe`.

        Raises:
            LowpeftError: The module cannot be imported; it has no such function; the function cannot be called with the
                arguments, or returns something else; the file does not fit; or a fact is unknown, invalid, or
                contradicted by a run of the network.
        """
        given = dict(facts or {})
        build = _builder(self.name)
        self._check(build, given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            built = self._called(build)
        module_of(built).eval()
        module, _, path = self.name.partition(":")
        code = call(path, **self.arguments)
        if file is not None:
            base = load_into(built, Path(file), weights=weights, allow_half=allow_half)
            options = ({} if weights == "ema" else {"weights": weights}) | ({"allow_half": True} if allow_half else {})
            code = call("lowpeft.load_backbone", literal(Path(file).name), f"network={code}", **options)
            base = with_facts(base, given)
        else:
            base = with_facts(built, given)
        if given or (file is None and isinstance(built, nn.Module)):
            code = call("lowpeft.describe", code, **given)
        importing = f"from {module} import {path.partition('.')[0]}"
        making = Making(expression=code, imports=(importing,), anew=functools.partial(_another, self))
        return replace(base, making=making)

    def _check(self, build: Callable[..., object], facts: Mapping[str, Any]) -> None:
        """Raise for missing and unknown arguments of the function, and unknown facts."""
        if problems := [*_argument_problems(build, self.arguments), *_fact_problems(facts)]:
            raise LowpeftError(f"{self.name} cannot be called as asked:", problems=problems)

    def _called(self, build: Callable[..., object]) -> nn.Module | Backbone:
        try:
            with _torch_as_it_was():
                built = build(**self.arguments)
        except (Exception, SystemExit) as error:
            raise LowpeftError(f"{call(self.name, **self.arguments)} failed: {cause(error)}") from error
        if not isinstance(built, nn.Module | Backbone):
            if inspect.iscoroutine(built):
                built.close()  # it would warn that nobody awaited it
            what = "; return its .model" if isinstance(getattr(built, "model", None), nn.Module) else ""
            raise LowpeftError(
                f"{self.name} returned a {type(built).__name__}, but must return a torch.nn.Module or a "
                f"lowpeft.Backbone{what}"
            )
        return built


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Put back what a user's function may change for the whole process: gradients, and the default dtype."""
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)


def _another(factory: Factory) -> nn.Module:
    """Build another network, with new weights from the global random state."""
    return module_of(factory._called(_builder(factory.name)))


def with_facts(network: nn.Module | Backbone, facts: Mapping[str, Any]) -> Backbone:
    """Return a network with the facts that a user gives on the command line, and others as in `lowpeft.describe`.

    Raises:
        LowpeftError: A fact is unknown or invalid, or a run of a copy of the network contradicts it.
    """
    if problems := list(_fact_problems(facts)):
        raise LowpeftError("these facts cannot be given:", problems=problems)
    base = network if isinstance(network, Backbone) and not facts else describe(network, **facts)
    if problems := contradictions(base, facts):
        raise LowpeftError(
            "these facts were given, but running a copy of the network contradicts them; correct them, or leave them "
            "out to have them measured:",
            problems=problems,
        )
    return base


def _builder(name: str) -> Callable[..., object]:
    return function_named(
        name,
        "a function that builds a network",
        "mypackage.models:make_network",
        advice="Checkpoint files, demo and timm:NAME are weights (--weights)",
    )


def _fact_problems(facts: Mapping[str, Any]) -> Iterator[str]:
    known = [name for name in inspect.signature(describe).parameters if name not in ("module", "example")]
    for name in facts:
        if name not in known:
            yield f"there is no fact {name!r}{did_you_mean(name, known)}; facts are {', '.join(known)}"


def _argument_problems(build: Callable[..., object], arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the arguments, where the function's signature can be read."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing := [name for name in needed if name not in arguments]:
        yield f"it needs {', '.join(missing)}: give --network-set {missing[0]}=…"
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    for name in arguments:
        if name not in named:
            yield f"it has no argument {name!r}{did_you_mean(name, named)}; it takes {', '.join(named) or 'none'}"


def load_into(
    network: nn.Module | Backbone, file: Path, *, weights: Choice = "ema", allow_half: bool = False
) -> Backbone:
    """Load a checkpoint's tensors into a network, strictly; see `lowpeft.load_backbone`.

    Returns:
        The same network with its facts, in eval mode; `.notes` says which weights were loaded.

    Raises:
        LowpeftError: The file cannot be read, or its tensors are not those of the network: missing, unexpected and
            mis-shaped ones are listed. The network is unchanged.
    """
    module = module_of(network)
    found = read_checkpoint(file)
    own = module.state_dict()
    candidates: Sequence[Weights] = wanted(found, weights, file)
    try:
        fitting = _fitting(own, candidates)
        if not fitting:
            if joined := _with_averages_as_layers(found):
                candidates, found = joined, joined
            fitting = _fitting(own, candidates)
        if not fitting:
            raise _not_its_tensors(module, own, candidates)
        taken = the_one(fitting)
        state = in_full_precision(taken.state, allow_half=allow_half)
        kept = {key: tensor for key, tensor in own.items() if _is_computed(key)}
        module.load_state_dict({**{k: t for k, t in state.items() if not _is_computed(k)}, **kept})
    except (LowpeftError, RuntimeError) as error:
        text, problems = (error.message, error.problems) if isinstance(error, LowpeftError) else (str(error), ())
        raise LowpeftError(
            f"{file} cannot be loaded into {type(module).__name__}: {text}", problems=problems
        ) from error
    base = describe(network)
    module.eval()
    making = Making(
        expression=call("lowpeft.load_backbone", literal(file.name), "network=network"),
        imports=("", f"network = ...  # fill in: your {type(module).__name__}, before its weights are loaded"),
    )
    return replace(base, notes=(*base.notes, *said(taken, found)), making=making)


def _fitting(own: State, candidates: Sequence[Weights]) -> list[Weights]:
    return [each for each in candidates if not any(_differences(own, each.state).values())]


def _with_averages_as_layers(found: Sequence[Weights]) -> tuple[Weights, ...]:
    """Return the raw state dicts, each together with what looks like an average in it: a layer called `avg`, say."""
    joined = []
    for raw in (each for each in found if not each.averaged):
        state: State = dict(raw.state)
        for each in found:
            if each.averaged and each.path[: len(raw.path)] == raw.path:
                prefix = ".".join(each.path[len(raw.path) :])
                state |= {f"{prefix}.{key}": tensor for key, tensor in each.state.items()}
        joined.append(replace(raw, state=state))
    return tuple(joined)


def _differences(own: State, given: State) -> dict[str, list[str]]:
    """Return missing, unexpected and mis-shaped tensors, as lines; masks and indices are not compared."""
    own, given = ({key: t for key, t in state.items() if not _is_computed(key)} for state in (own, given))
    shared = [key for key in own if key in given and own[key].shape != given[key].shape]
    return {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [f"{key}: {_shape(given[key])} for {_shape(own[key])}" for key in shared],
    }


def _is_computed(key: str) -> bool:
    return f".{key}".endswith(COMPUTED)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _not_its_tensors(module: nn.Module, own: State, candidates: Sequence[Weights]) -> LowpeftError:
    """Build the error for a file of other tensors, from the state dict in it that has most in common."""
    nearest = max(candidates, key=lambda each: len(own.keys() & each.state.keys()))
    problems = []
    for what, keys in _differences(own, nearest.state).items():
        more = [f"{what}: … and {len(keys) - MOST_NAMED:,} more"] if len(keys) > MOST_NAMED else []
        problems += [*(f"{what}: {key}" for key in keys[:MOST_NAMED]), *more]
    shared = len(own.keys() & nearest.state.keys())
    return LowpeftError(
        f"its tensors are not those of the network. {nearest.place.capitalize()}, it has {shared} of the network's "
        f"{len(own)} names:",
        problems=problems,
    )
