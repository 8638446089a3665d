"""Measuring on whole scenes: figures, tables, files, pictures, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, DataError, LowpeftError
from lowpeft.cli import main
from lowpeft.demo import demo_backbone
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import (
    Outcome,
    Report,
    by_bicubic,
    by_network,
    compare,
    evaluate,
    measure,
    overview,
)
from lowpeft.restoration.evaluation.pictures import draw_scene
from lowpeft.restoration.images import bicubic_upscale, matlab_downscale, read_image, to_float, write_image
from lowpeft.restoration.inference import Tiling
from lowpeft.restoration.metrics import PROTOCOLS, psnr
from states import backbone_of, facts, randomise_adapters

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

SCALE = 2


def network() -> Backbone:
    return backbone_of(next(n for n in zoo.FAMILIES if n.name == "edsr"))


def view(seed: int, height: int = 40, width: int = 96) -> Tensor:
    """A smooth uint8 image, so that bicubic comes near it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 9, generator=generator)
    return (nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0] * 255).to(torch.uint8)


def example(name: str = "scene", views: int = 2, seed: int = 0) -> Example:
    hr = tuple(view(seed + i) for i in range(views))
    return Example(name, tuple(matlab_downscale(v, SCALE) for v in hr), hr)


# --- Figures
def test_every_scene_is_measured_by_every_column() -> None:
    scenes = [example("a"), example("b", seed=2)]
    found = measure(by_bicubic(SCALE), scenes, scale=SCALE)
    assert [row.scene for row in found.rows] == ["a", "b"]
    for row, scene in zip(found.rows, scenes, strict=True):
        sr = tuple(bicubic_upscale(v, SCALE) for v in scene.lr)
        wanted = [c.measure(sr, scene.hr, SCALE) for c in PROTOCOLS["literature"].columns]
        assert row.values == tuple(wanted)
    for i, mean in enumerate(found.means().values()):
        assert mean == pytest.approx((found.rows[0].values[i] + found.rows[1].values[i]) / 2)


def test_a_network_is_run_as_enhance_runs_it() -> None:
    backbone, scene = network(), example()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    tiling = Tiling(strip_px=8, context_px=8, align_px=8)
    options = {"ensemble": True, "tiling": tiling}
    results = lowpeft.enhance(model, *map(to_float, scene.lr), **options)
    found = evaluate(model, [scene], **options)
    assert found.means()["PSNR (L+R)/2"] == sum(map(psnr, results, scene.hr)) / 2
    assert found.means() != evaluate(model, [scene]).means()


def test_single_images_have_their_own_protocol() -> None:
    backbone, scene = network(), example(views=1)
    found = evaluate(backbone, [scene], protocol="single-image")
    sr = lowpeft.enhance(backbone, to_float(scene.lr[0]))
    assert found.means()["PSNR Y"] == psnr(sr, scene.hr[0], border_px=SCALE, channels="y")


@pytest.mark.parametrize(
    ("scale", "views", "wanted"), [(1, 1, "rgb"), (2, 1, "single-image"), (2, 2, "literature"), (1, 2, "literature")]
)
def test_the_usual_protocol_follows_from_scale_and_views(scale: int, views: int, wanted: str) -> None:
    scene = example(views=views)
    lr = tuple(matlab_downscale(view, scale) for view in scene.hr) if scale > 1 else scene.hr
    found = measure(lambda e: e.hr, iter([Example("a", lr, scene.hr)]), scale=scale)
    assert found.protocol is PROTOCOLS[wanted]


def test_a_protocol_is_given_by_its_name_or_as_it_is() -> None:
    reports = [
        measure(by_bicubic(SCALE), [example(views=1)], scale=SCALE, protocol=given)
        for given in ("derain", PROTOCOLS["derain"])
    ]
    assert reports[0] == reports[1]
    with pytest.raises(DataError, match="did you mean 'rgb'"):
        measure(by_bicubic(SCALE), [], scale=SCALE, protocol="rgbb")


def test_a_network_is_measured_under_a_name() -> None:
    found = evaluate(network(), iter([example(views=1)]), method="adapted")
    assert (found.method, found.protocol.name) == ("adapted", "single-image")


def test_an_example_shows_sizes_not_pixels() -> None:
    assert repr(example("a")) == "Example('a', lr=2 of 3x20x48 uint8, hr=2 of 3x40x96 uint8)"


def test_each_scene_is_shown_with_its_results_and_read_when_it_is_its_turn() -> None:
    seen: list[tuple[str, torch.Size]] = []
    read: list[str] = []

    def scenes() -> Iterator[Example]:
        for name in "ab":
            read.append(name)
            assert len(seen) == len(read) - 1
            yield example(name)

    measure(by_bicubic(SCALE), scenes(), scale=SCALE, seen=lambda e, results: seen.append((e.name, results[1].shape)))
    assert seen == [("a", (3, 40, 96)), ("b", (3, 40, 96))]


