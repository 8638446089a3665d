"""`lowpeft enhance`: restore a pair of views, or one image, with a frozen network and an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.attachment.views import StereoModel
from ..errors import DataError, LowpeftError
from .common import (
    adapted,
    add_adapter,
    add_device,
    add_inference,
    add_optimize,
    add_views,
    add_weights,
    backbone,
    device,
    network_scale,
    new_command,
    optimized,
    read_views,
    tiling,
    view_paths,
)
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "enhance",
        run,
        "restore or super-resolve a pair of views, or one image, with a frozen network and an adapter",
        "lowpeft enhance left.png right.png --weights CRAFT_x4.pth --adapter my-adapter --out results",
        "lowpeft enhance photo.png --weights denoiser.safetensors --adapter owner/name",
    )
    add_views(sub, "; adapters of single-image recipes need none")
    add_weights(sub)
    add_adapter(sub, required=True)
    option_group(sub, "output").add_argument(
        "--out",
        default=".",
        metavar="DIR",
        help="folder for NAME_x4.png (of a network that keeps the size, NAME_restored.png); default: the current one",
    )
    sub.add_argument("--scale", type=int, help="refuse a network of another scale")
    add_inference(sub)
    add_optimize(sub, default="none")
    add_device(sub)


def run(options: argparse.Namespace) -> None:
    """Read the images, enhance them, and write the results."""
    from ..restoration.images import make_folder, to_float, write_image
    from ..restoration.inference import enhance, is_out_of_memory
    from ..restoration.progress import progress

    paths = view_paths(options)
    base = backbone(options)
    images = read_views(options, base)
    if images[0].shape != images[-1].shape:
        sizes = [f"{v.shape[-1]}x{v.shape[-2]} px" for v in images]
        raise DataError(f"the views differ in size: {paths[0]} is {sizes[0]}, {paths[1]} is {sizes[1]}")
    scale = network_scale(options, base)
    names = [f"{Path(p).stem}_{'restored' if scale == 1 else f'x{scale}'}.png" for p in paths]
    if len(set(names)) < len(paths):
        raise DataError(f"both views would be written to {names[0]}: give them different file names")
    folder = make_folder(options.out)
    model = optimized(options, adapted(options, base).to(device(options.device)))
    if isinstance(model, StereoModel) and options.right is None:
        raise DataError(f"the adapter {options.adapter} makes a stereo model: give it two views, left and right")
    with progress("enhancing", 1) as advance:
        try:
            views = enhance(model, *map(to_float, images), ensemble=options.ensemble, tiling=tiling(options))
        except Exception as error:
            if is_out_of_memory(error):
                raise LowpeftError(f"{options.left} does not fit into memory: set a bound (--memory-mb)") from error
            raise
        advance("")
    for name, view in zip(names, (views,) if isinstance(views, Tensor) else views, strict=True):
        write_image(view, folder / name)
        print(folder / name)
    emit(options, {"scale": scale, "files": [folder / name for name in names]})
