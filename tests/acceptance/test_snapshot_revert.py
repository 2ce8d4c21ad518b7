"""Reverting a volume through the whole product: it holds what it held, by qemu-img's judgement, from any link of a chain; killed
with -9 or cancelled on the way it holds the one content or the other, whole, and nothing is left beside it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from agents.qemu import run
from api.verify import verify_all
from tests.acceptance.conftest import Place
from tests.acceptance.test_chains import Chain
from tests.support.up import Refusal

pytestmark = pytest.mark.needs_qemu


@pytest.fixture
async def chain(place: Place, tmp_path: Path, seed: int) -> Chain:
    made = Chain(place, tmp_path, random.Random(seed))
    await made.create()
    return made


async def revert(chain: Chain, snapshot: str) -> None:
    answer = await chain.place.up.call("revertSnapshot", id=snapshot)
    job = await chain.place.up.end(answer["jobid"])
    assert job["jobstatus"] == 1 and job["jobresult"]["snapshot"]["id"] == snapshot, job


async def test_a_volume_holds_again_what_it_held(chain: Chain) -> None:
    made = []
    for _ in range(3):
        made.append(await chain.snapshot())
        await chain.write()
    for snapshot in (made[1], made[2], made[0]):
        await revert(chain, snapshot)
        assert await chain.sum(chain.disk) == chain.sums[snapshot]
        assert "No errors" in await run("qemu-img", "check", "-f", "qcow2", str(chain.disk))
        assert chain.place.disks() == {chain.disk.name}
    after = await chain.snapshot()
    await chain.write()
    last = await chain.snapshot()
    rows = {row["id"]: row for row in await chain.rows()}
    assert "reverted to the snapshot" in rows[after]["reason"] and rows[last]["parent_id"] == after
    for snapshot in (last, after):
        await chain.restore(snapshot)
    await chain.check()
    await chain.place.up.call("deleteVolume", id=chain.volume)
    with pytest.raises(Refusal, match="gone"):
        await chain.place.up.call("revertSnapshot", id=last)
    for snapshot in list(chain.sums):
        await chain.delete(snapshot)
    assert await verify_all(chain.place.up.dsn) == []


async def test_killed_on_the_way_it_holds_one_of_the_two_whole(chain: Chain) -> None:
    up, snapshot = chain.place.up, await chain.snapshot()
    for number in range(3):
        await chain.write()
        before = await chain.sum(chain.disk)
        answer = await up.call("revertSnapshot", id=snapshot)
        await asyncio.sleep(chain.dice.random() * 0.3)
        if number == 2:
            await up.call("cancelJob", jobid=answer["jobid"])
        else:
            up.kill()
            await up.start()
        job = await up.end(answer["jobid"])
        holds = await chain.sum(chain.disk)
        assert holds == (chain.sums[snapshot] if job["jobstatus"] == 1 else before)
        assert number == 2 or job["jobstatus"] == 1
        assert (await up.call("listVolumes", id=chain.volume))["volume"][0]["state"] == "Ready"
        assert chain.place.disks() == {chain.disk.name}
    await up.call("deleteVolume", id=chain.volume)
    await chain.delete(snapshot)
