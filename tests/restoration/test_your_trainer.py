"""docs/your-trainer.md: the blocks that need other trainers run, with Lightning itself and a stand-in of BasicSR."""

from __future__ import annotations

import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import lowpeft

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-trainer.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block_with(word: str, language: str = "python") -> str:
    (found,) = [block for block in blocks(language) if word in block]
    return found


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's first block defines, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("trainer_page")
    monkeypatch.setitem(sys.modules, "trainer_page", module)
    exec(blocks("python")[0], module.__dict__)
    return module.__dict__


def moved(folder: str, network: nn.Module) -> bool:
    """Whether an adapter loads on the network with the file's weights, and no tensor that starts at zero is zero."""
    loaded = lowpeft.load_adapter(lowpeft.load_backbone("network.pth", network=network), folder)
    new = lowpeft.adapt(lowpeft.load_backbone("network.pth", network=type(network)()), "lora")
    zero = [name for name, tensor in lowpeft.adapter_state_dict(new).items() if not tensor.any()]
    state = lowpeft.adapter_state_dict(loaded)
    return bool(zero) and all(state[name].any() for name in zero)


@pytest.mark.slow  # Lightning takes seconds to import
def test_lightning_trains_and_resumes(page: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, on workers and logging
        exec(block_with("import lightning as L"), page)
        assert moved("lightning-adapter", page["Network"]())
        (checkpoint,) = (tmp_path / "lit").rglob("*.ckpt")
        content = torch.load(checkpoint, weights_only=False)
        assert content["state_dict"] == {}
        assert content["adapter"].keys() == lowpeft.adapter_state_dict(page["lit"].network).keys()
        assert "network" not in content["hyper_parameters"]
        again = page["Restoration"](lowpeft.load_backbone("network.pth", network=page["Network"]()))
        trainer = page["L"].Trainer(max_epochs=2, default_root_dir="lit", **page["options"])
        trainer.fit(again, torch.utils.data.DataLoader(page["batches"], batch_size=None), ckpt_path=checkpoint)
    assert trainer.global_step == 2 * len(page["batches"])


class SRModel:
    """Stand-in of BasicSR's SRModel: what it calls, in its order (basicsr/models/sr_model.py, version 1.4.2)."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.net_g = self.model_to_device(opt["network_g"]())
        assert opt["path"]["pretrain_network_g"] is None
        self.init_training_settings()

    def model_to_device(self, net: nn.Module) -> nn.Module:
        return nn.DataParallel(net)

    def get_bare_model(self, net: nn.Module) -> nn.Module:
        return net.module if isinstance(net, nn.DataParallel) else net

    def init_training_settings(self) -> None:
        self.net_g.train()
        self.ema_decay = self.opt["train"].get("ema_decay", 0)
        if self.ema_decay > 0:
            self.net_g_ema = self.opt["network_g"]()
            self.model_ema(0)
            self.net_g_ema.eval()
        self.setup_optimizers()

    def setup_optimizers(self) -> None:
        options = dict(self.opt["train"]["optim_g"])
        trained = [p for p in self.net_g.parameters() if p.requires_grad]
        self.optimizer_g = getattr(torch.optim, options.pop("type"))(trained, **options)

    def optimize_parameters(self, lq: torch.Tensor, gt: torch.Tensor) -> None:
        self.optimizer_g.zero_grad()
        nn.functional.l1_loss(self.net_g(lq), gt).backward()
        self.optimizer_g.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def model_ema(self, decay: float = 0.999) -> None:
        raise AssertionError("BasicSR's own would average the frozen network")

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        torch.save({"iter": current_iter, "optimizers": self.optimizer_g.state_dict()}, f"{current_iter}.state")


class Registry(dict[str, type]):
    """Stand-in of BasicSR's registry."""

    def register(self) -> Any:
        return lambda cls: self.setdefault(cls.__name__, cls)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_option_file_of_basicsr_trains_adapters(
    ema_decay: float, page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    for name, content in {
        "basicsr": {},
        "basicsr.models": {},
        "basicsr.models.sr_model": {"SRModel": SRModel},
        "basicsr.utils": {},
        "basicsr.utils.registry": {"MODEL_REGISTRY": registry},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    exec(block_with("class AdaptedSRModel"), page)
    opt = yaml.safe_load(block_with("model_type: AdaptedSRModel", "yaml"))
    opt["network_g"] = {"Network": page["Network"]}[opt["network_g"].pop("type")]
    opt["train"]["ema_decay"] = ema_decay
    opt |= {"rank": 0, "path": {**opt["path"], "models": "models"}}
    model = registry[opt["model_type"]](opt)
    for degraded, clean in page["batches"]:
        model.optimize_parameters(degraded, clean)
    model.save(0, 4)
    assert moved("models/adapter_4", page["Network"]())
    assert lowpeft.read_adapter("models/adapter_4").sites[0].config.rank == 4
    goes_on = registry["AdaptedSRModel"](opt | {"peft": {"weights": "network.pth", "adapter": "models/adapter_4"}})
    saved = lowpeft.adapter_state_dict(model.net_g_ema if ema_decay else model.net_g)
    loaded = lowpeft.adapter_state_dict(goes_on.net_g)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_an_average_of_all_parameters_is_refused_as_the_page_says(page: dict[str, Any]) -> None:
    import copy

    model = lowpeft.adapt(lowpeft.load_backbone("network.pth", network=page["Network"]()), "lora")
    average = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(5):
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.mul_(0.999).add_(now, alpha=1 - 0.999)
    with pytest.raises(lowpeft.AdapterError, match="was changed"):
        lowpeft.save_adapter(average, "average")
