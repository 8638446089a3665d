"""Detection of a file's format from its first bytes: a readable checkpoint, or a description of another format.

Nothing here unpickles. Signatures are those of the formats' specifications, as in the database of file(1).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import Literal

from ..errors import LowpeftError

Format = Literal["safetensors", "torch"]

START = 4096
"""Number of bytes at the beginning of a file that are inspected."""

MOST_UNPACKED = 16
"""Largest accepted ratio of a zip archive's unpacked size to its size; torch.save does not compress."""

TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Pickled number (`torch.serialization.MAGIC_NUMBER`) at the start of `torch.save` files of PyTorch before 1.6."""

AN_IMAGE = "an image"
AN_ARCHIVE = "an archive that has to be unpacked first: the checkpoint may be inside"
OTHER_WEIGHTS = "and lowpeft opens weights of PyTorch alone: take the .pth or .safetensors file, or convert it"
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
"""Last bytes of the index of a TensorFlow checkpoint (LevelDB's table format)."""

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", f"{AN_IMAGE} (PNG)"),
    (0, b"\xff\xd8\xff", f"{AN_IMAGE} (JPEG)"),
    (0, b"GIF8", f"{AN_IMAGE} (GIF)"),
    (0, b"II*\x00", f"{AN_IMAGE} (TIFF)"),
    (0, b"MM\x00*", f"{AN_IMAGE} (TIFF)"),
    (8, b"WEBP", f"{AN_IMAGE} (WebP)"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", f"gzip, {AN_ARCHIVE}"),
    (0, b"BZh", f"bzip2, {AN_ARCHIVE}"),
    (0, b"\xfd7zXZ\x00", f"xz, {AN_ARCHIVE}"),
    (0, b"\x28\xb5\x2f\xfd", f"zstd, {AN_ARCHIVE}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"7z, {AN_ARCHIVE}"),
    (0, b"Rar!\x1a\x07", f"RAR, {AN_ARCHIVE}"),
    (257, b"ustar", f"tar, {AN_ARCHIVE}"),
    (0, b"\x89HDF\r\n\x1a\n", f"an HDF5 file (of Keras, TensorFlow or MATLAB), {OTHER_WEIGHTS}"),
    (0, b"MATLAB 5.0 MAT-file", f"a MATLAB file, {OTHER_WEIGHTS}"),
    (0, b"\x93NUMPY", f"a NumPy array, {OTHER_WEIGHTS}"),
    (0, b"GGUF", f"a GGUF file, {OTHER_WEIGHTS}"),
    (4, b"TFL3", f"a TensorFlow Lite model, {OTHER_WEIGHTS}"),
    (0, b"\x08\x01\x12", f"a SavedModel of TensorFlow, {OTHER_WEIGHTS}"),
)

ONNX = re.compile(rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a\x42]")
"""Start of a ModelProto protocol buffer: the format's version, then the producer's name or another field."""

PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype|html|head|body|\?xml)", re.IGNORECASE | re.DOTALL
)
LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/\S+\s+oid \S+\s+size (\d+)")


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
    if not start:
        return "empty"
    if re.match(rb"\x80[\x02-\x05]", start):
        return (
            "a pickle that torch.save did not write, and reading one may run code in it. Where you trust it, "
            "pickle.load it, find the tensors by name, and torch.save(state_dict, 'network.pth')"
        )
    for offset, signature, what in SIGNATURES:
        if start.startswith(signature, offset):
            return what
    if ONNX.match(start):
        return f"an ONNX model, {OTHER_WEIGHTS}"
    if not start.strip(b"\x00"):
        return "zeros, as of a download that was not finished: fetch it again"
    return _text(start) or f"of no known format (its first bytes are {start[:8].hex(' ')}): is the download complete?"


def _text(start: bytes) -> str | None:
    """Describe a text file; None if the file is not text."""
    if PAGE.match(start):
        return (
            "an HTML page: the download gave a page (to log in, or to confirm) in place of the file, so fetch it again"
        )
    if pointer := LFS.match(start):
        return (
            f"a git-LFS pointer to a file of {int(pointer[1]):,} bytes: run `git lfs pull` where you cloned it, or "
            "download the file itself"
        )
    text = start.decode("utf-8", errors="ignore")  # the last character may be cut off
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    if '"weight_map"' in text:
        return "the index of a checkpoint in several files: join these into one file first"
    if text.lstrip().startswith(("{", "[")):
        return "JSON, and weights are in a file beside it"
    return f"text, which begins {text.strip()[:40]!r}"


def _zip(file: Path, size: int) -> str | None:
    """Describe a zip archive; None for one that torch.save wrote. Verify checksums, which torch does not do."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MOST_UNPACKED * size:
                return f"a zip archive that would unpack to more than {MOST_UNPACKED} times its size"
            # All checksums are 0 if torch was set to compute none (torch.serialization.set_crc32_options).
            damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
    except Exception:  # noqa: BLE001  (zipfile raises many kinds for a damaged archive)
        return "a zip archive, as torch.save writes, that is damaged or cut off: fetch it again"
    if damaged is not None:
        return (
            f"a zip archive, as torch.save writes, in which {damaged[:100]} is damaged (its checksum): fetch it again"
        )
    names = [entry.filename for entry in entries]
    inside = {PurePosixPath(name).relative_to(name.split("/")[0]).as_posix() for name in names if name}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return (
            "a TorchScript archive, which holds code. Where you trust it, "
            "torch.save(torch.jit.load(path).state_dict(), 'network.pth')"
        )
    if "data.pkl" in inside:
        return None
    if any(name.endswith(("archive_format", "exported_program.json")) for name in names):
        return (
            "a program of torch.export, which holds code. Where you trust it, "
            "torch.save(torch.export.load(path).state_dict, 'network.pth')"
        )
    if any(name.endswith(".npy") for name in names):
        return f"a file of NumPy arrays (npz), {OTHER_WEIGHTS}"
    if any(name.endswith((".h5", "saved_model.pb")) for name in names):
        return f"a model of Keras or TensorFlow, {OTHER_WEIGHTS}"
    return f"a zip archive with {', '.join(names[:3])}{', …' * (len(names) > 3)}: unpack it first"
