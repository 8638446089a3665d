"""What was measured of methods: merging, short trainings, and one budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import same_budget_figures
from method_figures import MERGE_HEAD, TRAINING_HEAD, merge_rows, training_rows, trap_rows

from .base import measured_table, results_of, table


def merge_parity(results: Any) -> str:
    """Merged against unmerged outputs of every layer, and the traps."""
    head = ["trap", "lowpeft", "peft"]
    return f"{table(MERGE_HEAD, merge_rows(results))}\n\n{table(head, trap_rows(results))}"


def hundred_steps(results: Any) -> str:
    """What every recipe for single images gives in a hundred steps, and what it costs."""
    return table(TRAINING_HEAD, training_rows(results, results_of("cost")))


def denoiser(results: Any) -> str:
    """What adapters and full fine-tuning give on Kodak24, from networks that were trained on noise of sigma 15."""
    titles = {"base": "NAFNet", "own": "own network"}
    tasks = {"noise-25": "noise, sigma 25", "jpeg-30": "JPEG, quality 30"}
    rows = []
    for (base, title), (task, words) in itertools.product(titles.items(), tasks.items()):
        cells = {method: results["cells"].get(f"{base}/{task}/{method}") for method in ("lora", "full")}
        if not all(cells.values()):
            continue
        lora, full = (cells[method]["psnr_db"] for method in ("lora", "full"))
        share = int(cells["lora"]["trained parameters"]) / int(cells["full"]["trained parameters"])
        figures = (lora["input"], lora["frozen"], lora["adapted"], full["adapted"])
        steps = cells["lora"]["training"].split()[0]
        rows.append([title, words, steps, *(f"{figure:.2f}" for figure in figures), f"{100 * share:.0f} %"])
    head = ["network", "task", "steps", "input", "frozen", "LoRA", "full", "parameters of LoRA, of full"]
    return table(["PSNR in dB" if name == "network" else name for name in head], rows)


SAME_BUDGET = ("dctlsa", "2%")
"""Network and budget of the table of methods in the documentation."""


def same_budget(task: str) -> Callable[[Any], str]:
    """Methods at one budget of trained parameters, and which of them these runs do not tell apart."""

    def section(results: Any) -> str:
        rows = measured_table(same_budget_figures.HEAD, same_budget_figures.task_rows(results, *SAME_BUDGET, task))
        return f"{rows}\n\n{same_budget_figures.unresolved(results, *SAME_BUDGET, task)}"

    return section


def same_budget_rates(results: Any) -> str:
    """The learning rates that were best on the new task, and what others lose."""
    tasks = [same_budget_figures.NEW]
    return measured_table(["row", *tasks], same_budget_figures.rate_rows(results, *SAME_BUDGET, tasks))


def same_budget_cost(results: Any) -> str:
    """What the methods cost at one budget."""
    return measured_table(same_budget_figures.COST_HEAD, same_budget_figures.cost_rows(results, *SAME_BUDGET))


def same_budget_forgetting(results: Any) -> str:
    """What a network gives on its old task after it was trained on the new one."""
    rows = same_budget_figures.forgetting_rows(results, *SAME_BUDGET)
    return measured_table(same_budget_figures.FORGETTING_HEAD, rows)
