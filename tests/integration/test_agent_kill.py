"""A real agent and its mover as processes: killed at every named place and while bytes move, and nothing is lost, doubled or left.

Orders and words go over pipes (`tests/support/agent_process.py`): only the journal, the store and the lock survive a kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.image_stores.folder import FolderImageStore
from agents.manifest import verify_object
from schema.agent import CancelWork, FetchImage, ReleaseWork
from schema.image import StoreSpec
from schema.message import Order
from tests.services.http_files import HttpFiles, http_files
from tests.support.agent_process import NAME

MIB = 1 << 20
SEED = int(os.environ.get("STOREBUS_SEED", "1"))
RAW = random.Random(SEED).randbytes(20 * MIB)
FINAL = ("work.completed", "work.failed", "work.cancelled")
SECRET, REF = "CANARY-9c2e7f", f"vault:{UUID(int=77)}"


class Agent:
    """One agent process after another, on one folder."""

    def __init__(self, base: Path, files: HttpFiles) -> None:
        self.base, self.files = base, files
        self.process: asyncio.subprocess.Process | None = None
        self.words: list[dict[str, Any]] = []
        self.movers: list[int] = []
        self._reader: asyncio.Task[None] | None = None

    async def start(self, failpoints: str = "") -> None:
        """Start it."""
        with (self.base / "agent.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.agent_process", str(self.base / "state"), self.files.allow, failpoints,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log)
        await self._write({REF: SECRET})
        self._reader = asyncio.create_task(self._read(self.process))

    async def _write(self, line: Any) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        await self.process.stdin.drain()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            word = json.loads(line)
            self.words.append(word)
            if word.get("mover"):
                self.movers.append(word["mover"])
        await process.wait()

    async def give(self, order: Order) -> None:
        """An order."""
        await self._write({"type": order.TYPE, "body": order.model_dump(mode="json")})

    async def dead(self) -> int:
        """Wait until it has ended; how."""
        assert self.process is not None
        assert self._reader is not None
        async with asyncio.timeout(60):
            await self._reader
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self.process.stdin.wait_closed()
        return int(self.process.returncode or 0)

    async def kill(self) -> None:
        """SIGKILL to the agent alone."""
        assert self.process is not None
        self.process.kill()
        assert await self.dead() == -signal.SIGKILL

    async def stop(self) -> None:
        """An orderly end: its input ends."""
        if self.process is None or self.process.returncode is not None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert await self.dead() == 0, self.log()

    def log(self) -> str:
        """What it wrote on stderr."""
        return (self.base / "agent.log").read_text()

    def said(self, order: Order) -> list[str]:
        """Reports about an order."""
        return [word["said"] for word in self.words if word.get("body", {}).get("work_id") == str(order.work_id)]

    def last(self, order: Order) -> dict[str, Any]:
        """The last report about it."""
        found: dict[str, Any] = [word["body"] for word in self.words if word.get("body", {}).get("work_id") == str(order.work_id)][-1]
        return found

    async def until(self, what: Any, seconds: float = 30) -> None:
        """Wait."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, (self.words[-5:], self.log()[-2000:])
            await asyncio.sleep(0.01)

    async def end(self, order: Order, times: int = 1) -> str:
        """Its final report."""
        await self.until(lambda: sum(kind in FINAL for kind in self.said(order)) >= times)
        return next(kind for kind in reversed(self.said(order)) if kind in FINAL)


@pytest.fixture
def files() -> Iterator[HttpFiles]:
    """A server with one raw image."""
    with http_files() as server:
        server.bodies["raw"] = RAW
        yield server


@pytest.fixture
async def agent(tmp_path: Path, files: HttpFiles) -> AsyncIterator[Agent]:
    """Not started yet."""
    one = Agent(tmp_path, files)
    (tmp_path / "images").mkdir()
    store = await FolderImageStore.open(spec(one), {})
    await store.test("inst/probe")
    yield one
    await one.stop()
    await one.until(lambda: all(gone(pid) for pid in one.movers), 5)  # no mover outlives its agent


def spec(agent: Agent) -> StoreSpec:
    """The folder store of a test."""
    return StoreSpec(id=UUID(int=1), name="f", provider="folder", url=f"folder://{agent.base}/images", prefix="inst")


