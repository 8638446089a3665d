"""Published networks with the stereo recipe: counts of all, and the round trip of one of every sort at full size.

    python benchmarks/backbones.py --out benchmarks/results/backbones.json

The round trip: adapt, one step of AdamW, save, load on a fresh base, and compare outputs bit for bit. Needs the extras
`spandrel` and `transformers`, and 4 GB of memory.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from spandrel.architectures.IPT import IPT
from torch import Tensor, nn

import lowpeft
from common import options_of, provenance, write
from published import NETWORKS, Network, network

RECIPE = "stereo"
LEARNING_RATE = 5e-4

SMALL_IPT = Network(
    name="IPT x4, small",
    family="ipt",
    build=lambda: IPT(n_feats=4, num_heads=2, num_layers=4, scale=[4]).eval(),
    parameters=181_391,
    source="4 features and 4 layers, not published",
    input_px=(48, 48),
    value_max=255.0,
)

ROUND_TRIPS: tuple[Network, ...] = (
    *(network(f"EDT-{size} x4") for size in "TSB"),
    SMALL_IPT,
    network("IPT x4"),
    network("SwinIR-M x4"),
    network("Swin2SR x4"),
    network("Swin2SR x2 (transformers)"),
    *(network(f"HAT{size} x4") for size in ("-S", "", "-L")),
    network("swin_tiny_patch4_window7_224"),
    network("swinv2_tiny_window8_256"),
)


def counts(row: Network) -> dict[str, object]:
    """What the frozen network has and what the recipe would train, by kind."""
    planned = lowpeft.plan(row.build(), RECIPE)
    by_kind: Counter[str] = Counter()
    for site in planned.sites:
        by_kind[site.config.kind] += site.parameters
    return {
        "name": row.name,
        "family": planned.family,
        "source": row.source,
        "frozen": planned.base_parameters,
        "by_kind": dict(by_kind),
    }


def base(row: Network) -> nn.Module:
    """The network with the same random weights in every call; none of its branches is switched off by zeros."""
    torch.manual_seed(0)
    module = row.build()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.1)
    return module


@torch.no_grad()
def outputs(model: lowpeft.StereoModel, views: tuple[Tensor, Tensor]) -> Tensor:
    """Both views that the model makes, in one tensor."""
    return torch.cat(model(*views))


@torch.no_grad()
def outputs_of_base(row: Network, module: nn.Module, views: tuple[Tensor, Tensor]) -> Tensor:
    """What the network without adapters makes of both views."""
    output, attribute = module(torch.cat(views)), lowpeft.describe(module).output
    return output if attribute is None else getattr(output, attribute)


def step(model: lowpeft.StereoModel, views: tuple[Tensor, Tensor], value_max: float) -> None:
    """One step of AdamW on the mean absolute distance from random images (or feature maps)."""
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=LEARNING_RATE)
    found = torch.cat(model.train()(*views))
    (found - value_max * torch.rand(found.shape)).abs().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    model.eval()


def round_trip(row: Network) -> dict[str, object]:
    """Adapt, train one step, save, load on a fresh base (which its fingerprint checks), compare."""
    start = time.perf_counter()
    module = base(row)
    height, width = row.input_px
    left, right = (row.value_max * torch.rand(2, 3, height, width)).split(1)
    views = (left, right)
    frozen = outputs_of_base(row, module, views)
    model = lowpeft.adapt(module, RECIPE)
    summary = lowpeft.summary(model)
    new = outputs(model, views)
    step(model, views, row.value_max)
    trained = outputs(model, views)
    with tempfile.TemporaryDirectory() as folder:
        lowpeft.save_adapter(model, folder)
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
        del model, module
        loaded = outputs(lowpeft.load_adapter(base(row), folder), views)
    return {
        "name": row.name,
        "recipe": RECIPE,
        "input_px": list(row.input_px),
        "value_max": row.value_max,
        "frozen": summary.frozen,
        "by_kind": summary.by_kind,
        "new_equals_base": torch.equal(new, frozen),
        "step_changes_output": bool(trained.isfinite().all()) and not torch.equal(trained, new),
        "loaded_equals_trained": torch.equal(loaded, trained),
        "adapter_folder_bytes": size,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    options = options_of(__doc__).parse_args()
    results = {
        **provenance("python benchmarks/backbones.py", "spandrel", "timm", "transformers"),
        "recipe": RECIPE,
        "networks": [counts(row) for row in NETWORKS],
        "round_trips": [round_trip(row) for row in ROUND_TRIPS],
    }
    write(results, options.out)


if __name__ == "__main__":
    main()
