"""Interactive shells on a terminal of their own: typed to, and read, as a person does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time
from pathlib import Path

from tests.services.forked import program

ROOT = Path(__file__).parents[2]
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
SET_UP = {
    "bash": "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; bind 'set page-completions off'; PS1='READY> '",
    "zsh": "autoload -U compinit; compinit -u -D; unset zle_bracketed_paste; setopt no_beep; PS1='READY> '; RPS1=''"}
_ESCAPES = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-9;?=>]*[A-Za-z@]|\x1b[=>()][B0]?|\r|\x0f")


def surroundings(folder: Path, more: dict[str, str]) -> dict[str, str]:
    """An environment in which `storebus` is a program."""
    program(folder)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(ROOT), "TERM": "dumb", **more}


def fish(line: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """What fish offers for a line: it tells without a terminal."""
    asked = 'storebus completion fish | source; complete -C "$LINE"'
    ran = subprocess.run(["fish", "--no-config", "-c", asked], env={**surroundings(folder, environment), "LINE": line},
                         capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.splitlines()


class Terminal:
    """One shell with `storebus` on its PATH."""

    def __init__(self, shell: str, folder: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        found = shutil.which(START[shell][0])
        assert found is not None
        self._process = subprocess.Popen([found, *START[shell][1:]], stdin=slave, stdout=slave, stderr=slave, cwd=folder,
                                         env=surroundings(folder, environment), start_new_session=True)
        os.close(slave)
        self.type(SET_UP[shell] + "\n")
        self.read_until("READY> ", last=True)
        self.type(f'eval "$(storebus completion {shell})"\n')
        self.read_until("READY> ", last=True)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def read(self, quiet_s: float = 3.0) -> str:
        """What is shown until nothing more comes."""
        shown = b""
        while select.select([self._master], [], [], quiet_s)[0]:
            try:
                shown += os.read(self._master, 65536)
            except OSError:
                break
        return _ESCAPES.sub("", shown.decode(errors="replace"))

    def read_until(self, text: str, timeout_s: float = 20.0, *, shown: str = "", last: bool = False) -> str:
        """What is shown, `shown` before it, until `text` is on the screen (`last`: at its end), and nothing more comes."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            shown += self.read(0.5)
            if shown.endswith(text) if last else text in shown:
                return shown
        raise AssertionError(f"{text!r} is not in {shown!r}")

    def complete(self, line: str, *, want: str, tabs: int = 1) -> str:
        """The screen after a line and TAB, once `want` is on it; the line is thrown away then."""
        self.type(line)
        shown = self.read(0.3)
        self.type("\t")
        for _ in range(tabs - 1):
            shown += self.read(1.5)
            self.type("\t")
        shown = self.read_until(want, shown=shown)
        self.type("\x15")
        self.read(0.3)
        return shown

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)
