"""Perceptual metrics (LPIPS, DISTS, NIQE, …) of the package pyiqa, as columns of a protocol.

pyiqa is in none of lowpeft's extras: it needs many packages, and fetches the weights of a metric when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..errors import LowpeftError, did_you_mean
from .images import to_float
from .metrics import Column, Protocol


def with_perceptual(protocol: Protocol, names: Sequence[str], device: torch.device | str = "cpu") -> Protocol:
    """Return a protocol with a column more for each metric of pyiqa, the mean over whole views.

    Args:
        protocol: The protocol.
        names: Names of the metrics as pyiqa has them, e.g. "lpips", "dists", "niqe".
        device: Device to run them on.

    Raises:
        LowpeftError: pyiqa is not installed, has no such metric, or cannot fetch its weights.
    """
    columns = tuple(_column(name, device) for name in names)
    if not columns:
        return protocol
    summary = f"{protocol.summary}; {', '.join(names)} by pyiqa, whole RGB views"
    return replace(protocol, columns=(*protocol.columns, *columns), summary=summary)


def _column(name: str, device: torch.device | str) -> Column:
    metric = _metric(name, device)

    def measure(results: Sequence[Tensor], clean: Sequence[Tensor], scale: int) -> float:
        with torch.inference_mode():
            return fmean(
                float(metric(*(_batch(image, device) for image in pair)))
                for pair in (zip(results, clean, strict=True) if metric.metric_mode == "FR" else zip(results))
            )

    return Column(name=name.upper(), digits=4, measure=measure, lower_is_better=bool(metric.lower_better))


def _metric(name: str, device: torch.device | str) -> Any:
    """Return a metric of pyiqa."""
    try:
        import pyiqa  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise LowpeftError(
            f"{name} is measured by pyiqa, which is not installed: pip install pyiqa (PSNR and SSIM need nothing more)"
        ) from error
    known = pyiqa.list_models()
    if name not in known:
        raise LowpeftError(f"pyiqa has no metric {name!r}{did_you_mean(name, known)}; it has {len(known)}: "
                           f"{', '.join(list(known)[:12])}, … (pyiqa.list_models())")  # fmt: skip
    try:
        return pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:  # the package's loaders raise errors of many libraries
        raise LowpeftError(
            f"pyiqa cannot make its metric {name} ({type(error).__name__}: {error}): it fetches the weights when a "
            "metric is first used, so run it once where there is a network"
        ) from error


def _batch(image: Tensor, device: torch.device | str) -> Tensor:
    """Return an image as a batch of one, RGB, float 0..1."""
    return to_float(image).expand(3, -1, -1)[None].to(device)
