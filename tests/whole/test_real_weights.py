"""The public checkpoints of the data folder: opened, run on its images, and as good as they are known to be."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image
from torch import Tensor

import lowpeft
from lowpeft import Backbone, enhance, load_backbone
from lowpeft.restoration.images import mod_crop, read_image, to_float
from lowpeft.restoration.metrics import psnr

pytestmark = pytest.mark.real_data

TOLERANCE_DB = 0.02
SCENES = ("kitti2015sr_000005", "mb2006h_Cloth2")

# File, scale, then PSNR in dB from the data folder's README: RGB of the two scenes' left views, luma of Set5.
FIGURES = [
    ("DCTLSA_x2.pt", 2, (28.55, 36.41), 38.25),
    ("DCTLSA_x3.pt", 3, (25.75, 32.41), 34.70),
    ("DCTLSA_x4.pt", 4, (24.04, 30.30), 32.53),
    ("CRAFT_x4.pth", 4, (23.97, 30.25), 32.39),
    ("DITN_Real_x4.pth", 4, (23.82, 30.00), 32.10),
]
BICUBIC = {2: (25.89, 32.88), 3: (23.25, 30.01), 4: (21.65, 28.40)}


def downscaled(hr: Tensor, scale: int) -> Tensor:
    """The smaller image by Pillow's bicubic filter, as the README's figures were made."""
    height, width = hr.shape[-2:]
    image = Image.fromarray(hr.permute(1, 2, 0).numpy())
    small = image.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        .view(small.height, small.width, 3)
        .permute(2, 0, 1)
    )


def enlarged(backbone: Backbone, lr: Tensor) -> Tensor:
    return enhance(backbone, to_float(lr))


@pytest.mark.parametrize(
    ("file", "scale", "scenes_db", "set5_db"),
    [pytest.param(*f, id=f[0]) for f in FIGURES],
)
@pytest.mark.slow
def test_a_public_checkpoint_is_as_good_as_it_is_known_to_be(
    file: str, scale: int, scenes_db: tuple[float, float], set5_db: float, data_root: Path
) -> None:
    backbone = load_backbone(data_root / "weights" / file)
    assert backbone.scale == scale
    for scene, wanted in zip(SCENES, scenes_db, strict=True):
        hr = mod_crop(read_image(data_root / "stereo" / "test" / f"{scene}_L.png"), scale)
        found = psnr(enlarged(backbone, downscaled(hr, scale)), hr, border_px=scale)
        assert found == pytest.approx(wanted, abs=TOLERANCE_DB), scene
    values = []
    for path in sorted((data_root / "single" / "Set5" / f"x{scale}").glob("*_HR.png")):
        sr = enlarged(backbone, read_image(path.with_name(path.name.replace("_HR", "_LR"))))
        hr = read_image(path)
        values.append(psnr(sr[:, : hr.shape[1], : hr.shape[2]], hr, border_px=scale, channels="y"))
    assert len(values) == 5
    assert fmean(values) == pytest.approx(set5_db, abs=TOLERANCE_DB)


def test_the_images_are_reduced_as_for_the_known_figures(data_root: Path) -> None:
    for scale, figures in BICUBIC.items():
        for scene, wanted in zip(SCENES, figures, strict=True):
            hr = mod_crop(read_image(data_root / "stereo" / "test" / f"{scene}_L.png"), scale)
            lr = Image.fromarray(downscaled(hr, scale).permute(1, 2, 0).numpy())
            big = lr.resize((hr.shape[2], hr.shape[1]), Image.Resampling.BICUBIC)
            sr = torch.frombuffer(bytearray(big.tobytes()), dtype=torch.uint8).view(hr.shape[1], hr.shape[2], 3)
            found = psnr(sr.permute(2, 0, 1), hr, border_px=scale)
            assert found == pytest.approx(wanted, abs=TOLERANCE_DB), (scale, scene)


def test_a_public_checkpoint_is_adapted_trained_and_loaded_again(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "weights" / "DCTLSA_x4.pt"
    model = lowpeft.adapt(load_backbone(path), "stereo")
    left, right = torch.rand(2, 1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2)
    sum(view.square().mean() for view in model(left, right)).backward()
    optimizer.step()
    lowpeft.save_adapter(model, tmp_path)
    again = lowpeft.load_adapter(load_backbone(path), tmp_path)
    with torch.no_grad():
        for one, other in zip(model.eval()(left, right), again(left, right), strict=True):
            assert torch.equal(one, other)
