"""`lowpeft completion`: a script with which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from typing import Any

from ..paper.experiments import bundled_experiments
from ..recipes import bundled
from .common import new_command
from .help import subcommands
from .output import emit

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "LEFT", "RIGHT", "NETWORK")
_FOLDERS = ("DIR", "FOLDER", "[NAME=]METHOD")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "completion",
        run,
        "print a script with which bash, zsh or fish completes commands, options and file names",
        "lowpeft completion bash > ~/.local/share/bash-completion/completions/lowpeft",
        "lowpeft completion zsh > ~/.zfunc/_lowpeft",
        "lowpeft completion fish > ~/.config/fish/completions/lowpeft.fish",
    )
    sub.add_argument("shell", choices=SHELLS, help="shell that reads the script")


def run(options: argparse.Namespace) -> None:
    """Print the script, which is made from the parser; completing runs no Python."""
    import shtab

    top: argparse.ArgumentParser = options.top
    for sub in subcommands(top).values():
        for action in sub._actions:
            _complete(action, str(action.metavar or action.dest).upper())
    script: str = shtab.complete(top, shell=options.shell)
    emit(options, {"shell": options.shell, "script": script}, script)


def _complete(action: argparse.Action, what: str) -> None:
    """Say what an argument is completed with; this parser parses nothing."""
    import shtab

    if what in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    elif what in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif what == "RECIPE":
        action.choices = bundled()
    elif what == "EXPERIMENT":
        action.choices = bundled_experiments()
