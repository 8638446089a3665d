"""Tables of what the benchmarks of methods write, from made-up results."""

from __future__ import annotations

import method_figures


def test_a_layer_has_the_largest_of_our_figures_and_every_one_of_peft() -> None:
    rows = [
        {"kind": "lora", "layer": "conv", "lowpeft": 1e-7, "lowpeft, with gradients": 3e-7, "peft": 0.4},
        {"kind": "oft", "layer": "conv", "lowpeft": "refused: no", "peft": "TypeError: x"},
        {"kind": "dora", "layer": "conv", "lowpeft": 2e-7, "lowpeft, with gradients": 0.0, "peft": 2e-7},
        {"kind": "vera", "layer": "conv", "lowpeft": 0.0, "peft": "no effect"},
    ]
    ((layer, ours, *theirs),) = method_figures.merge_rows({"rows": rows})
    assert (layer, ours) == ("conv", "3e-07")
    found = dict(zip(method_figures.PEFT_KINDS, theirs, strict=True))
    assert (found["lora"], found["dora"], found["vera"]) == ("**0.40**", "2e-07", "**no effect**")
    assert found["oft"] == "refused or error"
    assert found["ia3"] == "–"
    assert len(method_figures.MERGE_HEAD) == 2 + len(theirs)


def test_a_trap_without_peft_has_a_dash() -> None:
    traps = [{"trap": "t", "lowpeft": 0.0}, {"trap": "u", "lowpeft": 1e-7, "peft": "ValueError: x"}]
    rows = method_figures.trap_rows({"traps": traps})
    assert rows == [["t", "0", "–"], ["u", "1e-07", "refused or error"]]


def test_a_recipe_has_its_losses_and_its_cost_where_that_was_measured() -> None:
    cell = {"trained": 1000, "file_bytes": 4000, "loss_first": 0.2, "loss_last": 0.1}
    cells = {"dctlsa/lora": cell, "dctlsa/lora/bf16": cell, "dctlsa/oft": cell, "dctlsa/vpt": {"refused": "no tokens"}}
    results = {"cells": cells}
    count = {"kept_bytes": 8}
    cost = {"cells": {"dctlsa/full fine-tuning/count": count, "dctlsa/lora/count": {"kept_bytes": 4}}}
    cost["cells"] |= {f"dctlsa/lora/train/{i}": {"ratio": 0.5 + i / 10} for i in range(3)}
    rows = method_figures.training_rows(results, cost)
    assert rows[0] == ["dctlsa", "`lora`", "1,000", "4", "0.2000", "0.1000", "finite", "0.60 (0.50–0.70)", "0.500"]
    assert rows[1][-3:] == ["–", "–", "–"]
    assert rows[2][:4] == ["dctlsa", "`vpt`", "refused", "–"]
    assert all(len(row) == len(method_figures.TRAINING_HEAD) for row in rows)
