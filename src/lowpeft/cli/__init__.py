"""Command line.

Commands: plan, info, recipes, methods, prepare, verify-lr, check-pair, train, evaluate, compare, enhance, export, lam,
reproduce, convert, demo.
"""

from .main import EXTRAS, main, parser

__all__ = ["EXTRAS", "main", "parser"]
