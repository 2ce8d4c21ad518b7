"""Extractions on the system in memory: who gets a URL, whose it is, where it is seen, how it ends."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from bus.grant_sealing import answer_to, seal_to
from handlers.template_extract import ExtractFlow
from schema.agent import DeleteImages, LinkMade, MakeLink, WorkCompleted
from schema.failure import BadParameter
from tests.support.system import FakeSystem

URL = "https://store.example/object?signature=CANARY"
WHEN = "2035-01-01T00:00:00Z"


class Scene:
    """A template that may be extracted, and agents that seal as real ones do."""

    def __init__(self, system: FakeSystem) -> None:
        self.system, self.edge = system, Edge(system, show_s=0.1)
        self.cloud = system.cloud
        self.cloud.runtime.vault_key = system.vault.public_key

    @classmethod
    async def start(cls, provider: str = "s3", **more: str) -> Scene:
        scene = cls(await FakeSystem.start())
        async with scene.system.working():
            where = {"zoneid": str(scene.cloud.zone_id)} if provider == "folder" else {
                "details[0].key": "bucket", "details[0].value": "b"}
            await scene.ok("addImageStore", provider=provider, name="s", **where)
        scene.template = await scene.register(**more)
        return scene

    async def register(self, **more: str) -> str:
        answer = await self.ok("registerTemplate", **({"name": "t", "url": "http://x/y.qcow2", "format": "qcow2", "hypervisor": "KVM",
                                                       "zoneid": "-1", "isextractable": "true"} | more))
        await self.cloud.settle()
        return str(answer["template"][0]["id"])

    async def ask(self, command: str, **parameters: object) -> Any:
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        answer = await self.ask(command, **parameters)
        assert answer.status == 200, answer
        body: dict[str, Any] = next(iter(answer.body.values()))
        return body

    async def seal(self, order: MakeLink, when: str = WHEN) -> None:
        """The agent makes the link."""
        sealed = base64.b64encode(seal_to(base64.b64decode(order.seal_to), URL.encode(), answer_to(order.work_id))).decode()
        made = LinkMade.model_validate({"link_id": "name", "expires_at": when, "work_id": order.work_id, "sealed_url": sealed})
        await self.cloud.handle(WorkCompleted(job_id=order.job_id, work_id=order.work_id, agent=order.agent,
                                              result=made.model_dump(mode="json")), kind="report")

    async def extract(self, when: str = WHEN, **more: object) -> str:
        """The job of an extraction that has completed."""
        job = (await self.ok("extractTemplate", id=self.template, mode="HTTP_DOWNLOAD", **more))["jobid"]
        await self.cloud.submissions()
        [order] = [each for each in await self.cloud.open_orders() if isinstance(each, MakeLink)]
        await self.seal(order, when)
        return str(job)

    template = ""


async def test_the_url_is_in_the_jobs_answer_and_nowhere_else() -> None:
    scene = await Scene.start()
    job = await scene.extract()
    body = await scene.ok("queryAsyncJobResult", jobid=job)
    shown = body["jobresult"]["template"]
    assert (body["jobstatus"], shown["url"], shown["state"], shown["extractId"], shown["extractMode"]) == (
        1, URL, "DOWNLOAD_URL_CREATED", job, "HTTP_DOWNLOAD")
    assert (shown["id"], shown["name"], shown["expires"]) == (scene.template, "t", "2035-01-01T00:00:00+0000")
    assert "CANARY" not in str(await scene.ok("listAsyncJobs", listall="true"))
    assert all(b"CANARY" not in row.payload for row in scene.cloud.store.rows)  # type: ignore[attr-defined] # in memory
    [order] = [each for each in await scene.cloud.orders() if isinstance(each, MakeLink)]
    assert order.lifetime_s == 14_400


async def test_a_url_is_revoked_once_and_is_shown_no_more() -> None:
    scene = await Scene.start()
    job = await scene.extract(lifetime=60)
    ended = (await scene.ok("revokeExtractUrl", extractid=job))["jobid"]
    await scene.cloud.settle()
    assert (await scene.ok("queryAsyncJobResult", jobid=ended))["jobstatus"] == 1
    shown = (await scene.ok("queryAsyncJobResult", jobid=job))["jobresult"]["template"]
    assert "url" not in shown and shown["state"] == "DOWNLOAD_URL_EXPIRED"
    assert (await scene.ask("revokeExtractUrl", extractid=uuid4())).status == 431


async def test_a_url_whose_time_is_over_is_not_shown() -> None:
    scene = await Scene.start()
    job = await scene.extract("2020-01-01T00:00:00Z")
    shown = (await scene.ok("queryAsyncJobResult", jobid=job))["jobresult"]["template"]
    assert "url" not in shown and "CANARY" not in str(shown)


async def test_what_may_not_be_extracted_is_refused_by_field() -> None:
    scene = await Scene.start()
    hidden = await scene.register(isextractable="false")
    for more, field in (({"id": hidden}, "id"), ({"id": uuid4()}, "id"), ({"mode": "FTP_UPLOAD"}, "mode"), ({"zoneid": uuid4()}, "zoneid"),
                        ({"lifetime": 0}, "lifetime"), ({"lifetime": 604_801}, "lifetime")):
        head = await scene.system.store.head()
        answer = await scene.ask("extractTemplate", **({"id": scene.template, "mode": "HTTP_DOWNLOAD"} | more))
        assert answer.status == 431 and answer.error.startswith(f"{field}:"), (more, answer)
        assert await scene.system.store.head() == head


@pytest.mark.parametrize("provider", ["folder"])
async def test_a_store_that_gives_no_links_says_so(provider: str) -> None:
    scene = await Scene.start(provider, zoneid="")
    answer = await scene.ask("extractTemplate", id=scene.template, mode="HTTP_DOWNLOAD")
    assert answer.status == 431 and "presigned_get" in answer.error and "folder" in answer.error


async def test_a_failed_extraction_leaves_nothing() -> None:
    scene = await Scene.start()
    before = await scene.cloud.store.counters()
    job = (await scene.ok("extractTemplate", id=scene.template, mode="HTTP_DOWNLOAD"))["jobid"]
    await scene.cloud.submissions()
    [order] = [each for each in await scene.cloud.open_orders() if isinstance(each, MakeLink)]
    await scene.cloud.fail(order)
    assert await scene.cloud.ends(UUID(job)) == ["job.failed"]
    assert await scene.cloud.store.counters() == before


async def test_a_snapshot_that_is_deleted_while_its_link_is_made_holds_up_no_job() -> None:
    scene = await Scene.start()
    volume = (await scene.ok("createVolume", name="v", size=1))["id"]
    await scene.cloud.settle()
    snapshot = (await scene.ok("createSnapshot", volumeid=volume))["id"]
    await scene.cloud.settle()
    job = (await scene.ok("extractSnapshot", id=snapshot, zoneid=scene.cloud.zone_id))["jobid"]
    await scene.cloud.submissions()
    [order] = [each for each in await scene.cloud.open_orders() if isinstance(each, MakeLink)]
    gone = (await scene.ok("deleteSnapshot", id=snapshot))["jobid"]
    await scene.cloud.submissions()
    [delete] = [each for each in await scene.cloud.open_orders() if isinstance(each, DeleteImages)]
    await scene.cloud.complete(delete)
    await scene.seal(order)
    assert [await scene.cloud.ends(UUID(each)) for each in (gone, job)] == [["job.completed"], ["job.completed"]]
    assert not await scene.cloud.store.held()


async def test_what_has_become_impossible_when_a_report_comes_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a flow refuses once its order has been carried out: its job ends, and what it did is taken back."""
    scene = await Scene.start()
    before = await scene.cloud.store.counters()
    job = (await scene.ok("extractTemplate", id=scene.template, mode="HTTP_DOWNLOAD"))["jobid"]
    await scene.cloud.submissions()
    [order] = [each for each in await scene.cloud.open_orders() if isinstance(each, MakeLink)]

    def gone(self: Any, context: Any) -> Any:
        raise BadParameter("what it was about is gone", field="id")

    monkeypatch.setattr(ExtractFlow, "finish", gone)
    await scene.seal(order)
    await scene.cloud.settle()
    assert await scene.cloud.ends(UUID(job)) == ["job.failed"]
    assert await scene.cloud.store.counters() == before
