"""Settings: which adapters act, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Strength = float | Tensor
"""What an adapter's change is multiplied by in one forward: a number, as a float or 0-dim tensor, or a tensor (N,)."""


class Setting:
    """Strengths of adapters in 0..1 by name; adapters that are not named are off.

    Attributes:
        by_image: The adapters that have one number for each image (or scene) of a batch, and these numbers.
        values: All strengths: numbers, or tensors (N,).
        tensors: The same as tensors, so that a compiled forward takes them as inputs and is not compiled anew for each.
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
        """As people say it: `rain at 0.5, blur off`."""
        given = {**self.values, **self.by_image}
        texts = [f"{name} off" if is_off(self.values[name]) else f"{name} at {value}" for name, value in given.items()]
        return ", ".join(texts) or "no adapter"

    @property
    def images(self) -> int | None:
        """How many images there must be in a batch; None where all strengths are single numbers."""
        return next((len(numbers) for numbers in self.by_image.values()), None)

    @property
    def full(self) -> bool:
        """Whether every adapter that is named acts at full strength."""
        return all(not isinstance(v, Tensor) and v == 1.0 for v in self.values.values())

    @property
    def has_gradient(self) -> bool:
        """Whether a strength is computed by something that is trained."""
        return any(isinstance(v, Tensor) and v.requires_grad for v in self.values.values())

    def renamed(self, names: Mapping[str, str]) -> Setting:
        """The setting with other names for some adapters."""
        if not names:
            return self
        return Setting({names.get(n, n): v for n, v in {**self.values, **self.by_image}.items()})

    def without(self, name: str) -> Setting:
        """The setting with one adapter less."""
        return Setting({n: v for n, v in {**self.values, **self.by_image}.items() if n != name})

    def of(self, images: Sequence[int], *, repeats: int, device: torch.device) -> Setting:
        """The setting for some of the images, each number as often as an image has views, on the device of the batch.

        Strengths that are equal for all of them become one number.
        """
        values = dict(self.values)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, numbers in self.by_image.items():
            chosen = [numbers[i] for i in images for _ in range(repeats)]
            equal = len(set(chosen)) == 1
            values[name] = chosen[0] if equal else torch.tensor(chosen, dtype=dtype, device=device)
        return Setting(values)

    def detached(self) -> Setting:
        """The setting without the graph of strengths that are computed, which still say that they require gradients."""
        if not self.has_gradient:
            return self
        return Setting(
            {
                name: value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
                for name, value in self.values.items()
            }
        )

    def groups(self, names: frozenset[str]) -> list[list[int]]:
        """The images in groups of equal strengths of these adapters, in the order of their first images."""
        columns = [numbers for name, numbers in self.by_image.items() if name in names]
        found: dict[tuple[float, ...], list[int]] = {}
        for image in range(self.images or 0):
            found.setdefault(tuple(column[image] for column in columns), []).append(image)
        return list(found.values())


def is_off(strength: Strength | None) -> bool:
    """Whether an adapter of that strength adds nothing at all; a tensor is not looked at."""
    return strength is None or (not isinstance(strength, Tensor) and strength == 0.0)