def fetch(agent: Agent, path: str, **more: Any) -> FetchImage:
    """Download a path of the server into the folder."""
    work_id = more.pop("work_id", uuid4())
    fields: dict[str, Any] = {
        "job_id": UUID(int=4), "work_id": work_id, "agent": NAME, "reply_key": "job-4", "url": agent.files.url(path), "format": "raw",
        "store": spec(agent), "key": f"inst/template/{work_id}", "kind": "template", "thing_id": uuid4(), "max_bytes": 1 << 30,
        "max_virtual_size": 1 << 40}
    return FetchImage.model_validate(fields | more)


def cancel(one: Order) -> CancelWork:
    """The order to stop it."""
    return CancelWork.model_validate(one.model_dump(include={"job_id", "work_id", "attempt", "agent", "reply_key"}))


def stored(agent: Agent) -> set[str]:
    """Names of all files in the store but its sentinel, unfinished ones too."""
    root = agent.base / "images"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".storebus-mount"}


async def whole(agent: Agent, one: FetchImage) -> None:
    """The object, its manifest and nothing else."""
    assert stored(agent) == {one.key, f"{one.key}.manifest.json"}
    store = await FolderImageStore.open(spec(agent), {})
    manifest = await verify_object(store, one.key)
    assert manifest.sha256 == hashlib.sha256(RAW).hexdigest()
    await store.aclose()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


