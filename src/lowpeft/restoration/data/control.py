"""`EachViewTwice`: training crops of a control, which sees the images of pairs but never the other view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from ...errors import DataError
from ...ports.layouts import Size
from .model import as_whole

if TYPE_CHECKING:
    from ..training.sources import CropSource, Named


class EachViewTwice(Dataset[tuple[Tensor, Tensor]]):
    """Crops of pairs in which both views are the same: sample i is view i % 2 of `crops[i // 2]`, twice.

    A model of two views that is trained on them learns everything but the use of the other view, so it is the control
    for a claim that the other view helps: measure it with each view given twice as well
    (`evaluation.compare(…, control=)`). A batch of 2N samples has the images of N pairs, so double `batch` and
    `calibration` in the settings; `lowpeft train --each-view-twice` does both.

    `each[i]` is (LR (2,3,h,w), HR (2,3,sh,sw)), float32, 0..1. What changes single views (noise, for example) must be
    part of `crops`, so that it is the same in both copies. `train` saves `facts` with the adapter.

    Attributes:
        crops: Crops of pairs, e.g. `Crops`; see `lowpeft.restoration.training.CropSource`.
        crop_px, scale, views, scenes: Those of `crops`.

    Raises:
        DataError: The crops have another number of views than 2.
    """

    facts: ClassVar[dict[str, str | float]] = {"control": "trained with each view given twice, not with the other view"}

    def __init__(self, crops: CropSource) -> None:
        if crops.views != 2:
            raise DataError(f"each view is given twice in place of a pair, but these crops have {crops.views} view(s)")
        self.crops = crops

    @property
    def crop_px(self) -> Size:
        return self.crops.crop_px

    @property
    def scale(self) -> int:
        return self.crops.scale

    @property
    def views(self) -> int:
        return 2

    @property
    def scenes(self) -> Sequence[Named]:
        return self.crops.scenes

    def __len__(self) -> int:
        return 2 * len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair, view = divmod(as_whole(index, "the number of a crop"), 2)
        lr, hr = self.crops[pair]
        return lr[[view, view]], hr[[view, view]]
