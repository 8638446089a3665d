"""What must hold for an adapted network: one function for each rule, which raises `Wrong` where it does not.

`NEW` are for adapters as `adapt` made them, `USED` for adapters with random values. The last of them, `restores`, takes
the adapters out.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowpeft
from networks_case import (
    STD,
    Case,
    Limit,
    State,
    Views,
    Wrong,
    base_gradients,
    pieces,
    projection,
    randomise,
    same_tensors,
    same_views,
    use,
)
from networks_rows import Size

MERGED = 1e-5
"""How far a merged network may be from the adapted one, relative to the largest value."""


# --- adapters as they are made


@torch.no_grad()
def identity(case: Case) -> None:
    """A new adapted network is the base bit for bit, at every size that the base takes."""
    refused = []
    for px in case.sizes:
        images = case.row.images(2 * case.views, px)
        try:
            found = case.outputs(images)
        except lowpeft.LowpeftError as error:
            if px == case.row.px:
                raise Wrong(f"cannot be run: {error.message[:160]}") from error
            refused.append(f"{px[0]}x{px[1]}")
            continue
        same_views(found, case.expected(images), f"at {px[0]}x{px[1]}")
    case.sizes[:] = [px for px in case.sizes if f"{px[0]}x{px[1]}" not in refused]
    if refused:
        raise Limit(f"refuses sizes that the base takes: {', '.join(refused)}")


@torch.no_grad()
def views_apart(case: Case) -> None:
    """Before training, no view depends on another, and no scene on another scene."""
    if case.views == 1:
        return
    images = case.row.images(2 * case.views)
    other = images.clone()
    other[1:] = case.row.images(2 * case.views, seed=4)[1:]
    before, after = case.outputs(images)[0], case.outputs(other)[0]
    for one, two in zip(before, after, strict=True):
        if not same_tensors(one[:1], two[:1]):
            raise Wrong(f"the first view depends on other images by {(one[:1] - two[:1]).abs().max():.2g}")


# --- adapters that do something


@torch.no_grad()
def views_meet(case: Case) -> None:
    """Each view depends on the other one of its scene."""
    if case.views == 1:
        return
    images = case.row.images(case.views)
    for i in range(case.views):
        other = images.clone()
        other[i] = images[i].flip(-1)
        before, after = case.outputs(images), case.outputs(other)
        same = [j for j in range(case.views) if j != i and all(map(torch.equal, before[j], after[j]))]
        if same:
            raise Wrong(f"view {same[0]} does not depend on view {i}")


@torch.no_grad()
def moved(case: Case) -> None:
    """Of every kind of adapter by itself: one picture as every view of every scene is changed in each of them, or in
    none of an output's tensors."""
    images = case.row.images(1).repeat(2 * case.views, 1, 1, 1)
    if case.row.pair:
        images = images[:, : images.shape[1] // 2].repeat(1, 2, 1, 1)
    wanted = case.expected(images)
    std = use(case)
    try:
        for kind in sorted({piece.kind for _, piece in pieces(case.model)}):
            randomise(case.model, std, kind=kind)
            changed = _changes(case, case.outputs(images), wanted)
            if not any(any(c) for c in changed):
                raise Wrong(f"{kind} adapters change nothing")
            for flags in changed:
                if any(flags) and not all(flags):
                    raise Wrong(f"{kind} adapters change {sum(flags)} of {len(flags)} equal images")
    finally:
        randomise(case.model, std)


def _changes(case: Case, found: Views, wanted: Views) -> list[list[bool]]:
    """Of every tensor of the output, which images (halves of images for pairs) differ."""
    table = []
    for tensors in zip(*found, strict=True):
        index = len(table)
        flags = []
        for i, tensor in enumerate(tensors):
            difference = (tensor != wanted[i][index]).reshape(len(tensor), -1)
            flags += [bool(part.any()) for row in difference for part in row.chunk(2 if case.row.pair else 1)]
        table.append(flags)
    return table


def rows(case: Case) -> None:
    """What a stereo adapter adds at an image row depends on the same row of its scene's views and on nothing else.

    Which positions of the features are a row is told from their shape and that of the images alone; where both of two
    answers fit (16 channels of 16x16), as at the other sizes.
    """
    images = 2 * case.views
    seen = [(px, *what) for px in case.sizes for what in seen_by_stereo(case, px)]
    shapes = [(px, path, tuple(features.values.shape)) for px, path, _, features in seen]
    first = {path: found for px, path, shape in shapes if (found := channels_first(shape, images, px)) is not None}
    blind = []
    for px, path, piece, features in seen:
        grid = grid_of(tuple(features.values.shape), images, px, first.get(path))
        where = f"{path} at {px[0]}x{px[1]}"
        if grid is None:
            blind.append(f"{where}: no rows in {tuple(features.values.shape)}")
        else:
            _one_row(piece, features, grid, where)
    if blind:
        raise Limit(f"{len(blind)} of {len(seen)} not tried, {blind[0]}")


def seen_by_stereo(case: Case, px: Size) -> list[tuple[str, nn.Module, Any]]:
    """The features that reach every stereo adapter while two scenes go through."""
    found, adapters = [], [(path, p) for path, p in pieces(case.model) if p.kind == "stereo"]

    def watch(path: str, piece: Any) -> Callable[[Any], Tensor]:
        original = piece.delta

        def delta(features: Any) -> Tensor:
            found.append((path, piece, features))
            return original(features)

        return delta

    for path, piece in adapters:
        piece.__dict__["delta"] = watch(path, piece)
    try:
        with torch.no_grad():
            case.outputs(case.row.images(2 * case.views, px))
    finally:
        for _, piece in adapters:
            piece.__dict__.pop("delta", None)
    return found


def channels_first(shape: tuple[int, ...], images: int, px: Size) -> bool | None:
    """Whether features of four dimensions are N,C,H,W, or N,H,W,C; None where it cannot be told from the shape."""
    if len(shape) != 4 or shape[0] != images:
        return None
    first, last = shape[2] * px[1] == shape[3] * px[0], shape[1] * px[1] == shape[2] * px[0]
    return first if first != last else None


def grid_of(
    shape: tuple[int, ...], images: int, px: Size, first: bool | None = None
) -> Callable[[Tensor], Tensor] | None:
    """How features of that shape become (N,H,W,C); None where it cannot be told from the shape.

    `first` says whether channels come first where four dimensions do not say it.
    """
    if len(shape) == 4 and shape[0] == images:
        told = channels_first(shape, images, px)
        first = first if told is None else told
        return None if first is None else (lambda t: t.permute(0, 2, 3, 1)) if first else lambda t: t
    if len(shape) == 3 and images in shape[:2]:
        batch = 0 if shape[0] == images else 1
        tokens = shape[1 - batch]
        wide = [w for w in range(1, tokens + 1) if tokens % w == 0 and (tokens // w) * px[1] == w * px[0]]
        if wide:
            return lambda t: t.transpose(0, batch).unflatten(1, (-1, wide[0]))
    return None


def _one_row(piece: Any, features: Any, grid: Callable[[Tensor], Tensor], where: str) -> None:
    values = features.values.detach().clone().requires_grad_()
    given = type(features)(values, features.layout, features.size, features.views)
    delta = grid(piece.delta(given))
    weights = torch.randn(delta.shape[-1], generator=torch.Generator().manual_seed(2))
    for image in range(features.views):
        for row in {0, delta.shape[1] // 2, delta.shape[1] - 1}:
            (found,) = torch.autograd.grad((delta[image, row] * weights).sum(), values, retain_graph=True)
            depends = grid(found).abs().amax((2, 3)) > 0  # (N, H)
            scene = depends[: features.views]
            if depends[features.views :].any():
                raise Wrong(f"{where}: view {image} depends on another scene")
            others = scene.any(0).nonzero().flatten().tolist()
            if [r for r in others if r != row]:
                raise Wrong(f"{where}: row {row} of view {image} depends on rows {others[:6]}")
            if not all(bool(v[row]) for i, v in enumerate(scene) if i != image):
                raise Wrong(f"{where}: row {row} of view {image} does not depend on that row of the other view")


def gradients(case: Case) -> None:
    """Every adapter tensor gets a finite gradient that is not zero with one of the spreads of random values, or as the
    base is, unless the base's layer there gets none either."""
    dead: dict[int, tuple[str, Any, str]] = {}
    try:
        for std in (*STD, 0.0):  # random values may close a ReLU behind which nothing is trained
            randomise(case.model, std)
            found = _without_gradient(case)
            dead = {key: dead.get(key, what) for key, what in found.items() if key in dead or std == STD[0]}
            if not dead:
                return
    finally:
        use(case)
    live = base_gradients(case, [(path, piece) for path, piece, _ in dead.values()])
    wrong = [f"{path} ({piece.kind} {name})" for path, piece, name in dead.values() if id(piece) in live]
    if wrong:
        raise Wrong(f"{len(wrong)} tensors get no gradient: {', '.join(wrong[:3])}")


def _without_gradient(case: Case) -> dict[int, tuple[str, Any, str]]:
    """The adapter tensors that a backward pass leaves without a gradient."""
    _backward(case, case.model.train())
    case.model.eval()
    dead = {}
    for path, piece in pieces(case.model):
        for name, parameter in piece.named_parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and not gradient.isfinite().all():
                raise Wrong(f"{path}: the gradient of {piece.kind} {name} is not finite")
            if name not in piece.zero_gradients and (gradient is None or not gradient.any()):
                dead[id(parameter)] = (path, piece, name)
    return dead


def _backward(case: Case, model: nn.Module) -> None:
    found = case.outputs(case.row.images(2 * case.views), model)
    projection([t for view in found for t in view]).backward()


def base_kept(case: Case) -> None:
    """A step of training writes no tensor of the base."""
    parameters = [p for _, piece in pieces(case.model) for p in piece.parameters()]
    kept = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    _backward(case, case.model.train())
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    case.model.eval()
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    if difference := case.before.differs(State.of(case.network), structure=False):
        raise Wrong(difference)


@torch.no_grad()
def copies(case: Case) -> None:
    """A deep copy computes the same."""
    images = case.row.images(2 * case.views)
    same_views(case.outputs(images, copy.deepcopy(case.model)), case.outputs(images), "the copy")


@torch.no_grad()
def saves(case: Case) -> None:
    """A saved adapter on a fresh network computes the same."""
    images = case.row.images(2 * case.views)
    with tempfile.TemporaryDirectory() as folder:
        lowpeft.save_adapter(case.model, Path(folder))
        loaded = lowpeft.load_adapter(case.fresh(), Path(folder))
    same_views(case.outputs(images, loaded.eval()), case.outputs(images), "the loaded one")


@torch.no_grad()
def merges(case: Case) -> None:
    """A merged network computes the same up to rounding, and its flags stay."""
    if not all(isinstance(piece, lowpeft.WeightAdapter) for _, piece in pieces(case.model)):
        return
    images = case.row.images(2)
    merged = copy.deepcopy(case.model).eval()
    before, flags = case.outputs(images, merged), State.of(merged).flags
    try:
        lowpeft.merge(merged)
    except lowpeft.LowpeftError as error:
        raise Limit(f"refused: {error.message[:120]}") from error
    changed = [n for n, on in State.of(merged).flags.items() if n.endswith("training") and on != flags[n]]
    pairs = list(zip(before[0], case.outputs(images, merged)[0], strict=True))
    far = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    if far > MERGED:
        raise Wrong(f"differs by {far:.2g} of the largest value")
    if changed:
        raise Wrong(f"the training flag of {len(changed)} modules changed")


def restores(case: Case) -> None:
    """`restore` gives back the very object, with its weights, buffers, classes and flags."""
    if lowpeft.restore(case.model) is not case.network:
        raise Wrong("restore gave another object")
    if difference := case.before.differs(State.of(case.network)):
        raise Wrong(difference)


NEW: tuple[Callable[[Case], None], ...] = (identity, views_apart)
USED: tuple[Callable[[Case], None], ...] = (
    views_meet,
    moved,
    rows,
    gradients,
    base_kept,
    copies,
    saves,
    merges,
    restores,
)