# --- Nothing is dropped
class Fails(nn.Module):
    """Raises at its second call."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.weight, self.error, self.calls = nn.Parameter(torch.ones(())), error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return (self.weight * x).repeat_interleave(2, -1).repeat_interleave(2, -2)


def run_failing(error: Exception) -> Report:
    return evaluate(facts(Fails(error)), [example("a"), example("b"), example("c")])


def test_a_scene_that_fails_fails_the_run() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run_failing(ZeroDivisionError("of the network"))
    assert error.value.__notes__ == ["while scene b was measured"]


def test_a_scene_that_does_not_fit_into_memory_fails_the_run_with_advice() -> None:
    with pytest.raises(LowpeftError, match=r"scene b: .*memory_mb"):
        run_failing(torch.OutOfMemoryError("of the device"))


def test_so_does_one_that_does_not_fit_into_the_memory_of_the_process() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(LowpeftError, match=r"scene b: .*memory_mb"):
        run_failing(error.value)
    with pytest.raises(LowpeftError, match=r"scene b: .*memory_mb"):
        run_failing(MemoryError())


def test_errors_of_lowpeft_keep_their_kind_and_get_the_scene() -> None:
    with pytest.raises(DataError, match="scene b: bad"):
        run_failing(DataError("bad"))


@pytest.mark.parametrize(
    ("scenes", "protocol", "message"),
    [
        ([], "literature", "no scenes"),
        (
            [example("a", views=1)],
            "literature",
            "scene a: .* 1 view, .*literature.* 2; .*protocol='single-image' or protocol='rgb' or protocol='derain'$",
        ),
        ([example("a")], "single-image", "scene a: .* 2 .*'single-image' .* 1"),
        ([example()], "litterature", "did you mean 'literature'"),
        ([example("a"), example("a", seed=2)], "literature", "two scenes are called a"),
    ],
)
def test_scenes_that_do_not_fit_the_protocol_are_refused(scenes: list[Example], protocol: str, message: str) -> None:
    backbone = network()
    with pytest.raises(DataError, match=message):
        evaluate(backbone, scenes, protocol=protocol)


def test_nan_is_no_image() -> None:
    nothing = tuple(torch.full((3, 40, 96), torch.nan) for _ in range(2))
    with pytest.raises(DataError, match=r"scene scene: .*NaN"):
        measure(lambda e: nothing, [example()], scale=SCALE)


# --- Tables
def report(method: str = "bicubic", names: str = "ab") -> Report:
    return measure(by_bicubic(SCALE), [example(n, seed=ord(n)) for n in names], scale=SCALE, method=method)


def test_the_table_has_a_row_for_each_scene_and_the_mean() -> None:
    lines = str(report()).splitlines()
    assert [line.split()[0] for line in lines] == ["bicubic", "a", "b", "mean"]
    assert lines[0].split()[1:] == ["PSNR", "Left", "SSIM", "Left", "PSNR", "(L+R)/2", "SSIM", "(L+R)/2"]
    assert len({len(line) for line in lines}) == 1
    assert report().as_markdown().splitlines()[1] == "| --- | ---: | ---: | ---: | ---: |"


def test_names_with_bars_make_no_columns() -> None:
    rows = report(names="|").as_markdown().splitlines()
    assert rows[2].startswith(r"| \| | ")
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6}


def test_the_dictionary_is_json_with_everything() -> None:
    found = report()
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["protocol"] == "literature"
    assert again["mean"] == found.means()
    assert tuple(again["scenes"]["b"].values()) == found.rows[1].values


def test_equal_images_are_told_apart_from_numbers_in_json() -> None:
    found = measure(lambda e: e.hr, [example()], scale=SCALE)
    assert found.as_dict()["mean"]["PSNR Left"] == "inf"
    assert "inf" in str(found)


def test_an_overview_is_of_one_set_and_protocol() -> None:
    lines = overview([report(), report("other")]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["mean of 2 scenes", "bicubic", "other"]
    assert overview([report(names="a")]).startswith("mean of 1 scene  ")
    with pytest.raises(DataError):
        overview([report(), report(names="ac")])


def test_files_hold_the_facts_and_every_table(tmp_path: Path) -> None:
    paths = Outcome(reports=[report(), report("other")], facts={"scale": SCALE}).write(tmp_path)
    content = json.loads(paths[0].read_text())
    assert [m["method"] for m in content["methods"]] == ["bicubic", "other"]
    assert content["scale"] == SCALE
    text = paths[1].read_text()
    assert text.startswith("- protocol: literature: uint8 RGB")
    assert text.count("| mean |") == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(DataError, match=str(tmp_path)):
        Outcome(reports=[report()]).write(tmp_path)


# --- Pictures
@pytest.mark.parametrize("errors", [True, False])
def test_a_picture_has_a_panel_for_each_method(tmp_path: Path, errors: bool) -> None:
    scene = example()
    sr = by_network(network())(scene)
    path = draw_scene(tmp_path / "deep" / "a.png", scene, {"ours": sr[0]}, scale=SCALE, errors=errors)
    panels = 4 if errors else 3
    assert read_image(path).shape[2] == panels * 240 + (panels + 1) * 12


def test_the_error_panel_is_black_where_the_image_is_right(tmp_path: Path) -> None:
    scene = example(views=1)
    path = draw_scene(tmp_path / "a.png", scene, {"perfect": scene.hr[0]}, scale=SCALE)
    assert read_image(path)[:, -180:-100, -100:-30].max() == 0


def test_images_smaller_than_the_patch_are_drawn(tmp_path: Path) -> None:
    hr = view(0, 20, 30)
    scene = Example("small", (matlab_downscale(hr, SCALE),), (hr,))
    draw_scene(tmp_path / "a.png", scene, {}, scale=SCALE)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=str(tmp_path / "file")):
        draw_scene(tmp_path / "file" / "a.png", scene, {}, scale=SCALE)
    with pytest.raises(DataError, match=r"a\.piksel"):
        draw_scene(tmp_path / "a.piksel", scene, {}, scale=SCALE)


# --- Against the frozen base
def test_a_comparison_has_the_figures_of_each_method() -> None:
    backbone, scenes = network(), [example("a"), example("b", seed=2)]
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    found = compare(model, scenes)
    adapted = evaluate(model, scenes).means()["PSNR (L+R)/2"]
    with lowpeft.disabled(model):
        frozen = evaluate(model, scenes).means()["PSNR (L+R)/2"]
    bicubic = measure(by_bicubic(SCALE), scenes, scale=SCALE).means()["PSNR (L+R)/2"]
    means = found.means_db()
    lines = str(found).splitlines()
    assert lines[0].split() == ["PSNR", "in", "dB", "bicubic", "frozen", "adapted", "same", "view"]
    assert lines[3].split() == ["mean", *(f"{value:.3f}" for value in means.values())]
    assert len({len(line) for line in lines[:4]}) == 1
    same = means.pop("same view")
    assert means == pytest.approx({"bicubic": bicubic, "frozen": frozen, "adapted": adapted}, abs=1e-9)
    assert same != means["adapted"]


# --- The command
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, an adapter of the demo network, and single images."""
    path = tmp_path_factory.mktemp("evaluate")
    for name in ("pairs", "single"):
        (path / name).mkdir()
    for name, seed in (("one", 0), ("two", 5)):
        for side, shift in (("L", 0), ("R", 3)):
            write_image(view(seed, 32, 80).roll(-shift, 2), path / "pairs" / f"{name}_{side}.png")
    write_image(view(9, 32, 48), path / "single" / "three.png")
    lowpeft.save_adapter(randomise_adapters(lowpeft.adapt(demo_backbone(), "stereo")), path / "adapter")
    return path


