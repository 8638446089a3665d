"""Options of the commands that select a network of the user's own, and the network that they select."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backbones.checkpoints import Choice
from ..backbones.own import Factory
from ..backbones.timm_reader import PREFIX
from ..core.files.loading import fetched
from ..errors import AdapterError, LowpeftError
from ..importing import make_folder_importable
from ..ports.facts import Backbone
from ..pretrained import find_base
from .help import option_group


def add_network(sub: argparse.ArgumentParser) -> None:
    """Add the options for a network of the user's own."""
    group = option_group(sub, "a network of your own")
    group.add_argument(
        "--network",
        metavar="MODULE:FUNCTION",
        help="function that builds the network, as in mypackage.models:make_network; imported from the current folder "
        "or installed packages. Its weights are those of --weights FILE, or its own",
    )
    group.add_argument(
        "--network-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of that function: width=32, depths=[6,6]; may be repeated",
    )
    group.add_argument(
        "--network-fact",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="fact of any network, instead of a known, measured or assumed one: scale=4, value_range=[0,255], "
        "strips=true; may be repeated",
    )


def network_facts(options: argparse.Namespace) -> dict[str, object]:
    """Return facts for reports, but not for adapter files: how a network of the user's own was built."""
    names = {"network": "built by", "network_set": "built with", "network_fact": "facts given"}
    return {text: value for name, text in names.items() if (value := getattr(options, name))}


def has_network(options: argparse.Namespace) -> bool:
    """Return whether the options select a network."""
    return bool(options.weights or options.network)


def network_name(options: argparse.Namespace) -> str:
    """Return a short name of the network: the checkpoint's file, or the function that built it."""
    return Path(options.weights).name if options.weights else str(options.network)


def own_network(options: argparse.Namespace, choice: Choice, facts: Mapping[str, Any]) -> Backbone:
    """Build the network that `--network` names, with the current folder importable, as under `python -m`."""
    alone = ("task",) if options.weights else ("task", "raw_weights", "allow_half")
    if given := ["--" + name.replace("_", "-") for name in alone if getattr(options, name)]:
        raise LowpeftError(f"leave out {' and '.join(given)}: not for --network{'' if options.weights else ' alone'}")
    if options.weights is not None and (options.weights == "demo" or options.weights.startswith(PREFIX)):
        raise LowpeftError(f"--weights {options.weights} is a network itself: give it, or --network, but not both")
    make_folder_importable()
    arguments = overrides(options.network_set, option="--network-set width=32")
    factory = Factory(name=options.network, arguments=arguments)
    return factory.load(options.weights, weights=choice, allow_half=options.allow_half, facts=facts)


def take_base_of_adapter(options: argparse.Namespace) -> None:
    """Set the options that select the network as the adapter says where its base is, and how it is opened.

    With `--network`, the weights that the adapter names are those of `--weights`.

    Raises:
        LowpeftError: There is neither a network nor an adapter that says that.
    """
    if getattr(options, "adapter", None) is None:
        raise LowpeftError("no network was given: give --weights FILE, or --network MODULE:FUNCTION, or both")
    hub: dict[str, Any] = {name: getattr(options, name, None) for name in ("revision", "subfolder")}
    found = fetched(options.adapter, **hub)
    own = options.network is not None
    if own and found.adapter.about.base_file is None:
        return
    try:
        options.weights, opening = find_base(found, own=own)
    except AdapterError as error:
        message = f"{error.message}; or give --weights FILE, or --network MODULE:FUNCTION"
        raise AdapterError(message, problems=error.problems) from error
    if not own:
        options.task, options.allow_half = opening.get("task"), opening.get("allow_half", False)
        options.raw_weights = opening.get("weights") == "raw"


def demo_network(options: argparse.Namespace) -> Backbone:
    """Load the built-in network, and refuse options that it does not have."""
    if options.raw_weights or options.allow_half:
        option = "--raw-weights" if options.raw_weights else "--allow-half"
        raise LowpeftError(f"leave out {option}: the demo network has one set of weights, in float32")
    if options.task is not None:
        raise LowpeftError(f"leave out --task {options.task}: the demo network has a single task")
    from ..demo import demo_backbone

    return demo_backbone()


def overrides(settings: list[str], option: str = "--set every=1") -> dict[str, Any]:
    """Convert options like `--set` to keyword arguments; values that are not valid TOML are taken as text.

    E.g. `every=1` and `spatial.reduction=8` give `{"every": 1, "spatial": {"reduction": 8}}`.

    Args:
        settings: Texts of the form `FIELD=VALUE` or `TABLE.FIELD=VALUE`.
        option: Name of the option and an example, for errors.
    """
    changes: dict[str, Any] = {}
    name_of_option = option.partition(" ")[0]
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise LowpeftError(f"{name_of_option} {setting!r} is not FIELD=VALUE, as in {option}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        kind, dot, field = name.partition(".")
        table, key = (changes.setdefault(kind, {}), field) if dot else (changes, name)
        if not isinstance(table, dict) or key in table:
            raise LowpeftError(
                f"{name_of_option} {setting!r} changes the same field as another {name_of_option}; give one of them"
            )
        table[key] = value
    return changes
