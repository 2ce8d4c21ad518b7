"""A disk's file while it is filled: every byte is there, past the page cache or through it."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from agents.motion.new_file import NewFile


def aligned(size: int) -> memoryview:
    """A buffer that begins at a page."""
    return memoryview(mmap.mmap(-1, size))


async def filled(path: Path, *, aligned_buffers: bool) -> bytes:
    """Write ranges of odd and even sizes, in any order; what was written."""
    dice = random.Random(5)
    size = (1 << 20) + 777
    wanted = dice.randbytes(300_000) + bytes(400_000) + dice.randbytes(size - 700_000)
    file = await NewFile.open(str(path), size, there=False, device=False)
    try:
        for at in dice.sample(range(0, size, 1 << 17), -(-size // (1 << 17))):
            data = wanted[at:at + (1 << 17)]
            view = aligned(1 << 17)[:len(data)] if aligned_buffers else memoryview(bytearray(len(data) + 1))[1:]
            view[:] = data
            await file.write(view, at, holes=True)
        await file.flush()
    finally:
        file.close()
    return wanted


@pytest.mark.parametrize("aligned_buffers", [True, False])
async def test_every_byte_is_there(tmp_path: Path, aligned_buffers: bool) -> None:
    path = tmp_path / "disk"
    wanted = await filled(path, aligned_buffers=aligned_buffers)
    assert path.read_bytes() == wanted
    assert path.stat().st_blocks * 512 < len(wanted), "zeros are holes"


async def test_a_file_system_that_refuses_is_written_through_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        if os.get_blocking(descriptor) and "direct" in _flags(descriptor):
            raise OSError(errno.EINVAL, "larger blocks, please")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    path = tmp_path / "disk"
    wanted = await filled(path, aligned_buffers=True)
    assert path.read_bytes() == wanted


async def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        await filled(tmp_path / "disk", aligned_buffers=True)


async def test_the_sum_is_made_of_what_is_written(tmp_path: Path) -> None:
    seen: list[bytes] = []
    file = await NewFile.open(str(tmp_path / "disk"), 8192, there=False, device=False)
    try:
        await file.write(b"a" * 8192, 0, holes=True, first=lambda data: seen.append(bytes(data)))
    finally:
        file.close()
    assert seen == [b"a" * 8192]


def _flags(descriptor: int) -> str:
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    flags = next(int(line.split()[1], 8) for line in text.splitlines() if line.startswith("flags:"))
    return "direct" if flags & os.O_DIRECT else ""
