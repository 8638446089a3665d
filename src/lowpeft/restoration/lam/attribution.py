"""Local attribution maps (LAM): the contribution of every input pixel, in every view, to a patch of the result.

Source: Gu & Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps", CVPR 2021 (arXiv 2011.11036).
Let F be a network, I the image, D a detector on a patch of the output, and γ(α) = ω(σ − ασ) ⊗ I a path from the
blurred to the sharp image (ω is a Gaussian kernel). The attribution of pixel i is

    LAM_i = ∫₀¹ ∂D(F(γ(α)))/∂γ(α)_i · ∂γ(α)_i/∂α dα  ≈  Σ_k ∂D(F(γ_k))/∂γ_k,i · (γ_k − γ_k−1)_i,    k = 1 … steps

with γ_k = γ(k / steps). This is a right Riemann sum in which the difference of neighbouring blurs replaces the
derivative of γ, as in the authors' code. The sum over all pixels approaches D(F(I)) − D(F(γ(0))).

Several views are blurred together, and the gradient is taken with respect to all of them. The map of the other view
shows its contribution to the patch. The figures of ASteISR (arXiv 2407.03598) are such maps; their code is unpublished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import checks, tables
from ...core.attachment.record import module_of
from ...core.observation.describe import image_facts
from ...errors import DataError, did_you_mean
from ...families.quirks import DIFFERENTIABLE_IN_TRAINING_ONLY
from ...ports.base import original_class
from ...ports.facts import ImageFacts
from ..inference.network import Views, check_images, first_parameter, in_eval_mode, run_padded, size

PAIR = ("left", "right")

EPSILON = 1e-8
"""Constant added under the detector's square root, whose slope at 0 would be infinite. Its root is 1/40 of an 8-bit
grey level, so it does not change the weight of edges."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A square of the result, in HR pixels.

    Attributes:
        y_px: First row.
        x_px: First column.
        side_px: Height and width.
        view: Name of the view that contains it (see `view_names`); a single image is called left.
    """

    y_px: int
    x_px: int
    side_px: int
    view: str = PAIR[0]

    def __str__(self) -> str:
        return f"{self.side_px}x{self.side_px} HR px at row {self.y_px}, column {self.x_px}"


@dataclass(frozen=True, kw_only=True)
class LamSettings:
    """Settings of the path integral from the blurred to the sharp image; the defaults are the authors'.

    Attributes:
        steps: Number of steps of the Riemann sum.
        sigma_px: Standard deviation of the first Gaussian in LR pixels. It falls to 0 in equal steps.
        kernel_px: Side of the square kernel in pixels; odd.
        chunk: Number of steps per forward pass; memory grows in proportion. It changes the result only by the rounding
            of batched kernels.
    """

    steps: int = 50
    sigma_px: float = 1.2
    kernel_px: int = 9
    chunk: int = 1

    def __post_init__(self) -> None:
        """Raise for values out of range.

        Raises:
            DataError: A value is out of range; all such values are listed.
        """
        least = {"steps": 1, "kernel_px": 3, "chunk": 1}
        problems = [p for name, low in least.items() for p in checks.whole(name, getattr(self, name), least=low)]
        if type(self.kernel_px) is int and self.kernel_px % 2 == 0:
            problems.append(f"kernel_px must be odd, not {self.kernel_px}")
        problems += checks.number("sigma_px", self.sigma_px, above=0)
        if problems:
            raise DataError("the settings of the attribution do not work:", problems=problems)


PUBLISHED = LamSettings()


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Contribution of every input pixel to the detector; prints as a table of figures.

    Attributes:
        maps: Signed attribution of the pixels of each view, in order, summed over the channels: (H,W), float64, on the
            CPU, in the detector's unit (values 0..1, summed over patch and channels).
        patch: The patch that is explained.
        detector_blurred: D of the result for the most blurred views.
        detector_sharp: D of the result for the unblurred views.
    """

    maps: Views = field(repr=False)
    patch: Patch
    detector_blurred: float
    detector_sharp: float

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views."""
        return view_names(len(self.maps))

    @property
    def where(self) -> str:
        """Description of the patch; with several views it names the patch's view."""
        return str(self.patch) if len(self.maps) == 1 else f"{self.patch} of {view_title(self.patch.view)}"

    @property
    def normalised(self) -> Views:
        """|map| of each view divided by the largest |value| in all maps: (H,W), 0..1."""
        peak = max(m.abs().max() for m in self.maps)
        return tuple(m.abs() / peak for m in self.maps)

    @property
    def share_other_view(self) -> float | None:
        """Share of the views that do not contain the patch: Σ|their maps| / Σ|all maps|, 0..1; None for one image."""
        if len(self.maps) < 2:
            return None
        sums = {view: m.abs().sum().item() for view, m in zip(self.views, self.maps, strict=True)}
        return sum(value for view, value in sums.items() if view != self.patch.view) / sum(sums.values())

    @property
    def diffusion_indices(self) -> tuple[float | None, ...]:
        """Diffusion index of each view's map; None for a map that is 0 everywhere."""
        return tuple(diffusion_index(m) for m in self.maps)

    @property
    def diffusion_index(self) -> float | None:
        """Diffusion index of all maps together."""
        return diffusion_index(torch.cat([m.flatten() for m in self.maps]))

    @property
    def completeness_error(self) -> float | None:
        """Relative error of the finite sum: |Σ maps − (D sharp − D blurred)| / |D sharp − D blurred|.

        None if D does not change.
        """
        change = self.detector_sharp - self.detector_blurred
        return abs(self._sum - change) / abs(change) if change else None

    @property
    def _sum(self) -> float:
        return sum(m.sum().item() for m in self.maps)

    def figures(self) -> dict[str, float | None]:
        """Return every figure by its name, as `lowpeft lam` writes them."""
        per_view = {f"diffusion_index_{v}": i for v, i in zip(self.views, self.diffusion_indices, strict=True)}
        several = {"share_other_view": self.share_other_view, **per_view} if len(self.maps) > 1 else {}
        return {
            **several,
            "diffusion_index": self.diffusion_index,
            "detector_blurred": self.detector_blurred,
            "detector_sharp": self.detector_sharp,
            "sum_of_maps": self._sum,
            "completeness_error": self.completeness_error,
        }

    def __str__(self) -> str:
        return as_table({"value": self})


