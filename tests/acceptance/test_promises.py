"""What a user was promised: verified bytes, real progress, cancel within seconds, nothing orphaned, no secret anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from pathlib import Path

import aiohttp
import asyncpg

from agents.hypervisors.kvm import KvmHypervisor
from agents.qemu import image_options, run
from api.verify import verify_all
from tests.acceptance.conftest import Place

WATCHED = True


async def path_of(place: Place, volume: str) -> Path:
    found = (await place.up.call("listVolumes", id=volume))["volume"][0]
    return place.up.data / "primary" / found["path"]


async def remove_all(place: Place) -> None:
    for name, command in (("volume", "deleteVolume"), ("snapshot", "deleteSnapshot"), ("template", "deleteTemplate")):
        listed = await place.up.call(f"list{name.title()}s", **({"templatefilter": "all"} if name == "template" else {}))
        for thing in listed.get(name, []):
            with contextlib.suppress(Exception):
                answer = await place.up.call(command, id=thing["id"])
                if "jobid" in answer:
                    await place.up.end(answer["jobid"])


async def test_the_whole_lifecycle_is_right_byte_for_byte(place: Place, tmp_path: Path) -> None:
    template, job = await place.register()
    assert job["jobstatus"] == 1, job
    volume, _ = await place.up.done("createVolume", name="v", templateid=template)
    disk = await path_of(place, volume)
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(place.web.image), str(disk))
    frozen = tmp_path / "frozen.qcow2"
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(disk), str(frozen))
    first, _ = await place.up.done("createSnapshot", volumeid=volume, name="first")
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        await device.write(0, b"changed!" * 64)
        await device.flush()
    second, _ = await place.up.done("createSnapshot", volumeid=volume, name="second", asyncbackup="true")
    restored, made = await place.up.done("createVolume", name="r", snapshotid=first, zoneid=place.zone)
    assert made["jobstatus"] == 1, made
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(frozen), str(await path_of(place, restored)))
    key = next(key for key in place.objects() if first in key and key.endswith(".qcow2"))
    fetched = tmp_path / "object.qcow2"
    with contextlib.closing(place.s3.client()) as client:
        fetched.write_bytes(client.get_object(Bucket=place.bucket, Key=key)["Body"].read())
    await run("qemu-img", "check", "-f", "qcow2", str(fetched))
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(frozen), str(fetched))
    for _ in range(1200):
        state = (await place.up.call("listSnapshots", id=second))["snapshot"][0]["state"]
        if state == "BackedUp":
            break
        await asyncio.sleep(0.05)
    assert state == "BackedUp"
    assert "sb-" not in await run("qemu-img", "snapshot", "-l", "-U", "--image-opts", image_options(disk))
    await remove_all(place)
    assert place.objects() == set()
    assert place.disks() == set()
    assert await verify_all(place.up.dsn) == []


async def test_kill_9_of_everything_and_a_restart_lose_nothing(place: Place) -> None:
    template, _ = await place.register()
    jobs = [(await place.up.call("createVolume", name=f"k{n}", templateid=template))["jobid"] for n in range(4)]
    place.web.stop_at = 0
    slow = (await place.up.call("registerTemplate", name="slow", displaytext="s", url=place.web.url("slow"), format="QCOW2",
                                hypervisor="KVM", zoneid="-1"))["template"][0]
    place.up.kill()
    place.web.stop_at = 1 << 40
    await place.up.start()
    for job in [*jobs, slow["jobid"]]:
        assert (await place.up.end(job))["jobstatus"] == 1
    assert await verify_all(place.up.dsn) == []
    await remove_all(place)
    assert place.objects() == set()
    assert place.disks() == set()


async def test_progress_follows_the_bytes_and_cancel_stops_them(place: Place) -> None:
    dice = random.Random(int(os.environ.get("STOREBUS_SEED", "1")))
    for _ in range((int(os.environ.get("STOREBUS_SOAK_N", "0")) and 20) or 3):
        stop_at = dice.randrange(9 << 20, 19 << 20)
        place.web.stop_at = stop_at
        answer = (await place.up.call("registerTemplate", name="slow", displaytext="s", url=place.web.url("slow"), format="QCOW2",
                                      hypervisor="KVM", zoneid="-1"))["template"][0]
        seen = await stalled(place, answer["jobid"], (stop_at // (8 << 20)) * (8 << 20))
        assert seen == sorted(seen)
        began = time.monotonic()
        await place.up.call("cancelJob", jobid=answer["jobid"])
        job = await place.up.end(answer["jobid"], 10)
        assert time.monotonic() - began < 5
        assert (job["jobstatus"], job["jobstate"]) == (2, "cancelled")
        assert place.objects() == set()


async def stalled(place: Place, job: str, wanted: int) -> list[int]:
    """Progress seen until it stands at what the source let through (whole parts), and that it stays there."""
    seen: list[int] = []
    for _ in range(2000):
        found = await place.up.call("queryAsyncJobResult", jobid=job)
        assert found["jobstatus"] == 0, found
        assert found["jobprocstatus"] < 100
        seen.append((found.get("progress") or {}).get("bytes", 0))
        if seen[-1] == wanted:
            break
        await asyncio.sleep(0.02)
    assert seen[-1] == wanted, seen[-5:]
    await asyncio.sleep(1.2)
    found = await place.up.call("queryAsyncJobResult", jobid=job)
    assert found["progress"]["bytes"] == wanted
    return seen


async def test_image_bytes_are_written_only_to_their_destination(place: Place) -> None:
    """Files that any process of Storebus holds open for writing while bytes move, seen from /proc."""
    assert place.up.process is not None
    place.web.stop_at = 10 << 20
    answer = (await place.up.call("registerTemplate", name="slow", displaytext="s", url=place.web.url("slow"), format="QCOW2",
                                  hypervisor="KVM", zoneid="-1"))["template"][0]
    await stalled(place, answer["jobid"], 8 << 20)
    grown = {path for path in written_files(place.up.process.pid) if not allowed(path, place.up.data)}
    assert grown == set()
    place.web.stop_at = 1 << 40
    assert (await place.up.end(answer["jobid"]))["jobstatus"] == 1
    await remove_all(place)


def allowed(path: str, data: Path) -> bool:
    """Logs, the journal, the database's own files and locks: no image bytes."""
    own = (f"{data}/agents/", f"{data}/postgres/", f"{data}/postgres.lock", f"{data}/up.lock", "/dev/", f"{data.parent}/up.log")
    return path.startswith(own) or "/memfd:" in path


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def written_files(root: int) -> set[str]:
    """Regular files open for writing in the process and all below it."""
    found = set()
    for pid in descendants(root):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                flags = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{link.name}").read_text())
                if target.startswith("/") and flags and int(flags[1], 8) & 3:
                    found.add(target)
    return found


async def test_no_secret_is_anywhere(place: Place) -> None:
    secret = place.s3.secret_key
    connection = await asyncpg.connect(place.up.dsn)
    try:
        tables = await connection.fetch("SELECT schemaname || '.' || tablename AS name FROM pg_tables WHERE schemaname IN ('es', 'read')")
        for table in tables:
            for row in await connection.fetch(f"SELECT * FROM {table['name']}"):
                for value in row.values():
                    text = value if isinstance(value, bytes) else str(value).encode()
                    assert secret.encode() not in text, table["name"]
    finally:
        await connection.close()
    for path in place.up.base.rglob("*"):
        if path.is_file() and "/postgres/data/" not in str(path):
            assert secret.encode() not in path.read_bytes(), path
    async with aiohttp.ClientSession() as http, http.get(f"{place.up.url}/metrics") as answer:
        assert secret not in await answer.text()
    assert place.up.process is not None
    for pid in descendants(place.up.process.pid):
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
