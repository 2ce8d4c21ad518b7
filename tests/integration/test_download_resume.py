"""A download whose agent is killed -9 goes on with ranges of the same source, and every byte is still looked at and summed."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.download import IN_FLIGHT, missing
from agents.image_stores.folder import FolderImageStore
from agents.manifest import verify_object
from agents.source_identity import Source, described
from schema.agent import FetchImage
from tests.integration.test_agent_kill import MIB, SEED, Agent, fetch, gone, spec, stored
from tests.services.http_files import HttpFiles, http_files

PART = 8 * MIB
BODY = random.Random(SEED).randbytes(9 * PART + 12345)
SUM = hashlib.sha512(BODY).hexdigest()
ETAG = {"ETag": '"v1"'}
DATED = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.fixture
def files() -> Iterator[HttpFiles]:
    with http_files() as server:
        server.bodies["raw"] = BODY
        server.pause_every, server.pause_s, server.headers = MIB, 0.02, dict(ETAG)
        yield server


@pytest.fixture
async def agent(tmp_path: Path, files: HttpFiles) -> AsyncIterator[Agent]:
    one = Agent(tmp_path, files)
    (tmp_path / "images").mkdir()
    store = await FolderImageStore.open(spec(one), {})
    await store.test("inst/probe")
    yield one
    await one.stop()


def recorded(agent: Agent, one: FetchImage) -> set[int]:
    """The parts (from 0) that the agent has a record of."""
    path = agent.base / "state" / "transfers" / f"{one.work_name}.parts"
    return {int(number) - 1 for number in re.findall(r'"part": (\d+)', path.read_text())} if path.exists() else set()


async def killed_at(agent: Agent, one: FetchImage, parts: int) -> set[int]:
    """Kill the agent when it has a record of so many parts; of which."""
    await agent.until(lambda: len(recorded(agent, one)) >= parts)
    await agent.kill()
    await agent.until(lambda: all(gone(pid) for pid in agent.movers))
    return recorded(agent, one)


async def right(agent: Agent, one: FetchImage, body: bytes) -> None:
    assert await agent.end(one) == "work.completed", agent.last(one)
    assert stored(agent) == {one.key, f"{one.key}.manifest.json"}
    store = await FolderImageStore.open(spec(agent), {})
    assert (await verify_object(store, one.key)).sha256 == hashlib.sha256(body).hexdigest()
    await store.aclose()


def ranges(files: HttpFiles) -> list[tuple[int, int]]:
    """What was asked for, as runs of parts."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", "")) for _, headers in files.asked]
    return [(int(one[1]) // PART, -(-(int(one[2]) + 1) // PART)) for one in found if one]


@pytest.mark.parametrize("validator", [ETAG, DATED], ids=["etag", "date"])
async def test_killed_twice_it_asks_for_what_is_missing_alone(agent: Agent, validator: dict[str, str]) -> None:
    agent.files.headers = dict(validator)
    dice = random.Random(SEED)
    one = fetch(agent, "slow/raw", checksum="{SHA-512}" + SUM)
    await agent.start()
    await agent.give(one)
    for parts in (dice.randint(1, 3), dice.randint(5, 7)):
        there = await killed_at(agent, one, parts)
        agent.files.asked.clear()
        await agent.start()
        await agent.until(lambda: agent.files.asked)
        assert ranges(agent.files)[0] == missing(there, 10)[0]
        assert agent.files.asked[0][1]["If-Range"] in validator.values()
    await right(agent, one, BODY)
    assert ranges(agent.files) == missing(there, 10), "parts that the store had were asked for again"
    assert agent.files.sent - len(BODY) < 2 * (IN_FLIGHT + 1) * PART


@pytest.mark.soak(but=("changed", "weak", "silent"))
@pytest.mark.parametrize("how", ["changed", "no ranges", "weak", "young", "silent"])
async def test_what_cannot_be_held_to_its_word_begins_again(agent: Agent, files: HttpFiles, how: str) -> None:
    body = BODY
    if how == "weak":
        files.headers = {"ETag": 'W/"v1"'}
    if how == "young":
        files.headers = {"Last-Modified": "Fri, 01 Jan 2100 00:00:00 GMT"}
    if how == "silent":
        files.headers = {}
    one = fetch(agent, "slow/raw")
    await agent.start()
    await agent.give(one)
    if how in ("changed", "no ranges"):
        await killed_at(agent, one, 2)
        files.headers = {"ETag": '"v2"'}
    else:
        await agent.until(lambda: files.sent > 3 * PART)
        await agent.kill()
    if how == "changed":
        body = files.bodies["raw"] = random.Random(SEED + 1).randbytes(len(BODY))
    files.asked.clear()
    files.pause_s = 0
    await agent.start()
    await right(agent, one, body)
    assert "Range" not in files.asked[-1][1]


@pytest.mark.soak(but=("bytes",))
@pytest.mark.parametrize("lie", ["bytes", "checksum", "format"])
async def test_a_resumed_download_is_looked_at_as_a_whole(agent: Agent, files: HttpFiles, lie: str) -> None:
    more: dict[str, Any] = {"checksum": "{SHA-512}" + (SUM if lie != "checksum" else "0" * 128)}
    one = fetch(agent, "slow/raw", **more)
    await agent.start()
    await agent.give(one)
    await killed_at(agent, one, 2)
    if lie == "bytes":  # other bytes under the same name: the sum of all sees it
        files.bodies["raw"] = BODY[:-9] + b"otherwise"
    if lie == "format":  # what looks like another format at its end
        files.bodies["raw"] = BODY[:-512] + b"conectix" + BODY[-504:]
    files.pause_s = 0
    await agent.start()
    assert await agent.end(one) == "work.failed"
    assert agent.last(one)["failure"]["field"] in ("checksum", "format")
    assert stored(agent) == set()


class TestSource:
    """What makes a source one that can be gone on with."""

    def of(self, **headers: str) -> Source | None:
        return Source.of({name.replace("_", "-"): text for name, text in headers.items()}, "w", total=100, part=10)

    def test_validators(self) -> None:
        old, now = "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:01:00 GMT"
        assert self.of(ETag='"a"') is not None
        assert self.of(Last_Modified=old, Date=now) is not None
        assert self.of(Last_Modified=old, Date=old) is None
        assert self.of(Last_Modified="yesterday", Date=now) is None
        assert self.of(ETag='W/"a"') is None
        assert self.of(ETag='"a"', Accept_Ranges="none") is None
        assert self.of() is None

    def test_answers(self) -> None:
        source = self.of(ETag='"a"')
        assert source is not None
        good = {"Content-Range": "bytes 10-19/100", "ETag": '"a"'}
        assert source.gives(206, good, 10, 19)
        assert not source.gives(200, good, 10, 19)
        for wrong in ({"ETag": '"b"'}, {"ETag": ""}, {"Content-Range": "bytes 10-19/101"}, {"Content-Range": "bytes 10-18/100"}):
            assert not source.gives(206, good | wrong, 10, 19)
        assert Source.parse(source.text(), "w") == source
        assert Source.parse(source.text(), described("w")) is None
        assert Source.parse("[", "w") is None
