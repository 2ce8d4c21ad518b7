"""Chains of incremental snapshots through the whole product: random writes, deletes and restores equal the originals; the
bucket holds exactly what the projections name; nothing a chain needs is deleted, nothing else remains.

The test keeps a checksum of each snapshot's content, made by qemu-img from the disk at rest. STOREBUS_SOAK_N asks for chains
of 20.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.manifest import SUFFIX
from agents.qemu import image_options, run
from api.verify import verify_all
from tests.acceptance.conftest import Place
from tests.services.forked import told

MIB = 1 << 20
LINKS = 20 if int(os.environ.get("STOREBUS_SOAK_N", "0")) else 5

ENVIRONMENT = {"STOREBUS_SNAPSHOT_COLLAPSE": "0"}
"""Whatever may be given back is: at rest, nothing is there but what the snapshots that are there hold."""
ROUNDS = 20 if LINKS == 20 else 2


class Chain:
    """A volume and what its snapshots hold."""

    def __init__(self, place: Place, folder: Path, dice: random.Random) -> None:
        self.place, self.folder, self.dice = place, folder, dice
        self.volume, self.disk = "", Path()
        self.sums: dict[str, str] = {}

    async def create(self) -> None:
        self.volume, _ = await self.place.up.done("createVolume", name="chained", size=1)
        found = (await self.place.up.call("listVolumes", id=self.volume))["volume"][0]
        self.disk = self.place.up.data / "primary" / found["path"]
        await self.write(24)

    async def write(self, times: int = 5) -> None:
        """Random writes and zeroes, some of them over one another, in 48 MiB at both sides of a table's border."""
        async with KvmHypervisor().open(str(self.disk), writable=True) as device:
            for _ in range(times):
                at = 488 * MIB + self.dice.randrange(0, 47 * MIB, 512)
                length = self.dice.choice((512, 4096, 70_144, MIB))
                if self.dice.random() < 0.3:
                    await device.zero(at, length)
                else:
                    await device.write(at, self.dice.randbytes(length))
            await device.flush()

    async def sum(self, disk: Path) -> str:
        """Checksum of what a disk holds, read by qemu-img: of each block that is not zeros, with its place."""
        raw = self.folder / "raw"
        await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw))
        assert raw.stat().st_size == 1 << 30
        digest, at = hashlib.sha256(), 0
        with raw.open("rb") as file, contextlib.suppress(OSError):  # ENXIO: no more data
            while True:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // MIB * MIB
                block = os.pread(file.fileno(), MIB, at)
                if any(block):
                    digest.update(at.to_bytes(8, "big") + block)
                at += MIB
        return digest.hexdigest()

    async def snapshot(self) -> str:
        expected = await self.sum(self.disk)
        more = {"asyncbackup": "true"} if self.dice.random() < 0.3 else {}
        made, job = await self.place.up.done("createSnapshot", volumeid=self.volume, **more)
        assert job["jobstatus"] == 1, job
        for _ in range(2000):  # an asynchronous backup is a job of its own
            if any(row["id"] == made and row["state"] == "BackedUp" and not row["on_primary"] for row in await self.rows()):
                break
            await asyncio.sleep(0.05)
        self.sums[made] = expected
        return made

    async def delete(self, snapshot: str) -> None:
        answer = await self.place.up.call("deleteSnapshot", id=snapshot)
        assert (await self.place.up.end(answer["jobid"]))["jobstatus"] == 1
        del self.sums[snapshot]

    async def restore(self, snapshot: str) -> None:
        made, job = await self.place.up.done("createVolume", name="r", snapshotid=snapshot, zoneid=self.place.zone)
        assert job["jobstatus"] == 1, job
        found = (await self.place.up.call("listVolumes", id=made))["volume"][0]
        disk = self.place.up.data / "primary" / found["path"]
        assert "backing" not in await run("qemu-img", "info", "-f", "qcow2", str(disk))
        assert await self.sum(disk) == self.sums[snapshot]
        await self.place.up.call("deleteVolume", id=made)

    async def rows(self) -> list[dict[str, Any]]:
        """Snapshots of the volume with their copies, from the read tables."""
        connection = await asyncpg.connect(self.place.up.dsn)
        try:
            return [dict(row) for row in await connection.fetch(
                "SELECT s.id, s.state, s.parent_id, s.depth, s.reason, s.on_primary, r.key, r.state AS copy"
                " FROM read.snapshot s LEFT JOIN read.snapshot_store_ref r ON r.snapshot_id = s.id"
                " WHERE s.volume_id = $1 ORDER BY s.created", self.volume)]
        finally:
            await connection.close()

    async def check(self) -> None:
        """The bucket is what the projections name; they name the chains of what is there, and of those only what was not deleted:
        that is merged. The log is whole."""
        for _ in range(2000):  # merges and sweeps are jobs of their own
            kept = {row["id"]: row["key"] for row in await self.rows() if row["key"] is not None}
            if set(kept) == set(self.sums) and self.place.objects() == {key + end for key in kept.values() for end in ("", SUFFIX)}:
                break
            await asyncio.sleep(0.05)
        rows = {row["id"]: row for row in await self.rows()}
        needed: set[str] = set()
        for snapshot in self.sums:
            assert rows[snapshot]["state"] == "BackedUp"
            link: str | None = snapshot
            while link is not None:
                needed.add(link)
                link = rows[link]["parent_id"]
        kept = {name: row["key"] for name, row in rows.items() if row["key"] is not None}
        assert set(kept) == needed
        assert needed == set(self.sums)
        assert {row["copy"] for row in rows.values() if row["key"] is not None} <= {"Ready"}
        assert all(rows[name]["depth"] == (rows[rows[name]["parent_id"]]["depth"] + 1 if rows[name]["parent_id"] else 0)
                   for name in needed)
        assert self.place.objects() == {key + end for key in kept.values() for end in ("", SUFFIX)}
        assert await verify_all(self.place.up.dsn) == []

    async def judge_objects(self, snapshot: str) -> None:
        """The objects alone, downloaded under their keys, hold the snapshot: qemu-img follows their own names."""
        rows = {row["id"]: row for row in await self.rows()}
        link: str | None = snapshot
        with contextlib.closing(self.place.s3.client()) as client:
            while link is not None:
                key = rows[link]["key"]
                file = self.folder / "objects" / key
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(client.get_object(Bucket=self.place.bucket, Key=key)["Body"].read())
                    manifest = json.loads(client.get_object(Bucket=self.place.bucket, Key=key + SUFFIX)["Body"].read())
                    for name in manifest["replaces"]:  # deltas of before a merge name what it stands for
                        other = self.folder / "objects" / name
                        other.parent.mkdir(parents=True, exist_ok=True)
                        other.symlink_to(file)
                link = rows[link]["parent_id"]
        assert await self.sum(self.folder / "objects" / rows[snapshot]["key"]) == self.sums[snapshot]


