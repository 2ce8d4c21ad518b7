"""Output: forms, what is chosen for whom, and that nothing from outside steers a terminal."""

from __future__ import annotations

import io
import json
import logging
from typing import Any
from uuid import UUID

import pytest
import yaml

from api.logs import JsonLines, TextLines
from api.output import Format, JobProgress, Output, plain

ITEMS = [{"id": UUID(int=1), "name": "a", "tags": ["x"]}, {"id": UUID(int=2), "name": "b\x1b[31m\nc", "tags": []}]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def shown(form: Format | None, *, stream: bool = False, out: io.StringIO | None = None, method: str = "rows",
          value: Any = None) -> str:
    """What is printed."""
    target = out or io.StringIO()
    getattr(Output(form, stream=stream, out=target, err=io.StringIO()), method)(ITEMS if value is None else value)
    return target.getvalue()


@pytest.mark.parametrize(("terminal", "stream", "form"), [
    (True, False, Format.TABLE), (True, True, Format.TABLE), (False, False, Format.JSON), (False, True, Format.JSONL)])
def test_the_form_fits_the_reader(terminal: bool, stream: bool, form: Format) -> None:
    """A table for people, JSON for programs."""
    assert Output(stream=stream, out=Terminal() if terminal else io.StringIO()).form is form


def test_json_jsonl_and_yaml_hold_the_same() -> None:
    """Everything, whatever a table would show."""
    want = json.loads(json.dumps(ITEMS, default=str))
    assert json.loads(shown(Format.JSON)) == want
    assert [json.loads(line) for line in shown(Format.JSONL).splitlines()] == want
    assert yaml.safe_load(shown(Format.YAML)) == want
    assert json.loads(shown(Format.JSON, method="object", value=ITEMS[0])) == want[0]


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_a_table_sends_no_control_characters(out: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may hold anything; a terminal must not obey it. Lists of lists are no columns."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    text = shown(Format.TABLE, out=out())
    assert "b\\x1b[31m\\x0ac" in text and "\x1b" not in text
    assert "id" in text.splitlines()[0] and "tags" not in text


def test_a_piped_table_is_not_cut() -> None:
    """grep and awk want whole values."""
    text = shown(Format.TABLE, value=[{"name": "x" * 300, "more": "y" * 300}])
    assert "x" * 300 in text and "y" * 300 in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_values_as_text() -> None:
    """One line each."""
    assert [plain(each) for each in (None, True, 3, {"a": 1}, "\x9b")] == ["", "true", "3", '{"a":1}', "\\x9b"]


def test_progress_in_a_pipe_is_json_lines_and_says_nothing_twice() -> None:
    """On stdout with jsonl, on stderr with json, so that stdout is always what was asked for."""
    job = {"jobid": "j", "jobstatus": 0, "jobprocstatus": 10, "progress": {"stage": "write", "bytes": 1, "total": 10},
           "cmd": "x"}
    for form, target in ((Format.JSONL, "out"), (Format.JSON, "err")):
        streams = {"out": io.StringIO(), "err": io.StringIO()}
        with JobProgress(Output(form, **streams), "createVolume") as progress:
            progress.update(job)
            progress.update(job)
            progress.update({**job, "jobprocstatus": 20})
        lines = streams[target].getvalue().splitlines()
        assert [json.loads(line)["jobprocstatus"] for line in lines] == [10, 20]
        assert "cmd" not in lines[0]
        assert streams["out" if target == "err" else "err"].getvalue() == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on stderr and goes away."""
    monkeypatch.setenv("TERM", "xterm")
    out, err = io.StringIO(), Terminal()
    with JobProgress(Output(Format.JSON, out=out, err=err), "createVolume") as progress:
        progress.update({"jobid": "j", "progress": {"stage": "write", "bytes": 5, "total": 10}})
        for _ in range(3):
            progress.update({"jobid": "j", "jobstate": "running", "trouble": "url: the store is away"})
    assert out.getvalue() == "" and "createVolume" in err.getvalue() and "{" not in err.getvalue()
    assert err.getvalue().count("createVolume is tried again: url: the store is away") == 1


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_nobody_forges_a_log_line(formatter: logging.Formatter) -> None:
    """A message is one line, whatever a caller put into it."""
    record = logging.LogRecord("api.http", logging.INFO, "x", 1, "%s failed", ("a\n2026 ERROR forged\x1b[2J",), None)
    record.action, record.parameter = "parameter_ignored", "n\nforged"
    text = formatter.format(record)
    assert "\n" not in text and "\x1b" not in text and "parameter" in text
