"""The command line: plan, prepare, verify-lr, train, evaluate, enhance, lam, reproduce, info, convert, demo."""

from .main import EXTRAS, main, parser

__all__ = ["EXTRAS", "main", "parser"]
