"""Settings: the strengths of a model's adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Strength = float | Tensor
"""Factor of what an adapter adds in one forward pass: a float, a 0-dim tensor, or a tensor (N,) with one per image."""


class Setting:
    """Strengths of adapters in 0..1, by name; adapters that are not named are off.

    Attributes:
        by_image: Strengths of the adapters that have one number for each image (or scene) of a batch, as tuples.
        values: All strengths: numbers, or tensors (N,).
        tensors: All strengths as tensors. A compiled forward takes them as inputs, so new values need no recompilation.
    """

    def __init__(self, values: Mapping[str, Strength | tuple[float, ...]]) -> None:
        self.by_image = {name: value for name, value in values.items() if isinstance(value, tuple)}
        self.values: dict[str, Strength] = {
            name: torch.tensor(value, dtype=torch.float64) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        self.tensors = {
            name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            for name, value in self.values.items()
        }

    def __str__(self) -> str:
        """Return a readable text, e.g. `rain at 0.5, blur off`."""
        given = {**self.values, **self.by_image}
        texts = [f"{name} off" if is_off(self.values[name]) else f"{name} at {value}" for name, value in given.items()]
        return ", ".join(texts) or "no adapter"

    @property
    def images(self) -> int | None:
        """Number of images that a batch must have; None if all strengths are single numbers."""
        return next((len(numbers) for numbers in self.by_image.values()), None)

    @property
    def full(self) -> bool:
        """True if every named adapter has strength 1."""
        return all(not isinstance(v, Tensor) and v == 1.0 for v in self.values.values())

    @property
    def has_gradient(self) -> bool:
        """True if a strength requires a gradient, because something trainable computes it."""
        return any(isinstance(v, Tensor) and v.requires_grad for v in self.values.values())

    def same_as(self, other: Setting) -> bool:
        """Return whether two settings name the same adapters with the same strengths."""
        pairs = ((tensor, other.tensors.get(name)) for name, tensor in self.tensors.items())
        return self.tensors.keys() == other.tensors.keys() and all(
            b is not None and a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in pairs
        )

    def renamed(self, names: Mapping[str, str]) -> Setting:
        """Return the setting with some adapters renamed; `names` maps old names to new ones."""
        if not names:
            return self
        return Setting({names.get(n, n): v for n, v in {**self.values, **self.by_image}.items()})

    def without(self, name: str) -> Setting:
        """Return the setting without one adapter."""
        return Setting({n: v for n, v in {**self.values, **self.by_image}.items() if n != name})

    def of(self, images: Sequence[int], *, repeats: int, device: torch.device) -> Setting:
        """Return the setting for some of the images, on the device of the batch.

        Each strength by image is repeated `repeats` times, once for each view of a scene. If an adapter's strengths are
        equal for all chosen images, they become one number.
        """
        values = dict(self.values)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, numbers in self.by_image.items():
            chosen = [numbers[i] for i in images for _ in range(repeats)]
            equal = len(set(chosen)) == 1
            values[name] = chosen[0] if equal else torch.tensor(chosen, dtype=dtype, device=device)
        return Setting(values)

    def detached(self) -> Setting:
        """Return the setting with strengths cut from their autograd graph; their `requires_grad` stays unchanged."""
        if not self.has_gradient:
            return self
        return Setting(
            {
                name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
                for name, value in self.values.items()
            }
        )

    def groups(self, names: frozenset[str]) -> list[list[int]]:
        """Group image indices by equal strengths of the named adapters, ordered by each group's first image.

        E.g. strengths 0, 1, 0 give [[0, 2], [1]].
        """
        columns = [numbers for name, numbers in self.by_image.items() if name in names]
        groups: dict[tuple[float, ...], list[int]] = {}
        for image in range(self.images or 0):
            groups.setdefault(tuple(column[image] for column in columns), []).append(image)
        return list(groups.values())


def is_off(strength: Strength | None) -> bool:
    """Return True if the strength is None or the number 0; a tensor counts as on, its values are not read."""
    return strength is None or (not isinstance(strength, Tensor) and strength == 0.0)
