"""`lowpeft completion`: a script with which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from typing import Any

from .common import new_command
from .output import emit

SHELLS = ("bash", "zsh", "fish")


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

    from .main import parser

    script: str = shtab.complete(parser(), shell=options.shell)
    emit(options, {"shell": options.shell, "script": script}, script)
