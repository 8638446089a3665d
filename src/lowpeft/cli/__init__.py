"""Command line.

Commands: plan, info, recipes, methods, prepare, verify-lr, check-pair, train, evaluate, compare, enhance, export, lam,
reproduce, convert, push, pull, list, demo, completion.
"""

from .main import EXIT_CODES, EXTRAS, main, parser

__all__ = ["EXIT_CODES", "EXTRAS", "main", "parser"]
