"""The corpus against the gate and against qemu: refused in words, nothing outside touched, nothing left, memory under its cap."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agents import qemu as programs
from agents import sandbox
from agents.adoption import adopt
from agents.download import fetch
from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.memory import MemoryImageStore, bucket
from agents.motion.delta import read_chain
from agents.motion.direct import write_image
from agents.url_guard import UrlGuard, parse_allow
from schema.agent import AdoptImage, FetchImage
from schema.failure import BadParameter, Failed
from schema.image import ImageFormat, StoreSpec
from tests.services.http_files import HttpFiles, http_files
from tests.support.attacks import Attack, Qcow2, Target, corpus, target
from tests.support.memory import forget_peak, peak

MIB = 1 << 20
CAP = 2 * MIB
"""Bytes that these downloads may have; the virtual cap is 1 TiB but for raw."""
MEMORY = 128 * MIB
"""What all attacks together may add to this process."""


@pytest.fixture(scope="module")
def aim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """What every attack is aimed at."""
    with target(tmp_path_factory.mktemp("aim")) as one:
        yield one


@pytest.fixture(scope="module")
def attacks(aim: Target) -> dict[str, Attack]:
    """The corpus."""
    return corpus(aim)


@pytest.fixture(scope="module")
def files() -> Iterator[HttpFiles]:
    """The attacker's web server."""
    with http_files() as server:
        yield server


async def download(files: HttpFiles, attack: Attack) -> str:
    """The gate's answer to an attack: what it says, or nothing when the image was taken. Nothing may be left of a refusal."""
    where = f"memory://{uuid4()}"
    files.bodies["image"] = attack.body
    order = FetchImage(
        job_id=UUID(int=2), work_id=UUID(int=3), agent="a", reply_key="k", url=files.url("file/image"), format=attack.declared,
        store=StoreSpec(id=UUID(int=1), name="m", provider="memory", url=where, prefix="inst"), key="inst/template/1/image",
        kind="template", thing_id=UUID(int=4), max_bytes=CAP, max_virtual_size=1 << 40)
    try:
        await fetch(order, MemoryImageStore(bucket(where)), UrlGuard(parse_allow(files.allow)), lambda *_: None)
    except BadParameter as refused:
        assert refused.failure.field in ("url", "format")
        assert (bucket(where).objects, bucket(where).uploads) == ({}, {}), "something is left"
        return refused.failure.text
    return ""


def test_the_corpus_is_large_and_each_file_small(attacks: dict[str, Attack]) -> None:
    assert len(attacks) >= 150
    assert max(len(attack.body) for attack in attacks.values()) <= 4 * MIB


async def test_every_attack_is_refused_and_touches_nothing(attacks: dict[str, Attack], aim: Target, files: HttpFiles) -> None:
    before = forget_peak()
    wrong = {}
    aim.touched()
    for name, attack in attacks.items():
        said = await download(files, attack)
        if not said or not re.search(attack.words, said) or aim.touched():
            wrong[name] = said or "TAKEN"
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    assert peak() - before < MEMORY
    assert all(asked.endswith("/image") for asked, _ in files.asked)


async def adopted(attack: Attack) -> str:
    """As `download`, of an object that lies in a store already. It stays as it was, and nothing is written beside it."""
    where = f"memory://{uuid4()}"
    store = MemoryImageStore(bucket(where))
    await store.put("theirs/image", attack.body)
    order = AdoptImage(
        job_id=UUID(int=2), work_id=UUID(int=3), agent="a", reply_key="k", format=attack.declared, key="theirs/image", kind="volume",
        store=StoreSpec(id=UUID(int=1), name="m", provider="memory", url=where, prefix="inst"), thing_id=UUID(int=4),
        max_bytes=CAP, max_virtual_size=1 << 40)
    try:
        await adopt(order, store, lambda *_: None)
    except BadParameter as refused:
        assert refused.failure.field in ("url", "format")
        assert [info.key async for info in store.list("")] == ["theirs/image"], "something is left"
        assert await store.read("theirs/image", 0, len(attack.body) + 1) == attack.body
        return refused.failure.text
    return ""


async def test_every_attack_that_lies_in_a_store_is_refused_where_it_lies(attacks: dict[str, Attack], aim: Target) -> None:
    before, wrong = forget_peak(), {}
    aim.touched()
    for name, attack in attacks.items():
        said = await adopted(attack)
        if not said or not re.search(attack.words, said) or aim.touched():
            wrong[name] = said or "TAKEN"
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    assert peak() - before < MEMORY
    assert await adopted(Attack(Qcow2().body(), ImageFormat.QCOW2, "")) == ""


async def test_what_is_honest_is_taken(files: HttpFiles) -> None:
    """The corpus' own builder makes a sound file: what is refused is refused for the lie."""
    for body in (Qcow2().body(), Qcow2(version=2).body(), Qcow2(extensions=[(0x12345678, b"unknown and harmless")]).body()):
        assert await download(files, Attack(body, ImageFormat.QCOW2, "")) == ""