async def test_kill_9_in_the_middle_of_a_download_and_it_is_done_again(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one = fetch(agent, "gated/raw")
    await agent.start()
    await agent.give(one)
    await agent.until(lambda: agent.files.sent >= 9 * MIB and any(name.endswith(".unfinished") for name in stored(agent)))
    mover = agent.movers[-1]
    await agent.kill()
    await agent.until(lambda: gone(mover), 5)
    assert await asyncio.to_thread(agent.files.ended.wait, 5), "bytes flow on after the agent's death"
    agent.files.gate.set()
    await agent.start()  # nobody sends the order again: it was acked, and the journal has it
    assert await agent.end(one) == "work.completed"
    assert agent.last(one)["bytes"] == len(RAW)
    await whole(agent, one)


POINTS = ("agent.after_journal_before_ack", "agent.before_work", "agent.after_work_before_report", "agent.after_report_before_release")


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_named_place_it_ends_once_and_rightly(agent: Agent, point: str) -> None:
    one = fetch(agent, "file/raw")
    await agent.start(f"{point}=kill")
    await agent.give(one)
    assert await agent.dead() == -signal.SIGKILL, "the place was not reached"
    fetched = len(agent.files.asked)
    before = agent.said(one)
    await agent.start()
    if point == "agent.after_journal_before_ack":
        await agent.give(one)  # not acked: the broker brings it again
    assert await agent.end(one) == "work.completed"
    await whole(agent, one)
    if point == "agent.after_report_before_release":
        assert len(agent.files.asked) == fetched == 1, "its report was in the journal"
    else:
        assert not set(before) & set(FINAL)
    await agent.give(ReleaseWork.model_validate(one.model_dump(include={"job_id", "work_id", "attempt", "agent", "reply_key"})))
    await agent.give(one)
    await asyncio.sleep(0.3)
    assert agent.said(one).count("work.completed") <= 2
    assert len(agent.files.asked) <= fetched + 1


async def test_a_mover_that_is_killed_is_replaced_and_its_work_done_again(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one, two = fetch(agent, "gated/raw"), fetch(agent, "gated/raw")
    await agent.start()
    for order in (one, two):
        await agent.give(order)
    await agent.until(lambda: agent.files.sent >= 18 * MIB)
    os.kill(agent.movers[-1], signal.SIGKILL)
    agent.files.gate.set()
    for order in (one, two):
        assert await agent.end(order) == "work.completed"
    assert len(agent.movers) == 2
    assert len(stored(agent)) == 4


async def test_cancel_stops_the_bytes_and_leaves_the_other_transfer_alone(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one, two = fetch(agent, "gated/raw"), fetch(agent, "gated/raw")
    await agent.start()
    for order in (one, two):
        await agent.give(order)
    await agent.until(lambda: agent.files.sent >= 18 * MIB)
    began = time.monotonic()
    await agent.give(cancel(one))
    assert await agent.end(one) == "work.cancelled"
    assert await asyncio.to_thread(agent.files.ended.wait, 5)
    assert time.monotonic() - began < 5
    agent.files.gate.set()
    assert await agent.end(two) == "work.completed"
    await whole(agent, two)
    assert len(agent.movers) == 1, "an obedient mover is kept"


async def test_a_mover_that_does_not_obey_is_killed_and_cleaned_up_after(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one, two = fetch(agent, "gated/raw"), fetch(agent, "gated/raw")
    await agent.start()
    for order in (one, two):
        await agent.give(order)
    await agent.until(lambda: agent.files.sent >= 18 * MIB)
    os.kill(agent.movers[-1], signal.SIGSTOP)
    began = time.monotonic()
    await agent.give(cancel(one))
    assert await asyncio.to_thread(agent.files.ended.wait, 6)
    assert time.monotonic() - began < 5, "bytes must stop within 5 s"
    assert await agent.end(one) == "work.cancelled"
    agent.files.gate.set()
    assert await agent.end(two) == "work.completed", "what the mover did beside it is done again"
    await whole(agent, two)


async def test_killed_while_it_cancels_it_still_leaves_nothing(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one = fetch(agent, "gated/raw")
    await agent.start()
    await agent.give(one)
    await agent.until(lambda: agent.files.sent >= 9 * MIB and stored(agent))
    os.kill(agent.movers[-1], signal.SIGSTOP)
    await agent.give(cancel(one))
    await agent.until(lambda: marked(agent))
    await agent.kill()
    assert stored(agent), "the kill came too late to prove anything"
    await agent.start()
    assert await agent.end(one) == "work.cancelled"
    assert stored(agent) == set()
    assert len(agent.files.asked) == 1


def marked(agent: Agent) -> bool:
    """Whether the journal has the cancel."""
    with contextlib.closing(sqlite3.connect(agent.base / "state" / "orders.db")) as database:
        return bool(database.execute("SELECT cancelled FROM work").fetchone()[0])


async def test_cancelled_before_it_began_in_the_mover_it_is_not_waited_for(agent: Agent) -> None:
    agent.files.hold_at = 0
    await agent.start()
    orders = [fetch(agent, "gated/raw") for _ in range(8)]
    began = time.monotonic()
    for one in orders:
        await agent.give(one)
        await agent.give(cancel(one))
    for one in orders:
        assert await agent.end(one) == "work.cancelled"
    assert time.monotonic() - began < 15
    assert stored(agent) == set()
    assert len(agent.movers) <= 1, "no mover had to be killed"


async def test_a_lie_is_refused_by_the_real_mover_and_progress_is_told(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    one = fetch(agent, "gated/raw", checksum="{MD5}" + "0" * 32)
    await agent.start()
    await agent.give(one)
    await agent.until(lambda: any(word.get("progress") for word in agent.words))
    agent.files.gate.set()
    assert await agent.end(one) == "work.failed"
    assert agent.last(one)["failure"]["field"] == "checksum"
    told = [word["progress"][0]["bytes"] for word in agent.words if word.get("progress")]
    assert told == sorted(told)
    assert max(told) < len(RAW)
    assert stored(agent) == set()


async def test_a_secret_is_in_no_argument_environment_file_or_word(agent: Agent) -> None:
    agent.files.hold_at = 9 * MIB
    store = StoreSpec(id=UUID(int=1), name="m", provider="memory", url="memory://x", prefix="inst", details={"secretkey": REF})
    one, bad = fetch(agent, "gated/raw", store=store), fetch(agent, "file/raw", store=store.model_copy(update={
        "details": {"secretkey": REF, "nosuch": REF}}))
    await agent.start()
    await agent.give(bad)
    await agent.give(one)
    await agent.until(lambda: agent.files.sent >= 9 * MIB)
    assert agent.process is not None
    for pid in (agent.process.pid, agent.movers[-1]):
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    agent.files.gate.set()
    assert await agent.end(one) == "work.completed"
    assert await agent.end(bad) == "work.failed"
    await agent.kill()
    assert SECRET not in json.dumps(agent.words)
    for path in agent.base.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert REF.encode() in b"".join(path.read_bytes() for path in (agent.base / "state").iterdir() if path.is_file()), "the reference is what is kept"


async def test_a_second_process_of_the_same_name_is_refused(agent: Agent) -> None:
    await agent.start()
    await agent.until(lambda: agent.words)
    other = Agent(agent.base, agent.files)
    await other.start()
    assert await other.dead() == 1
    assert "runs already on this host" in agent.log()
    one = fetch(agent, "file/raw")
    await agent.give(one)
    assert await agent.end(one) == "work.completed"
