"""Output: what the command line prints. stdout is data, stderr is talk.

Owns the four forms (table, json, jsonl, yaml), what is chosen when nobody says (a table for people, JSON for programs),
progress (bars on a terminal, JSON lines in a pipe), and that nothing from outside can steer a terminal: control
characters are shown, never sent. NO_COLOR is honoured. Refuses to know what the data means.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from api.query import CHOSEN, Query

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PIPE_WIDTH = 4096
"""Columns of a table that no terminal shows: nothing is cut off."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"


def plain(value: Any) -> str:
    """A value as one line of text; control characters become visible."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else compact(value) if isinstance(value, (Mapping, list, tuple)) else str(value)
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def compact(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class Output:
    """Prints in one form. `form` None chooses: a table on a terminal, else JSON (JSON lines for a stream). `query`: what is asked
    of the data before it is printed; unset: what the command line was given."""

    def __init__(self, form: Format | None = None, *, stream: bool = False, out: TextIO | None = None,
                 err: TextIO | None = None, query: Query | None = None) -> None:
        self.query = query or CHOSEN.get()
        self.out, self.err = out or sys.stdout, err or sys.stderr
        self.chosen = form is not None
        if form is None:
            form = Format.TABLE if self.out.isatty() else Format.JSONL if stream else Format.JSON
        self.form = form

    @property
    def for_people(self) -> bool:
        """A table, of what is shown unless somebody asks for something in it."""
        return self.form is Format.TABLE and self.query is None

    # --- data ---

    def rows(self, items: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
        """Many things of one kind. `columns`: what a table shows, in this order; other forms show everything."""
        found = [dict(item) for item in items]
        if self.query is not None:
            return self.value(self.query(found))
        match self.form:
            case Format.TABLE:
                self._table(found, list(columns) or _columns(found))
            case Format.JSON:
                self.line(json.dumps(found, ensure_ascii=False, default=str, indent=2))
            case Format.JSONL:
                for item in found:
                    self.line(compact(item))
            case Format.YAML:
                self._yaml(found)

    def object(self, item: Mapping[str, Any]) -> None:
        """One thing."""
        if self.query is not None:
            return self.value(self.query(dict(item)))
        match self.form:
            case Format.TABLE:
                self._table([{"field": name, "value": value} for name, value in item.items()], ["field", "value"])
            case Format.JSON:
                self.line(json.dumps(dict(item), ensure_ascii=False, default=str, indent=2))
            case Format.JSONL:
                self.line(compact(dict(item)))
            case Format.YAML:
                self._yaml(dict(item))

    def event(self, item: Mapping[str, Any], columns: Iterable[str]) -> None:
        """One thing of a stream, printed at once; a table has no head and no frame here. One of which a query finds nothing is
        left out."""
        if self.query is not None:
            found = self.query(dict(item))
            if found is not None:
                self.value(found)
                self.out.flush()
            return
        match self.form:
            case Format.TABLE:
                self.line("  ".join(plain(item.get(name)) for name in columns))
            case Format.YAML:
                self.line("---")
                self._yaml(dict(item))
            case _:
                self.line(compact(dict(item)))
        self.out.flush()

    def value(self, found: Any) -> None:
        """Whatever a query found: a table of objects, a line for each simple value; in the other forms as it is."""
        match self.form:
            case Format.JSON:
                self.line(json.dumps(found, ensure_ascii=False, indent=2))
            case Format.JSONL:
                for each in found if isinstance(found, list) else [found]:
                    self.line(compact(each))
            case Format.YAML:
                self._yaml(found)
            case Format.TABLE:
                objects = isinstance(found, list) and all(isinstance(each, dict) for each in found)
                if found is None or found in ([], {}):
                    self.say("nothing")
                elif isinstance(found, dict):
                    self._table([{"field": name, "value": value} for name, value in found.items()], ["field", "value"])
                elif objects:
                    self._table(found, list(dict.fromkeys(name for each in found for name in each)))
                else:
                    for each in found if isinstance(found, list) else [found]:
                        self.line("\t".join(plain(one) for one in each) if isinstance(each, list) else plain(each))

    def line(self, text: str) -> None:
        """A line of data."""
        self.out.write(text + "\n")

    # --- talk ---

    def say(self, text: str) -> None:
        """A line for a person."""
        self.err.write(plain(text) + "\n")
        self.err.flush()

    # --- forms ---

    def _table(self, items: list[dict[str, Any]], columns: list[str]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if not items:
            self.say("nothing")
            return
        terminal = self.out.isatty()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in columns:
            table.add_column(Text(name), overflow="fold" if terminal else "ignore", no_wrap=not terminal)
        for item in items:
            table.add_row(*(Text(plain(item.get(name))) for name in columns))
        if terminal:
            Console(file=self.out, highlight=False).print(table)
            return
        text = io.StringIO()
        Console(file=text, width=PIPE_WIDTH, highlight=False, color_system=None).print(table)
        self.out.writelines(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())

    def _yaml(self, value: Any) -> None:
        import yaml

        # Through JSON, so that ids and times become text.
        self.out.write(yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False, allow_unicode=True))


def _columns(items: list[dict[str, Any]]) -> list[str]:
    """Every name that occurs with a simple value, in the order it is first seen."""
    return [name for name in dict.fromkeys(name for item in items for name in item)
            if not all(isinstance(item.get(name), (dict, list)) or item.get(name) is None for item in items)]


class JobProgress:
    """A job's progress while it is waited for: a bar on stderr when that is a terminal, else JSON lines.

    The lines go to stdout when the data is JSON lines itself, so that a pipe sees the whole story; to stderr otherwise.
    """

    def __init__(self, output: Output, label: str) -> None:
        self._output, self._label = output, label
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._last = self._trouble = ""

    def __enter__(self) -> Self:
        """Show a bar, on a terminal."""
        if self._output.err.isatty() and self._output.form is not Format.JSONL:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining
            from rich.progress import TransferSpeedColumn as Speed

            self._bars = Progress(
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed(),
                Remaining(), console=Console(file=self._output.err), transient=True)
            self._bars.start()
            self._task = self._bars.add_task(plain(self._label), total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()

    def update(self, job: Mapping[str, Any]) -> None:
        """The job as queryAsyncJobResult shows it now."""
        progress, trouble = job.get("progress") or {}, str(job.get("trouble") or "")
        if self._bars is not None and self._task is not None:
            if trouble and trouble != self._trouble:  # the next attempt may take a while
                what = "is taken back" if job.get("jobstate") == "undoing" else "is tried again"
                self._bars.console.print(plain(f"{self._label} {what}: {trouble}"), markup=False, highlight=False)
            self._trouble = trouble
            stage = progress.get("stage") or job.get("step") or ""
            self._bars.update(self._task, description=plain(f"{self._label} {stage}".strip()),
                              total=progress.get("total") or None, completed=progress.get("bytes", 0))
            return
        told = ("jobid", "jobstatus", "jobprocstatus", "step", "trouble", "progress")
        shown = {name: job[name] for name in told if name in job}
        text = compact(shown)
        if text == self._last:
            return
        self._last = text
        lines = self._output.form is Format.JSONL and self._output.query is None
        target = self._output.out if lines else self._output.err
        target.write(text + "\n")
        target.flush()


__all__ = ["Format", "JobProgress", "Output", "compact", "plain"]
