"""The Python client over real HTTP, the whole system in memory behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from api.authentication import Authentication
from api.client import Client, Progress
from api.edge import Edge
from api.first_keys import first_keys, read_keys
from api.listener import HttpListener
from api.signature import Unauthorized
from schema.failure import BadParameter, Cancelled, Unavailable, Unknown, Unsupported, WorkFailed
from tests.support.system import FakeSystem

S3 = {"bucket": "b", "accesskey": "a", "secretkey": "canary-51c"}


@dataclass
class Cutting:
    """A proxy before a listener that lets requests through and loses answers: the next `lose`, of requests naming `only`."""

    upstream: str
    lose: int = 0
    only: bytes = b""
    lost: int = 0
    url: str = ""
    server: asyncio.Server | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen."""
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        """Stop."""
        assert self.server is not None
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Request by request."""
        to = urlsplit(self.upstream)
        assert to.hostname is not None
        up_reader, up_writer = await asyncio.open_connection(to.hostname, to.port)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await message(reader)
                up_writer.write(request)
                answer = await message(up_reader)
                if self.lost < self.lose and self.only in request:
                    self.lost += 1
                    break
                writer.write(answer)
                await writer.drain()
        up_writer.close()
        writer.close()


async def message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    sizes = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return head + await reader.readexactly(sizes[0] if sizes else 0)


@pytest.fixture
async def system() -> FakeSystem:
    return await FakeSystem.start()


@pytest.fixture
async def cutting(system: FakeSystem) -> AsyncIterator[Cutting]:
    """A listener behind a proxy that loses what it is told to."""
    listener = HttpListener(Edge(system, wait_s=0.3))
    proxy = Cutting(await listener.start())
    await proxy.start()
    yield proxy
    await proxy.aclose()
    await listener.aclose()


@pytest.fixture
async def client(cutting: Cutting) -> AsyncIterator[Client]:
    """A client without keys."""
    async with Client.connect(cutting.url, patience_s=10) as opened:
        yield opened


async def test_a_lifecycle_in_typed_methods(system: FakeSystem, client: Client) -> None:
    async with system.working():
        store = await client.add_image_store(name="objects", provider="S3", url="http://s3", details=S3)
        assert store["providername"] == "S3" and "canary-51c" not in str(store)
        template_job = await client.register_template(name="t", url="http://h/x.raw", format="RAW", zoneid="-1")
        template = await template_job.result(timeout_s=60)
        assert template["id"] == template_job.thing_id and template["isready"] is True
        job = await client.create_volume(name="data", size=1)
        volume = await job.result(timeout_s=60)
        assert (volume["id"], volume["name"], volume["size"]) == (job.thing_id, "data", 1 << 30)
        snapshot = await (await client.create_snapshot(volumeid=volume["id"])).result(timeout_s=60)
        assert [each["id"] async for each in client.list_snapshots(volumeid=volume["id"])] == [snapshot["id"]]
        with pytest.raises(BadParameter) as kept:
            await client.delete_image_store(id=store["id"])
        assert kept.value.failure.code == 431
        assert await (await client.delete_snapshot(id=snapshot["id"])).result(timeout_s=60) == {"success": True}
        assert await client.delete_volume(id=volume["id"]) == {"success": True}
    assert await client.list_volumes().first() is None and await client.list_volumes().count() == 0


async def test_a_list_pages(system: FakeSystem, client: Client) -> None:
    async with system.working():
        jobs = [await client.create_volume(name=f"v{number}", size=1) for number in range(7)]
        for job in jobs:
            await job.result(timeout_s=60)
    listing = client.list_volumes(pagesize=3)
    assert [volume["name"] async for volume in listing] == [f"v{number}" for number in range(7)]
    assert [len((await listing.page(number))[0]) for number in (1, 2, 3, 4)] == [3, 3, 1, 0]
    assert await listing.count() == 7 and len(await listing.all()) == 7
    assert [volume["name"] async for volume in client.list_volumes(keyword="v5")] == ["v5"]
    assert "createVolume" in [api["name"] async for api in client.list_apis()]


async def test_progress_and_cancel(system: FakeSystem, client: Client) -> None:
    job = await client.create_volume(name="v", size=1)
    await system.cloud.submissions()
    [order] = await system.cloud.open_orders()
    await system.cloud.store.set_progress(order.work_name, b'{"stage":"write","bytes":10,"total":40,"rate":5,"eta":6}')
    seen: list[Progress] = []
    async for step in job.progress(timeout_s=20):
        seen.append(step)
        if step.percent == 25 and len(seen) < 9:
            await job.cancel()
            await system.cloud.stop(order)
            await system.cloud.settle()
    running = next(step for step in seen if step.percent == 25)
    assert (running.stage, running.bytes, running.total, running.rate, running.eta, running.ended) == ("write", 10, 40, 5, 6, False)
    assert seen[-1].ended and seen[-1].state == "cancelled"
    with pytest.raises(Cancelled):
        await job.result(timeout_s=5)


async def test_a_job_fails_with_its_own_failure_and_a_wait_ends(system: FakeSystem, client: Client) -> None:
    job = await client.create_volume(name="v", size=1)
    with pytest.raises(Unknown, match="goes on"):
        await job.result(timeout_s=0.3)
    await system.cloud.submissions()
    await system.cloud.fail((await system.cloud.open_orders())[0])
    await system.cloud.settle()
    with pytest.raises(WorkFailed, match="it broke"):
        await client.job(job.id).result(timeout_s=60)


@pytest.mark.parametrize("lose", [1, 3])
async def test_a_lost_answer_is_asked_for_again_and_the_command_happens_once(
        system: FakeSystem, cutting: Cutting, client: Client, lose: int) -> None:
    cutting.lose, cutting.only = lose, b"createVolume"
    async with system.working():
        job = await client.create_volume(name="once", size=1)
        assert cutting.lost == lose
        await job.result(timeout_s=60)
    assert [volume["name"] async for volume in client.list_volumes()] == ["once"]
    cutting.lose, cutting.only, cutting.lost = 1, b"deleteVolume", 0
    async with system.working():
        assert await client.delete_volume(id=job.thing_id) == {"success": True}  # not: no such volume
    assert cutting.lost == 1


async def test_an_answer_that_never_comes_is_unknown_and_the_tries_are_bounded(cutting: Cutting) -> None:
    cutting.lose, cutting.only = 1000, b"createVolume"
    async with Client.connect(cutting.url, patience_s=0.5) as client:
        with pytest.raises(Unavailable):
            await client.create_volume(name="v", size=1)
        with pytest.raises(Unknown):
            await client.call("createVolume", {"name": "w", "size": 1})  # nobody said that it may be repeated
    assert 2 <= cutting.lost < 10


async def test_a_synchronous_command_that_takes_longer_is_waited_for(system: FakeSystem, client: Client) -> None:
    asked = asyncio.create_task(client.add_image_store(name="objects", provider="S3", url="http://s3", details=S3))
    await asyncio.sleep(0.8)  # the API waits 0.3 s
    async with system.working():
        assert (await asyncio.wait_for(asked, 60))["name"] == "objects"


async def test_errors_name_their_field(client: Client) -> None:
    with pytest.raises(BadParameter) as wrong:
        await client.create_snapshot(volumeid="x")
    assert (wrong.value.failure.field, wrong.value.failure.code) == ("volumeid", 431)
    with pytest.raises(BadParameter) as absent:
        await client.delete_volume(id=uuid4())
    assert absent.value.failure.field == "id"
    with pytest.raises(Unsupported):
        await client.call("noSuchCommand")


async def test_an_api_that_is_away() -> None:
    async with Client.connect("http://127.0.0.1:1", patience_s=0.3) as client:
        with pytest.raises(Unavailable, match="does not answer"):
            await client.list_zones().all()
        with pytest.raises(Unavailable):
            await client.create_volume(name="v", size=1)


async def test_what_is_no_api_is_said() -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.1", 0)
    async with server, Client.connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", patience_s=0) as client:
        with pytest.raises(Unavailable, match="answers 302"):  # nor is anything followed with a signature in hand
            await client.list_capabilities()


# --- as somebody ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded(system: FakeSystem, tmp_path: Path) -> AsyncIterator[tuple[str, tuple[str, str], Authentication]]:
    """(url, the admin's keys, sessions) of a listener with identity."""
    await first_keys(system.runtime, system.vault, tmp_path)
    keys = read_keys(tmp_path)
    assert keys is not None
    authentication = Authentication(system)
    listener = HttpListener(Edge(system), authentication=authentication)
    yield await listener.start(), keys, authentication
    await listener.aclose()


async def test_keys_sign_and_a_password_logs_in(guarded: tuple[str, tuple[str, str], Authentication]) -> None:
    url, (api_key, secret_key), authentication = guarded
    async with Client.connect(url, api_key=api_key, secret_key=secret_key) as admin:
        assert await admin.list_zones().count() == 1
        account = await admin.create_account(username="ann", password="canary-pass", email="a@b", firstname="A b~*/é", lastname="[B]")
        assert account["name"] == "ann"
    async with Client.connect(url, username="ann", password="canary-pass") as ann:
        assert [user["username"] async for user in ann.list_users()] == ["ann"]
        authentication._sessions.clear()  # as after a restart of the API
        assert await ann.list_users().count() == 1
        assert len(authentication._sessions) == 1
    assert not authentication._sessions, "it logs out"
    with pytest.raises(Unauthorized):
        async with Client.connect(url, username="ann", password="canary-wrong"):
            pass
    async with Client.connect(url) as nobody:
        with pytest.raises(Unauthorized) as refused:
            await nobody.list_zones().first()
    assert "canary" not in str(refused.value)
