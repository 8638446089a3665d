"""A kind of adapter of your own, on a network that lowpeft does not know: trained, saved, loaded and taken out again.

    pip install -e .
    python examples/own_adapter.py

The kind is a scale and a shift per channel: it adds `x * scale + shift` to features x, both zero when new. (The bundled
`ssf` does that to the weights of layers, so that it can be merged.) Once registered it works like the built-in kinds,
in recipes and files alike.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import AdapterConfig, FeatureAdapter, Features


@dataclass(frozen=True, kw_only=True)
class ScaleShiftConfig(AdapterConfig):
    """A scale and a shift per channel."""

    kind: ClassVar[str] = "scale_shift"


class ScaleShift(FeatureAdapter):
    """`x * scale + shift`; 2·C parameters."""

    kind = "scale_shift"

    def __init__(self, channels: int, config: ScaleShiftConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        return features.from_channels_last(features.channels_last * self.scale + self.shift)


class Denoiser(nn.Module):
    """Stands for your network."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))
        self.tail = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return image + self.tail(self.body(self.head(image)))


def network() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser().eval()


def main() -> None:
    lowpeft.register_adapter(ScaleShiftConfig, ScaleShift)
    model, clean = network(), torch.rand(4, 3, 32, 32)
    noisy = (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    config = ScaleShiftConfig(target=["body.*", "!body.3"])
    print(lowpeft.plan(model, config))
    model = lowpeft.adapt(model, config)
    lowpeft.check_trainable(model, noisy)

    optimizer = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2)
    for step in range(20):
        loss = (model.train()(noisy) - clean).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == 19:
            print(f"step {step + 1}: loss {loss:.4f}")
    print(lowpeft.summary(model))

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        lowpeft.save_adapter(model, folder)
        loaded = lowpeft.load_adapter(network(), folder)
        assert torch.equal(loaded(noisy), model.eval()(noisy))

    plain = lowpeft.restore(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())


if __name__ == "__main__":
    main()