def view_names(count: int) -> tuple[str, ...]:
    """Return the names of the views of a scene: left, right; with more than two views "1", "2", "3", …."""
    return PAIR[:count] if count <= len(PAIR) else tuple(str(i + 1) for i in range(count))


def view_title(name: str) -> str:
    """Return the name of a view for a sentence, e.g. "the left view", "view 3"."""
    return f"the {name} view" if name in PAIR else f"view {name}"


def as_table(columns: Mapping[str, Attribution]) -> str:
    """Return a text table of attributions of one patch, side by side.

    Args:
        columns: One or more attributions, by column heading.
    """
    figures = {name: each.figures() for name, each in columns.items()}
    cells = [["", *columns]]
    for row in next(iter(figures.values())):
        values = [tables.NOTHING if f[row] is None else f"{f[row]:.5g}" for f in figures.values()]
        cells.append([row.replace("_", " "), *values])
    return f"{next(iter(columns.values())).where}\n{tables.text(cells)}"


def attribute(
    model: object,
    *views: Tensor,
    patch: Patch,
    settings: LamSettings = PUBLISHED,
    advance: Callable[[str], None] = lambda note: None,
) -> Attribution:
    """Attribute a patch of the result to the pixels of the image, or of all the views.

    The detector D = Σ √(dx² + dy² + ε) over the patch and the channels measures edges and texture. dx and dy are the
    differences of each pixel to its right and lower neighbour, and ε = 1e-8. The network runs in eval mode, as in
    `lowpeft.enhance`, but without clamping. Modes, `requires_grad` and every `.grad` of the network are unchanged
    afterwards.

    Args:
        model: A network (a `Backbone` or a module), adapted or not, or a multi-view model; on any device.
        views: One image, or the views of a scene in order, left first: (C,H,W), all of one shape, 0..1, on any device.
            A network that is not a multi-view model runs on each view separately.
        patch: The patch to explain.
        settings: Settings of the path integral.
        advance: Called after each chunk of steps with an empty note, `chunks(settings)` times in all.

    Raises:
        DataError: The views are not images of one size, a network of fixed input size does not take them, the patch
            is not inside the result, the network's output has no finite gradient or another size, or no pixel of the
            views influences the patch.
        PlanError: The network does not take and give images.
    """
    facts, module = image_facts(model), module_of(model)
    _check_views(views, facts, settings)
    names = view_names(len(views))
    _check_patch(patch, names, views[0].shape[-2] * facts.scale, views[0].shape[-1] * facts.scale)
    like = first_parameter(module, default=views[0])
    detected: list[Tensor] = []
    with _differentiable(module):
        sharp_views = tuple(v.detach().to("cpu", torch.float64, copy=True) for v in views)
        maps = [v.new_zeros(v.shape[-2:]) for v in sharp_views]
        for images, changes in _walk(sharp_views, settings):
            inputs = tuple(i.to(like.device, like.dtype, copy=True).requires_grad_() for i in images)
            result = run_padded(module, inputs, facts)[names.index(patch.view)]
            if not result.requires_grad:
                raise DataError(
                    "the network's output has no gradient, so it cannot be attributed: give the trainable module "
                    "itself, not an inference wrapper"
                )
            values = detect(result, patch)
            values.sum().backward()  # type: ignore[no-untyped-call]  # reentrant checkpoints refuse autograd.grad
            for total, image, change in zip(maps, inputs, changes, strict=True):
                if image.grad is not None:
                    total += (image.grad.to(change) * change).sum((0, 1))
            detected.append(values.detach())
            advance("")
    values = torch.cat(detected)
    if not all(t.isfinite().all() for t in (values, *maps)):
        raise DataError("the network's output or its gradient is NaN or infinite, so it cannot be attributed")
    if not any(m.any() for m in maps):
        raise DataError(f"no pixel of the views influences the patch, {patch}: choose one where the image is not flat")
    blurred, sharp = values[0].item(), values[-1].item()
    return Attribution(maps=tuple(maps), patch=patch, detector_blurred=blurred, detector_sharp=sharp)


