"""The families of backbones that lowpeft knows: one file of facts each, and the open table that holds them."""

from __future__ import annotations

from . import convolutional, edt, hat, ipt, swinir, timm_swin
from .base import (
    SLOT,
    Branch,
    Family,
    FoundPlace,
    Place,
    Recognised,
    base_modules,
    base_parameters,
    families,
    find_places,
    get_branch,
    recognise,
    register_family,
)

__all__ = [
    "SLOT",
    "Branch",
    "Family",
    "FoundPlace",
    "Place",
    "Recognised",
    "base_modules",
    "base_parameters",
    "convolutional",
    "edt",
    "families",
    "find_places",
    "get_branch",
    "hat",
    "ipt",
    "recognise",
    "register_family",
    "swinir",
    "timm_swin",
]
