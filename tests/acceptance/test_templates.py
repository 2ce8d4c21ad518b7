"""Templates and ISOs through the whole product, on real bytes: an ISO there and back, a template of a volume, URLs that end, zones
of a region's store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents.qemu import run
from api.demo_s3 import SeaweedFS
from api.verify import verify_all
from tests.services.http_files import HttpFiles
from tests.services.s3_proxy import S3Proxy
from tests.support.images import iso
from tests.support.up import Refusal, Up

pytestmark = pytest.mark.needs_qemu
MIB = 1 << 20


@dataclass
class Scene:
    """An installation, a web server of images, an S3 server behind a proxy that counts."""

    up: Up
    web: HttpFiles
    proxy: S3Proxy
    s3: SeaweedFS
    bucket: str
    zone: str

    async def register(self, command: str, name: str, **more: Any) -> tuple[str, dict[str, Any]]:
        answer = await self.up.call(command, name=name, displaytext=name, url=self.web.url(f"file/{name}"), zoneid="-1", **more)
        [made] = answer["iso" if "Iso" in command else "template"]
        return made["id"], await self.up.end(made["jobid"])

    async def disk(self, volume: str) -> Path:
        return self.up.data / "primary" / (await self.up.call("listVolumes", id=volume))["volume"][0]["path"]

    async def extract(self, noun: str, thing: str, **more: Any) -> dict[str, Any]:
        answer = await self.up.call(f"extract{noun.title()}", id=thing, mode="HTTP_DOWNLOAD", **more)
        job = await self.up.end(answer["jobid"])
        assert job["jobstatus"] == 1, job
        shown: dict[str, Any] = job["jobresult"][noun]
        return shown


@pytest.fixture(scope="module")
async def scene(qemu_tools: None, s3_server: SeaweedFS) -> AsyncIterator[Scene]:
    web, bucket = HttpFiles(), f"sb{secrets.token_hex(6)}"
    await asyncio.to_thread(s3_server.create_bucket, bucket)
    async with S3Proxy(s3_server.endpoint) as proxy:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": web.allow})
        try:
            await up.start()
            store = ""
            for _ in range(100):  # the server's first writes into a new bucket may fail
                try:
                    store = await up.add_s3(s3_server, bucket, endpoint=proxy.endpoint)
                    break
                except Refusal:
                    await asyncio.sleep(0.2)
            assert store, up.log()
            yield Scene(up, web, proxy, s3_server, bucket, (await up.call("listZones"))["zone"][0]["id"])
        finally:
            up.remove()
            web.close()


async def fetched(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.read()


async def test_an_iso_there_and_back_and_its_url_ends(scene: Scene) -> None:
    body = iso(head=b"\x33\xed" + bytes(508) + b"\x55\xaa") + random.Random(1).randbytes(9 * MIB)
    scene.web.bodies["cd"] = body
    disc, job = await scene.register("registerIso", "cd", checksum="{SHA-256}" + hashlib.sha256(body).hexdigest(), isextractable="true")
    assert job["jobstatus"] == 1, job
    [shown] = (await scene.up.call("listIsos"))["iso"]
    assert (shown["id"], shown["isready"], shown["status"], shown["physicalsize"]) == (disc, True, "Successfully Installed", len(body))
    link = await scene.extract("iso", disc, lifetime=600)
    assert await fetched(link["url"]) == (200, body), "raw bytes as they are"
    with pytest.raises(Refusal, match="no disk"):
        await scene.up.call("createVolume", name="v", templateid=disc)
    ended = await scene.up.end((await scene.up.call("revokeExtractUrl", extractid=link["extractId"]))["jobid"])
    assert ended["jobstatus"] == 1
    status, _ = await fetched(link["url"])
    assert status in (403, 404), "revoked"
    assert link["url"] not in scene.up.log()
    scene.web.bodies["bad"] = bytes(MIB)
    bad, job = await scene.register("registerIso", "bad")
    assert job["jobstatus"] == 2 and "iso" in job["jobresult"]["errortext"]
    for thing in (disc, bad):
        assert (await scene.up.end((await scene.up.call("deleteIso", id=thing))["jobid"]))["jobstatus"] == 1


async def test_a_template_of_a_volume_has_the_volumes_bytes(scene: Scene, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(random.Random(2).randbytes(6 * MIB) + bytes(MIB))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    scene.web.bodies["os.qcow2"] = image.read_bytes()
    template, job = await scene.register("registerTemplate", "os.qcow2", format="QCOW2", hypervisor="KVM")
    assert job["jobstatus"] == 1, job
    volume, _ = await scene.up.done("createVolume", name="v", templateid=template)
    made, job = await scene.up.done("createTemplate", name="golden", displaytext="golden", volumeid=volume, isextractable="true")
    assert job["jobstatus"] == 1, job
    assert (job["jobresult"]["template"]["status"], job["jobresult"]["template"]["format"]) == ("Download Complete", "QCOW2")
    copy, job = await scene.up.done("createVolume", name="w", templateid=made)
    assert job["jobstatus"] == 1, job
    compare = ("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2")
    assert "identical" in await run(*compare, str(await scene.disk(volume)), str(await scene.disk(copy)))
    object_file = tmp_path / "object.qcow2"
    status, body = await fetched((await scene.extract("template", made))["url"])
    assert status == 200
    object_file.write_bytes(body)
    await run("qemu-img", "check", "-f", "qcow2", str(object_file))
    assert "identical" in await run(*compare, str(image), str(object_file))
    for command, thing in (("deleteVolume", volume), ("deleteVolume", copy), ("deleteTemplate", made), ("deleteTemplate", template)):
        answer = await scene.up.call(command, id=thing)
        if "jobid" in answer:
            assert (await scene.up.end(answer["jobid"]))["jobstatus"] == 1
    assert await verify_all(scene.up.dsn) == []


async def test_a_template_that_was_prepared_is_there_without_its_store(scene: Scene, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(random.Random(4).randbytes(9 * MIB) + bytes(20 * MIB) + random.Random(5).randbytes(MIB))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    scene.web.bodies["base.qcow2"] = image.read_bytes()
    template, job = await scene.register("registerTemplate", "base.qcow2", format="QCOW2", hypervisor="KVM")
    assert job["jobstatus"] == 1, job
    primary, seed = scene.up.data / "primary", f"{template}.seed.qcow2"

    async def prepared() -> None:
        answer = await scene.up.call("prepareTemplate", templateid=template, zoneid=scene.zone)
        assert [(each["id"], each["zoneid"]) for each in answer["template"]] == [(template, scene.zone)]
        done = await scene.up.end(answer["template"][0]["jobid"])
        assert done["jobstatus"] == 1, done
        [row] = await scene.up.table("template_spool_ref")
        assert (row["template_id"], row["state"], row["path"], row["size"]) == (template, "Ready", seed, (primary / seed).stat().st_size)

    async def volume(name: str, why: str = "") -> str:
        made, done = await scene.up.done("createVolume", name=name, templateid=template, size=1, zoneid=scene.zone)
        assert done["jobstatus"] == 1, done
        assert why in done["jobresult"]["volume"].get("reason", "")
        disk = await scene.disk(made)
        await run("qemu-img", "check", "-f", "qcow2", str(disk))
        assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(disk))
        return made

    await prepared()
    [planned] = (await scene.up.call("planCommand", of="createVolume", name="v", templateid=template, zoneid=scene.zone))["plan"]
    assert (planned["strategy"], planned["bytes"]) == ("seed", 0)
    requests = len(scene.proxy.requests)
    scene.proxy.drop()
    scene.proxy.fail(10_000)  # the store is away
    volumes = [await volume("without its store")]
    assert len(scene.proxy.requests) == requests, "the store was not asked for anything"
    scene.proxy.heal()
    (primary / seed).unlink()  # somebody tidied up
    volumes.append(await volume("with its store", "is not on the primary store"))
    assert len(scene.proxy.requests) > requests
    for _ in range(1200):  # what is not there is forgotten, by a job of its own
        if not await scene.up.table("template_spool_ref"):
            break
        await asyncio.sleep(0.05)
    await prepared()
    gone = await scene.up.end((await scene.up.call("unprepareTemplate", templateid=template, zoneid=scene.zone))["jobid"])
    assert gone["jobstatus"] == 1 and not (primary / seed).exists() and not await scene.up.table("template_spool_ref")
    await prepared()
    volumes.append(await volume("of the copy again"))
    done = await scene.up.end((await scene.up.call("deleteTemplate", id=template))["jobid"])
    assert done["jobstatus"] == 1, done
    for each in volumes:
        await scene.up.call("deleteVolume", id=each)
    for _ in range(1200):
        if not list(primary.iterdir()):
            break
        await asyncio.sleep(0.05)
    assert list(primary.iterdir()) == [] and await scene.up.table("template_spool_ref") == []
    assert await scene.up.call("listPendingDeletions") == {}
    with contextlib.closing(scene.s3.client()) as client:
        found = client.list_objects_v2(Bucket=scene.bucket).get("Contents", [])
    assert not [item["Key"] for item in found if template in item["Key"]]
    assert await verify_all(scene.up.dsn) == []


async def test_a_copy_within_a_regions_store_moves_no_byte(scene: Scene) -> None:
    scene.web.bodies["small.raw"] = random.Random(3).randbytes(MIB)
    other = (await scene.up.call("createZone", name="elsewhere", networktype="Basic", dns1="10.0.0.1", internaldns1="10.0.0.1"))["zone"]["id"]
    answer = await scene.up.call("registerTemplate", name="small", displaytext="s", url=scene.web.url("file/small.raw"), format="RAW",
                                 hypervisor="KVM", zoneid=scene.zone)
    template = answer["template"][0]["id"]
    assert (await scene.up.end(answer["template"][0]["jobid"]))["jobstatus"] == 1
    zones = {row["zoneid"] for row in (await scene.up.call("listTemplates", templatefilter="all", id=template))["template"]}
    assert zones == {scene.zone}
    requests = scene.proxy.requests
    copied = await scene.up.end((await scene.up.call("copyTemplate", id=template, sourcezoneid=scene.zone, destzoneid=other))["jobid"])
    assert copied["jobstatus"] == 1, copied
    rows = (await scene.up.call("listTemplates", templatefilter="all", id=template))["template"]
    assert {(row["zoneid"], row["isready"]) for row in rows} == {(scene.zone, True), (other, True)}
    assert scene.proxy.requests == requests, "the store was asked for nothing"
    assert (await scene.up.end((await scene.up.call("deleteTemplate", id=template))["jobid"]))["jobstatus"] == 1
    assert await scene.up.call("listPendingDeletions") == {}
    assert await verify_all(scene.up.dsn) == []