def chunks(settings: LamSettings) -> int:
    """Return the number of forward passes; the most blurred images are one extra step."""
    return -(-(settings.steps + 1) // settings.chunk)


def diffusion_index(attributions: Tensor) -> float | None:
    """Return (1 − Gini) · 100 of the absolute values: larger if more pixels contribute, 100 if all contribute equally.

    Gini = Σᵢ (2i − n − 1) xᵢ / (n Σᵢ xᵢ) with the n values in ascending order, i = 1 … n (arXiv 2011.11036).

    Returns:
        0..100, or None if all values are 0.
    """
    values = attributions.abs().double().flatten().sort().values
    n, total = len(values), values.sum()
    ranks = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=values.device) - n - 1
    return 100 * (1 - ((ranks * values).sum() / (n * total)).item()) if total else None


def blur(image: Tensor, sigma_px: float, kernel_px: int = PUBLISHED.kernel_px) -> Tensor:
    """Convolve (C,H,W) with a normalised Gaussian kernel, reflecting at the border; sigma 0 leaves it unchanged."""
    half = kernel_px // 2
    distance = torch.arange(-half, half + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-0.5 * (distance / max(sigma_px, 1e-5)) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(image[:, None], (half, half, half, half), mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[:, 0]


def detect(image: Tensor, patch: Patch) -> Tensor:
    """Return the detector D of (N,C,H,W) as (N,), float64, on the CPU. The image's last row and column are repeated."""
    y, x, side = patch.y_px, patch.x_px, patch.side_px
    part = image[..., y : y + side + 1, x : x + side + 1].to("cpu", torch.float64)
    part = F.pad(part, (0, side + 1 - part.shape[-1], 0, side + 1 - part.shape[-2]), mode="replicate")
    inner = part[..., :-1, :-1]
    squares = (part[..., :-1, 1:] - inner) ** 2 + (part[..., 1:, :-1] - inner) ** 2
    return (squares + EPSILON).sqrt().sum((1, 2, 3))


def _walk(views: Views, settings: LamSettings) -> Iterator[tuple[Views, Views]]:
    """Yield chunks of steps from blurred to sharp: their images, and the differences to the previous step, by view.

    Both are (steps,C,H,W) per view. Step 0 has no previous step; its difference is 0.
    """
    sigmas = [settings.sigma_px * (1 - k / settings.steps) for k in range(settings.steps + 1)]
    before = tuple(blur(v, settings.sigma_px, settings.kernel_px) for v in views)
    for first in range(0, len(sigmas), settings.chunk):
        part = sigmas[first : first + settings.chunk]
        images = tuple(torch.stack([blur(v, s, settings.kernel_px) for s in part]) for v in views)
        yield images, tuple(torch.cat((b[None], i)).diff(dim=0) for b, i in zip(before, images, strict=True))
        before = tuple(i[-1] for i in images)


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with gradients for its inputs only; restore modes and flags afterwards."""
    flags = {p: p.requires_grad for p in model.parameters()}
    with in_eval_mode(model):
        try:
            for module in model.modules():
                if original_class(module).__name__ in DIFFERENTIABLE_IN_TRAINING_ONLY:
                    module.training = True
            for parameter in flags:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


def _check_views(views: Views, facts: ImageFacts, settings: LamSettings) -> None:
    check_images(views, facts.channels, batches=False)
    if not all(view.isfinite().all() for view in views):
        raise DataError("an image contains NaN or infinity")
    if min(views[0].shape[-2:]) <= settings.kernel_px // 2:
        raise DataError(
            f"a view of {size(views[0])} is too small for a blur with a kernel of {settings.kernel_px} px: its sides "
            f"must be at least {settings.kernel_px // 2 + 1} px"
        )
    fixed = facts.fixed_px
    if fixed is not None and views[0].shape[-2:] != (fixed, fixed):
        raise DataError(f"the network takes images of {fixed}x{fixed} px only, not {size(views[0])}: crop the views")


def _check_patch(patch: Patch, names: tuple[str, ...], height: int, width: int) -> None:
    """Raise for a patch whose view is unknown, or that is not inside a result of that size."""
    if patch.view not in names:
        raise DataError(f"there is no view {patch.view!r}{did_you_mean(str(patch.view), names)}: {', '.join(names)}")
    least = {"y_px": 0, "x_px": 0, "side_px": 1}
    problems = [p for name, low in least.items() for p in checks.whole(name, getattr(patch, name), least=low)]
    if problems:
        raise DataError("the patch must be given in whole HR pixels:", problems=problems)
    if patch.y_px + patch.side_px > height or patch.x_px + patch.side_px > width:
        raise DataError(f"the patch, {patch}, is not inside the result of {width}x{height} px")