@pytest.fixture
async def chain(place: Place, tmp_path: Path, seed: int) -> Chain:
    made = Chain(place, tmp_path, random.Random(seed))
    await made.create()
    return made


async def test_a_chain_lives_and_dies_in_any_order(chain: Chain) -> None:
    made: list[str] = []
    for _ in range(LINKS):
        made.append(await chain.snapshot())
        await chain.write()
        if chain.dice.random() < 0.5:
            await chain.restore(chain.dice.choice(list(chain.sums)))
        if len(chain.sums) > 2 and chain.dice.random() < 0.3:
            await chain.delete(chain.dice.choice(list(chain.sums)))
            await chain.check()
    rows = {row["id"]: row for row in await chain.rows()}
    assert any(row["parent_id"] for row in rows.values())
    assert all(bool(rows[each]["parent_id"]) != bool(rows[each]["reason"]) for each in made), "a full one says why"
    assert max(row["depth"] for row in rows.values()) < 8
    await chain.judge_objects(list(chain.sums)[-1])
    for snapshot in chain.dice.sample(list(chain.sums), len(chain.sums)):
        await chain.restore(snapshot)
        await chain.delete(snapshot)
        await chain.check()
    assert chain.place.objects() == set()
    await chain.place.up.call("deleteVolume", id=chain.volume)


async def test_a_record_lost_in_between_makes_a_full_one_that_says_so(chain: Chain) -> None:
    first = await chain.snapshot()
    await chain.write()
    found = json.loads(await run("qemu-img", "info", "-f", "qcow2", "--output=json", str(chain.disk)))
    bitmap = found["format-specific"]["data"]["bitmaps"][0]["name"]
    await run("qemu-img", "bitmap", "--remove", "-f", "qcow2", str(chain.disk), bitmap)
    second = await chain.snapshot()
    await chain.write()
    third = await chain.snapshot()
    rows = {row["id"]: row for row in await chain.rows()}
    assert "no dirty bitmap" in rows[second]["reason"]
    assert [rows[each]["parent_id"] for each in (first, second, third)] == [None, None, second]
    for snapshot in (third, second, first):
        await chain.restore(snapshot)
        await chain.delete(snapshot)
        await chain.check()
    await chain.place.up.call("deleteVolume", id=chain.volume)


