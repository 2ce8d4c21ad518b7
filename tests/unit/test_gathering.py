"""Reads for many at once: never older than the question, each with its own answer or error."""

from __future__ import annotations

import asyncio

import pytest

from bus.gathering import MOST, Gathered


class Shelf:
    """Values that change; each reading takes until it is let through."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.readings: list[list[str]] = []
        self.gate = asyncio.Event()

    async def read(self, keys: list[str]) -> dict[str, int]:
        self.readings.append(keys)
        found = {key: self.values[key] for key in keys if key in self.values}
        await self.gate.wait()
        if "bad" in keys:
            raise ValueError("no")
        return found


async def test_those_of_one_turn_go_together_and_the_others_in_the_next_reading() -> None:
    shelf = Shelf()
    gathered = Gathered(shelf.read)
    shelf.values = {"a": 1, "b": 1}
    first = [asyncio.create_task(gathered.get(keys)) for keys in (["a"], ["b", "a"], ["c"])]
    await asyncio.sleep(0.01)
    shelf.values["a"] = 2
    late = [asyncio.create_task(gathered.get(["a"])) for _ in range(3)]
    await asyncio.sleep(0.01)
    shelf.gate.set()
    assert await asyncio.gather(*first) == [{"a": 1}, {"b": 1, "a": 1}, {}]
    assert await asyncio.gather(*late) == [{"a": 2}] * 3, "an answer is older than its question"
    assert shelf.readings == [["a", "b", "c"], ["a"]]
    assert await gathered.get([]) == {} and len(shelf.readings) == 2


async def test_an_error_is_each_callers_own_and_the_next_reading_goes_on() -> None:
    shelf = Shelf()
    shelf.gate.set()
    gathered = Gathered(shelf.read)
    failed = await asyncio.gather(*(gathered.get(["bad"]) for _ in range(2)), return_exceptions=True)
    assert [str(each) for each in failed] == ["no", "no"] and failed[0] is not failed[1]
    assert await gathered.get(["a"]) == {}


async def test_one_who_is_cancelled_takes_nothing_from_the_others() -> None:
    shelf = Shelf()
    shelf.values = {"a": 1}
    gathered = Gathered(shelf.read)
    gone, stays = asyncio.create_task(gathered.get(["a"])), asyncio.create_task(gathered.get(["a"]))
    await asyncio.sleep(0.01)
    gone.cancel()
    shelf.gate.set()
    assert await stays == {"a": 1}
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_reading_is_bounded() -> None:
    shelf = Shelf()
    shelf.gate.set()
    gathered = Gathered(shelf.read)
    await asyncio.gather(*(gathered.get([str(number)]) for number in range(2 * MOST + 1)))
    assert [len(keys) for keys in shelf.readings] == [MOST, MOST, 1]
