"""Adapter folders that were damaged or forged, read by lowpeft and by peft: refused, loaded, or something else.

    python benchmarks/attacks.py --out benchmarks/results/attacks.json

The same LoRA of the same small network is saved by each library, and the files are changed in the same way, with the
checksums that a library keeps unless an attack says so. Each attack runs in a process of its own. Outcomes: `refused`
(an exception; its types are listed), `same` (loaded, and the network computes what it should), `other` (loaded without
a warning, and it computes something else), `warned` (the same with a warning), `slow` (over 5 s). Also counted: cases
that changed the base, and the largest growth of the process's memory. `killed saves` kills a process that saves over
and over; every adapter that is left must be whole. Needs peft; four minutes on one core.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lowpeft
from common import options_of, peak_memory_bytes, provenance, write

LIBRARIES = ("lowpeft", "peft")
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CASES, KILLS, SLOW_S = 25, 100, 5
RANK = 2
ODD = (None, True, -1, 0, 10**30, 1e308, "", "x", "../..", [], [[]], {})

Tensors, Config = dict[str, Tensor], dict[str, Any]


def network(seed: int = 0, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1)).eval()


def save(library: str, folder: Path, value: float = 0.1) -> None:
    """Save a LoRA of both convolutions whose values are all the same."""
    if library == "lowpeft":
        model = lowpeft.adapt(network(), lowpeft.LoRAConfig(target="**", rank=RANK))
    else:
        import peft

        model = peft.get_peft_model(network(), peft.LoraConfig(r=RANK, target_modules=["0", "2"]))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in parameters_of(library, model):
            parameter.fill_(value)
    if library == "lowpeft":
        lowpeft.save_adapter(model, folder, facts={"value": value})
    else:
        model.save_pretrained(folder)


def load(library: str, base: nn.Module, folder: Path) -> nn.Module:
    if library == "lowpeft":
        return lowpeft.load_adapter(base, folder)
    import peft

    return peft.PeftModel.from_pretrained(base, folder).eval()  # type: ignore[arg-type]


# --- What is done to the files
def bytes_of(name: str, start: int, stop: int | None) -> Callable[[Path, random.Random], None]:
    def attack(folder: Path, draw: random.Random) -> None:
        data = bytearray((folder / name).read_bytes())
        at = draw.randrange(start if start >= 0 else len(data) + start, min(stop or len(data), len(data)))
        data[at] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)

    return attack


def truncated(folder: Path, draw: random.Random) -> None:
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[: draw.randrange(len(data))])


def rewritten(change: Callable[[Tensors, Config, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """An attack on tensors and config by somebody who writes valid files, and copies the config where it belongs."""

    def attack(folder: Path, draw: random.Random) -> None:
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            metadata = file.metadata() or {}
        config = json.loads((folder / CONFIG).read_text())
        change(tensors, config, draw)
        text = json.dumps(config)
        save_file(tensors, folder / TENSORS, {**metadata, **({"lowpeft": text} if "lowpeft" in metadata else {})})
        (folder / CONFIG).write_text(text)

    return attack


def key_of(tensors: Tensors, draw: random.Random) -> str:
    return draw.choice(sorted(tensors))


def not_a_number(tensors: Tensors, config: Config, draw: random.Random) -> None:
    tensors[key_of(tensors, draw)].view(-1)[0] = float("nan")


def renamed(tensors: Tensors, config: Config, draw: random.Random) -> None:
    key = key_of(tensors, draw)
    tensors[f"{key}x"] = tensors.pop(key)


def removed(tensors: Tensors, config: Config, draw: random.Random) -> None:
    del tensors[key_of(tensors, draw)]


def added(tensors: Tensors, config: Config, draw: random.Random) -> None:
    tensors["another.tensor"] = torch.zeros(3)


def reshaped(tensors: Tensors, config: Config, draw: random.Random) -> None:
    key = key_of(tensors, draw)
    tensors[key] = tensors[key].flatten()


def halved(tensors: Tensors, config: Config, draw: random.Random) -> None:
    for key in tensors:
        tensors[key] = tensors[key].half()


def changed(tensors: Tensors, config: Config, draw: random.Random) -> None:
    tensors[key_of(tensors, draw)].view(-1)[0] += 1


def containers(value: object) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in [*items]:
        yield value, key
        yield from containers(each)


def field_replaced(tensors: Tensors, config: Config, draw: random.Random) -> None:
    container, key = draw.choice([*containers(config)])
    container[key] = draw.choice(ODD)


def huge_rank(tensors: Tensors, config: Config, draw: random.Random) -> None:
    if "r" in config:
        config["r"] = 10**9
        return
    config["recipe"]["adapter"][0]["rank"] = 10**9
    for group in config["sites"]:
        group["adapter"]["rank"] = 10**9


def many_tensors(tensors: Tensors, config: Config, draw: random.Random) -> None:
    tensors.update({f"t{number}": torch.zeros(1) for number in range(150_000)})


def nested(folder: Path, draw: random.Random) -> None:
    (folder / CONFIG).write_text("[" * 100_000)


def header_length(folder: Path, draw: random.Random) -> None:
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(draw.choice((2**40, 2**63 - 1, 10**8, 0)).to_bytes(8, "little") + data[8:])


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["PAYLOAD"],)


def pickled(folder: Path, draw: random.Random) -> None:
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": Payload()}))


def nothing(folder: Path, draw: random.Random) -> None:
    """The files are right; the network is another one."""


ATTACKS: dict[str, tuple[Callable[[Path, random.Random], None], int]] = {
    "one bit of a tensor": (bytes_of(TENSORS, -200, None), CASES),
    "one bit of the header": (bytes_of(TENSORS, 8, 300), CASES),
    "one bit of the config": (bytes_of(CONFIG, 0, None), CASES),
    "file cut off": (truncated, CASES),
    "a value of a tensor": (rewritten(changed), CASES),
    "NaN in a tensor": (rewritten(not_a_number), CASES),
    "tensor renamed": (rewritten(renamed), CASES),
    "tensor removed": (rewritten(removed), CASES),
    "tensor added": (rewritten(added), 1),
    "tensor of another shape": (rewritten(reshaped), CASES),
    "tensors in half precision": (rewritten(halved), 1),
    "config field replaced": (rewritten(field_replaced), 4 * CASES),
    "rank of 10^9": (rewritten(huge_rank), 1),
    "150,000 tensors more": (rewritten(many_tensors), 1),
    "config nested 100,000 deep": (nested, 1),
    "length of the header": (header_length, 4),
    "pickle with a payload": (pickled, 1),
    "other weights of the base": (nothing, 1),
    "another network": (nothing, 1),
}
BASES: dict[str, Callable[[], nn.Module]] = {
    "other weights of the base": lambda: network(seed=1),
    "another network": lambda: nn.Sequential(*network(), nn.Conv2d(3, 3, 1)).eval(),
}


# --- One library and one attack, in a process of their own
def run_attack(library: str, attack: str) -> dict[str, Any]:
    function, cases = ATTACKS[attack]
    image, outcomes, errors = torch.rand(1, 3, 8, 8), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        right = Path(temporary) / "right"
        save(library, right)
        os.environ["PAYLOAD"] = str(Path(temporary) / "ran")
        with torch.no_grad():
            wanted = load(library, network(), right)(image)
        slowest, base_changed, before = 0.0, 0, peak_memory_bytes()
        for number in range(cases):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            for file in right.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            function(folder, random.Random(f"{attack} {number}"))
            base = BASES.get(attack, network)()
            state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
            own = {key.replace("base_layer.", ""): key for key in state}
            begun = time.monotonic()
            outcome, error = outcome_of(library, base, folder, image, wanted)
            seconds = time.monotonic() - begun
            slowest = max(slowest, seconds)
            outcomes["slow" if seconds > SLOW_S else outcome] += 1
            errors.update([error] * bool(error))
            after = {name.replace("base_layer.", ""): tensor for name, tensor in base.state_dict().items()}
            base_changed += any(not torch.equal(state[own[key]], after[key]) for key in own)
        grown = peak_memory_bytes() - before
        ran = Path(os.environ["PAYLOAD"]).exists()
    return {
        "cases": cases,
        **outcomes,
        "errors": dict(errors.most_common()),
        "base changed": base_changed,
        "payload ran": ran,
        "slowest_s": round(slowest, 2),
        "grown_mb": round(grown / 2**20),
    }


def outcome_of(library: str, base: nn.Module, folder: Path, image: Tensor, wanted: Tensor) -> tuple[str, str]:
    """What came of one case, and the type of its exception."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with torch.no_grad(), contextlib.redirect_stderr(None):
                found = load(library, base, folder)(image)
        except Exception as error:  # noqa: BLE001  (counted)
            return "refused", type(error).__name__
    if torch.equal(found, wanted):
        return "same", ""
    return ("warned" if said else "other"), ""


