"""Words by which folders and files say that their images are clean (HR) or degraded (LR).

All are read in any case. In a folder's name they stand at the end (`train_blur`, `DIV2K_train_LR_bicubic`); in a file's
name they stand anywhere between characters that are not letters (`norain-001`, `0001_GT_010`, `low00001`). After
`no`, `not`, `non`, `un` or `without` they say nothing (`not_blurred`), nor do they in folders of results
(`denoised_input`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

Role = Literal["clean", "degraded"]

CLEAN = (
    *("HR", "GT", "target", "targets", "groundtruth", "ground_truth", "high", "highres", "high_res", "sharp", "clean"),
    *("clear", "norain", "no_rain", "nohaze", "no_haze"),
)
DEGRADED = (
    *("LR", "LQ", "input", "inputs", "low", "lowres", "low_res", "lowlight", "low_light", "realLR", "blur", "blurry"),
    *("blurred", "noise", "noisy", "rain", "rainy", "haze", "hazy", "foggy", "snow", "snowy", "dark", "degraded"),
    *("distorted", "compressed", "jpeg", "bicubic", "bic"),
)
NO_ROLE = ("normal", "original", "originals", "reference")
"""Words of clean images that mean other things as often, e.g. maps of normals: names may differ in them, in two folders
whose roles are known, and they say nothing else."""
LOW_AND_NORMAL = (re.compile("(?i)low"), re.compile("(?i)normal"))
"""Names of the folders of degraded and clean images in LOL v2. `Normal` says nothing unless `Low` lies beside it."""
RESULTS = (
    *("denoised", "deblurred", "derained", "dehazed", "desnowed", "restored", "enhanced", "recovered", "reconstructed"),
    *("output", "outputs", "result", "results", "predicted", "prediction", "predictions"),
)
"""Words of folders with what a method made: neither clean nor degraded images, whatever else the name says."""


def _any_of(words: Collection[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_PART = r"(?:[_-](?:sub|patch|patches|crops?))?"
_DENIED = "".join(rf"(?<!(?<![a-z]){word}[^a-z])" for word in ("no", "not", "non", "un", "without"))
_NO_RESULT = rf"(?!.*(?<![a-z])(?:{_any_of(RESULTS)})(?![a-z]))"
CLEAN_FOLDER = rf"(?i:{_NO_RESULT}(?:.*[_ -])?{_DENIED}(?:{_any_of(CLEAN)})(?:mod\d+)?{_PART})"
"""Regular expression of the names of folders of clean images."""
DEGRADED_FOLDER = (
    rf"(?!{CLEAN_FOLDER}$)(?i:{_NO_RESULT}(?:(?:.*[_ -])?{_DENIED}(?:{_any_of(DEGRADED)})(?:_?bic(?:ubic)?)?"
    rf"[_/-]?(?:x(?P<scale>\d+))?|[xX](?P<factor>\d+)){_PART})"
)
"""Regular expression of the names of folders of degraded images; `scale` or `factor` is the SR factor, if it is named.
"""

_LETTER = re.compile("[A-Za-z]")
"""What every mark and every scale contains, so that names without are done quickly."""
_MARK = re.compile(
    rf"(?i)(?<![a-z]){_DENIED}(?:(?P<clean>{_any_of(CLEAN)})|(?P<degraded>{_any_of(DEGRADED)}))(?![a-z])"
)
_OTHER_MARK = re.compile(rf"(?i)(?<![a-z]){_DENIED}(?:{_any_of(NO_ROLE)})(?![a-z])")
_MARKED_SCALE = re.compile(r"(?i)(?<![a-z0-9])LR_?x?[2-8]$")
_SCALE = re.compile(r"(?:(?<!\d)[_-]?[xX]\d{1,2}|(?<=\d{3})[xX][2-8])$")
"""Scale at the end of a name; the ends of `640x480` and `16x9` are none."""
_SCALE_IN_FOLDER = re.compile(r"[_-]?[xX](?:[2-9]|1[0-6])$")
"""The same in a folder of degraded images, where `1x4` can be nothing else."""
_NUMBERED, _NUMBERED_SR = re.compile(r"(.+)[_xX-]\d+"), re.compile(r"(.+)[_-]\d+")


def readings(name: str) -> Iterator[tuple[str, Role]]:
    """Yield each way to read a name as one of a marked image: the name without the mark, and what the mark says.

    E.g. `norain-001` is `001`, clean; `0001x4` is `0001`, degraded. Nothing is yielded for a name without marks.
    """
    if not _LETTER.search(name):
        return
    for match in _MARK.finditer(name):
        yield _without(name, match), "clean" if match["clean"] else "degraded"
    for scaled in (_MARKED_SCALE.search(name), _SCALE.search(name)):
        if scaled:
            yield _without(name, scaled), "degraded"


def denies(path: str, role: Role) -> bool:
    """Return whether a word in the path of an image says the other role; the folder of a scene does not count."""
    roles = {"clean" if match["clean"] else "degraded" for match in _MARK.finditer(path.partition("/")[2] or path)}
    return not roles <= {role}


def _without(name: str, match: re.Match[str]) -> str:
    before, after = name[: match.start()], name[match.end() :]
    kept = before.rstrip("_-. ") if before else ""
    rest = after.lstrip("_-. ")
    return f"{kept}_{rest}" if kept and rest else kept + rest


def told_apart(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Pair the names of clean and degraded images that lie together: the clean and the degraded name, by common name.

    A clean image may have no mark (`0001` beside `0001_noisy`). Names that belong to no pair are left out.
    """
    found: dict[str, dict[Role, list[str]]] = {}
    for name in names:
        for key, role in readings(name):
            found.setdefault(key, {"clean": [], "degraded": []})[role].append(name)
    known, used = set(names), set[str]()
    pairs = {}
    for key, roles in found.items():
        unmarked = key if key in known and key not in used else None
        clean = next((n for n in roles["clean"] if n not in used), unmarked)
        degraded = next((n for n in roles["degraded"] if n not in used), None)
        if clean is not None and degraded is not None:
            pairs[key or clean] = (clean, degraded)
            used |= {clean, degraded}
    return pairs


