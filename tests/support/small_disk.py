"""A small file system of its own (a tmpfs), to be filled and grown by a test: what a full disk really does."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import OPTIONAL, missing

BLOCK = 1 << 20
ASIDE = "lost+found"
"""Where what fills it lies: every store knows that this is not its own."""


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs."""

    path: Path

    @classmethod
    def mount(cls, path: Path, size: int) -> SmallDisk:
        """Mount `size` bytes at a new folder. Only root can; where root may not, that is a skip (in CI: a failure)."""
        if os.geteuid() != 0:
            pytest.skip(f"only root mounts a small file system {OPTIONAL}")
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(path)], capture_output=True, text=True)
        if done.returncode:
            missing(f"the right to mount a tmpfs ({done.stderr.strip()})", "run the tests with CAP_SYS_ADMIN")
        return cls(path)

    def resize(self, size: int) -> None:
        """Make it larger (or smaller) while it is used."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True, capture_output=True)

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Somebody else's bytes take everything but `leave`."""
        (self.path / ASIDE).mkdir(exist_ok=True)
        with (self.path / ASIDE / "ballast").open("wb") as file:
            for step in (BLOCK, 4096):
                while self.free - leave >= step:
                    file.write(b"x" * step)
                    file.flush()

    def clear(self) -> None:
        """They are deleted again."""
        (self.path / ASIDE / "ballast").unlink()
        (self.path / ASIDE).rmdir()

    def names(self) -> set[str]:
        """Every file below it, hidden ones too, without what the test put there."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file() and ASIDE not in path.parts}

    def folders(self) -> set[str]:
        """Every folder below it."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_dir() and path.name != ASIDE}

    def unmount(self) -> None:
        """Gone with all of it."""
        subprocess.run(["umount", "-l", str(self.path)], check=True, capture_output=True)
