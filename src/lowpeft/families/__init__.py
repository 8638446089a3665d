"""The families of backbones that lowpeft knows: one file of facts each, and the open table that holds them."""

from __future__ import annotations

from . import convolutional, edt, hat, ipt, nafnet, swinir, timm_swin
from .base import (
    SLOT,
    TOKENS,
    BlockForward,
    Family,
    FoundPlace,
    Place,
    Ports,
    Recognised,
    added,
    base_modules,
    base_parameters,
    block_places,
    families,
    find_places,
    get_block,
    recognise,
    register_block_forward,
    register_family,
)

__all__ = [
    "SLOT",
    "TOKENS",
    "BlockForward",
    "Family",
    "FoundPlace",
    "Place",
    "Ports",
    "Recognised",
    "added",
    "base_modules",
    "base_parameters",
    "block_places",
    "convolutional",
    "edt",
    "families",
    "find_places",
    "get_block",
    "hat",
    "ipt",
    "nafnet",
    "recognise",
    "register_block_forward",
    "register_family",
    "swinir",
    "timm_swin",
]