def matched(clean: Collection[str], degraded: Collection[str]) -> dict[str, str]:
    """Return the clean name of each degraded name, of images in two folders; names without partner are left out.

    Equal names come first, then names that differ only in marks or in a scale (`rain-001`, `norain-001`; `1x4`, `1`).
    """
    found = {name: name for name in degraded if name in clean}
    if len(found) == len(degraded):
        return found
    keys: dict[str, set[str]] = {}
    for name in clean:
        for key in (name, *_keys(name, "clean")):
            keys.setdefault(key, set()).add(name)
    taken = set(found)
    for name in degraded:
        near = (keys.get(key, set()) for key in _keys(name, "degraded"))
        partner = next((min(names) for names in near if len(names) == 1 and not names & taken), None)
        if name not in found and partner is not None:
            found[name] = partner
            taken.add(partner)
    return found


def shared(clean: Collection[str], degraded: Collection[str], *, scale: int | None) -> dict[str, str]:
    """Return the clean name of each degraded name, where several degraded images belong to each clean image.

    Degraded names are clean names (or such as `matched` pairs with them) and a number: `901_1` … `901_14` and `901`. At
    scale 1 the number may follow an `x`, which otherwise names a scale. Return nothing unless every degraded name is
    such a name, and every clean name has one.
    """
    numbered = _NUMBERED if scale == 1 else _NUMBERED_SR
    stems = {name: match[1] for name in degraded if (match := numbered.fullmatch(name))}
    partners = matched(clean, set(stems.values()))
    if len(stems) < len(degraded) or len(partners) < len(set(stems.values())) or set(partners.values()) != set(clean):
        return {}
    return {name: partners[stem] for name, stem in stems.items()}


def _keys(name: str, role: Role) -> list[str]:
    """Return an image's name without one of its marks, and without two; only marks that its role allows."""
    keys = _shortened(name, role)
    return keys + [again for key in keys for again in _shortened(key, role)]


def _shortened(name: str, role: Role) -> list[str]:
    if not _LETTER.search(name):
        return []
    marks = [match for match in _MARK.finditer(name) if match[role]]
    marks += _OTHER_MARK.finditer(name) if role == "clean" else ()
    marks += [found for found in (_MARKED_SCALE.search(name), _SCALE_IN_FOLDER.search(name)) if found]
    return [_without(name, mark) for mark in marks]
