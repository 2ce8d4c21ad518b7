"""The doctor against a real Postgres, and against an API alone: what is wrong is found, each by its check."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.edge import Edge
from api.listener import HttpListener
from bus.event_store_postgres import PostgresEventStore
from bus.vault import Vault, load_or_create_key
from schema.ids import derive
from tests.integration.conftest import LogServer
from tests.integration.test_cli import Shell, shell
from tests.services.postgres import fresh_database
from tests.support.system import FakeSystem

KEY = base64.b64encode(bytes(32)).decode()


async def told(run: Shell, *words: str) -> dict[str, dict[str, Any]]:
    """The findings by check (and thing)."""
    ran = await run("doctor", *words)
    rows = ran.json
    assert ran.status == (1 if any(row["state"] == "fault" for row in rows) else 0)
    assert not [row for row in rows if row["state"] != "ok" and not row["remedy"]]
    return {row["check"]: row for row in rows}


@pytest.fixture
async def database(log_server: LogServer) -> AsyncIterator[tuple[str, PostgresEventStore]]:
    dsn = await fresh_database(await log_server.get())
    store = await PostgresEventStore.connect(dsn)
    yield dsn, store
    await store.aclose()


@pytest.mark.needs_postgres
async def test_what_is_wrong_is_found(database: tuple[str, PostgresEventStore], tmp_path: Path) -> None:
    dsn, store = database
    run = shell(tmp_path, STOREBUS_DATABASE_URL=dsn, STOREBUS_API_PORT="1")
    first = await told(run)
    assert {name: first[name]["state"] for name in ("database", "clock", "vault key", "readers", "messages", "agents")} == {
        "database": "fault", "clock": "ok", "vault key": "ok", "readers": "ok", "messages": "ok", "agents": "fault"}
    assert "no secret" in first["vault key"]["detail"] and not (tmp_path / "vault.key").exists(), "a look makes no key"
    assert first["image stores"]["state"] == "warning"
    assert "fsync" in first["database"]["detail"], "the tests' servers need not live through a power cut"

    await Vault(store, load_or_create_key(tmp_path / "vault.key")).seal("canary-77")
    assert "opens" in (await told(run))["vault key"]["detail"]
    assert (await told(shell(tmp_path, STOREBUS_DATABASE_URL=dsn, STOREBUS_VAULT_KEY=KEY)))["vault key"]["state"] == "fault"
    (tmp_path / "vault.key").chmod(0o644)
    assert "chmod 600" in (await told(run))["vault key"]["remedy"]
    (tmp_path / "vault.key").unlink()
    await store.hold(key="volume-1", partition=1, headers={}, body=b"{}", reason="it broke")
    later = await told(run)
    assert "put back" in later["vault key"]["remedy"]
    assert later["messages"]["state"] == "fault" and "redrive" in later["messages"]["remedy"]
    assert "canary" not in str(later)


@pytest.mark.needs_postgres
async def test_an_installation_that_does_not_go_on(database: tuple[str, PostgresEventStore], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the log: what was accepted is not shown."""
    from api.doctor import servers
    from api.settings import Settings

    dsn, _ = database
    run = shell(tmp_path, STOREBUS_DATABASE_URL=dsn)
    assert (await run("publish", "createVolume", "name=v", "size=1", "--id", str(uuid4()))).status == 0
    monkeypatch.setattr(servers, "LAG_S", (0.0, 3600.0))
    found = await servers.readers(Settings(database_url=dsn))
    assert found.state == "warning" and "projector" in found.detail and "storebus serve log" in found.remedy


@pytest.mark.needs_postgres
async def test_a_database_at_fault_is_told_once(log_server: LogServer, tmp_path: Path) -> None:
    rows = await told(shell(tmp_path), "--database-url", "postgresql://127.0.0.1:1/x")
    assert rows["database"]["state"] == "fault" and rows["readers"]["state"] == "warning"


async def test_an_api_alone(tmp_path: Path) -> None:
    system = await FakeSystem.start()
    listener = HttpListener(Edge(system))
    url = await listener.start()
    run = shell(tmp_path)
    async with system.working():
        job = uuid4()
        await Edge(system).call({
            "command": "addImageStore", "name": "objects", "provider": "S3", "url": "http://s3", "customjobid": str(job),
            "details.bucket": "b", "details.accesskey": "a", "details.secretkey": "s"})
        await system.wait_for_end(job, timeout_s=60)
    ran = await run("doctor", "--api-url", url)
    rows = {(row["check"], row["of"]): row for row in ran.json}
    assert rows["api", ""]["state"] == "ok" and rows["image stores", "objects"]["state"] == "ok"
    assert rows["agents", "host-1"]["state"] in ("ok", "warning")
    assert derive(job, "image_store") and ("certificates", "") in rows
    await listener.aclose()
    away = await run("doctor", "--api-url", url)
    assert away.status == 1 and [row["check"] for row in away.json] == ["api"]
