"""The parallax adapter: each view learns from the positions of the other view, and of its own rows, that look alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import is_number, is_whole
from ..errors import PlanError
from ..ports.autocast import without_autocast
from ..ports.capture import tracing
from ..ports.layouts import Features, Matches
from . import band
from .base import Adapter, FeatureAdapter, at_least
from .learning import Calibrator
from .stages import StageConfig

Columns = tuple[int, int]
"""First and last column of a band, relative to a position."""

_DAMPING = 1e-3
"""Least variance of a direction in the whitening, as a share of the largest."""
_MATCHED = 0.7
"""Share of the positions whose best logit exceeds that of "no match" at the start."""
_DESCRIPTOR_RATE, _NO_MATCH_RATE = 10, 100
"""Factors of the trained numbers, so that one learning rate suits all; W_other and W_own are small, D and n are not."""
_LEAST_SPREAD = 1e-3
"""Least standard deviation, before the gain, that is not taken for rounding."""
_MOST_COLUMNS = 2**31
_MOST_SPREAD = 1000
"""Largest spread of logits; attention is on one position long before."""
_SAMPLED_POSITIONS = 2**14
"""Positions of each site, at least, that set the spread."""


@dataclass(frozen=True, kw_only=True)
class ParallaxConfig(StageConfig):
    """Settings of parallax adapters after the stages of a network.

    Attributes:
        every: See `StageConfig`; the first stage, which 1 includes, is closest to the image and matches best.
        disparities: Smallest and largest disparity x_left - x_right that is searched, in feature columns (LR pixels for
            most networks). In a rectified pair all are positive; the smallest must be at most 0. Toed-in cameras need
            negative ones.
        own_columns: Columns to the left and to the right of a position that are searched in its own row.
        channels: Channels in which positions are compared, K; at most those of the features.
        spread: Standard deviation of the logits within a row that calibration sets. Larger values concentrate attention
            on fewer positions.
    """

    kind: ClassVar[str] = "parallax"

    disparities: tuple[int, int] = (-1, 24)
    own_columns: int = 24
    channels: int = 16
    spread: float = 8.0

    def check(self) -> None:
        """Raise if a value is out of range."""
        super().check()
        at_least(self, own_columns=1, channels=1)
        ends = self.disparities if isinstance(self.disparities, tuple) and len(self.disparities) == 2 else (0, 0)
        least, most = ends
        whole = is_whole(least, least=-_MOST_COLUMNS) and is_whole(most, least=2)
        if not whole or least > 0 or most > _MOST_COLUMNS:
            raise PlanError(
                "parallax adapter: disparities must be two whole numbers, the smallest (at most 0) and the largest (at "
                f"least 2), not {self.disparities!r}"
            )
        if not is_number(self.spread, above=0) or self.spread > _MOST_SPREAD:
            raise PlanError(f"parallax adapter: spread must be above 0 and at most {_MOST_SPREAD}, not {self.spread!r}")


class _Moments:
    """Running mean and covariance of vectors."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        flat = vectors.detach().flatten(0, -2).cpu().double()
        self.count += len(flat)
        self.sum += flat.sum(0)
        self.products += flat.T @ flat

    def whitening(self, channels: int) -> Tensor:
        """Return the matrix (K,C) to the K principal components, each divided by its standard deviation."""
        mean = self.sum / self.count
        values, vectors = torch.linalg.eigh(self.products / self.count - mean[:, None] * mean)
        damped = values.clamp(min=0) + _DAMPING * values.max()
        whitening: Tensor = (vectors * damped.rsqrt())[:, -channels:].T  # eigenvalues rise
        return whitening


