"""Damage at random, as of a bad disk or of somebody who tries; a number gives the same damage again."""

from __future__ import annotations

import os
import random

CASES = 400
"""Cases of the default tier, of all files together."""
MANY_CASES = int(os.environ.get("LOWPEFT_FUZZ_CASES", "20000"))
"""Cases of the slow tier, for each test."""

TEXTS = (
    *("true", "-1", "0", "1e999", "nan", "9999999999999999999999", '""', '"x"', "[]", "[[[]]]", "{}", '"\\u0000"'),
    *("1979-05-27", '"../../etc/passwd"', '"**"', '"["', '"' + "x" * 2000 + '"', "[" * 300, "{a={a={a=1}}}"),
)
"""Values for text formats, some of which are none."""


def damaged_bytes(data: bytes, draw: random.Random, start: int = 0, stop: int = 2**62) -> bytes:
    """Data with a few bytes between `start` and `stop` changed, flipped, removed or added."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(start, max(start + 1, min(stop, len(found))))
        what = draw.randrange(4)
        if what == 0:
            found[at : at + 1] = bytes([draw.randrange(256)])
        elif what == 1 and found:
            found[at : at + 1] = bytes([found[min(at, len(found) - 1)] ^ (1 << draw.randrange(8))])
        elif what == 2:
            del found[at : at + draw.randint(1, 9)]
        else:
            found[at:at] = draw.randbytes(draw.randint(1, 9))
    return bytes(found)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Data that was damaged, cut, or, of a text format, given another value on some line."""
    what = draw.randrange(4)
    if what == 0:
        return data[: draw.randrange(len(data))]
    if what == 1 and b"=" in data and data.isascii():
        lines = data.decode().splitlines()
        at = draw.choice([number for number, line in enumerate(lines) if "=" in line])
        lines[at] = f"{lines[at].partition('=')[0]}= {draw.choice(TEXTS)}"
        return "\n".join(lines).encode()
    return damaged_bytes(data, draw, stop=2**15)  # headers, for the most part
