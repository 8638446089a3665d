"""Adapter folders that were damaged at random: the same adapter, or one LowpeftError; the base never changes.

The default tier runs a few hundred cases, the slow one as many as `LOWPEFT_FUZZ_CASES` says. Cases are numbered, and a
number gives the same case again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lowpeft
from fuzzing import CASES, MANY_CASES, damaged_bytes
from lowpeft import LoRAConfig, LowpeftError, SpatialConfig
from lowpeft.core.files.contents import CONFIG, METADATA_KEY, TENSORS, tensors_digest

pytestmark = pytest.mark.usefixtures("no_figures")

ODD = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, "", "x", "../..", "a\0b", "\ud800", [], [[]], {}, {"x": 1})
DTYPES = (torch.float16, torch.int64, torch.float8_e4m3fn, torch.bool)

Fields = list[tuple[Any, str | int]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter with values other than zero."""
    configs = [LoRAConfig(target="**", rank=2), SpatialConfig(target="0", reduction=2)]
    model = lowpeft.adapt(network(), configs)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return lowpeft.save_adapter(model, tmp_path_factory.mktemp("original"), facts={"data": "made up"})


class Case:
    """A folder with one mutation.

    Attributes:
        rewritten: True if config and checksum were changed alike in both places, as their author could have.
    """

    def __init__(self, original: Path, folder: Path, number: int) -> None:
        self.random, self.folder, self.rewritten = random.Random(number), folder, False
        self.files = {name: (original / name).read_bytes() for name in (TENSORS, CONFIG)}
        self.mutate = self.random.choice(MUTATIONS)
        self.mutate(self)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def bytes_of(self, name: str, start: int, stop: int) -> None:
        """Change, remove or add a few bytes."""
        self.files[name] = damaged_bytes(self.files[name], self.random, start, stop)

    def unpacked(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        place = self.folder / "unpacked.safetensors"
        place.write_bytes(self.files[TENSORS])
        with safe_open(place, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()[METADATA_KEY])
        return tensors, config

    def pack(self, tensors: dict[str, Tensor], config: Any, *, beside: bool = True) -> None:
        place = self.folder / "packed.safetensors"
        text = json.dumps(config)
        save_file(tensors, place, {METADATA_KEY: text})
        self.files[TENSORS] = place.read_bytes()
        if beside:
            self.files[CONFIG] = text.encode()


def fields_of(value: Any) -> Fields:
    """Every container of a config with each key in it."""
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, (dict, list)) else []
    )
    return [(value, key) for key, _ in items] + [row for _, each in items for row in fields_of(each)]


def config_bytes(case: Case) -> None:
    case.bytes_of(CONFIG, 0, len(case.files[CONFIG]))


def header_length(case: Case) -> None:
    case.bytes_of(TENSORS, 0, 8)


def header_bytes(case: Case) -> None:
    case.bytes_of(TENSORS, 8, 8 + int.from_bytes(case.files[TENSORS][:8], "little"))


def any_bytes(case: Case) -> None:
    case.bytes_of(TENSORS, 0, len(case.files[TENSORS]))


def truncated(case: Case) -> None:
    name = case.random.choice((TENSORS, CONFIG))
    case.files[name] = case.files[name][: case.random.randrange(len(case.files[name]))]


def config_fields(case: Case) -> None:
    """Change fields in both places, as only someone could who rewrites the adapter."""
    tensors, config = case.unpacked()
    for _ in range(case.random.randint(1, 3)):
        container, key = case.random.choice(fields_of(config))
        if isinstance(container, list) and not 0 <= int(key) < len(container):
            continue
        if case.random.random() < 0.3:
            del container[key]
        else:
            container[key] = copy.deepcopy(case.random.choice(ODD))
    case.rewritten = True
    try:
        case.pack(tensors, config)
    except UnicodeEncodeError:
        case.files[CONFIG] = b"\xff"


def config_field_in_one_place(case: Case) -> None:
    config = json.loads(case.files[CONFIG])
    container, key = case.random.choice(fields_of(config))
    container[key] = copy.deepcopy(case.random.choice(ODD))
    case.files[CONFIG] = json.dumps(config).encode()


def tensor(case: Case) -> None:
    """Change, rename, remove or add a tensor; sometimes with its checksum."""
    tensors, config = case.unpacked()
    key = case.random.choice(sorted(tensors))
    what = case.random.randrange(6)
    if what == 0:
        tensors[key] = tensors[key] + case.random.choice((float("nan"), float("inf"), 1.0))
    elif what == 1:
        tensors[f"{key}x"] = tensors.pop(key)
    elif what == 2:
        del tensors[key]
    elif what == 3:
        tensors[f"{key}.more"] = torch.zeros(3)
    elif what == 4:
        tensors[key] = tensors[key].flatten().contiguous()
    else:
        tensors[key] = tensors[key].to(
            case.random.choice((torch.float16, torch.int64, torch.float8_e4m3fn, torch.bool))
        )
    if case.random.random() < 0.5:
        case.rewritten = True
        config["tensors"]["sha256"] = tensors_digest(tensors)
        config["tensors"]["number"] = len(tensors)
    case.pack(tensors, config)


MUTATIONS: tuple[Callable[[Case], None], ...] = (
    config_bytes,
    header_length,
    header_bytes,
    any_bytes,
    truncated,
    config_fields,
    config_field_in_one_place,
    tensor,
)


def content_of(folder: Path) -> str:
    """Everything that a folder's adapter is, as one checksum."""
    adapter = lowpeft.read_adapter(folder)
    config = json.dumps(adapter.config, sort_keys=True)
    return hashlib.sha256(f"{config} {tensors_digest(adapter.tensors)}".encode()).hexdigest()


def surprises(original: Path, folder: Path, numbers: range) -> list[str]:
    """Run cases; return what came of those that were neither refused in one way nor the same adapter."""
    base = network()
    before, right = copy.deepcopy(base.state_dict()), content_of(original)
    found = []
    for number in numbers:
        for left in folder.iterdir():
            left.unlink()
        case = Case(original, folder, number)
        name = f"case {number} ({case.mutate.__name__})"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                same = content_of(folder) == right
                if not same and not case.rewritten:
                    found.append(f"{name}: another adapter was accepted")
                lowpeft.restore(lowpeft.load_adapter(base, folder))
        except LowpeftError as error:
            if len(str(error)) > 20_000:
                found.append(f"{name}: a message of {len(str(error))} characters")
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a surprise)
            found.append(f"{name}: {type(error).__name__}: {error}")
        if any(not torch.equal(before[key], value) for key, value in base.state_dict().items()):
            found.append(f"{name}: the base was changed")
            base = network()
    return found


def test_a_damaged_adapter_is_refused_or_the_same(original: Path, tmp_path: Path) -> None:
    assert surprises(original, tmp_path, range(CASES)) == []


@pytest.mark.slow
def test_many_damaged_adapters_are_refused_or_the_same(original: Path, tmp_path: Path) -> None:
    assert surprises(original, tmp_path, range(CASES, CASES + MANY_CASES)) == []