def parameters_of(library: str, model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the adapter."""
    if library == "lowpeft":
        return [parameter for _, parameter in lowpeft.adapter_parameters(model)]
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


def is_whole(library: str, folder: Path) -> bool:
    """Return whether an adapter loads whose values are all the same."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(None):
            warnings.simplefilter("error")  # peft warns of missing tensors
            model = load(library, network(), folder)
    except Exception:  # noqa: BLE001  (it is not whole)
        return False
    return len({value for parameter in parameters_of(library, model) for value in parameter.flatten().tolist()}) == 1


def killed_saves(library: str) -> dict[str, Any]:
    """Kill a process that saves over and over; count the adapters that are left whole."""
    draw, whole = random.Random(library), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        save(library, folder, 1.0)
        for _ in range(KILLS):
            pid = os.fork()
            if not pid:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                value = 1.0
                while True:
                    value = value % 100 + 1
                    save(library, folder, value)
            time.sleep(draw.uniform(0.02, 0.2))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if is_whole(library, folder):
                whole += 1
            else:
                save(library, folder, 1.0)
    return {"kills": KILLS, "whole": whole}


def measured(library: str, what: str) -> dict[str, Any]:
    """Run one attack in a new process."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", library, what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        return {"process ended": error.returncode}
    except subprocess.TimeoutExpired:
        return {"process ended": "not within 300 s"}


KILLED = "killed saves"


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--one", nargs=2, help="run one attack here: library and attack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        library, what = options.one
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        print(json.dumps(killed_saves(library) if what == KILLED else run_attack(library, what)))
        return
    rows = {what: {library: measured(library, what) for library in LIBRARIES} for what in [*ATTACKS, KILLED]}
    command = "python benchmarks/attacks.py --out benchmarks/results/attacks.json"
    write({**provenance(command, "peft", "safetensors"), "attacks": rows}, options.out)


if __name__ == "__main__":
    main()
