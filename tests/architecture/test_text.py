"""Every tracked text file is fit for strangers: no machine's paths, no package index, no unfinished business."""

from __future__ import annotations

import re
from pathlib import Path

from tests.architecture.tree import ROOT, tracked

# Put together from pieces, so that this file does not accuse itself.
FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.~}-])/(?:" + "|".join(["wor" + "k", "hom" + r"e/\w{2,}", "Use" + r"rs/\w+", "roo" + r"t/\w+"]) + r")(?![\w-])"),
    "a package index": re.compile("|".join(["index" + "-url", "find" + "-links", r"pypi\." + "org", "files.python" + "hosted"])),
    "unfinished business": re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b"),
    "a merge's leftovers": re.compile(r"^(?:<{7} |>{7} |={7}$)", re.MULTILINE),
    "a private key": re.compile("BEGIN [A-Z ]*PRIVATE " + "KEY"),
}
BINARY = {".png", ".jpg", ".ico", ".gz", ".qcow2", ".woff2"}


def texts() -> list[Path]:
    """The tracked text files."""
    return [path for path in tracked() if path.suffix not in BINARY]


def found(text: str) -> list[str]:
    """What is forbidden in it, with its line."""
    return [f"{what}: {text[:match.start()].count(chr(10)) + 1}: {match.group()}" for what, pattern in FORBIDDEN.items()
            for match in pattern.finditer(text)]


def test_fit_for_strangers() -> None:
    wrong = [f"{path}: {each}" for path in texts() for each in found((ROOT / path).read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_every_file_ends_with_a_newline() -> None:
    assert not [str(path) for path in texts() if (text := (ROOT / path).read_text(encoding="utf-8")) and not text.endswith("\n")]


def test_constraints_are_names_and_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 50
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]


def test_the_eyes_see() -> None:
    assert found("see /wor" + "k/main") and found("see /hom" + "e/ann/x") and found("# TO" + "DO: later")
    assert found("--index" + "-url=x")
    assert not found("https://example.com/workers and a/workbench, framework/x, todo list")
