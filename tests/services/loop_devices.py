"""Loop devices: real block devices on files, for root only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

INSTALL = "run the tests as root where loop devices may be made (losetup of util-linux, /dev/loop-control)"


class LoopDevices:
    """Those of one test, gone after it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[str] = []

    def make(self, size: int) -> str:
        """A device of `size` bytes, all zeros."""
        file = self._folder / f"loop-{len(self.made)}"
        with file.open("wb") as made:
            made.truncate(size)
        device = subprocess.run(["losetup", "--find", "--show", str(file)], check=True, capture_output=True, text=True).stdout.strip()
        self.made.append(device)
        return device

    def file(self, device: str) -> Path:
        """What the device lies on."""
        return self._folder / f"loop-{self.made.index(device)}"

    def close(self) -> None:
        """Let go of them."""
        for device in self.made:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def available() -> bool:
    """Whether this machine lets us make one."""
    if os.geteuid() != 0 or shutil.which("losetup") is None or shutil.which("blkid") is None:
        return False
    return subprocess.run(["losetup", "--find"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def loop_devices(tmp_path: Path) -> Iterator[LoopDevices]:
    """Real block devices. A service that nobody has to have: it wants root."""
    if not available():
        pytest.skip(f"loop devices: {INSTALL} (optional)")
    devices = LoopDevices(tmp_path)
    yield devices
    devices.close()
