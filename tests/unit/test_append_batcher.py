"""Group commit: who goes together, who waits, and that nobody is left waiting."""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import pytest

from bus import append_batcher
from bus.append_batcher import LANES, MANY, MAX_REQUESTS, AppendBatcher, Outcome
from bus.errors import AppendUnknown, StoreAway
from bus.event_store import Appended, AppendRequest, NewRow


def request(stream: str, size: int = 2) -> AppendRequest:
    """An append to one stream."""
    return AppendRequest(expected={stream: -1}, rows=[NewRow(
        stream=stream, kind="event", type="t", id=uuid4(), payload=b"x" * size, key=stream, correlation=uuid4())])


class Log:
    """Commits slowly and watches what is in flight."""

    def __init__(self, pause: float = 0.002) -> None:
        self.pause = pause
        self.batches: list[list[AppendRequest]] = []
        self.flying: dict[int, set[str]] = {}
        self.most_lanes = 0
        self.error: Exception | None = None

    async def commit(self, lane: int, batch: list[AppendRequest]) -> list[Outcome]:
        """See append_batcher.Commit."""
        streams = [name for each in batch for name in each.expected]
        assert len(set(streams)) == len(streams), "a batch with a stream twice"
        assert lane not in self.flying, "a lane with two batches"
        assert all(other.isdisjoint(streams) for other in self.flying.values()), "two batches in flight share a stream"
        self.flying[lane] = set(streams)
        self.most_lanes = max(self.most_lanes, len(self.flying))
        self.batches.append(batch)
        await asyncio.sleep(self.pause)
        del self.flying[lane]
        if self.error is not None:
            raise self.error
        return [Appended(len(self.batches)) for _ in batch]


async def test_a_lone_append_goes_at_once_and_few_go_together() -> None:
    log = Log()
    batcher = AppendBatcher(log.commit)
    await batcher.append(request("a"))
    await asyncio.gather(*(batcher.append(request(f"s{n}")) for n in range(MANY)))
    assert [len(batch) for batch in log.batches] == [1, MANY]
    assert log.most_lanes == 1


async def test_many_use_every_lane_and_all_come_through() -> None:
    log = Log()
    batcher = AppendBatcher(log.commit)
    rng = random.Random(1)
    asked = [request(f"s{rng.randrange(2000)}") for _ in range(3000)]
    await asyncio.wait_for(asyncio.gather(*map(batcher.append, asked)), 60)
    assert log.most_lanes == LANES
    assert max(map(len, log.batches)) <= MAX_REQUESTS
    order: dict[str, list[AppendRequest]] = {}
    for batch in log.batches:
        for each in batch:
            order.setdefault(next(iter(each.expected)), []).append(each)
    assert order == {stream: [each for each in asked if stream in each.expected] for stream in order}
    assert sum(map(len, log.batches)) == len(asked)


async def test_a_batch_is_bounded_in_bytes() -> None:
    log = Log()
    batcher = AppendBatcher(log.commit)
    await asyncio.gather(*(batcher.append(request(f"s{n}", 400_000)) for n in range(10)))
    assert max(map(len, log.batches)) == 3


async def test_one_stream_waits_for_itself_and_holds_nobody_up() -> None:
    log = Log()
    batcher = AppendBatcher(log.commit)
    await asyncio.gather(*(batcher.append(request("hot")) for _ in range(3)), *(batcher.append(request(f"s{n}")) for n in range(5)))
    assert [len(batch) for batch in log.batches] == [6, 1, 1]


async def test_an_error_reaches_each_caller_as_its_own() -> None:
    log = Log()
    log.error = AppendUnknown("cut", remedy="again")
    batcher = AppendBatcher(log.commit)
    ends = await asyncio.gather(*(batcher.append(request(f"s{n}")) for n in range(5)), return_exceptions=True)
    assert all(isinstance(end, AppendUnknown) and end.failure == log.error.failure for end in ends)
    assert len(set(map(id, ends))) == 5


async def test_who_gave_up_before_it_was_sent_is_not_sent() -> None:
    log = Log(pause=0.05)
    batcher = AppendBatcher(log.commit)
    first = asyncio.create_task(batcher.append(request("a")))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(batcher.append(request("b")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await batcher.drain()
    assert [list(each.expected) for batch in log.batches for each in batch] == [["a"]]


async def test_a_stop_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(pause=60)
    batcher = AppendBatcher(log.commit)
    sent = asyncio.create_task(batcher.append(request("a")))
    await asyncio.sleep(0.01)
    unsent = asyncio.create_task(batcher.append(request("a")))
    await asyncio.sleep(0)
    monkeypatch.setattr(append_batcher, "MAX_WAITING", 1)
    with pytest.raises(StoreAway, match="waiting already"):
        await batcher.append(request("b"))
    await asyncio.wait_for(batcher.stop(), 60)
    with pytest.raises(AppendUnknown):
        await sent
    with pytest.raises(StoreAway):
        await unsent
