"""The most memory that this process held since it was last asked to forget: Linux counts it, and can begin anew."""

from __future__ import annotations

from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak() -> int:
    """Bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget_peak() -> int:
    """Begin anew; what is held now, bytes."""
    _FORGET.write_text("5")
    return peak()
