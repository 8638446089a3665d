"""`lowpeft lam`: show the input pixels, in every view, that contribute to a patch of the result."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.attachment.record import module_of
from ..core.files.reading import read_adapter
from ..core.observation.describe import image_facts
from ..core.operations.switching import disabled
from ..errors import DataError
from ..ports.facts import Backbone
from ..restoration.lam import PAIR, PUBLISHED, Attribution, LamSettings, Patch, as_table, attribute, chunks
from ..storage import new_file, write_json
from ..version import version
from .common import (
    adapted,
    add_adapter,
    add_device,
    add_views,
    add_weights,
    backbone,
    device,
    new_command,
    read_views,
    refuse_without_adapter,
    view_paths,
    weights_facts,
)
from .help import option_group
from .networks import network_facts, network_name
from .output import emit

_FILES = {"figures": "lam.json", "maps": "lam.safetensors", "picture": "lam.png"}


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "lam",
        run,
        "local attribution maps: show which pixels of both views, or of one image, a patch of the result was made from",
        "lowpeft lam left.png right.png --weights CRAFT_x4.pth --adapter my-adapter --patch 96 200 16 --out lam",
        "lowpeft lam photo.png --weights CRAFT_x4.pth --patch 64 64 16 --steps 20",
    )
    add_views(sub)
    add_weights(sub)
    add_adapter(sub, more="; the frozen network is shown for comparison")
    group = option_group(sub, "patch and path")
    group.add_argument(
        "--patch", required=True, type=int, nargs=3, metavar=("Y", "X", "SIDE"), help="square of the result, in HR px"
    )
    group.add_argument("--view", choices=PAIR, default="left", help="the patch's view (default: left)")
    group.add_argument(
        "--steps", type=int, default=PUBLISHED.steps, metavar="N", help="of the sum (default: %(default)s)"
    )
    group.add_argument(
        "--sigma",
        type=float,
        default=PUBLISHED.sigma_px,
        metavar="PX",
        help="of the strongest blur, in LR px (default: %(default)s)",
    )
    group.add_argument(
        "--chunk",
        type=int,
        default=PUBLISHED.chunk,
        metavar="N",
        help="steps at once: faster on a GPU, for as many times the memory (default: %(default)s)",
    )
    option_group(sub, "output").add_argument(
        "--out", default=".", metavar="DIR", help="folder for lam.json, lam.png and the maps (default: the current one)"
    )
    add_device(sub)


def run(options: argparse.Namespace) -> None:
    """Read the views, attribute the patch, and print and write the figures, maps and picture."""
    from ..restoration.images import make_folder, to_float
    from ..restoration.lam.picture import draw_attributions

    refuse_without_adapter(options)
    settings = LamSettings(steps=options.steps, sigma_px=options.sigma, chunk=options.chunk)
    y, x, side = options.patch
    patch = Patch(y_px=y, x_px=x, side_px=side, view=options.view)
    base = backbone(options)
    views = [to_float(view) for view in read_views(options, base)]
    folder = make_folder(options.out)
    columns = _attributions(options, base, views, patch, settings)
    print(as_table(columns))
    record = _record(options, base, patch, settings, columns)
    picture = draw_attributions(
        columns, views, scale=image_facts(base).scale, notes=_notes(options, base, settings, columns)
    )
    # Signed maps by `NETWORK.VIEW`, e.g. `adapted.left`.
    maps = {f"{name}.{v}": m for name, each in columns.items() for v, m in zip(each.views, each.maps, strict=True)}
    try:
        write_json(folder / "lam.json", record)
        with new_file(folder / "lam.safetensors") as temporary:
            save_file(maps, temporary)
        with new_file(folder / "lam.png") as temporary:
            picture.save(temporary, format="png", optimize=True)
    except OSError as error:
        raise DataError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    written = {name: folder / file for name, file in _FILES.items()}
    emit(options, {**record, "written": written}, "\n".join(f"{name:<8}{path}" for name, path in written.items()))


def _attributions(
    options: argparse.Namespace, base: Backbone, views: list[Tensor], patch: Patch, settings: LamSettings
) -> dict[str, Attribution]:
    """Return the attributions of the adapted and the frozen network, or of the network alone without an adapter."""
    from ..restoration.progress import progress

    model = base if options.adapter is None else adapted(options, base)
    module_of(model).to(device(options.device))
    total = chunks(settings) * (1 if options.adapter is None else 2)
    with progress("attributing", total) as advance:
        attributed = partial(attribute, model, *views, patch=patch, settings=settings, advance=advance)
        if options.adapter is None:
            return {"network": attributed()}
        with_adapter = attributed()
        with disabled(model):
            return {"adapted": with_adapter, "frozen": attributed()}


def _record(
    options: argparse.Namespace,
    base: Backbone,
    patch: Patch,
    settings: LamSettings,
    columns: dict[str, Attribution],
) -> dict[str, Any]:
    return {
        "lowpeft": version(),
        "torch": torch.__version__,
        "device": str(device(options.device)),
        "network": {
            "architecture": base.architecture,
            "scale": base.scale,
            **weights_facts(options, base),
            **network_facts(options),
        },
        "adapter": options.adapter,
        "views": view_paths(options),
        "patch": dataclasses.asdict(patch),
        "settings": dataclasses.asdict(settings),
        **{name: value for name in ("task", "revision", "subfolder") if (value := getattr(options, name)) is not None},
        **{name: True for name in ("allow_half", "force") if getattr(options, name)},
        "figures": {name: each.figures() for name, each in columns.items()},
    }


def _notes(
    options: argparse.Namespace, base: Backbone, settings: LamSettings, columns: dict[str, Attribution]
) -> list[str]:
    """Return the paragraphs below the picture: the patch, the network and its training, the figures and settings."""
    network = f"Network: {base.architecture} x{base.scale}, {network_name(options)}"
    if options.adapter is not None:
        network += f", with the adapter {options.adapter}"
        if Path(options.adapter).is_dir():
            adapter = read_adapter(options.adapter)
            network += f" (recipe {adapter.recipe.name}; training: {adapter.facts.get('training', 'not recorded')})"
    shown = []
    for name, each in columns.items():
        share, index = each.share_other_view, each.diffusion_index
        parts = [] if share is None else [f"share of the other view {100 * share:.3g} %"]
        parts += [] if index is None else [f"diffusion index {index:.3g}"]
        shown.append(f"{name}: {', '.join(parts)}")
    return [
        f"Explained: {next(iter(columns.values())).where} (outlined). {network}.",
        f"Figures: {'; '.join(shown)}.",
        f"Heat: root of |attribution| over the map's largest. {settings.steps} steps, sigma {settings.sigma_px} px.",
    ]
