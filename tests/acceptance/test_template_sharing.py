"""Sharing templates with identity on: signed requests of several accounts, real bytes on a directory store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api.signature import sign
from tests.services.http_files import HttpFiles
from tests.support.up import Refusal, Up

pytestmark = pytest.mark.needs_qemu


@dataclass
class Scene:
    """An installation with identity, and the keys of its people."""

    up: Up
    web: HttpFiles
    zone: str = ""
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def person(self, name: str, domain: str) -> None:
        account = (await self.up.call("createAccount", username=name, password="p", email="a@b", firstname="A", lastname="B",
                                      accounttype=0, domainid=domain))["account"]
        made = (await self.up.call("registerUserKeys", id=account["user"][0]["id"]))["userkeys"]
        self.keys[name] = made["apikey"], made["secretkey"]

    async def ask(self, person: str, command: str, **parameters: Any) -> dict[str, Any]:
        """A signed request. Raises Refusal."""
        key, secret = self.keys[person]
        form = {"command": command, "response": "json", "apiKey": key, **{name: str(value) for name, value in parameters.items()}}
        form["signature"] = sign(form, secret)
        async with aiohttp.ClientSession() as http, http.post(f"{self.up.url}/client/api", data=form) as answer:
            inner: dict[str, Any] = next(iter((await answer.json(content_type=None)).values()))
        if "errorcode" in inner:
            raise Refusal(inner["errorcode"], inner["errortext"])
        return inner

    async def end(self, person: str, job: str) -> dict[str, Any]:
        for _ in range(900):
            found = await self.ask(person, "queryAsyncJobResult", jobid=job)
            if found["jobstatus"]:
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(self.up.log())

    async def listed(self, person: str, wanted: str) -> set[str]:
        return {row["id"] for row in (await self.ask(person, "listTemplates", templatefilter=wanted)).get("template", [])}


@pytest.fixture
async def scene(qemu_tools: None, tmp_path: Path) -> AsyncIterator[Scene]:
    web = HttpFiles()
    up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": web.allow, "STOREBUS_IDENTITY": "true"})
    try:
        await up.start()
        made = Scene(up, web, (await up.call("listZones"))["zone"][0]["id"])
        store = tmp_path / "store"
        store.mkdir()
        await up.call("addImageStore", name="f", provider="folder", url=f"file://{store}", zoneid=made.zone)
        domain = (await up.call("createDomain", name="d"))["domain"]["id"]
        elsewhere = (await up.call("createDomain", name="e"))["domain"]["id"]
        for name, where in (("ann", domain), ("bob", domain), ("eve", elsewhere)):
            await made.person(name, where)
        yield made
    finally:
        up.remove()
        web.close()


async def test_a_template_is_shared_used_and_taken_back(scene: Scene) -> None:
    scene.web.bodies["os.raw"] = random.Random(5).randbytes(2 << 20)
    with pytest.raises(Refusal, match="zone"):
        await scene.ask("ann", "registerTemplate", name="os", displaytext="os", url=scene.web.url("file/os.raw"), format="RAW",
                        hypervisor="KVM", zoneid="-1")  # a user, and each zone has its own store
    [made] = (await scene.ask("ann", "registerTemplate", name="os", displaytext="os", url=scene.web.url("file/os.raw"), format="RAW",
                              hypervisor="KVM", zoneid=scene.zone))["template"]
    assert (await scene.end("ann", made["jobid"]))["jobstatus"] == 1
    assert await scene.listed("ann", "self") == {made["id"]}
    for person in ("bob", "eve"):
        assert await scene.listed(person, "executable") == set()
        with pytest.raises(Refusal, match="no template has the id"):
            await scene.ask(person, "createVolume", name="v", templateid=made["id"], zoneid=scene.zone)
    assert await scene.ask("ann", "updateTemplatePermissions", id=made["id"], op="add", accounts="bob") == {"success": True}
    assert await scene.listed("bob", "shared") == await scene.listed("bob", "executable") == {made["id"]}
    volume = await scene.ask("bob", "createVolume", name="v", templateid=made["id"], zoneid=scene.zone)
    assert (await scene.end("bob", volume["jobid"]))["jobstatus"] == 1
    assert await scene.listed("eve", "executable") == set()
    with pytest.raises(Refusal, match="no template has the id"):
        await scene.ask("bob", "deleteTemplate", id=made["id"])
    own = await scene.ask("bob", "createTemplate", name="mine", volumeid=volume["id"])
    assert (await scene.end("bob", own["jobid"]))["jobstatus"] == 1
    assert await scene.listed("bob", "self") == {own["id"]}
    await scene.ask("ann", "updateTemplatePermissions", id=made["id"], op="reset")
    assert await scene.listed("bob", "shared") == set()
    await scene.ask("ann", "updateTemplatePermissions", id=made["id"], ispublic="true")
    assert await scene.listed("eve", "community") == {made["id"]}