@pytest.mark.needs_qemu
async def test_an_object_that_was_swapped_in_the_store_is_refused_before_qemu_reads_it(
        qemu: None, attacks: dict[str, Attack], aim: Target, tmp_path: Path) -> None:
    """Whoever can write to the store goes around the download's gate: a disk passes it again before it is adopted."""
    wrong, disk = {}, tmp_path / "disk.qcow2"
    aim.touched()
    for name, attack in attacks.items():
        if len(attack.body) == 0 or not name.startswith(("qcow2", "bomb", "iso in", "vmdk text")):
            continue
        disk.write_bytes(attack.body)
        try:
            await KvmHypervisor().adopt(str(disk), format=ImageFormat.QCOW2, grow_to=0)
        except Failed as refused:
            if aim.touched():
                wrong[name] = f"TOUCHED: {refused}"
        else:
            wrong[name] = "TAKEN"
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())


@pytest.mark.needs_qemu
async def test_the_eyes_see(qemu: None, attacks: dict[str, Attack], aim: Target, tmp_path: Path) -> None:
    """The same files do reach the target when qemu-img reads them without a gate."""
    disk = tmp_path / "disk.qcow2"
    aim.touched()
    for name in ("qcow2 data file absolute, raw", "qcow2 backing absolute", "qcow2 backing nbd"):
        disk.write_bytes(attacks[name].body)
        process = await asyncio.create_subprocess_exec("qemu-img", "check", str(disk), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(60):
            await process.wait()
        process = await asyncio.create_subprocess_exec(
            "qemu-img", "info", "--backing-chain", str(disk), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(60):
            await process.wait()
        assert aim.touched(), name


@pytest.mark.needs_qemu
async def test_what_serves_a_disk_is_limited_and_alone(qemu: None, tmp_path: Path) -> None:
    """Asked of the kernel while the program runs: limits, network, privileges."""
    disk = str(tmp_path / "disk.qcow2")
    await KvmHypervisor().create(disk, MIB)
    async with programs.export(programs.daemon(disk, "qcow2", writable=True, connections=1)) as export:
        about = Path("/proc") / str(export.process.pid)
        assert (about / "comm").read_text().startswith("qemu-storage")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (about / "limits").read_text().splitlines()[1:]}
        assert (limits["Max address space"], limits["Max core file size"]) == (str(sandbox.SERVE_BYTES), "0")
        status = dict(line.split(":\t", 1) for line in (about / "status").read_text().splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) & ~2 == int(status["CapBnd"], 16) & ~2 == 0, "nothing but CAP_DAC_OVERRIDE"
        if not sandbox.isolated():
            pytest.skip("this host allows no network namespace: `unshare --net` as root, or unprivileged user namespaces")
        assert (about / "ns" / "net").readlink() != Path("/proc/self/ns/net").readlink()
        assert [line.split(":")[0].strip() for line in (about / "net" / "dev").read_text().splitlines()[2:]] == ["lo"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to take away")
def test_where_namespaces_are_forbidden_the_rest_holds() -> None:
    """As in a container: root without CAP_SYS_ADMIN."""
    code = "from agents import sandbox; print(sandbox.isolated(), *sandbox.wrapped(['qemu-img', 'info', '-f', 'raw', '/x'], memory=1 << 30))"
    less = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"]
    said = subprocess.run([*less, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "False" and "unshare" not in said
    status = subprocess.run([*less, *said[1:said.index("/bin/sh")], "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert "NoNewPrivs:\t1\n" in status and "CapEff:\t0000000000000002\n" in status


@pytest.mark.needs_qemu
@pytest.mark.parametrize("dies", [True, False])
def test_a_program_does_not_outlive_a_parent_that_died_before_it_was_one(qemu: None, tmp_path: Path, dies: bool) -> None:
    """Killed between fork and exec, an agent would leave a program behind that holds the disk for ever."""
    disk = tmp_path / "disk.raw"
    disk.touch()
    code = f"""
import os, sys, time
from agents import sandbox
words = sandbox.wrapped(['qemu-img', 'info', '-f', 'raw', {str(disk)!r}], memory=1 << 30)
parent = os.getpid()
child = os.fork()
if child == 0:
    while {dies} and os.getppid() == parent:
        time.sleep(0.01)
    os.execvp(words[0], words)
if not {dies}:
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)  # until both have closed their ends
    assert ("virtual size" in done.stdout) is not dies, done


@pytest.mark.needs_qemu
async def test_what_a_guest_wrote_is_data_and_never_a_header(qemu: None, attacks: dict[str, Attack], aim: Target, tmp_path: Path) -> None:
    """A qcow2 that leads outside, written by the guest from its first sector: backed up, restored and adopted untouched."""
    guest = attacks["qcow2 data file absolute, raw"].body
    disk, restored, hypervisor = str(tmp_path / "disk.qcow2"), str(tmp_path / "restored.qcow2"), KvmHypervisor()
    await hypervisor.create(disk, MIB)
    async with hypervisor.open(disk, writable=True) as device:
        await device.write(0, guest)
        await device.flush()
    aim.touched()
    await hypervisor.take_snapshot(disk, "t")
    store = MemoryImageStore(bucket(f"memory://{uuid4()}"))
    async with hypervisor.open(disk, tag="t") as device:
        image = await write_image(device, store, store_id=uuid4(), key="k", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w",
                                  installation="i", progress=lambda *_: None, workers=1)
    await read_chain(store, [image], restored, hypervisor=hypervisor, progress=lambda *_: None)
    assert await hypervisor.adopt(restored, format=ImageFormat.QCOW2, grow_to=0) == MIB
    async with hypervisor.open(restored) as device:
        assert bytes(await device.read(0, len(guest))) == guest
    assert not aim.touched()
