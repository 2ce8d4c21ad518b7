"""A canary secret and a real broker: roles on RabbitMQ do the whole lifecycle, and the secret is found nowhere.

Everything that the broker was given is seen (its own trace of all messages), everything that it wrote is read as raw bytes, and
so are the database, the logs, the journals, the objects, and each process's arguments and environment for as long as it lived. A
word that may be seen is put beside the secret: it must be found in the same places, or the search is worth nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from uuid import UUID, uuid4

import aio_pika
import aiohttp
import asyncpg
import pytest

from bus.vault import Vault, load_or_create_key
from tests.acceptance.test_promises import descendants
from tests.contract.image_store_links import fetch
from tests.faults.cluster import Cluster, running
from tests.support.web import Site, site

TRACE = "amq.rabbitmq.trace"


def shapes(secret: str) -> list[bytes]:
    """How a text may be written: plain, as JSON and as part of an address, in hex, and in base64 at each of its three places."""
    raw = secret.encode()
    found = {raw, json.dumps(secret)[1:-1].encode(), quote(secret, safe="").encode(), raw.hex().encode()}
    for shift in range(3):
        cut = base64.b64encode(bytes(shift) + raw)[4 * (shift > 0):]
        found.add(cut[:len(cut) // 4 * 4 - 4])
    return sorted(found)


def holds(body: bytes, wanted: list[bytes]) -> bool:
    """Whether any of them is in it."""
    return any(word in body for word in wanted)


@dataclass
class Watch:
    """Reads the arguments and the environment of every process below some, again and again."""

    roots: list[int]
    wanted: list[bytes]
    programs: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Once."""
        for root in self.roots:
            for pid in descendants(root):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        body = Path(f"/proc/{pid}/{name}").read_bytes()
                        if name == "cmdline":
                            self.programs.add(body.replace(b"\0", b" ").decode(errors="replace"))
                        if holds(body, self.wanted):
                            self.found.add(f"{name} of {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Until the block ends."""

        def again() -> None:
            while not self._end.wait(0.03):
                self.look()

        thread = threading.Thread(target=again)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()


@contextlib.asynccontextmanager
async def traced(rabbit: Any) -> AsyncIterator[list[bytes]]:
    """Every message that anybody gives to the broker or takes from it, with its properties, while this is open."""
    seen: list[bytes] = []

    async def note(message: Any) -> None:
        seen.append(repr(message.headers).encode() + message.body)

    async with await aio_pika.connect(rabbit.url) as connection:
        channel = await connection.channel()
        tap = await channel.declare_queue(exclusive=True)
        await tap.bind(await channel.get_exchange(TRACE), "#")
        await tap.consume(note, no_ack=True)
        await asyncio.to_thread(rabbit.ctl, "trace_on")
        try:
            yield seen
            await asyncio.sleep(0.5)
        finally:
            await asyncio.to_thread(rabbit.ctl, "trace_off")


async def resting(rabbit: Any) -> list[bytes]:
    """What lies in the queues now."""
    listed = await asyncio.to_thread(rabbit.ctl, "list_queues", "-q", "--no-table-headers", "name")
    found: list[bytes] = []
    async with await aio_pika.connect(rabbit.url) as connection:
        for name in listed.split():
            with contextlib.suppress(aio_pika.exceptions.AMQPError):  # a private queue of somebody's
                channel = await connection.channel()
                queue = await channel.get_queue(name)
                while (message := await queue.get(fail=False)) is not None:
                    found.append(repr(message.headers).encode() + message.body)
                await channel.close()  # what was not acked goes back
    return found


async def database_rows(dsn: str) -> AsyncIterator[tuple[str, bytes]]:
    """Every value of every table, as a superuser reads them."""
    connection = await asyncpg.connect(dsn)
    try:
        for table in await connection.fetch("SELECT schemaname || '.' || tablename AS name FROM pg_tables "
                                            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"):
            for row in await connection.fetch(f"SELECT * FROM {table['name']}"):
                for value in row.values():
                    yield table["name"], value if isinstance(value, bytes) else str(value).encode()
    finally:
        await connection.close()


@dataclass
class Scene:
    """What is searched."""

    cluster: Cluster
    web: Site
    rabbit: Any
    postgres: Any
    word: str
    """A store's name: it goes wherever the store's details go."""
    hidden: list[bytes]
    """What may be found nowhere; it grows."""

    async def add_store(self, secret: str, name: str) -> dict[str, Any]:
        """Add the S3 server as an image store; the API's whole answer."""
        s3 = self.cluster.s3
        details = {"accesskey": s3.access_key, "secretkey": secret, "endpoint": s3.endpoint, "bucket": self.cluster.bucket}
        form = {"command": "addImageStore", "response": "json", "name": name, "provider": "S3", "url": s3.endpoint} | {
            f"details[{n}].{part}": value for n, (key, text) in enumerate(details.items()) for part, value in (("key", key), ("value", text))}
        async with aiohttp.ClientSession() as http, http.post(f"http://127.0.0.1:{self.cluster.port}/client/api", data=form) as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
        assert secret not in json.dumps(body)
        return body

    async def linked(self, template: str) -> None:
        """A link to the template's copy, fetched, then ended: from now on its signature is looked for too."""
        ready = await self.event(f"template-{template}", "template.ready")
        job = await self.send("link.open", {"store_id": ready["image"]["store_id"], "object_key": ready["image"]["key"],
                                            "lifetime_s": 600})
        given = await self.event(f"link-{job}", "link.given")
        vault = Vault(None, load_or_create_key(self.cluster.base / "data" / "vault.key"))  # type: ignore[arg-type] # it keeps nothing
        url = vault.unseal(given["sealed_url"], UUID(given["work_id"]))
        self.hidden += shapes(dict(parse_qsl(urlsplit(url).query))["X-Amz-Signature"])
        status, body, _ = await fetch(url)
        assert status == 200 and len(body) == ready["image"]["physical_size"]
        await self.send("link.end", {"id": job})
        await self.event(f"link-{job}", "link.ended")
        assert (await fetch(url))[0] in (403, 404)

    async def event(self, stream: str, kind: str) -> dict[str, Any]:
        """The event of this type in a stream, when it is there."""
        connection = await asyncpg.connect(self.cluster.dsn)
        try:
            async with asyncio.timeout(60):
                while True:
                    found = await connection.fetchval("SELECT payload FROM es.event WHERE stream = $1 AND type = $2", stream, kind)
                    if found is not None:
                        return dict(json.loads(found))
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def live(self) -> None:
        """Template, a link to it, volume, snapshot, another volume, a cancelled transfer; all of it deleted."""
        zone = (await self.cluster.call("listZones"))["zone"][0]["id"]
        template = await self.register("image")
        await self.linked(template)
        volume = await self.done("createVolume", name="v", templateid=template)
        snapshot = await self.done("createSnapshot", volumeid=volume)
        again = await self.done("createVolume", name="r", snapshotid=snapshot, zoneid=zone)
        self.web.stop_at = 9 << 20
        slow = await self.cluster.call("registerTemplate", **self.form("slow"))
        await asyncio.sleep(1)
        await self.cluster.call("cancelJob", jobid=slow["template"][0]["jobid"])
        await self.cluster.end(slow["template"][0]["jobid"])
        for command, thing in (("deleteSnapshot", snapshot), ("deleteVolume", again), ("deleteVolume", volume), ("deleteTemplate", template)):
            answer = await self.cluster.call(command, id=thing)
            if "jobid" in answer:
                assert (await self.cluster.end(answer["jobid"]))["jobstatus"] == 1

    def form(self, name: str) -> dict[str, str]:
        """Of registerTemplate."""
        return {"name": name, "displaytext": name, "url": self.web.url(name), "format": "QCOW2", "hypervisor": "KVM", "zoneid": "-1"}

    async def register(self, name: str) -> str:
        """A ready template."""
        answer = (await self.cluster.call("registerTemplate", **self.form(name)))["template"][0]
        assert (await self.cluster.end(answer["jobid"]))["jobstatus"] == 1
        return str(answer["id"])

    async def done(self, command: str, **parameters: Any) -> str:
        """What was made."""
        answer = await self.cluster.call(command, **parameters)
        ended = await self.cluster.end(answer["jobid"])
        assert ended["jobstatus"] == 1, ended
        return str(answer["id"])

    async def by_amqp(self, secret: str) -> None:
        """A client's mistake: a clear secret in a command on the bus. It is refused, and parked without its body."""
        body = {"name": "careless", "provider": "S3", "url": self.cluster.s3.endpoint, "details": {
            "accesskey": "a", "secretkey": secret, "endpoint": self.cluster.s3.endpoint, "bucket": "b"}}
        why = await self.parked(await self.send("image_store.add", body))
        assert "secret" in why, why

    async def send(self, command: str, body: dict[str, Any]) -> str:
        """A command on the bus, as any AMQP client gives it; its job's id."""
        job = str(uuid4())
        async with await aio_pika.connect(self.rabbit.url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            await (await channel.get_exchange("storebus.commands")).publish(aio_pika.Message(json.dumps(body).encode(), content_type="application/json", headers={
                "cloudEvents_specversion": "1.0", "cloudEvents_id": job, "cloudEvents_type": command,
                "cloudEvents_source": "test"}, delivery_mode=2, user_id=unquote(urlsplit(self.rabbit.url).username or "")), command)
        return job

    async def parked(self, job: str) -> str:
        """Why a command was not taken."""
        connection = await asyncpg.connect(self.cluster.dsn)
        try:
            async with asyncio.timeout(60):
                while True:
                    for row in await connection.fetch("SELECT reason, headers FROM es.held"):
                        if job in row["headers"]:
                            return str(row["reason"])
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def places(self) -> AsyncIterator[tuple[str, bytes]]:
        """Everything that rests anywhere: (where, bytes)."""
        for name, value in [pair async for pair in database_rows(self.cluster.dsn)]:
            yield f"table {name}", value
        for path in self.cluster.base.rglob("*"):
            if path.is_file():
                yield f"file {path}", await asyncio.to_thread(path.read_bytes)
        with contextlib.closing(self.cluster.s3.client()) as client:
            for item in client.list_objects_v2(Bucket=self.cluster.bucket).get("Contents", []):
                yield f"object {item['Key']}", client.get_object(Bucket=self.cluster.bucket, Key=item["Key"])["Body"].read()
        for path in raw_files(getattr(self.postgres, "data_dir", None)):
            yield f"database file {path}", await asyncio.to_thread(path.read_bytes)
        for message in await resting(self.rabbit):
            yield "a message in a queue", message
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.cluster.port}/metrics") as answer:
            yield "the metrics", await answer.read()
        for name in ("listImageStores", "listAsyncJobs"):
            with contextlib.suppress(AssertionError):
                yield name, json.dumps(await self.cluster.call(name)).encode()


def raw_files(folder: Path | None) -> list[Path]:
    """All files below a folder of this machine; none when the server is elsewhere."""
    return [path for path in folder.rglob("*") if path.is_file()] if folder is not None else []


@pytest.mark.needs_rabbitmq
async def test_the_secret_is_nowhere_while_roles_work_on_a_broker(qemu_tools: None, rabbitmq: Any, postgres_server: Any, s3_server: Any,
                                                                  tmp_path: Path) -> None:
    wrong, careless, word = (f"{kind}-{secrets.token_hex(12)}" for kind in ("CANARY", "CARELESS", "seen"))
    hidden = shapes(s3_server.secret_key) + shapes(wrong)
    async with site(tmp_path, random.Random(9).randbytes(12 << 20)) as web, \
            running(rabbitmq, postgres_server, s3_server, allow=f"127.0.0.1/32:{web.port}", watched=True) as cluster, traced(rabbitmq) as messages:
        scene = Scene(cluster, web, rabbitmq, postgres_server, word, hidden)
        watch = Watch([process.pid for process in cluster.processes.values()], hidden)
        with watch.watching():
            refused = await scene.add_store(wrong, "wrong")
            assert "secretkey" in json.dumps(refused), refused
            assert "imagestore" in json.dumps(await scene.add_store(s3_server.secret_key, word))
            await scene.live()
            await scene.by_amqp(careless)
        broker = [(str(path), path.read_bytes()) for path in raw_files(getattr(rabbitmq, "root", None))]
        rest = [pair async for pair in scene.places()]
    assert watch.found == set()
    assert any("qemu" in program for program in watch.programs), watch.programs
    assert any("mover" in program for program in watch.programs), watch.programs
    assert len(messages) > 100
    for where, body in [*(("a message", body) for body in messages), *broker, *rest]:
        assert not holds(body, hidden), where
    for where, body in rest:
        assert not holds(body, shapes(careless)), where
    assert sum(holds(body, shapes(careless)) for body in messages) <= 2, "given to the broker once, taken from it once"
    seen = [where for where, body in [*(("a message", body) for body in messages), *broker, *rest] if word.encode() in body]
    assert "a message" in seen, "the search finds what is there"
    assert any(where.startswith("table es.") for where in seen), seen
    assert any(where.startswith("table read.") for where in seen), seen
    assert not broker or any("quorum" in where for where in seen), seen
