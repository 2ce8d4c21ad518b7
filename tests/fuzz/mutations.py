"""A mutational fuzzer of our own: seeded, so that a run can be had again; no coverage. Atheris does better where it installs."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

NUMBERS = (0, 1, 2, 7, 8, 9, 21, 22, 63, 64, 127, 255, 256, 511, 512, 513, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
           1 << 40, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 63) | 65536, (1 << 64) - 512, (1 << 64) - 1)
LONGEST = 1 << 20
"""Bytes that no input grows beyond."""


def mutated(dice: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the seeds, changed in one to eight places; numbers go where headers have theirs."""
    body = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(min(len(body), dice.choice((16, 128, 512, len(body) or 1))) or 1)
        match dice.randrange(8):
            case 0 if body:
                body[at % len(body)] ^= 1 << dice.randrange(8)
            case 1 if body:
                body[at % len(body)] = dice.randrange(256)
            case 2:
                form, top = dice.choice(((">I", 1 << 32), (">Q", 1 << 64), (">H", 1 << 16), ("<I", 1 << 32)))
                number = struct.pack(form, dice.choice(NUMBERS) % top)
                at -= at % dice.choice((1, 4, 8))
                body[at:at + len(number)] = number
            case 3:
                body[at:at + dice.randrange(1, 64)] = b""
            case 4:
                body[at:at] = dice.randbytes(dice.randrange(1, 16))
            case 5:
                body[at:at] = body[at:at + dice.randrange(1, 256)] * dice.choice((1, 2, 50))
            case 6 if words:
                body[at:at + dice.choice((0, 0, 4))] = dice.choice(words)
            case _:
                other = dice.choice(seeds)
                cut = dice.randrange(len(other) or 1)
                body[at:] = other[cut:] if dice.random() < 0.5 else b""
    return bytes(body[:LONGEST])