async def test_kill_9_at_any_moment_of_a_chain_costs_at_most_a_full_backup(chain: Chain) -> None:
    """Everything killed while a snapshot is taken, written or dropped, or one is restored: the job goes on after the restart;
    what is restored is right."""
    up, made = chain.place.up, [await chain.snapshot()]
    for _ in range(ROUNDS):
        await chain.write()
        expected = await chain.sum(chain.disk)
        answer = await up.call("createSnapshot", volumeid=chain.volume)
        restored = await up.call("createVolume", name="r", snapshotid=made[-1], zoneid=chain.place.zone)
        await asyncio.sleep(chain.dice.random() * 0.5)
        up.kill()
        await up.start()
        assert (await up.end(answer["jobid"]))["jobstatus"] == 1
        assert (await up.end(restored["jobid"]))["jobstatus"] == 1
        found = (await up.call("listVolumes", id=restored["id"]))["volume"][0]
        assert await chain.sum(up.data / "primary" / found["path"]) == chain.sums[made[-1]]
        await up.call("deleteVolume", id=restored["id"])
        made.append(answer["id"])
        chain.sums[answer["id"]] = expected
        await chain.check()
    for snapshot in chain.dice.sample(made, len(made)):
        await chain.restore(snapshot)
        await chain.delete(snapshot)
    await chain.check()
    assert "sb-" not in await run("qemu-img", "snapshot", "-l", "-U", "--image-opts", image_options(str(chain.disk)))
    await chain.place.up.call("deleteVolume", id=chain.volume)
    assert chain.place.disks() == set()


async def test_kill_9_while_links_are_merged_leaves_what_is_needed(chain: Chain) -> None:
    """Everything killed at any moment of deletions and of the merges and sweeps that follow them, while others read."""
    up, made = chain.place.up, []
    for _ in range(4):
        made.append(await chain.snapshot())
        await chain.write(12)
    for _ in range(ROUNDS):
        gone, read = chain.dice.sample(made[:-1], 2)  # the last one is built on all that are there
        restored = await up.call("createVolume", name="r", snapshotid=chain.dice.choice((read, made[-1])), zoneid=chain.place.zone)
        answer = await up.call("deleteSnapshot", id=gone)
        await asyncio.sleep(chain.dice.random() * 0.7)
        up.kill()
        await up.start()
        ended = await up.end(answer["jobid"])
        if ended["jobstatus"] == 1:
            del chain.sums[gone]
            made.remove(gone)
        else:
            assert "a volume is being made from the snapshot" in str(ended), ended
        assert (await up.end(restored["jobid"]))["jobstatus"] == 1
        await up.call("deleteVolume", id=restored["id"])
        await chain.check()
        for snapshot in made:
            await chain.restore(snapshot)
        made.append(await chain.snapshot())
        await chain.write()
    await chain.judge_objects(made[-1])
    for snapshot in chain.dice.sample(made, len(made)):
        await chain.delete(snapshot)
    await chain.check()
    assert chain.place.objects() == set()
    await up.call("deleteVolume", id=chain.volume)


async def test_a_template_of_any_link_holds_what_it_holds(chain: Chain) -> None:
    up, made = chain.place.up, []
    for _ in range(3):
        made.append(await chain.snapshot())
        await chain.write()
    for snapshot in (made[0], made[2]):  # a full image, copied inside its store; and a chain, merged
        template, job = await up.done("createTemplate", name="t", displaytext="t", snapshotid=snapshot, ostypeid="")
        assert job["jobstatus"] == 1, job
        volume, job = await up.done("createVolume", name="r", templateid=template, zoneid=chain.place.zone)
        assert job["jobstatus"] == 1, job
        found = (await up.call("listVolumes", id=volume))["volume"][0]
        assert await chain.sum(up.data / "primary" / found["path"]) == chain.sums[snapshot]
        await up.call("deleteVolume", id=volume)
        answer = await up.call("deleteTemplate", id=template)
        assert (await up.end(answer["jobid"]))["jobstatus"] == 1
    for snapshot in made:
        await chain.delete(snapshot)
    await chain.check()
    assert chain.place.objects() == set()
    await up.call("deleteVolume", id=chain.volume)


def words(place: Place, *more: str) -> str:
    """What the command line says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")}
    status, out, err = told(*more, "--data-dir", str(place.up.data), env=clean)
    assert status == 0, err.decode()
    return out.decode()


async def test_a_chain_is_drawn(chain: Chain) -> None:
    made = [await chain.snapshot() for _ in range(3)]
    await chain.delete(made[0])
    await chain.check()
    drawn = words(chain.place, "chain", made[1], "-o", "table").splitlines()
    assert [line.lstrip("│├└─ ").split()[0] for line in drawn] == made[1:], "the first was merged into the second"
    assert "full" in drawn[0] and "because it is the first snapshot" in drawn[0] and drawn[0].endswith("<-")
    assert "delta" in drawn[1] and drawn[1].startswith("└── ")
    links = json.loads(words(chain.place, "chain", made[2], "--json"))
    assert [(link["id"], link["kind"], link["parent"], link["depth"]) for link in links] == [
        (made[1], "full", None, 0), (made[2], "delta", made[1], 1)]
    assert all(link["bytes"] > 0 and link["key"] for link in links)
    for snapshot in made[1:]:
        await chain.delete(snapshot)
    await chain.check()
    await chain.place.up.call("deleteVolume", id=chain.volume)
