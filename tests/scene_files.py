"""Images and folders for the tests of data: noise that two files never share, in any layout of the table."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from lowpeft.restoration.data import FolderLayout, Scene
from lowpeft.restoration.images import matlab_downscale, mod_crop, write_image


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def touch(folder: Path, *names: str) -> None:
    """Empty files: enough where only names count."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_pair(folder: Path, name: str, height: int = 16, width: int = 32, seed: int = 0) -> Scene:
    """A pair of noise, as NAME_L.png and NAME_R.png."""
    folder.mkdir(exist_ok=True, parents=True)
    left, right = folder / f"{name}_L.png", folder / f"{name}_R.png"
    write_image(noise(height, width, seed), left)
    write_image(noise(height, width, seed + 1000), right)
    return Scene(name, (left, right))


def write_layout(
    folder: Path, layout: FolderLayout, names: tuple[str, ...], scale: int = 4, hr_px: tuple[int, int] = (24, 40)
) -> None:
    """Scenes of noise in a layout's first form, with LR files where it has any; each is of its own name's seed."""
    form = layout.forms[0]
    for name in names:
        for view, template in enumerate(form.hr):
            hr = noise(*hr_px, seed=zlib.crc32(name.encode()) + view)
            _write(hr, folder / (layout.folders[0] + template).format(name=name, scale=scale, part="000"))
            if layout.lr_folder is not None:
                lr = matlab_downscale(mod_crop(hr, scale), scale)
                _write(lr, folder / (layout.folders[1] + form.lr[view]).format(name=name, scale=scale, part="000"))


def _write(image: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(image, path.with_name(f"{path.name}.png"))
