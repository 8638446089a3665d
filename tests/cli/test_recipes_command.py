"""`lowpeft recipes`: the table, one recipe in full, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lowpeft
from lowpeft.cli import main
from lowpeft.recipes import bundled, counts, load_recipe, overview


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["20", "100", "110", "300"])
def test_the_table_has_every_recipe_and_fits_a_terminal(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = printed(capsys).splitlines()
    assert {line.split(" ")[0] for line in lines} >= set(bundled())
    assert max(map(len, lines)) <= min(max(int(columns), 100), 120)


def test_the_table_shows_what_the_rows_say(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys).split())
    for row in overview():
        assert f"{'; '.join(row.where)}: {row.summary}{f' ({row.paper})' * bool(row.paper)}" in text
        shares = " ".join(str(row.shares.get(network, "–")) for network in counts()["networks"])
        answers = [{True: "yes", False: "no", None: "–"}[answer] for answer in (row.mergeable, row.needs_data)]
        assert f"{row.name} {', '.join(row.adapters) or '–'} {shares} {' '.join(answers)}" in text


def test_a_registered_recipe_is_in_the_table_without_a_share(
    registries: None, capsys: pytest.CaptureFixture[str]
) -> None:
    lowpeft.register_recipe(lowpeft.Recipe(name="mine", adapters=(lowpeft.LoRAConfig(rank=2),), summary="of my own"))
    text = printed(capsys)
    (line,) = (line for line in text.splitlines() if line.startswith("mine "))
    assert line.split()[-4:] == ["–", "–", "yes", "no"]
    assert "lowpeft plan RECIPE --weights FILE" in text
    assert printed(capsys, "mine").startswith("# where")


@pytest.mark.parametrize("name", bundled())
def test_a_recipe_in_full_is_a_file_to_start_from(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, name)
    (tmp_path / "mine.toml").write_text(text)
    assert load_recipe(tmp_path / "mine.toml") == load_recipe(name)
    assert f"lowpeft train {name} " in text
    assert printed(capsys, str(tmp_path / "mine.toml")).count("\nschema = 1\n") == 1


def test_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "--json"))["recipes"]
    assert [row["name"] for row in rows] == list(bundled())
    (row,) = json.loads(printed(capsys, "stereo", "--json"))["recipes"]
    assert row == next(each for each in rows if each["name"] == "stereo")
    assert (row["adapters"], row["mergeable"], row["views"]) == (["spatial", "stereo"], False, 2)


def test_an_unknown_recipe_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "steroe"]) == 2
    assert "did you mean 'stereo'" in capsys.readouterr().err
