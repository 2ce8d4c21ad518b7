"""Hypervisors: one file each, behind one short interface. What a host must have for them is told before any is loaded."""

from agents import libnbd, qemu


def lacking() -> list[str]:
    """Programs and libraries that this host has not, and that disks cannot be read without."""
    return qemu.installed() + ([] if libnbd.available() else ["libnbd.so.0"])
