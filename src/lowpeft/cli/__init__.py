"""Command line: plan, prepare, verify-lr, check-pair, train, evaluate, enhance, lam, reproduce, info, convert, demo."""

from .main import EXTRAS, main, parser

__all__ = ["EXTRAS", "main", "parser"]
