"""What is said in two places agrees: documents and files, commands and documents, the Makefile and set-up."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import typer.main

from api.cli import app
from tests.architecture.tree import ROOT, tracked

DOCUMENTS = [str(path) for path in tracked() if path.suffix == ".md"]
QUESTIONS = ("command", "event field", "column of a list", "image store", "hypervisor", "motion strategy", "staging policy", "read view",
             "a list over", "setting")


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    assert not [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_in_documents_is_python_of_ours(name: str) -> None:
    """It compiles, and what it imports from our packages is there."""
    for block in fenced((ROOT / name).read_text(), "python"):
        compile(block, name, "exec")
        ours = re.findall(r"^from ((?:schema|bus|handlers|agents|api)[\w.]*) import ([\w, ]+)$", block, re.MULTILINE)
        for module, names in ours:
            there = __import__(module, fromlist=["x"])
            assert not [one for one in names.replace(",", " ").split() if not hasattr(there, one)], (name, module)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_documents_exist(name: str) -> None:
    """Every `storebus <word>` in a shell block is a command, every `make <word>` a target."""
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group, since it has commands
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in fenced((ROOT / name).read_text(), "sh"):
        assert set(re.findall(r"(?:^|\s|\()storebus ([a-z]+)", block)) <= known, name
        assert set(re.findall(r"^\s*make ([a-z]+)", block, re.MULTILINE)) <= targets, name


def test_how_do_i_add_is_true() -> None:
    """Each answer names at most three files. `<x>` stands for a name of yours, and its folder is there; the rest is a file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.split(r"^## .*[Hh]ow do I add.*$", text, maxsplit=1, flags=re.MULTILINE)[1].split("\n## ", 1)[0]
    rows = {cells[1].strip().lower(): cells[2] for line in section.splitlines() if (cells := line.split("|"))[3:]}
    for question in QUESTIONS:
        answer = next(answer for asked, answer in rows.items() if question in asked)
        paths = re.findall(r"`([\w.-]+/[\w./<>-]+\.\w+|[\w-]+\.(?:toml|md))`", answer)
        assert len(set(paths)) <= 3, (question, paths)
        assert paths or "not in this version" in answer, question
        for path in paths:
            if "<" not in path:
                assert (ROOT / path).is_file(), (question, path)
            elif "not in this version" not in answer:
                assert (ROOT / path.split("<")[0]).parent.joinpath("x").parent.is_dir(), (question, path)


def test_scripts_are_valid_shell() -> None:
    for script, shell in (("scripts/setup", "sh"), (".ci/run", "bash")):
        assert subprocess.run([shell, "-n", str(ROOT / script)], capture_output=True, check=False).returncode == 0, script
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


def test_every_target_does_its_own_set_up() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check", "bench", "soak", "golden"):
        recipe = makefile.split(f"\n{target}:", 1)[1].split("\n\n", 1)[0].splitlines()
        assert recipe[1].startswith("\t@scripts/setup "), target


def test_constraints_cover_what_is_asked_for() -> None:
    """Nothing of ours is installed in a version that nobody chose."""
    pinned = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert not {normal(re.split(r"[\[<>=! ;]", one)[0]) for one in asked} - {"storebus"} - pinned


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_supported_pythons_are_the_ones_that_set_up_takes() -> None:
    text = (ROOT / "scripts/setup").read_text()
    low, high = re.findall(r"\((3), (\d+)\)", text)[:2]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">=3.{low[1]}"
    assert (3, int(low[1])) <= sys.version_info[:2] <= (3, int(high[1]))
