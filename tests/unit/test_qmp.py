"""Conversations with a machine: one that ends in the midst of them is told as ended, whichever call notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.qmp import Ended, NotRunning, Qmp, conversation


class Broken:
    """A writer whose connection was cut."""

    def write(self, data: bytes) -> None:
        """Taken, and lost."""

    async def drain(self) -> None:
        """As asyncio's does then."""
        raise ConnectionResetError("Connection lost")


async def test_a_machine_that_ended_before_it_was_asked_has_ended() -> None:
    reader = asyncio.StreamReader()
    reader.feed_eof()
    with pytest.raises(Ended):
        await Qmp(reader, Broken()).ask("query-status")  # type: ignore[arg-type] # a double of what it uses of a writer


async def test_a_machine_that_ends_after_its_greeting_is_not_running(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {}}\n')
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(greet, tmp_path / "qmp"):
        with pytest.raises(NotRunning):
            async with conversation(tmp_path, "qmp"):
                pass
