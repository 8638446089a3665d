"""What was tried on the way to the kind `parallax`, on the demo's scenes: one form of the adapter after the other.

    python benchmarks/parallax_forms.py --out benchmarks/results/parallax_forms.json [FORM …]

Each form is trained for 240 steps with seed 0 as `lowpeft demo` trains, and measured on the demo's four unseen scenes,
also with each view given twice. This is the experiment's own adapter, with a switch for each idea; the one that was
kept is `lowpeft.kinds.parallax`. Needs the extra `demo`; about four minutes a form on one core.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from cells import run_cells
from common import options_of, provenance
from lowpeft import AdapterConfig, Features, SpatialConfig
from lowpeft.core.attachment.record import pieces, unwrap
from lowpeft.core.operations.listening import listening_copy
from lowpeft.demo import demo_backbone
from lowpeft.demo.task import NOISE, SETTINGS, training_scenes, unseen_scenes
from lowpeft.kinds import FeatureAdapter, band, register_adapter
from lowpeft.kinds.stages import StageConfig
from lowpeft.restoration.data import Crops, EachViewTwice, load_example
from lowpeft.restoration.evaluation import by_network, by_network_alone, measure
from lowpeft.restoration.metrics import WHOLE_RGB
from lowpeft.restoration.training import train

MOST, LEAST, OWN = 24, -1, 24
CALIBRATED_ON = 6


@dataclass(frozen=True, kw_only=True)
class FormConfig(StageConfig):
    """One form of the adapter.

    Attributes:
        distance: Logits are minus half the squared distance; otherwise dot products.
        normalise: Features are normalised over the channels before they are compared.
        shared: Both views share the projections.
        bias: The output projections have a bias.
        matched: Share of the positions whose best logit exceeds that of "no match"; None for no such logit.
        itself: A position is among the look-alikes of its own row.
        compared: Channels that are compared; None for all.
        spread: Standard deviation of the logits at the start.
        kernel: Side of the kernel on the other view's difference; -3 is a depthwise 3x3 before the projection.
    """

    kind: ClassVar[str] = "form"

    distance: bool = True
    normalise: bool = True
    shared: bool = True
    bias: bool = False
    matched: float | None = 0.7
    itself: bool = False
    compared: int | None = None
    spread: float = 8.0
    kernel: int = 1


class Form(FeatureAdapter):
    """The adapter of one form."""

    kind = "form"
    needs_rows = True
    row_local = False

    def __init__(self, channels: int, config: FormConfig) -> None:
        super().__init__()
        self.form, count = config, 1 if config.shared else 2
        self.norm = nn.LayerNorm(channels, eps=1e-6) if config.normalise else nn.Identity()
        self.query = nn.ModuleList(nn.Linear(channels, config.compared or channels) for _ in range(count))
        self.other = nn.ModuleList(nn.Linear(channels, channels, bias=config.bias) for _ in range(count))
        self.own = nn.ModuleList(nn.Linear(channels, channels, bias=config.bias) for _ in range(count))
        if config.kernel > 1:
            self.other = nn.ModuleList(
                nn.Conv2d(channels, channels, config.kernel, padding=config.kernel // 2, padding_mode="replicate")
                for _ in range(count)
            )
        self.around = nn.ModuleList()
        if config.kernel == -3:
            for _ in range(count):
                self.around.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False))
                nn.init.dirac_(self.around[-1].weight, groups=channels)
        for layer in (*self.other, *self.own):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.no_match = nn.Parameter(torch.zeros(2, count)) if config.matched is not None else None

    def delta(self, features: Features) -> Tensor:
        views = features.rows_by_view
        queries = [self.query[i % len(self.query)](self.norm(view)) for i, view in enumerate(views)]
        deltas = []
        for i, columns in enumerate(((-MOST, -LEAST), (LEAST, MOST))):
            x, part = views[i], i % len(self.query)
            difference = self.difference(
                self.logits(queries[i], queries[1 - i], columns), 0, part, x, views[1 - i], columns
            )
            if self.around:
                difference = _as_image(self.around[part], difference)
            image = isinstance(self.other[part], nn.Conv2d)
            delta = _as_image(self.other[part], difference) if image else self.other[part](difference)
            logits = self.logits(queries[i], queries[i], (-OWN, OWN))
            if not self.form.itself:
                logits = logits.masked_fill(torch.arange(2 * OWN + 1) == OWN, -1e4)
            deltas.append(delta + self.own[part](self.difference(logits, 1, part, x, x, (-OWN, OWN))))
        return features.from_rows_by_view(deltas)

    def logits(self, query: Tensor, key: Tensor, columns: tuple[int, int]) -> Tensor:
        bias = -key.square().sum(-1) / 2 if self.form.distance else key.new_zeros(key.shape[:-1])
        logits = band.products(query, key, bias, *columns)
        if self.form.distance:
            logits = logits - query.square().sum(-1, keepdim=True) / 2
        mean = F.avg_pool2d(logits.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
        return mean.masked_fill(~band.inside(query.shape[2], *columns, query.device), -1e4)

    def difference(
        self, logits: Tensor, which: int, part: int, x: Tensor, x_other: Tensor, columns: tuple[int, int]
    ) -> Tensor:
        if self.no_match is None:
            weights = logits.softmax(-1)
        else:
            no_match = self.no_match[which, part].expand(*logits.shape[:-1], 1)
            weights = torch.cat((logits, no_match), -1).softmax(-1)[..., :-1]
        return band.weighted_sum(weights, x_other, *columns) - weights.sum(-1, keepdim=True) * x

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Start from the features (2N,H,W,C) of pairs."""
        z = self.norm(rows).double()
        mean = z.mean((0, 1, 2))
        flat = (z - mean).flatten(0, 2)
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        scaled = vectors * (values + 1e-3 * values.max()).rsqrt()
        compared = self.form.compared
        whitening = scaled @ vectors.T if compared is None else scaled[:, -compared:].T
        for query in self.query:
            query.weight.copy_(whitening)
            query.bias.copy_(-(whitening @ mean))
        z = self.query[0](self.norm(rows))
        logits = self.logits(z[0::2], z[1::2], (-MOST, -LEAST))
        inside = logits > -9e3
        centre = (logits * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
        spread = ((((logits - centre) * inside) ** 2).sum(-1) / inside.sum(-1))[:, :, MOST:].sqrt().mean()
        gain = self.form.spread / spread
        for query in self.query:
            query.weight.mul_(gain.sqrt())
            query.bias.mul_(gain.sqrt())
        if self.no_match is not None and self.form.matched is not None:
            best = logits[:, :, MOST:].amax(-1) * gain
            self.no_match.fill_(best.flatten().quantile(1 - self.form.matched))


def _as_image(layer: nn.Module, rows: Tensor) -> Tensor:
    result: Tensor = layer(rows.movedim(-1, 1)).movedim(1, -1)
    return result


DOT = {"distance": False, "shared": False, "bias": True, "matched": None, "itself": True}
FORMS: dict[str, tuple[AdapterConfig, ...]] = {
    "dot products": (FormConfig(**DOT),),
    "dot products, one projection for both views": (FormConfig(**{**DOT, "shared": True}),),
    "distances": (FormConfig(**{**DOT, "distance": True}),),
    "distances without normalisation": (FormConfig(**{**DOT, "distance": True, "normalise": False}),),
    "distances, no match": (FormConfig(**{**DOT, "distance": True, "matched": 0.9}),),
    "the same, one projection, no bias": (FormConfig(matched=0.9, itself=True),),
    "the same, without the position itself": (FormConfig(matched=0.9),),
    "the same, 70 % matched": (FormConfig(),),
    "the same, 50 % matched": (FormConfig(matched=0.5),),
    "90 % matched, 16 channels": (FormConfig(matched=0.9, compared=16),),
    "70 % matched, 16 channels, depthwise 3x3": (FormConfig(compared=16, kernel=-3),),
    "90 % matched, 3x3 kernel on the difference": (FormConfig(matched=0.9, bias=True, kernel=3),),
    "70 % matched, with spatial adapters": (SpatialConfig(), FormConfig()),
}


def run_form(form: str) -> dict[str, object]:
    """Train one form, or with "/control" the same with each view given twice, and measure it."""
    name, *control = form.split("/")
    with tempfile.TemporaryDirectory() as folder:
        scenes, held_out = training_scenes(Path(folder), 2), unseen_scenes(Path(folder), 2)
        crops = Crops(scenes, 2, crop_px=(SETTINGS.crop_height_px, SETTINGS.crop_width_px), seed=SETTINGS.seed)
        tests = [load_example(scene, 2) for scene in held_out]
        torch.manual_seed(SETTINGS.seed)
        model = lowpeft.adapt(demo_backbone(), FORMS[name])
        start_from(model, torch.stack([crops[10**6 + i][0] for i in range(CALIBRATED_ON)]))
        settings = replace(SETTINGS, batch=2 * SETTINGS.batch) if control else SETTINGS
        done = train(model, EachViewTwice(crops) if control else crops, settings)
        adapted, same = (
            measure(by(model), tests, scale=2, protocol=WHOLE_RGB).means()["PSNR"]
            for by in (by_network, by_network_alone)
        )
    return {
        "adapted_db": round(adapted, 3),
        "same_view_db": round(same, 3),
        "parameters": done.parameters,
        "seconds": round(done.seconds),
    }


def start_from(model: object, views: Tensor) -> None:
    """Start the forms of a model from the features of pairs (N,2,3,h,w)."""
    seen: dict[Form, Tensor] = {}

    def hear(name: str, site: str, adapter: FeatureAdapter, features: Features) -> None:
        if site in live:
            seen[live[site]] = features.rows

    live = {site: adapter for _, site, adapter in pieces(unwrap(model)) if isinstance(adapter, Form)}
    twin = listening_copy(model, hear)
    with torch.no_grad():
        twin(views[:, 0], views[:, 1])
    for adapter, rows in seen.items():
        adapter.start(rows)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("forms", nargs="*", default=tuple(FORMS), metavar="FORM")
    options = parser.parse_args()
    register_adapter(FormConfig, Form)
    head = {
        **provenance("python benchmarks/parallax_forms.py", "spandrel", "scikit-image"),
        "settings": vars(SETTINGS),
        "noise": NOISE,
        "what": "PSNR in dB of whole RGB views, mean of both views and of 4 unseen scenes; x2, noise 10/255",
    }
    run_cells(options.out, head, options.forms, run_form)


if __name__ == "__main__":
    main()
