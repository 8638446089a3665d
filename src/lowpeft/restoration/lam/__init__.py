"""Local attribution maps (LAM): which pixels of which view a patch of the result comes from."""

from .attribution import PAIR, PUBLISHED, Attribution, LamSettings, Patch, as_table, attribute, chunks

__all__ = ["PAIR", "PUBLISHED", "Attribution", "LamSettings", "Patch", "as_table", "attribute", "chunks"]
