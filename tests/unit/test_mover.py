"""The mover's agent side where no process is needed, and what keeps secrets out of the child's log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import pytest

from agents.mover import Mover, MoverDied, WorkFailure
from agents.mover_child import Redacted
from schema.agent import DeleteImages
from schema.image import StoreSpec

ORDER = DeleteImages(job_id=UUID(int=1), work_id=UUID(int=2), agent="a", reply_key="k", keys=[],
                     store=StoreSpec(id=UUID(int=3), name="s", provider="memory", url="memory://x", prefix="i"))
FAILURE = {"cause": "it broke", "field": "url"}


class Answering(Mover):
    """A mover whose child answers a cancel as the test says; None: the child dies of it."""

    def __init__(self, answer: dict[str, Any] | None) -> None:
        super().__init__({})
        self.answer = answer
        self.sent: list[dict[str, Any]] = []

    async def _started(self) -> None:
        """It runs."""

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if "cancel" in message:
            future, _ = self._waiting[message["cancel"]]
            if self.answer is None:
                future.set_exception(MoverDied(deliberate=True))
            else:
                future.set_result(self.answer)


async def cancelled(mover: Mover) -> asyncio.Task[dict[str, Any]]:
    """A run that was cancelled while it waited."""
    task = asyncio.create_task(mover.run(ORDER, b"{}", {}, lambda *_: None))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_a_cancelled_run_ends_as_its_work_did() -> None:
    assert (await cancelled(Answering({"cancelled": True}))).cancelled()
    done = {"result": {"there": True}, "bytes": 3}
    assert (await cancelled(Answering(done))).result() == done
    failed = (await cancelled(Answering({"failure": FAILURE}))).exception()
    assert isinstance(failed, WorkFailure)
    assert (failed.failure.cause, failed.failure.field) == ("it broke", "url")
    assert isinstance((await cancelled(Answering(None))).exception(), MoverDied)


async def test_the_child_is_told_to_stop_once() -> None:
    mover = Answering({"cancelled": True})
    await cancelled(mover)
    assert [message for message in mover.sent if "cancel" in message] == [{"cancel": 1}]
    assert mover._waiting == {}


async def test_a_closed_mover_starts_no_child() -> None:
    mover = Mover({})
    await mover.aclose()
    with pytest.raises(MoverDied):
        await mover.run(ORDER, b"{}", {}, lambda *_: None)
    assert mover.pid == 0


def test_no_log_line_holds_a_secret_in_use() -> None:
    form = Redacted("%(levelname)s %(message)s")
    form.secrets += ["hunter2", "", "hunter2"]
    try:
        raise ValueError("the key hunter2 is wrong")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "it failed with %s", ("hunter2",), (type(error), error, error.__traceback__))
    text = form.format(record)
    assert "hunter2" not in text
    assert text.startswith("ERROR it failed with ***")
    assert "ValueError" in text
    form.secrets.remove("hunter2")
    assert "hunter2" not in form.format(record), "another transfer still uses it"
