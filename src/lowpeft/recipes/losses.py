"""Names of the losses that a recipe can ask for, and weighted sums of them. `restoration.training` computes them."""

from __future__ import annotations

import re

from ..checks import is_number
from ..errors import did_you_mean

LOSSES = {
    "l1": "mean |d|",
    "charbonnier": "mean sqrt(d² + 0.001²)",
    "mse": "mean d²",
    "fft": "mean difference of real and of imaginary parts of the 2-D FFTs",
    "ssim": "1 - SSIM",
}
"""What each loss is, for d = output - target and values 0..1."""


def loss_terms(text: str) -> dict[str, float]:
    """Return the weight of each loss in a sum, e.g. {"l1": 1.0, "fft": 0.1} for "l1 + 0.1*fft".

    Raises:
        ValueError: The text is not a sum of known losses with weights above 0, each named once.
    """
    terms: dict[str, float] = {}
    for term in re.split(r"(?<![\d.][eE])\+", text):
        weight, star, name = term.rpartition("*")
        name = name.strip()
        if name not in LOSSES:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES)}, or a sum such as 'l1 + 0.1*fft', not {text!r}"
                f"{did_you_mean(name, LOSSES)}"
            )
        if name in terms:
            raise ValueError(f"loss {text!r} names {name} twice")
        terms[name] = _weight(weight if star else "1", text)
    return terms


def _weight(text: str, loss: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not is_number(value, above=0):
        raise ValueError(f"in the loss {loss!r}, the weight {text.strip()!r} is not a number above 0")
    return value
