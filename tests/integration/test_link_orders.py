"""Links as an agent is ordered to make and to revoke them: the URL works, and nothing but the vault can read it on its way."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.image_stores.memory import bucket
from agents.image_stores.registry import open_store
from agents.mover_child import InlineMover
from agents.toolbox import Toolbox
from bus.vault import Vault
from schema.agent import LinkMade, MakeLink, RevokeLink, ScrubObjects
from schema.image import StoreSpec
from tests.contract.image_store_links import fetch
from tests.services.s3_fixture import s3_server, s3_spec
from tests.support.agent_bench import NAME, Bench
from tests.support.memory_links import served

__all__ = ["s3_server"]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = await Bench(tmp_path, InlineMover(Toolbox(hypervisor_name="memory"))).start()
    yield bench
    await bench.stop()


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.needs_s3)])
def spec(request: pytest.FixtureRequest) -> StoreSpec:
    if request.param == "memory":
        return StoreSpec(id=uuid4(), name="m", provider="memory", url=f"memory://{uuid4()}", prefix=str(uuid4()))
    server = request.getfixturevalue("s3_server")
    found: StoreSpec = s3_spec(server, secretkey=server.secret_key)
    return found


def about(**more: Any) -> dict[str, Any]:
    return {"job_id": UUID(int=4), "work_id": uuid4(), "agent": NAME, "reply_key": "k", **more}


async def test_a_links_url_is_read_by_the_vault_alone_and_works_until_the_order_to_revoke_it(
        bench: Bench, spec: StoreSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vault = Vault(None, b"k" * 32)  # type: ignore[arg-type] # it keeps nothing here
    store = await open_store(spec, {})
    key, old = f"{spec.prefix}/snapshots/x", f"{spec.prefix}/links/1000000000-{0:032x}"
    await store.put(key, b"for a customer")
    await store.put(old, b"of a link that ended long ago")
    order = MakeLink(**about(store=spec, key=key, lifetime_s=600, seal_to=vault.public_key))
    with served(bucket(spec.url)) if spec.provider == "memory" else nullcontext():
        await bench.give(order)
        assert await bench.end(order) == "work.completed"
        made = LinkMade.model_validate(bench.said[-1][1]["result"])
        url = vault.unseal(made.sealed_url, order.work_id)
        assert timedelta(seconds=500) < made.expires_at - datetime.now(UTC) <= timedelta(seconds=600)
        assert (await fetch(url))[:2] == (200, b"for a customer")
        assert await store.stat(old) is None, "what had ended went first"
        scrub = ScrubObjects(**about(store=spec, objects=[]))
        await bench.give(scrub)
        assert await bench.end(scrub) == "work.completed"
        assert [stray["key"] for stray in bench.said[-1][1]["result"]["unknown"]] == [key], "a link is no stranger"
        end = RevokeLink(**about(store=spec, link_id=made.link_id))
        await bench.give(end)
        assert await bench.end(end) == "work.completed"
        assert (await fetch(url))[0] in (403, 404)
    signature = url.rpartition("=")[2].encode()
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert made.sealed_url.encode() in kept, "the journal has the report"
    for text in (kept, caplog.text.encode(), json.dumps([body for _, body, _ in bench.said]).encode()):
        assert signature not in text and url.encode() not in text
    await store.delete(key)
    await store.aclose()


async def test_what_cannot_be_linked_is_refused_by_name(bench: Bench, tmp_path: Path) -> None:
    spec = StoreSpec(id=uuid4(), name="shelf", provider="folder", url=f"folder://{tmp_path}/images", prefix="i")
    (tmp_path / "images").mkdir()
    order = MakeLink(**about(store=spec, key="i/x", lifetime_s=600, seal_to=Vault(None, b"k" * 32).public_key))  # type: ignore[arg-type] # it keeps nothing here
    await bench.give(order)
    assert await bench.end(order) == "work.failed"
    failure = bench.said[-1][1]["failure"]
    assert "shelf" in failure["cause"] and "presigned_get" in failure["cause"] and failure["remedy"] and not failure.get("retryable")
