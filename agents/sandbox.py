"""The sandbox that qemu's programs run in: limits, no network, no privileges, no life without their parent.

Owns the words in front of a program's command line (util-linux's prlimit, unshare, setpriv, and a line of sh, so that nothing
of ours runs between fork and exec) and the rule that a format is always said. Refuses to start anything but its own probe.
Where the host forbids namespaces the rest still holds, and `isolated` says so.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
from collections.abc import Sequence

LOOK_BYTES, RUN_BYTES, SERVE_BYTES = 1 << 30, 4 << 30, 16 << 30
"""Address space of a program that looks at an image, of one that changes one, and of one that serves (64 threads of its own)."""
FILES = 1024
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""How qemu recognises a pseudo-protocol where a file's name is expected."""
_TWO = {"convert": "-O", "compare": "-F"}
"""The option that says the second format of those that have two."""
_PRIVILEGES = ["--inh-caps=-all", "--bounding-set=-all,+dac_override"]
"""A disk may belong to the hypervisor's own user: that much of root is kept."""
_END = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
_BORN = ["/bin/sh", "-c", ("export MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=4194304 MALLOC_TRIM_THRESHOLD_=4194304; "
                           'test "$PPID" = "$0" && exec "$@"')]
"""Comes after the parent's death signal was asked for: a parent that died before that will send none, and the program would
hold its disk for ever. $0 is the parent. glibc would reserve 64 MiB of address space for each of many threads, and give the
buffer of each read back to the kernel, only to ask for its pages again at the next: half of what a read costs."""


def isolated() -> bool:
    """Whether this host lets a program be put into a network of its own. Blocking, once."""
    return _strictest()[:1] == ("unshare",)


@functools.cache
def _strictest() -> tuple[str, ...]:
    """The strictest words that work here. Tried, since what a host or a container allows is written nowhere."""
    root = os.geteuid() == 0
    network = ["unshare", "--net"] if root else ["unshare", "--user", "--map-current-user", "--net"]
    last = [*_END, *_PRIVILEGES] if root else _END
    for words in ([*network, *last], last):
        try:
            if subprocess.run([*words, "true"], check=False, capture_output=True, timeout=10).returncode == 0:
                return tuple(words)
        except (OSError, subprocess.TimeoutExpired):
            continue
    return tuple(_END)


def wrapped(arguments: Sequence[str], *, memory: int, seconds: int = 0) -> list[str]:
    """The command line inside the sandbox, `memory` bytes of address space, `seconds` of processor (0: as long as it serves).

    This process is its parent, and must be the one that starts it. Raises ValueError for one that would leave a format to be
    guessed or a name to be taken for a protocol: a mistake of ours."""
    refuse_guessing(arguments)
    limits = ["prlimit", f"--as={memory}", "--core=0", f"--nofile={FILES}:{FILES}", *([f"--cpu={seconds}"] if seconds else [])]
    return [*limits, *_strictest(), *_BORN, str(os.getpid()), *arguments]


def refuse_guessing(arguments: Sequence[str]) -> None:
    """Raises ValueError unless every image on this command line comes with its format."""
    program, said = arguments[0], set(arguments)
    wrong = ""
    if program == "qemu-storage-daemon":
        nodes = [json.loads(value) for option, value in itertools.pairwise(arguments) if option == "--blockdev"]
        wrong = "" if nodes and all(node.get("driver") for node in nodes) else "each --blockdev names its driver"
    elif program in ("qemu-img", "qemu-nbd"):
        second = _TWO.get(arguments[1])
        if not said & {"-f", "--image-opts"}:
            wrong = "the format is said by -f or --image-opts"
        elif "--image-opts" in said and not any(value.startswith("driver=") for value in arguments):
            wrong = "--image-opts names the driver"
        elif (second and second not in said) or ("-b" in said and program == "qemu-img" and "-F" not in said):
            wrong = "the second format is said too"
        elif any(_PROTOCOL.match(value) for value in arguments[1:]):
            wrong = "a file's name is a path"
    else:
        wrong = "only qemu's programs run here"
    if wrong:
        raise ValueError(f"{program}: {wrong}")