class ParallaxCalibrator(Calibrator):
    """Matching start: logits are Mahalanobis distances of features, as sharp as `spread` says.

    D starts as g times the map to the K principal components of the normalised features of real pairs, each divided by
    its standard deviation, with g such that the logits of a band have the standard deviation `spread`. Attention is
    then on matches before the first step of training. The logits of "no match" start at the value that the best logits
    of 70 % of the positions exceed.
    """

    def __init__(self, adapters: Mapping[str, Adapter], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        for site, adapter in adapters.items():
            trained: Any = adapter
            if trained.other.weight.any() or trained.own.weight.any():
                raise PlanError(f"{site} is already trained; calibrate before training")
        self._moments: dict[str, _Moments] = {}
        self._samples: dict[str, list[tuple[Tensor, ...]]] = {}

    def see_features(self, site: str, features: Features) -> None:
        """Add the features of one or more pairs to a site's statistics."""
        views = features.rows_by_view
        moments = self._moments.setdefault(site, _Moments(views[0].shape[-1]))
        adapter: Any = self.adapters[site]
        for view in views:
            moments.add(adapter.normalise(view))
        samples = self._samples.setdefault(site, [])
        missing = _SAMPLED_POSITIONS - sum(seen[0].shape[:-1].numel() for seen in samples)
        if missing > 0:
            images, height, width, _ = views[0].shape
            rows = min(height, math.ceil(missing / (images * width)))
            top = (height - rows) // 2
            samples.append(tuple(view[:, top : top + rows].clone() for view in views))

    def fill(self, site: str, adapter: Any) -> None:
        """Set D and the logits of "no match".

        Raises:
            PlanError: The batches show no features of the site, or features without variation.
        """
        moments = self._moments.get(site)
        if moments is not None and not moments.products.isfinite().all():
            raise PlanError(f"{site}: calibration saw features that are NaN or infinite; check the batches")
        whitening = moments.whitening(len(adapter.descriptor.weight)) if moments else torch.tensor(torch.nan)
        if not whitening.isfinite().all():
            raise PlanError(f"{site}: calibration saw no features that vary; give batches of real stereo pairs")
        adapter.descriptor.weight.copy_(whitening / _DESCRIPTOR_RATE)
        samples = [[adapter.describe(view) for view in pair] for pair in self._samples[site]]
        own = [(z, z) for pair in samples for z in pair]
        # q = p is left out: it is no look-alike, and it would be one if both views were the same image.
        bands = [
            [adapter.logits(*z, *_clipped(columns, z[0].shape[2]), itself=False) for z in pairs]
            for pairs, columns in ((samples, adapter.bands[0]), (own, adapter.own_band))
        ]
        spreads, best = zip(*map(_spreads_and_best, bands), strict=True)
        spread = spreads[0].mean()
        if not spread.isfinite() or spread < _LEAST_SPREAD:
            raise PlanError(f"{site}: calibration saw no features that vary; give batches of real stereo pairs")
        gain = self.configs[site].spread / spread
        adapter.descriptor.weight.mul_(gain.sqrt())
        no_match = [(logits * gain).quantile(1 - _MATCHED) for logits in best]
        adapter.no_match.copy_(torch.stack(no_match) / _NO_MATCH_RATE)


def _spreads_and_best(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return standard deviation and largest logit of the positions with the most columns inside the image, float64."""
    spreads, best = [], []
    for batch in logits:
        flat = batch.detach().flatten(0, 2)
        counts = flat.isfinite().sum(-1)
        flat = flat[counts == counts.max()]
        whole = flat[flat.isfinite()].view(len(flat), -1).cpu().double()
        if whole.shape[1] > 1:
            spreads.append(whole.std(-1))
            best.append(whole.amax(-1))
    if not spreads:
        return torch.full((1,), torch.nan), torch.full((1,), torch.nan)
    return torch.cat(spreads), torch.cat(best)


class ParallaxAdapter(FeatureAdapter):
    """Adds what look-alike positions show differently: those of the other view, and those of the view's own row.

    For the features x_v(p) of view v at position p, of C channels, with z = D·LN(x), where LN normalises over the
    channels without trained factors, and with q, a position in the same row within a band of columns around p:

        s(p, q) = -½ · mean over the 3x3 offsets o of |z_v(p + o) - z_w(q + o)|²       w: the other view, or v itself
        a(p, q) = exp s(p, q) / (exp n + Σ exp s(p, q'))
        x_v(p) + W_other · Σ a(p, q) (x_w(q) - x_v(p)) + W_own · Σ a(p, q) (x_v(q) - x_v(p))

    `delta` is the last two terms. D (K,C), W_other and W_own (each C,C) and the two logits n of "no match" are trained.
    Both views share them. W_other and W_own are zero when new. D takes the first K channels until it is calibrated. The
    parameters are D/10 and n/100, so that one learning rate suits all of them.

    Trained parameters per site: 2·C² + K·C + 2, with K = `descriptor` channels of D.

    * Differences, not values: two noisy measurements of a point can be averaged, and equal views add nothing.
    * "No match": where nothing looks alike (occlusion, another scene) the weights vanish, and with them the delta.
    * A band: memory and time are linear in the width. That of the right view is that of the left, mirrored.

    Source: ours. Attention along the rows of a stereo pair is from PASSRnet (arXiv 1903.05784); the mean of look-alikes
    of the own row is a non-local mean (Buades et al., CVPR 2005).
    """

    kind = "parallax"
    needs_rows = True
    row_local = False
    calibrator_class = ParallaxCalibrator
    zero_gradients = frozenset({"descriptor.weight", "no_match"})

    def __init__(self, channels: int, config: ParallaxConfig) -> None:
        super().__init__()
        least, most = config.disparities
        self.bands: tuple[Columns, Columns] = (-most, -least), (least, most)
        self.own_band: Columns = (-config.own_columns, config.own_columns)
        compared = min(config.channels, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.descriptor = nn.Linear(channels, compared, bias=False)
        self.other = nn.Linear(channels, channels, bias=False)
        self.own = nn.Linear(channels, channels, bias=False)
        self.no_match = nn.Parameter(torch.full((2,), -2 * config.spread / _NO_MATCH_RATE))
        with torch.no_grad():
            # Half the squared distance of two vectors of K standard normal numbers has the standard deviation √(2·K).
            gain = math.sqrt(config.spread / math.sqrt(2 * compared))
            self.descriptor.weight.copy_(gain / _DESCRIPTOR_RATE * torch.eye(compared, channels))
            self.other.weight.zero_()
            self.own.weight.zero_()

    def delta(self, features: Features) -> Tensor:
        """Return what each view gets from the other view and from its own rows; pairs are neighbours in the batch."""
        views = features.rows_by_view
        z = [self.describe(view) for view in views]
        width, deltas = views[0].shape[2], []
        own = _clipped(self.own_band, width)
        for x, x_other, z_own, z_other, searched in zip(views, views[::-1], z, z[::-1], self.bands, strict=True):
            columns = _clipped(searched, width)
            weights = self._weights(self.logits(z_own, z_other, *columns), 0)
            delta = self.other(_mean_difference(weights, x, x_other, columns))
            weights = self._weights(self.logits(z_own, z_own, *own, itself=False), 1)
            deltas.append(delta + self.own(_mean_difference(weights, x, x, own)))
        return features.from_rows_by_view(deltas)

    def matches(self, features: Features) -> Matches:
        """Return the disparity of each position's largest attention weight, and that weight."""
        z = [self.describe(view) for view in features.rows_by_view]
        disparities, confidences = [], []
        for sign, z_own, z_other, searched in zip((-1, 1), z, z[::-1], self.bands, strict=True):
            columns = _clipped(searched, z_own.shape[2])
            weights, index = self._weights(self.logits(z_own, z_other, *columns), 0).max(dim=-1)
            disparities.append(sign * (index + columns[0]).to(weights.dtype))
            confidences.append(weights)
        return Matches(torch.stack(disparities, dim=1).flatten(0, 1), torch.stack(confidences, dim=1).flatten(0, 1))

    def describe(self, rows: Tensor) -> Tensor:
        """Return z, (B,H,W,K), of features (B,H,W,C), in float32 at least, also under autocast."""
        with without_autocast(rows.device.type):
            x = self.normalise(rows)
            return F.linear(x, _DESCRIPTOR_RATE * self.descriptor.weight.to(x.dtype))

    def normalise(self, rows: Tensor) -> Tensor:
        """Return features (B,H,W,C) with mean 0 and variance 1 over the channels, in float32 at least."""
        normalised: Tensor = self.norm(_precise(rows))
        return normalised

    def logits(self, z: Tensor, z_other: Tensor, low: int, high: int, *, itself: bool = True) -> Tensor:
        """Return s(p, q) for the columns q - p from `low` to `high`, (B,H,W,m).

        It is -inf where q is outside the image, and without `itself` where q = p.
        """
        with without_autocast(z.device.type):
            squares, squares_other = (-values.square().sum(-1) / 2 for values in (z, z_other))
            logits = band.products(z, z_other, squares_other, low, high) + squares[..., None]
        inside = band.inside(z.shape[2], low, high, z.device)
        # The mean over 3x3 positions with equal q - p: first three rows, then those of three columns that are inside.
        of_rows = F.avg_pool2d(logits.masked_fill(~inside, 0).movedim(3, 1), (3, 1), 1, (1, 0), count_include_pad=False)
        count = F.avg_pool2d(inside.to(z.dtype).T[None, :, None], (1, 3), 1, (0, 1)).clamp(min=1 / 3)
        mean = (F.avg_pool2d(of_rows, (1, 3), 1, (0, 1)) / count).movedim(1, -1)
        if not itself:
            inside = inside & (torch.arange(low, high + 1, device=z.device) != 0)
        return mean.masked_fill(~inside, -math.inf)

    def _weights(self, logits: Tensor, which: int) -> Tensor:
        """Return a(p, q), (B,H,W,m)."""
        no_match = (_NO_MATCH_RATE * self.no_match[which]).to(logits.dtype).expand(*logits.shape[:-1], 1)
        return torch.cat((logits, no_match), dim=-1).softmax(-1)[..., :-1]


def _clipped(columns: Columns, width: int) -> Columns:
    """Return the part of a band that can be inside an image; at least two columns."""
    if torch.compiler.is_compiling() or tracing():  # an export for images of all widths must not depend on this one
        return columns
    low = max(columns[0], 1 - width)
    return low, max(min(columns[1], width - 1), low + 1)


def _mean_difference(weights: Tensor, x: Tensor, x_other: Tensor, columns: Columns) -> Tensor:
    """Return Σ a(p, q) (x_other(q) - x(p)), (B,H,W,C), in the dtype of x; small differences survive autocast."""
    with without_autocast(x.device.type):
        weights = weights.to(_precise(x).dtype)
        difference = band.weighted_sum(weights, _precise(x_other), *columns) - weights.sum(-1, keepdim=True) * x
    return difference.to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """Return a tensor in float32 or, if it is so already, float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
