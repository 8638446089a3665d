"""Detection of a file's format from its first bytes: a readable checkpoint, or a description of another format.

Nothing here unpickles. Signatures are those of the formats' specifications, as in the database of file(1).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from ..errors import LowpeftError, and_more

Format = Literal["safetensors", "torch"]

START = 4096
"""Number of bytes at the beginning of a file that are inspected."""

MOST_UNPACKED = 16
"""Largest accepted ratio of a zip archive's unpacked size to its size; torch.save does not compress."""

MOST_RECORDS = 60_000
"""Largest number of entries of a zip archive; torch.save writes one for each tensor, and a few more."""

TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Pickled number (`torch.serialization.MAGIC_NUMBER`) at the start of `torch.save` files of PyTorch before 1.6."""

AN_ARCHIVE = "an archive that must be unpacked first: the checkpoint may be inside"
OTHER_WEIGHTS = "and lowpeft opens only PyTorch weights: use the .pth or .safetensors file, or convert it"
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
"""Last bytes of the index of a TensorFlow checkpoint (LevelDB's table format)."""

STARTS: dict[bytes, str] = {
    rb"\Z": "empty",
    rb"\x00+\Z": "zeros, as of an unfinished download: download it again",
    rb"\x80[\x02-\x05]": (
        "a pickle that torch.save did not write, and reading it may run code in it. If you trust it, pickle.load it, "
        "find the named tensors, and torch.save(state_dict, 'network.pth')"
    ),
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?i:!doctype|html|head|body|\?xml)": (
        "an HTML page: the download gave a page (to log in, or to confirm) instead of the file; download it again"
    ),
    rb"\x89PNG\r\n\x1a\n": "an image (PNG)",
    rb"\xff\xd8\xff": "an image (JPEG)",
    rb"GIF8": "an image (GIF)",
    rb"II\*\x00|MM\x00\*": "an image (TIFF)",
    rb".{8}WEBP": "an image (WebP)",
    rb"%PDF": "a PDF document",
    rb"\x1f\x8b": f"gzip, {AN_ARCHIVE}",
    rb"BZh": f"bzip2, {AN_ARCHIVE}",
    rb"\xfd7zXZ\x00": f"xz, {AN_ARCHIVE}",
    rb"\x28\xb5\x2f\xfd": f"zstd, {AN_ARCHIVE}",
    rb"7z\xbc\xaf\x27\x1c": f"7z, {AN_ARCHIVE}",
    rb"Rar!\x1a\x07": f"RAR, {AN_ARCHIVE}",
    rb".{257}ustar": f"tar, {AN_ARCHIVE}",
    rb"\x89HDF\r\n\x1a\n": f"an HDF5 file (of Keras, TensorFlow or MATLAB), {OTHER_WEIGHTS}",
    rb"MATLAB 5\.0 MAT-file": f"a MATLAB file, {OTHER_WEIGHTS}",
    rb"\x93NUMPY": f"a NumPy array, {OTHER_WEIGHTS}",
    rb"GGUF": f"a GGUF file, {OTHER_WEIGHTS}",
    rb".{4}TFL3": f"a TensorFlow Lite model, {OTHER_WEIGHTS}",
    rb"\x08\x01\x12": f"a SavedModel of TensorFlow, {OTHER_WEIGHTS}",
    # A ModelProto protocol buffer begins with the format's version, then the producer's name or another field.
    rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a\x42]": f"an ONNX model, {OTHER_WEIGHTS}",
}
"""Patterns of the first bytes of files that are not checkpoints, and what these files are."""

LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/\S+\s+oid \S+\s+size (\d+)")

ZIPPED: dict[str, str | None] = {
    r"^[^/]+/(constants\.pkl$|code/)": (
        "a TorchScript archive, which contains code. If you trust it, "
        "torch.save(torch.jit.load(path).state_dict(), 'network.pth')"
    ),
    r"^[^/]+/data\.pkl$": None,
    r"(archive_format|exported_program\.json)$": (
        "a program of torch.export, which contains code. If you trust it, "
        "torch.save(torch.export.load(path).state_dict, 'network.pth')"
    ),
    r"\.npy$": f"a file of NumPy arrays (npz), {OTHER_WEIGHTS}",
    r"(\.h5|saved_model\.pb)$": f"a model of Keras or TensorFlow, {OTHER_WEIGHTS}",
}
"""Patterns of the names in zip archives, and what these archives are; None for one that torch.save wrote."""


def checkpoint_format(file: Path) -> Format:
    """Return the format of a checkpoint file, from its content; the suffix is ignored.

    Raises:
        LowpeftError: The file is not a PyTorch checkpoint that can be read without running code; the message says
            what it is instead.
        OSError: The file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(START)
        opened.seek(max(0, size - len(TABLE_END)))
        end = opened.read(len(TABLE_END))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        what = _zip(file, size)
    elif TORCH_MAGIC in start[:64] and start.startswith(b"\x80"):
        what = None
    elif end == TABLE_END:
        what = f"the index of a TensorFlow checkpoint, {OTHER_WEIGHTS}"
    else:
        what = _no_checkpoint(start)
    if what is not None:
        raise LowpeftError(f"{file} is not a checkpoint that can be read: it is {what}")
    return "torch"


def _no_checkpoint(start: bytes) -> str:
    for pattern, what in STARTS.items():
        if re.match(pattern, start, re.DOTALL):
            return what
    if pointer := LFS.match(start):
        return (
            f"a git-LFS pointer to a file of {int(pointer[1]):,} bytes: run `git lfs pull` in the clone, or download "
            "the file itself"
        )
    text = start.decode("utf-8", errors="ignore")  # the last character may be cut off
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return f"of an unknown format (its first bytes are {start[:8].hex(' ')}): is the download complete?"
    if '"weight_map"' in text:
        return "the index of a checkpoint in several files: join these into one file first"
    if text.lstrip().startswith(("{", "[")):
        return "JSON, and weights are in another file beside it"
    return f"text, which begins {text.strip()[:40]!r}"


def _zip(file: Path, size: int) -> str | None:
    """Describe a zip archive; None for one that torch.save wrote. Verify checksums, which torch does not do."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_RECORDS:
                return f"a zip archive with {len(entries):,} entries, far more than tensors in a network"
            if sum(entry.file_size for entry in entries) > MOST_UNPACKED * size:
                return f"a zip archive that would unpack to more than {MOST_UNPACKED} times its size"
            # All checksums are 0 if torch was set to compute none (torch.serialization.set_crc32_options).
            damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
    except Exception:  # noqa: BLE001  (zipfile raises many kinds for a damaged archive)
        return "a zip archive, as torch.save writes, that is damaged or truncated: download it again"
    if damaged is not None:
        return f"a zip archive, as torch.save writes, in which {damaged[:100]} has a wrong checksum: download it again"
    names = [entry.filename for entry in entries]
    for pattern, what in ZIPPED.items():
        if any(re.search(pattern, name) for name in names):
            return what
    return f"a zip archive with {and_more(names, most=3)}: unpack it first"
