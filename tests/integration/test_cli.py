"""The command line as a person runs it: its own process, against a real listener or a real Postgres."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from api.listener import HttpListener
from bus.event_store_postgres import PostgresEventStore
from bus.installation import Installation, write_installation
from schema.ids import derive
from tests.integration.conftest import LogServer
from tests.services.forked import told
from tests.services.postgres import fresh_database
from tests.support.system import FakeSystem

ROOT = Path(__file__).parents[2]
S3 = ("name=objects", "provider=S3", "url=http://s3", "details.bucket=b", "details.accesskey=a")


@dataclass
class Ran:
    """How a run ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Shell:
    """Runs `storebus` with an environment of its own."""

    environment: dict[str, str]

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Begin a run that is talked with, started as a person starts it."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.cli", *words, cwd=ROOT, env=self.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)

    async def __call__(self, *words: str, typed: str = "") -> Ran:
        """A whole run. `typed`: what comes on its stdin."""
        status, out, err = await asyncio.to_thread(told, *words, env=self.environment, typed=typed.encode())
        ran = Ran(status, out.decode(), err.decode())
        assert "Traceback" not in ran.err, ran.err
        return ran


def shell(tmp_path: Path, **more: str) -> Shell:
    """A shell whose environment knows no other installation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")}
    return Shell({**kept, "STOREBUS_DATA_DIR": str(tmp_path), "STOREBUS_CONFIG_DIR": str(tmp_path / "config"), "NO_COLOR": "1", "PYTHONWARNINGS": "error", **more})


# --- call: over HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[FakeSystem]:
    """A running API that the data directory names."""
    fake = await FakeSystem.start()
    listener = HttpListener(Edge(fake, wait_s=5))
    url = await listener.start()
    record = Installation.model_validate({"database_url": "postgresql:///none", "api_url": url, "pid": os.getpid()})
    write_installation(tmp_path, record)
    yield fake
    await listener.aclose()


@pytest.fixture
def run(tmp_path: Path) -> Shell:
    """See shell."""
    return shell(tmp_path)


async def test_call_asks_the_api_of_the_data_directory(system: FakeSystem, run: Shell) -> None:
    answer = await run("call", "listZones")
    assert answer.status == 0 and answer.json["zone"][0]["name"] == "zone-1" and answer.err == ""
    table = await run("call", "listzonescmd", "-o", "table")
    assert "zone-1" in table.out and "networktype" in table.out


async def test_call_waits_for_the_job_and_its_end_is_the_exit_status(system: FakeSystem, run: Shell,
                                                                     tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-51c\n")
    async with system.working():
        store = await run("call", "addImageStore", *S3, f"details.secretkey=@{secret}", "--wait")
        assert store.status == 0, store.err
        template = await run("call", "registerTemplate", "name=t", "url=http://h/x.raw", "format=RAW", "zoneid=-1",
                             "--wait", "-o", "json")
        assert template.status == 0 and template.json["template"]["isready"] is True
        volume = await run("call", "createVolume", "name=v", "size=1", "--wait")
        assert volume.status == 0
        assert volume.lines[-1]["jobstatus"] == 1 and volume.lines[-1]["jobresult"]["volume"]["state"] == "Ready"
    assert "canary-51c" not in store.out + store.err


async def test_plan_explains_and_does_nothing(system: FakeSystem, run: Shell) -> None:
    async with system.working():
        await run("call", "addImageStore", *S3)
        made = await run("call", "createVolume", "name=v", "size=2", "--wait", "-o", "json")
    volume = made.json["volume"]["id"]
    head = await system.store.head()
    answer = await run("plan", "createSnapshot", f"volumeid={volume}")
    assert answer.status == 0, answer.err
    [move] = answer.json
    assert (move["step"], move["strategy"], move["move"], move["agent"]) == ("backup", "direct", "disk->store", "host-1")
    assert (move["from"]["name"], move["to"]["name"], move["bytes"]) == ("p", "objects", 2 << 30)
    table = await run("plan", "createSnapshot", f"volumeid={volume}", "asyncbackup=true", "-o", "table")
    assert "direct" in table.out and "2.0 GiB" in table.out and "at most the disk's size" in table.out
    nothing = await run("plan", "createVolume", "name=w", "size=1", "-o", "table")
    assert nothing.status == 0 and nothing.out == "" and "moves no image bytes" in nothing.err
    for wrong, said in ((("plan", "listVolumes"), "nothing to plan"), (("plan", "deleteVolume"), "id: missing"),
                        (("plan", "nosuch"), "no command"), (("plan", "createSnapshot", "volumeid=x"), "volumeid")):
        refused = await run(*wrong)
        assert refused.status == 1 and said in refused.err, refused.err
    assert await system.store.head() == head


async def test_plan_says_what_is_missing_where(system: FakeSystem, run: Shell) -> None:
    async with system.working():
        await run("call", "addImageStore", *S3)
    cloud = system.cloud
    cloud.runtime.directory.carriers.apply(cloud.runtime.directory.agents["host-1"].model_copy(update={"motions": []}))
    refused = await run("plan", "registerTemplate", "name=t", "url=http://h/x.raw", "format=RAW", "zoneid=-1")
    assert refused.status == 1 and refused.out == ""
    assert "direct: none of the storage agents carries it from url to store" in refused.err
    assert "error 503" in refused.err


async def test_call_shows_progress_in_a_pipe_and_fails_with_its_job(system: FakeSystem, run: Shell) -> None:
    process = await run.start("call", "createVolume", "name=v", "size=1", "--wait")
    cloud = system.cloud
    for _ in range(2000):
        await cloud.submissions()
        orders = await cloud.open_orders()
        if orders:
            break
        await asyncio.sleep(0.02)
    [order] = orders
    assert process.stdout is not None
    for done in (10, 20):
        await cloud.store.set_progress(order.work_name, b'{"stage":"write","bytes":%d,"total":40}' % done)
        while True:
            line = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
            if line.get("progress", {}).get("bytes") == done:
                break
        assert line["jobprocstatus"] == done * 100 // 40
    await cloud.fail(order)
    await cloud.settle()
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1 and b"it broke" in err
    assert json.loads(out.splitlines()[-1])["jobstatus"] == 2


async def test_an_interrupted_wait_names_the_job_that_goes_on(system: FakeSystem, run: Shell) -> None:
    process = await run.start("call", "createVolume", "name=v", "size=1", "--wait")
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130 and f"cancelJob jobid={first['jobid']}".encode() in err


@pytest.mark.parametrize(("words", "text"), [
    (("createSnapshot",), "error 431: volumeid: missing"), (("creatVolume",), "did you mean createVolume"),
    (("createVolume", "name"), "name: not key=value"), (("createVolume", "size=1", "SIZE=2"), "SIZE: given twice"),
    (("createVolume", "name=@/nowhere"), "name: /nowhere cannot be read"),
    (("listZones", "--api-url", "http://127.0.0.1:1"), "does not answer"),
])
async def test_call_tells_what_is_wrong(system: FakeSystem, run: Shell, words: tuple[str, ...], text: str) -> None:
    answer = await run("call", *words)
    assert answer.status == 1 and text in answer.err and answer.out == ""


async def test_call_without_an_installation_says_what_to_start(run: Shell) -> None:
    answer = await run("call", "listZones", "--api-url", "http://127.0.0.1:1/client/api")
    assert answer.status == 1 and "storebus up" in answer.err


# --- publish, subscribe, replay, jobs: through Postgres -------------------------------------------------------------


@pytest.fixture
async def installed(log_server: LogServer, tmp_path: Path) -> AsyncIterator[tuple[Shell, PostgresEventStore]]:
    """A migrated database that the data directory names, as `up` writes it down."""
    dsn = await fresh_database(await log_server.get())
    write_installation(tmp_path, Installation.model_validate({"database_url": dsn, "pid": os.getpid()}))
    store = await PostgresEventStore.connect(dsn)
    yield shell(tmp_path), store
    await store.aclose()


@pytest.mark.needs_postgres
async def test_publish_subscribe_replay_and_jobs(installed: tuple[Shell, PostgresEventStore]) -> None:
    run, store = installed
    mine = str(uuid4())
    published = await run("publish", "createVolume", "name=v", "size=1", "--id", mine)
    assert (published.status, published.out.strip()) == (0, mine), published.err
    again = await run("publish", "volume.create", "name=v", "size=1", "--id", mine, "-o", "json")
    assert again.json == {"jobid": mine, "command": "volume.create"} and await store.head() == 1
    other = await run("publish", "createVolume", "name=w", "size=1", "--id", mine)
    assert other.status == 1 and "another command" in other.err
    second = (await run("publish", "createVolume", "name=w", "size=2")).out.strip()

    seen = await run("subscribe", "job.#", "--limit", "2")
    assert [event["type"] for event in seen.lines] == ["job.submitted"] * 2
    assert seen.lines[0]["data"]["body"] == {"name": "v", "size": 1, "display_volume": True}
    first = await run("subscribe", "--group", "g", "--limit", "1")
    rest = await run("subscribe", "--group", "g", "--limit", "1")
    assert [first.lines[0]["position"], rest.lines[0]["position"]] == [1, 2]

    replayed = await run("replay", "--from", "2", "--type", "job.*", "-o", "jsonl")
    assert [event["correlation"] for event in replayed.lines] == [second]
    counted = await run("replay", "--dry-run", "--correlation", mine)
    assert counted.json["count"] == 1 and counted.json["by_type"] == {"job.submitted": 1}
    assert (await run("replay", "--to-queue", "q")).err.count("STOREBUS_AMQP_URL") == 1

    rebuilt = await run("replay", "--rebuild", "all")
    assert rebuilt.json == {"rebuilt": "all", "position": 2}
    listed = await run("jobs", "--limit", "1")
    assert [(job["id"], job["status"]) for job in listed.json] == [(second, "submitted")]
    story = await run("jobs", mine, "-o", "table")
    assert "job.submitted" in story.out and str(derive(UUID(mine), "volume")) not in story.out
    assert (await run("jobs", str(uuid4()))).status == 1


@pytest.mark.needs_postgres
async def test_a_subscription_is_live_and_ends_cleanly(installed: tuple[Shell, PostgresEventStore]) -> None:
    run, _ = installed
    process = await run.start("subscribe", "--from", "now")
    await asyncio.sleep(1.5)
    published = await run("publish", "createVolume", "name=v", "size=1")
    assert process.stdout is not None
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    assert line["correlation"] == published.out.strip()
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130 and err == b""


@pytest.mark.needs_postgres
async def test_held_messages_and_dead_letters(installed: tuple[Shell, PostgresEventStore]) -> None:
    run, store = installed
    headers = {"cloudEvents_id": str(uuid4()), "cloudEvents_type": "no.such", "cloudEvents_sbprincipal": "forged"}
    broken = {**headers, "cloudEvents_sbkind": "timer"}  # a timer that names no job: its handling breaks, again and again
    held = [await store.hold(key="volume-1", partition=1, headers=broken, body=b"{}", reason="it broke")
            for _ in range(2)]
    dead = await store.hold(key="", partition=-1, headers=headers, body=b"\xff\x00no json", reason="odd", source="commands")

    assert [each["id"] for each in (await run("held")).json] == held
    [letter] = (await run("dlq", "list")).json
    assert (letter["id"], letter["reason"], letter["source"]) == (dead, "odd", "commands")
    assert "no json" in (await run("dlq", "show", str(dead))).json["body"]
    assert (await run("held", "show", str(dead))).status == 1
    assert (await run("held", "redrive")).err.startswith("error 431: id")

    planned = await run("held", "redrive", "--all", "--dry-run")
    assert [each["outcome"] for each in planned.json] == ["would be redriven"] * 2
    tried = await run("held", "redrive", "--key", "volume-1")
    assert tried.status == 1
    assert [each["outcome"] for each in tried.json] == ["failed again", "stays behind an earlier one"]
    assert (await run("held", "discard", "--all", "--dry-run")).status == 0 and await store.held_keys() == {"volume-1"}
    await run("held", "discard", str(held[0]))
    await run("held", "discard", "--all")
    assert await store.held_keys() == set() and len(await store.held(key="")) == 1
    assert (await run("dlq", "discard", str(dead))).status == 0 and await store.held(key="") == []


@pytest.mark.needs_postgres
@pytest.mark.parametrize("headers", [
    {"cloudEvents_id": str(uuid4()), "cloudEvents_type": "no.such"}, {"cloudEvents_type": "volume.create"}])
async def test_a_redrive_that_is_refused_is_told_and_blocks_nothing(
        installed: tuple[Shell, PostgresEventStore], headers: dict[str, str]) -> None:
    """Of an unknown type, or no envelope at all: it becomes a dead letter, and nobody is told that it was handled."""
    run, store = installed
    for _ in range(2):
        await store.hold(key="volume-1", partition=1, headers=headers, body=b"{}", reason="it broke")
    tried = await run("held", "redrive", "--key", "volume-1")
    assert tried.status == 1
    assert [each["outcome"] for each in tried.json] == ["refused: a dead letter now"] * 2
    assert await store.held_keys() == set() and len(await store.held(key="")) == 2


@pytest.mark.needs_postgres
async def test_migrate_twice_is_once(installed: tuple[Shell, PostgresEventStore]) -> None:
    run, _ = installed
    assert (await run("migrate")).json == []


# --- settings, doctor, help ------------------------------------------------------------------------------------------


async def test_config_tells_origins_and_masks_secrets(tmp_path: Path) -> None:
    run = shell(tmp_path, STOREBUS_AMQP_URL="amqp://u:canary-1@h:5672/%2f?password=canary-2",
                STOREBUS_VAULT_KEY="canary-3", STOREBUS_AGENT_TOKEN="canary-4")
    ran = await run("config", "--api-port", "9", "--database-url", "postgresql://s:canary-5@h/d")
    rows = {row["name"]: row for row in ran.json}
    assert "canary" not in ran.out + ran.err
    assert rows["STOREBUS_AMQP_URL"]["value"].startswith("amqp://u:***") and "h:5672" in rows["STOREBUS_AMQP_URL"]["value"]
    assert {name: rows[f"STOREBUS_{name}"]["origin"] for name in ("AMQP_URL", "API_PORT", "ZONE", "DATA_DIR")} == {
        "AMQP_URL": "environment", "API_PORT": "option", "ZONE": "default", "DATA_DIR": "environment"}
    assert all(row["description"] for row in rows.values())


async def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    ran = await shell(tmp_path, STOREBUS_API_PORT="many")("doctor")
    assert ran.status == 1 and "STOREBUS_API_PORT" in ran.err


async def test_doctor_has_a_remedy_for_each_fault(run: Shell) -> None:
    ran = await run("doctor", "--database-url", "postgresql://127.0.0.1:1/x", "--amqp-url", "amqp://127.0.0.1:1")
    rows = {row["check"]: row for row in ran.json}
    assert ran.status == 1
    assert {name: rows[name]["state"] for name in ("python", "data directory", "database", "broker", "api")} == {
        "python": "ok", "data directory": "ok", "database": "fault", "broker": "fault", "api": "fault"}
    assert all(row["remedy"] for row in rows.values() if row["state"] != "ok")


async def test_help_loads_nothing_heavy_and_lists_the_commands(run: Shell) -> None:
    ran = await run("--help")
    loading = subprocess.run([sys.executable, "-X", "importtime", "-m", "api.cli", "--help"], capture_output=True, text=True, check=True,
                             cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in loading.stderr.splitlines()}
    assert "typer" in loaded and not loaded & {"pydantic", "asyncpg", "aiohttp", "starlette", "aio_pika", "schema"}
    asking = subprocess.run([sys.executable, "-c", "import sys, api.cli_call; print(*sys.modules)"], capture_output=True, text=True, check=True,
                            cwd=ROOT)
    assert not {name.partition(".")[0] for name in asking.stdout.split()} & {"handlers", "agents", "starlette", "asyncpg"}
    for command in ("up", "serve", "call", "publish", "subscribe", "replay", "jobs", "held", "dlq", "verify", "migrate",
                    "doctor", "config", "asyncapi", "profile", "completion"):
        assert f" {command} " in ran.out
    assert " demo " not in ran.out


async def test_asyncapi_is_the_document(run: Shell) -> None:
    assert (await run("asyncapi")).json["asyncapi"].startswith("3.")