def test_bicubic_needs_no_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--bicubic", "--scale", "4", "--data", str(folder / "pairs")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["bicubic", "one", "two", "mean"]


def test_bicubic_alone_is_shown_too(folder: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--bicubic", "--scale", "4", "--data", str(folder / "pairs"), "--out", str(tmp_path)]
    assert main(command) == 0
    assert (tmp_path / "index.html").read_text().count('<figure class="slider">') == 4


def test_files_state_the_window_of_local_pools_also_where_it_is_the_usual_one(folder: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--weights", "demo", "--data", str(folder / "pairs"), "--device", "cpu"]
    assert main([*command, "--local-pooling", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["local_pooling"] == [48, 120]


def test_the_command_measures_prints_and_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--weights", "demo", "--adapter", str(folder / "adapter"), "--data", str(folder / "pairs")]
    command += ["--bicubic", "--protocol", "asteisr", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, "--local-pooling", "16", "24", "--no-other-view"]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 scenes" in printed
    content = json.loads((tmp_path / "report.json").read_text())
    assert [m["method"] for m in content["methods"]] == ["bicubic", "frozen", "adapted"]
    assert content["local_pooling"] == [16, 24]
    assert ("the other view" in content, "the other view" in printed) == (False, False)
    assert content["LR images"] == "made by MATLAB's bicubic, symmetric border"
    assert 'alt="attended disparity"' in (tmp_path / "index.html").read_text()
    model = lowpeft.load_adapter(demo_backbone(), folder / "adapter")
    hr = tuple(read_image(folder / "pairs" / f"one_{side}.png") for side in "LR")
    scene = Example("one", tuple(matlab_downscale(v, 2) for v in hr), hr)
    with lowpeft.restoration.inference.local_pooling(model, (16, 24)):
        wanted = evaluate(model, [scene], protocol="asteisr").means()
    assert content["methods"][2]["scenes"]["one"] == pytest.approx(wanted, abs=1e-3)


def test_single_images_are_measured_by_the_frozen_network_and_by_an_ensemble(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--weights", "demo", "--data", str(folder / "single"), "--protocol", "single-image"]
    figures = []
    for more in ([], ["--ensemble"]):
        assert main([*command, "--device", "cpu", *more]) == 0
        figures.append(capsys.readouterr().out.splitlines()[-1].split()[1:])
    assert figures[0] != figures[1]


def bad_inputs() -> list[tuple[list[str], str]]:
    demo = ["--weights", "demo", "--data", "{folder}/pairs", "--device", "cpu"]
    return [
        (["--data", "{folder}/pairs"], "give --weights or --network, or --bicubic with --scale"),
        (["--data", "{folder}/pairs", "--bicubic"], "give --weights or --network, or --bicubic with --scale"),
        (["--data", "{folder}/pairs", "--bicubic", "--scale", "4", "--ensemble"], "--ensemble"),
        (["--data", "{folder}/pairs", "--bicubic", "--scale", "4", "--local-pooling"], "--local-pooling"),
        ([*demo, "--revision", "main"], "--revision"),
        ([*demo, "--force"], "--force"),
        ([*demo, "--allow-half"], "--allow-half"),
        (["--data", "{folder}/pairs", "--bicubic", "--raw-weights"], "--raw-weights"),
        (["--data", "{folder}/nothing", "--bicubic", "--scale", "4"], "nothing"),
        ([*demo, "--scale", "4"], "x2 network"),
        ([*demo, "--protocol", "Literature"], "did you mean 'literature'"),
        ([*demo, "--memory-mb", "1"], "scene one: --memory-mb 1"),
        ([*demo, "--memory-mb", "-1"], "--memory-mb must"),
        ([*demo, "--local-pooling", "1", "2", "3"], "3"),
        ([*demo, "--local-pooling", "0"], "0x0 px"),
        ([*demo, "--out", "{folder}/adapter/README.md/x"], "README.md/x"),
        ([*demo, "--adapter", "{folder}/pairs"], "pairs"),
        (["--weights", "demo", "--data", "{folder}/single"], "single"),
    ]


@pytest.fixture
def without_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the remark on strips, which takes seconds to find; other tests have it."""
    for place in ("lowpeft.cli.common", "lowpeft.restoration.enhancing.room"):
        monkeypatch.setattr(f"{place}.strips_remark", lambda model: "")


@pytest.mark.usefixtures("without_remark")
@pytest.mark.parametrize(("arguments", "word"), bad_inputs())
def test_bad_input_exits_with_2_and_says_why(
    arguments: list[str], word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *(a.replace("{folder}", str(folder)) for a in arguments)]) == 2
    message = capsys.readouterr().err
    assert "lowpeft evaluate: " in message
    assert word in message
    assert "Traceback" not in message


def test_enhance_takes_an_ensemble_and_a_bound(folder: Path, tmp_path: Path) -> None:
    views = []
    for side in "LR":
        path = tmp_path / f"{side}.png"
        write_image(matlab_downscale(read_image(folder / "pairs" / f"one_{side}.png"), 2), path)
        views.append(str(path))
    command = ["enhance", *views, "--weights", "demo", "--adapter", str(folder / "adapter"), "--device", "cpu"]
    images = []
    for name, more in (("plain", []), ("ensemble", ["--ensemble"]), ("bound", ["--memory-mb", "2000"])):
        assert main([*command, "--out", str(tmp_path / name), *more]) == 0
        images.append(read_image(tmp_path / name / "L_x2.png"))
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.usefixtures("without_remark")
def test_enhance_gives_advice_where_memory_is_short(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("of the device")

    monkeypatch.setattr("lowpeft.restoration.enhancing.running.enhance_views", fails)
    views = [str(folder / "pairs" / f"one_{side}.png") for side in "LR"]
    command = ["enhance", *views, "--weights", "demo", "--adapter", str(folder / "adapter"), "--out", str(tmp_path)]
    assert main([*command, "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert ("one_L.png" in message, "--memory-mb" in message) == (True, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "{folder}/single"], "single images: give --protocol single-image"),
        (
            ["--data", "{folder}/pairs", "--adapter", "{folder}/adapter", "--protocol", "rgb"],
            "takes 2 views of a scene",
        ),
    ],
)
def test_the_protocol_that_fits_is_named(
    more: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.replace("{folder}", str(folder)) for argument in more]
    assert main(["evaluate", "--weights", "demo", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err
