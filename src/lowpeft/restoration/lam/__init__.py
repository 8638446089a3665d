"""Local attribution maps (LAM): the pixels of every view that contribute to a patch of the result."""

from .attribution import PAIR, PUBLISHED, Attribution, LamSettings, Patch, as_table, attribute, chunks

__all__ = ["PAIR", "PUBLISHED", "Attribution", "LamSettings", "Patch", "as_table", "attribute", "chunks"]
