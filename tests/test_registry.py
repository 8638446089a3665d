"""The registry class, and what is registered through it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest

import lowpeft
from lowpeft import DataError, PlanError
from lowpeft.families import families, get_block, hat
from lowpeft.kinds import get_kind
from lowpeft.registry import Registry
from lowpeft.restoration.data.layouts import LAYOUTS
from lowpeft.restoration.metrics import PROTOCOLS
from unfamiliar import Plain

pytestmark = pytest.mark.usefixtures("registries")


@dataclass(frozen=True)
class Entry:
    name: str


def table(*names: str) -> Registry[Entry]:
    return Registry("thing", *map(Entry, names), error=DataError, advice=". See the docs")


def test_entries_are_found_in_their_order() -> None:
    things = table("b", "a")
    things.register(Entry("c"))
    assert list(things) == ["b", "a", "c"]
    assert things.find("a") is things["a"]
    assert "x" not in things


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        table("lora", "dora").find("lorra")
    assert str(caught.value) == "no thing 'lorra' (did you mean 'lora', 'dora'?); known: dora, lora. See the docs"


@pytest.mark.parametrize("names", [("c", "a"), ("c", "c")])
def test_all_entries_are_registered_or_none(names: tuple[str, ...]) -> None:
    things = table("a", "b")
    with pytest.raises(DataError, match=f"thing '{names[-1]}'"):
        things.register(*map(Entry, names))
    assert list(things) == ["a", "b"]


def test_an_entry_is_unregistered_once() -> None:
    things = table("a", "b")
    assert things.unregister("a") == Entry("a")
    with pytest.raises(DataError, match="no thing 'a'"):
        things.unregister("a")
    assert list(things) == ["b"]


def test_a_reader_is_not_disturbed_by_changes() -> None:
    things, stop = table("a", "b"), threading.Event()

    def change() -> None:
        while not stop.is_set():
            things.register(Entry("c"), Entry("d"))
            things.unregister("c")
            things.unregister("d")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = {tuple(things) for _ in range(3000)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {("a", "b"), ("a", "b", "c", "d"), ("a", "b", "d")}


def test_a_kind_is_taken_out_and_put_back() -> None:
    kind = lowpeft.unregister_adapter("lora")
    with pytest.raises(PlanError, match="no adapter kind 'lora'"):
        lowpeft.plan(Plain(), "lora")
    lowpeft.register_adapter(kind.config, kind.module)
    assert get_kind("lora") == kind


def test_a_family_goes_with_its_block_forwards() -> None:
    family = lowpeft.register_family(
        replace(hat.HAT, name="mine", places=(), blocks=(replace(hat.HAB, name="mine.block"),))
    )
    assert get_block("mine.block").name == "mine.block"
    assert lowpeft.unregister_family("mine") == family
    assert family not in families()
    with pytest.raises(PlanError, match=r"no block forward 'mine\.block'"):
        get_block("mine.block")


def test_a_family_whose_block_forward_is_taken_is_not_half_registered() -> None:
    with pytest.raises(PlanError, match=r"the block forward 'hat\.hab' is registered already"):
        lowpeft.register_family(replace(hat.HAT, name="mine"))
    assert "mine" not in [family.name for family in families()]


def test_a_recipe_is_found_by_its_name() -> None:
    recipe = lowpeft.register_recipe(lowpeft.Recipe(name="mine", adapters=(lowpeft.LoRAConfig(rank=2),)))
    assert lowpeft.load_recipe("mine") is recipe
    assert lowpeft.plan(Plain(), "mine").recipe == recipe
    with pytest.raises(PlanError, match="'lora'"):
        lowpeft.register_recipe(replace(recipe, name="lora"))
    lowpeft.unregister_recipe("mine")
    with pytest.raises(PlanError, match="no recipe 'mine'"):
        lowpeft.load_recipe("mine")


def test_protocols_and_layouts_are_such_tables() -> None:
    PROTOCOLS.register(replace(PROTOCOLS["literature"], name="mine"))
    LAYOUTS.register(replace(LAYOUTS["plain"], name="mine"))
    assert (PROTOCOLS.unregister("mine").name, LAYOUTS.unregister("mine").name) == ("mine", "mine")
