"""The journal: what was said to be written is there after any end of the process, and attempts keep their order."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agents import journal as journals
from agents.journal import DONE, OPEN, REFUSED, RELEASED, Journal
from schema.agent import CancelWork, DropSnapshot, TakeSnapshot
from schema.codec import encode
from schema.ids import derive
from schema.image import DiskRef, PrimarySpec

WORK = UUID(int=7)


def order(work_id: UUID = WORK, attempt: int = 1) -> TakeSnapshot:
    """Some order."""
    primary = PrimarySpec(id=UUID(int=1), name="p", kind="folder", path="/p", zone_id=UUID(int=2), agent="a")
    disk = DiskRef(primary=primary, volume_id=UUID(int=3), path="x.qcow2", virtual_size=512)
    return TakeSnapshot(job_id=UUID(int=4), work_id=work_id, attempt=attempt, agent="a", reply_key="job-4", disk=disk, tag="t")


def cancel(work_id: UUID = WORK, attempt: int = 1) -> CancelWork:
    """The order to stop it."""
    return CancelWork(job_id=UUID(int=4), work_id=work_id, attempt=attempt, agent="a", reply_key="job-4")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """An empty one."""
    opened = Journal(tmp_path / "orders.db")
    yield opened
    opened.close()


async def again(journal: Journal) -> Journal:
    """The same file as the next process sees it."""
    journal.close()
    return Journal(journal._path)


async def test_an_order_is_there_after_a_restart_as_it_came(journal: Journal) -> None:
    one = order()
    assert await journal.take(one, encode(one)) is None
    journal = await again(journal)
    [entry] = await journal.entries(OPEN)
    assert (entry.payload, entry.type, entry.version, entry.reply_key) == (encode(one), one.TYPE, 1, "job-4")
    assert await journal.take(one, encode(one)) == entry
    journal.close()


async def test_orders_are_resumed_in_the_order_in_which_they_came(journal: Journal) -> None:
    ids = [uuid4() for _ in range(50)]
    for work_id in ids:
        await journal.take(order(work_id), b"{}")
    assert [entry.work_id for entry in await journal.entries(OPEN)] == [str(work_id) for work_id in ids]


async def test_a_later_attempt_replaces_an_earlier_one_in_every_state(journal: Journal) -> None:
    await journal.take(order(), b"1")
    await journal.cancel(cancel())
    drop = DropSnapshot.model_validate(order(attempt=2).model_dump())
    assert await journal.take(drop, b"2") is None
    found = await journal.find(str(WORK))
    assert found is not None
    assert (found.attempt, found.payload, found.type, found.cancelled) == (2, b"2", drop.TYPE, False)
    await journal.finish(order(attempt=2), "work.completed", b"r")
    assert await journal.take(order(attempt=3), b"3") is None
    found = await journal.find(str(WORK))
    assert found is not None
    assert (found.state, found.report_type, found.report) == (OPEN, "", b"")
    await journal.finish(order(attempt=3), "work.completed", b"r")
    await journal.release(str(WORK), 3)
    assert await journal.take(order(attempt=4), b"4") is None


async def test_an_earlier_attempt_changes_nothing(journal: Journal) -> None:
    await journal.take(order(attempt=2), b"2")
    before = await journal.find(str(WORK))
    assert await journal.take(order(attempt=1), b"1") == before
    assert not await journal.finish(order(attempt=1), "work.completed", b"late")
    await journal.release(str(WORK), 1)
    assert await journal.cancel(cancel(attempt=1)) == before
    assert await journal.find(str(WORK)) == before


async def test_a_report_is_kept_until_it_is_released_and_written_once(journal: Journal) -> None:
    await journal.take(order(), b"1")
    assert await journal.finish(order(), "work.completed", b"first")
    assert not await journal.finish(order(), "work.failed", b"second")
    journal = await again(journal)
    [entry] = await journal.entries(DONE)
    assert (entry.report_type, entry.report) == ("work.completed", b"first")
    await journal.release(str(WORK), 1)
    assert await journal.entries(DONE) == []
    journal.close()


async def test_open_work_cannot_be_released(journal: Journal) -> None:
    await journal.take(order(), b"1")
    await journal.release(str(WORK), 1)
    assert len(await journal.entries(OPEN)) == 1


async def test_released_work_is_remembered_by_name_alone(journal: Journal) -> None:
    await journal.take(order(), b"the order")
    await journal.finish(order(), "work.completed", b"the report")
    await journal.release(str(WORK), 1)
    known = await journal.take(order(), b"the order")
    assert known is not None
    assert (known.state, known.payload, known.report) == (RELEASED, b"", b"")


async def test_what_is_remembered_is_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "REMEMBERED", 10)
    await journal.take(order(uuid4()), b"still open")
    for _ in range(40):
        work_id = uuid4()
        await journal.take(order(work_id), b"x")
        await journal.finish(order(work_id), "work.completed", b"r")
        await journal.release(str(work_id), 1)
    assert len(await journal.entries(RELEASED)) == 10
    assert len(await journal.entries(OPEN)) == 1


async def test_a_cancel_marks_open_work_for_after_a_crash_too(journal: Journal) -> None:
    await journal.take(order(), b"1")
    assert (await journal.cancel(cancel())).state == OPEN
    journal = await again(journal)
    [entry] = await journal.entries(OPEN)
    assert entry.cancelled
    journal.close()


async def test_a_cancel_of_ended_work_changes_nothing(journal: Journal) -> None:
    await journal.take(order(), b"1")
    await journal.finish(order(), "work.completed", b"r")
    known = await journal.cancel(cancel())
    assert (known.state, known.report, known.cancelled) == (DONE, b"r", False)
    await journal.release(str(WORK), 1)
    assert (await journal.cancel(cancel())).state == RELEASED


async def test_work_that_is_cancelled_before_it_comes_is_refused_when_it_does(journal: Journal) -> None:
    assert (await journal.cancel(cancel())).state == REFUSED
    journal = await again(journal)
    known = await journal.take(order(), b"late")
    assert known is not None
    assert known.state == REFUSED
    assert (await journal.cancel(cancel())).state == REFUSED
    assert await journal.take(order(attempt=2), b"the next") is None
    journal.close()


async def test_a_cancel_of_an_attempt_that_has_not_come_replaces_the_earlier_one(journal: Journal) -> None:
    await journal.take(order(attempt=1), b"1")
    known = await journal.cancel(cancel(attempt=2))
    assert (known.state, known.attempt) == (REFUSED, 2)
    assert not await journal.finish(order(attempt=1), "work.completed", b"r")


async def test_a_closed_journal_is_not_opened_again(journal: Journal) -> None:
    await journal.take(order(), b"1")
    journal.close()
    with pytest.raises(sqlite3.ProgrammingError):
        await journal.take(order(uuid4()), b"2")


async def test_a_full_disk_is_an_error_and_nothing_is_half_written(journal: Journal) -> None:
    await journal.take(order(), b"1")
    assert journal._db is not None
    journal._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError):
        await journal.take(order(uuid4()), bytes(1 << 20))
    journal._db.execute("PRAGMA max_page_count = 100000")
    assert [entry.work_id for entry in await journal.entries(OPEN)] == [str(WORK)]


async def test_every_commit_is_synchronous(journal: Journal) -> None:
    await journal.take(order(), b"1")
    assert journal._db is not None
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_many_at_once_are_all_written(journal: Journal) -> None:
    ids = [uuid4() for _ in range(40)]
    await asyncio.gather(*(journal.take(order(work_id), b"x") for work_id in ids))
    await asyncio.gather(*(journal.finish(order(work_id), "work.completed", b"r") for work_id in ids[:20]))
    assert {entry.work_id for entry in await journal.entries(DONE)} == {str(work_id) for work_id in ids[:20]}
    assert {entry.work_id for entry in await journal.entries(OPEN)} == {str(work_id) for work_id in ids[20:]}


WRITER = """
import asyncio, sys
from pathlib import Path
from agents.journal import Journal
from tests.unit.test_journal import WORK, order
from schema.ids import derive

async def main():
    journal, number = Journal(Path(sys.argv[1])), int(sys.argv[2])
    while True:
        one = order(derive(WORK, str(number)))
        await journal.take(one, b"x")
        print("taken", number, flush=True)
        await journal.finish(one, "work.completed", b"r")
        print("done", number, flush=True)
        number += 1

asyncio.run(main())
"""


def test_whatever_was_said_to_be_written_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    taken: set[int] = set()
    done: set[int] = set()
    for life in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(life * 100_000)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for lines, line in enumerate(process.stdout):
            what, number = line.split()
            (taken if what == "taken" else done).add(int(number))
            if lines == 20 + 17 * life:
                process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL

    async def check() -> None:
        journal = Journal(path)
        ended = {entry.work_id for entry in await journal.entries(DONE)}
        known = ended | {entry.work_id for entry in await journal.entries(OPEN)}
        journal.close()
        assert {str(derive(WORK, str(number))) for number in done} <= ended
        assert {str(derive(WORK, str(number))) for number in taken} <= known
        assert len(known) <= len(taken) + 4

    asyncio.run(check())
    assert len(taken) > 40
