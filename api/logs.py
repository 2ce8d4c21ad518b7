"""Logs: one line for each thing that happened, on stderr, as text for people or JSON for machines.

Owns the form of a line. Refuses to print anything that was not named by the code: message, and the fields given as
`extra`. Control characters from outside are made visible, so that nobody forges a line.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonLines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname, "logger": record.name, "message": record.getMessage(), **_extra(record)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, default=str)


class TextLines(logging.Formatter):
    """Time, level, what happened, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (several, with an exception)."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = record.getMessage().encode("unicode_escape").decode("ascii") if not record.getMessage().isprintable() \
            else record.getMessage()
        more = " ".join(f"{name}={value!r}" for name, value in _extra(record).items() if name != "action")
        line = f"{at} {record.levelname:7s} {record.name}: {message}" + (f"  {more}" if more else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def set_up(level: str, form: str) -> None:
    """Send the root logger to stderr. Libraries say warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form.lower() == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    known = logging.getLevelNamesMapping()
    for name in ("api", "bus", "handlers", "agents", "schema"):
        logging.getLogger(name).setLevel(known.get(level.upper(), logging.INFO))


__all__ = ["JsonLines", "TextLines", "set_up"]
