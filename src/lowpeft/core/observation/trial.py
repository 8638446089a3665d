"""How is a network run without changing it, and what do its runs show? Runs on a copy, with the results kept.

`Trial.observations` runs the examples one after the other, `Trial.first` uses the first observed run that suffices.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...errors import PlanError
from ...families import Recognised, recognise
from ...ports.base import base_parameters
from ...ports.facts import Facts
from ...ports.layouts import Size
from ..attachment.copies import base_state, twin_of
from .additions import find_additions
from .examples import BATCH, SIZES_PX, Example, examples
from .generators import kept_generators
from .observing import Observation, Observed, observe
from .outputs import float_tensors

Result = TypeVar("Result")

MOST_RUNS = 3
"""Maximum number of runs that give no result; after these, larger images would not help."""

LEAST_PX = (8, 8)
"""Smallest test size, in pixels; enough for many tests."""


class Trial:
    """Copy of a network, and the results of its test runs. The copy and its observations are made on demand, once.

    Attributes:
        root: The network; read-only.
        example: Arguments of the network, given by the user; None for random images.
        facts: Known facts, which determine the random images.
        failures: Error text of each kind of failure, and the image shapes on which it occurred.
        observed: Observations of the modules, one entry per observed run.
    """

    def __init__(self, root: nn.Module, example: Example | None = None, facts: Facts | None = None) -> None:
        self.root = root
        self.example = example
        self.facts = facts
        self.failures: dict[str, list[str]] = {}
        self.observed: list[Observed] = []
        self._tried = 0  # examples that were tried for an observation
        self._running: Example | None = None
        self._runs = 0

    @functools.cached_property
    def twin(self) -> nn.Module:
        """Copy of the network in eval mode, with its adapters off."""
        return twin_of(self.root)

    @functools.cached_property
    def recognised(self) -> Recognised | None:
        """Family of the network, or None."""
        return recognise(self.root)

    # --- one run -----------------------------------------------------------------------------------------------------

    def call(self, example: Example) -> Any:
        """Return the copy's output, without gradients.

        Raises:
            Exception: Whatever the network raises.
        """
        return self._quietly(lambda: example.call(self.twin))

    def run(self, example: Example) -> Any:
        """Return the copy's output, without gradients.

        Raises:
            PlanError: The network does not run on this example; the reason is stored in `failures`.
        """
        return self._try(example, lambda: example.call(self.twin))

    def _quietly(self, use: Callable[[], Result]) -> Result:
        with torch.no_grad(), kept_generators(self.root):
            result = use()
        self._runs += 1
        return result

    def _try(self, example: Example, use: Callable[[], Result]) -> Result:
        try:
            return self._quietly(use)
        except Exception as error:
            text = _first_line(error)
            shape = tuple(example.first.shape)
            kind = "" if isinstance(error, PlanError) else f"{type(error).__name__}: "
            self.failures.setdefault(f"{kind}{text[:200]}", []).append(str(shape))
            raise PlanError(f"the network did not run on {shape}") from error

    # --- the first example on which the network runs -----------------------------------------------------------------

    def _examples(self, sizes: tuple[Size, ...] = SIZES_PX) -> Iterator[Example]:
        """Yield the examples to try, in order: batches of two images, then what the user gave or single images."""
        self.twin  # noqa: B018  (a failed copy must not be reported as a failed run)
        if self.example is None:
            yield from examples(self.root, facts=self.facts, sizes=sizes)
            if not self.observed:  # it may process one image at a time
                yield from examples(self.root, batch=1, facts=self.facts)
            return
        if self.example.images != BATCH:
            yield self.example.of_images(BATCH)
        yield self.example

    def first_run(
        self, least: int, use: Callable[[Example], Result], *, sizes: tuple[Size, ...] = SIZES_PX
    ) -> tuple[Example, Result]:
        """Return the first example, of at least `least` images, for which `use` succeeds, and the result of `use`.

        Raises:
            PlanError: `use`, which runs the network, raised a PlanError for every example.
        """
        for example in self._examples(sizes):
            if example.images >= least:
                with contextlib.suppress(PlanError):
                    return example, use(example)
        raise self.did_not_run(images=least)

    def running_example(self, *, least: int = 1) -> Example:
        """Return the first example on which the network runs.

        Args:
            least: Smallest number of images.

        Raises:
            PlanError: The network runs on none.
        """
        if self._running is None or self._running.images < least:
            seen = next((s.example for s in self.observed if s.example.images >= least), None)
            self._running = seen or self.first_run(least, self.run, sizes=(LEAST_PX, *SIZES_PX))[0]
        return self._running

    @functools.cached_property
    def runs(self) -> bool:
        """True if the network runs on one of the examples."""
        try:
            self.running_example()
        except PlanError:
            return False
        return True

    @property
    def has_run(self) -> bool:
        """True if the network has run on an example so far."""
        return self._runs > 0

    def did_not_run(self, *, images: int = 1) -> PlanError:
        """Return the error that lists the failed runs; `images` is the required number of images in a batch."""
        reasons = [
            f"{shapes[0]}{f' and {len(shapes) - 1} more' * (len(shapes) > 1)}: {reason}"
            for reason, shapes in self.failures.items()
        ]
        if images > 1 and self.has_run:
            return PlanError("the network runs on one image, but not on a batch of two:", problems=reasons[:1])
        if self.example is not None:
            return PlanError("the network did not run on the example:", problems=reasons)
        return PlanError(
            "the network did not run on any example that was tried; pass its input as example= (a tensor, tuple or "
            "dict):",
            problems=reasons,
        )

    # --- observed runs -----------------------------------------------------------------------------------------------

    def first(self, use: Callable[[Observed], Result]) -> Result:
        """Return the result of `use` for the first observed run for which it raises no PlanError.

        Raises:
            PlanError: The network runs on no example (every failure is listed), or `use` raises for all runs; then the
                first of its errors.
        """
        refusals: list[PlanError] = []
        for observed in self.observations():
            try:
                return use(observed)
            except PlanError as error:
                refusals.append(error)
        raise refusals[0] if refusals else self.did_not_run()

    def observations(self) -> Iterator[Observed]:
        """Yield the observations of at most `MOST_RUNS` runs, each on another example on which the network runs."""
        yield from self.observed
        while len(self.observed) < MOST_RUNS:
            example = next(itertools.islice(self._examples(), self._tried, None), None)
            if example is None:
                return
            self._tried += 1
            try:
                observed = self._observe(example)
            except PlanError:
                continue
            self.observed.append(observed)
            yield observed

    def at_another_size(self) -> Observed | None:
        """Return the observations of a run on images of another size than the first run's; None if none runs."""
        first = next(self.observations(), None)
        if first is not None:
            for example in self._examples((LEAST_PX, *SIZES_PX)):
                if example.size != first.example.size:
                    with contextlib.suppress(PlanError):
                        return self._observe(example)
        return None

    def _observe(self, example: Example) -> Observed:
        # Observations must not refer to this object: a reference cycle would keep the copy until garbage collection.
        trial = weakref.ref(self)

        def only_square() -> bool:
            alive = trial()
            return alive is not None and alive.only_square

        return self._try(example, lambda: observe(self.twin, example, only_square))

    @functools.cached_property
    def only_square(self) -> bool:
        """True if the network takes square images only, by its facts or by test runs; False with an example."""
        if self.example is not None:
            return False
        if self.facts is not None and (self.facts.square or self.facts.fixed_px is not None):
            return True
        seen = {observed.example.size for observed in self.observed}
        for example in examples(self.root, facts=self.facts):
            if not example.is_square:
                with contextlib.suppress(PlanError):
                    if example.size not in seen:
                        self.run(example)
                    return False
        return True

    def seen_at(self, path: str) -> list[Observation]:
        """Return the observations of a module in the runs so far."""
        return [observed.modules[path] for observed in self.observed if path in observed.modules]

    def additions(self, example: Example, paths: list[str]) -> set[str]:
        """Return the modules among `paths` whose output is added to other features.

        Raises:
            PlanError: The network does not run on this example.
        """
        return self._try(example, lambda: find_additions(self.twin, example, paths))

    # --- tensors that a run changes ----------------------------------------------------------------------------------

    def written(self) -> list[str]:
        """Return the paths of the base's tensors that the runs so far have changed; empty before the first run."""
        return self._changed(dict(base_state(self.root))) if self.has_run else []

    def written_again(self) -> list[str]:
        """Return the paths of the base's tensors that one more run changes."""
        before = self._state()
        self.run(self.running_example())
        return self._changed(before)

    def moved_by_training(self) -> list[str]:
        """Return the base's tensors that a forward pass in training mode changes; empty if the network does not run."""
        if not self.runs:
            return []
        before = self._state()
        self.twin.train()
        with contextlib.suppress(PlanError):  # a failure in training mode reveals nothing
            self.run(self.running_example())
        for module in self.twin.modules():
            module.training = False
        moved = self._changed(before)
        _copy_into(dict(base_state(self.twin)), {path: before[path] for path in moved})
        return moved

    def derived(self, paths: list[str]) -> set[str]:
        """Return the parameters among `paths` that the network overwrites with computed values when it runs.

        Every parameter is scaled by 1 + 2⁻⁶ before a run; those with another value after it are overwritten ones.
        """
        parameters = self._parameters(paths)
        before = {path: p.detach().clone() for path, p in parameters.items()}
        scaled = {path: tensor * (1 + 2**-6) for path, tensor in before.items()}
        _copy_into(parameters, scaled)
        try:
            self.run(self.running_example())
            now = self._parameters(paths)
            return {path for path, tensor in scaled.items() if tensor.any() and not _same(tensor, now[path])}
        except PlanError:  # it does not run with scaled weights: unknown
            return set()
        finally:
            _copy_into(self._parameters(paths), before)

    def _state(self) -> dict[str, Tensor]:
        """Return clones of the base's tensors in the copy."""
        return {path: tensor.detach().clone() for path, tensor in base_state(self.twin)}

    def _changed(self, before: Mapping[str, Tensor]) -> list[str]:
        """Return the paths of the base's tensors in the copy that differ from those in `before`."""
        now = dict(base_state(self.twin))
        return [path for path, tensor in before.items() if path not in now or not _same(tensor, now[path])]

    def _parameters(self, paths: Iterable[str]) -> dict[str, nn.Parameter]:
        wanted = set(paths)
        return {path: p for path, p in base_parameters(self.twin) if path in wanted}

    # --- tensors on which the output depends -------------------------------------------------------------------------

    def unread(self, paths: list[str]) -> set[str]:
        """Return the parameters among `paths` that get no gradient from the output."""
        parameters = self._parameters(paths)
        for p in parameters.values():
            p.requires_grad_(True)
        return self._without_gradient(parameters)

    def lost(self, paths: Iterable[str]) -> set[str]:
        """Return the modules among `paths` whose features do not influence the output."""
        added: dict[str, Tensor] = {}

        def add(path: str, module: nn.Module, args: Any, output: Any) -> Any:
            first = next(iter(float_tensors(output)), None)
            if first is None or path in added:
                return None
            added[path] = torch.zeros_like(first, requires_grad=True)
            return tree_map(lambda t: t + added[path] if t is first else t, output)

        with contextlib.ExitStack() as hooks:
            for path in paths:
                module = self.twin.get_submodule(path)
                hooks.enter_context(module.register_forward_hook(functools.partial(add, path)))
            return self._without_gradient(added)

    def _without_gradient(self, leaves: Mapping[str, Tensor]) -> set[str]:
        """Return the keys of `leaves` whose tensors get no gradient from the output; hooks may fill it in the run."""
        example = self.running_example().of_images(1)
        with torch.enable_grad(), kept_generators(self.root):
            try:
                outputs = [t for t in float_tensors(example.call(self.twin)) if t.requires_grad]
                if not leaves:  # torch would raise, ValueError or RuntimeError depending on its version
                    return set()
                total = sum((t.float().sum() for t in outputs), start=torch.zeros(()))
                gradients = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
            except RuntimeError:  # no gradient at all: `check_trainable` reports that
                return set()
        return {path for path, gradient in zip(leaves, gradients, strict=True) if gradient is None}


def _first_line(error: Exception) -> str:
    try:
        return (str(error).splitlines() or [""])[0]
    except Exception:  # noqa: BLE001  (the __str__ of a user's exception may fail)
        return ""


@torch.no_grad()
def _copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for path, value in values.items():
        tensors[path].copy_(value)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True))
