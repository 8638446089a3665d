"""Losses between images: those that a recipe names, their weighted sums, and a user's own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import TrainingError
from ...recipes.losses import loss_terms
from .own_code import is_plain, users_code

CHARBONNIER_EPSILON = 1e-3
"""The ε of the Charbonnier loss, for values 0..1, from Lai et al., LapSRN (arXiv 1704.03915)."""

SSIM_WINDOW, SSIM_SIGMA, SSIM_C1, SSIM_C2 = 11, 1.5, 0.01**2, 0.03**2
"""Window, its standard deviation and constants of SSIM for values 0..1, from Wang et al. 2004
(doi 10.1109/TIP.2003.819861)."""

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""Function from output and target, each (N,C,H,W) in float32 with values 0..1, to a scalar."""


def charbonnier_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of sqrt(d² + ε²) for d = output - target, (N,C,H,W), values 0..1."""
    return ((output - target).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def fft_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the 2-D FFTs of (N,C,H,W), real and imaginary parts counted separately.

    It is the frequency loss of MIMO-UNet (Cho et al., arXiv 2108.05054, eq. 8): all frequencies, FFT without a factor.
    The paper adds it with weight 0.1 to l1.
    """
    return torch.view_as_real(torch.fft.fft2(output - target)).abs().mean()


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 - mean SSIM of (N,C,H,W), values 0..1, over the places where the whole window fits.

    The formula is that of Wang et al. 2004, with a Gaussian window of 11 px and sigma 1.5 on each channel.

    Raises:
        TrainingError: The images are smaller than the window.
    """
    if min(output.shape[-2:]) < SSIM_WINDOW:
        raise TrainingError(
            f"the loss ssim needs crops of at least {SSIM_WINDOW} px, not {tuple(output.shape[-2:])} (height, width)"
        )
    places = torch.arange(SSIM_WINDOW, device=output.device, dtype=output.dtype) - SSIM_WINDOW // 2
    line = torch.exp(-(places**2) / (2 * SSIM_SIGMA**2))
    line = line / line.sum()
    count, sides = output.shape[0] * output.shape[1], output.shape[-2:]
    x, y = (image.reshape(count, 1, *sides) for image in (output, target))
    means = F.conv2d(torch.cat([x, y, x * x, y * y, x * y]), line.view(1, 1, -1, 1))
    mean_x, mean_y, xx, yy, xy = F.conv2d(means, line.view(1, 1, 1, -1)).chunk(5)
    squares = mean_x**2 + mean_y**2
    products = mean_x * mean_y
    variances, covariance = xx + yy - squares, xy - products
    ssim = (2 * products + SSIM_C1) * (2 * covariance + SSIM_C2) / ((squares + SSIM_C1) * (variances + SSIM_C2))
    return 1 - ssim.mean()


_FUNCTIONS: dict[str, ImageLoss] = {
    "l1": F.l1_loss,
    "charbonnier": charbonnier_loss,
    "mse": F.mse_loss,
    "fft": fft_loss,
    "ssim": ssim_loss,
}


def image_loss(text: str, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss that a recipe's `loss` names.

    Args:
        text: A name of `lowpeft.recipes.losses.LOSSES`, or a weighted sum, e.g. "l1 + 0.1*fft".
        output: Images (N,C,H,W), values 0..1.
        target: Images of the same shape.

    Raises:
        ValueError: The text is not such a sum.
        TrainingError: The images are too small for the loss.
    """
    return torch.stack([weight * _FUNCTIONS[name](output, target) for name, weight in loss_terms(text).items()]).sum()


class LossOfViews:
    """Mean loss over the views of scenes: the recipe's, or a user's own function.

    Attributes:
        name: The recipe's text, or the qualified name of the function. It identifies the loss of a run.
    """

    def __init__(self, text: str, own: ImageLoss | None = None) -> None:
        self._own, self._text = own, text
        self.name = text if own is None else qualified_name(own)

    def prepare(self, device: torch.device) -> None:
        """Put a loss that is a module (e.g. a perceptual one) on the device, in eval mode; it is never trained."""
        if isinstance(self._own, nn.Module):
            self._own.to(device).eval().requires_grad_(False)

    def __call__(self, outputs: Iterable[Tensor], targets: Iterable[Tensor]) -> Tensor:
        """Return the mean loss of pairs of outputs and targets, each (N,C,H,W).

        Raises:
            TrainingError: The user's own loss fails or is not a real scalar tensor, or the images are too small for
                the loss.
        """
        return torch.stack([self._of(out, target) for out, target in zip(outputs, targets, strict=True)]).mean()

    def _of(self, output: Tensor, target: Tensor) -> Tensor:
        if self._own is None:
            return image_loss(self._text, output, target)
        with users_code(f"the loss {self.name} failed"):
            loss = self._own(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainingError(f"the loss {self.name} must return a tensor of one number, not {found}: take its mean")
        if not loss.is_floating_point():
            kind = str(loss.dtype).removeprefix("torch.")
            raise TrainingError(f"the loss {self.name} must return a real float, not {kind}: e.g. take its abs()")
        return loss.float().reshape(())


def qualified_name(function: object) -> str:
    """Return the module and name of a function, e.g. "package.losses.perceptual"; of an object those of its class.

    A `functools.partial` has its arguments too, plain ones by value: "partial(package.losses.weighted, w=2)".
    """
    if isinstance(function, functools.partial):
        arguments = [*map(_argument, function.args), *(f"{k}={_argument(v)}" for k, v in function.keywords.items())]
        return f"partial({', '.join([qualified_name(function.func), *arguments])})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _argument(value: object) -> str:
    """Return a plain argument's value, by its digest if it is long, and the name of anything else."""
    if not is_plain(value):
        return qualified_name(value)
    text = repr(value)
    return (
        text if len(text) <= 80 else f"sha256:{hashlib.sha256(text.encode(), usedforsecurity=False).hexdigest()[:16]}"
    )
