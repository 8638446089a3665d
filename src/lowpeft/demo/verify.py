"""Digest of an adapted demo network's output, to compare between processes.

Run `python -m lowpeft.demo.verify ADAPTER LEFT RIGHT`. Set LOWPEFT_DEMO_THREADS to the number of threads of the other
process, because the output bits depend on it.
"""

from __future__ import annotations

import hashlib
import os
import sys

import torch

from ..core.files.loading import load_adapter
from ..core.observation.fingerprint import digest
from ..restoration.images import read_image, to_float
from ..restoration.inference import enhance
from .network import demo_backbone


def outputs_digest(model: object, left: str, right: str) -> str:
    """Return the SHA-256 of both float32 outputs for two LR files."""
    views = enhance(model, to_float(read_image(left)), to_float(read_image(right)))
    return hashlib.sha256(" ".join(map(digest, views)).encode()).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("LOWPEFT_DEMO_THREADS", torch.get_num_threads())))
    print(outputs_digest(load_adapter(demo_backbone(), sys.argv[1]), sys.argv[2], sys.argv[3]))
