"""Links of real S3 and Swift servers behind a proxy that misbehaves: made and revoked all the same, or nothing of them stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from agents.image_stores import trouble
from agents.image_stores.base import ImageStore
from agents.image_stores.links import LONGEST_S, MARGIN_S, make_link, revoke_link, sweep_links
from agents.image_stores.registry import open_store
from schema.failure import Failed, Unknown, WorkRetryable
from schema.image import StoreSpec
from tests.contract.image_store import data, keys
from tests.contract.image_store_links import fetch
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.swift_fixture import swift_server, swift_spec

__all__ = ["s3_server", "swift_server"]
BODY = data(100_000)


def is_alias(seen: Seen) -> bool:
    return seen.method == "PUT" and "/links/" in seen.target


def is_revoke(seen: Seen) -> bool:
    return seen.method == "DELETE" and "/links/" in seen.target


@dataclass
class Rig:
    """A store behind its proxy, and an object in it."""

    store: ImageStore
    spec: StoreSpec
    proxy: S3Proxy
    key: str


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.needs_s3), pytest.param("swift", marks=pytest.mark.needs_swift)])
async def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(trouble, "MAX_BACKOFF_S", 0.1)
    server = request.getfixturevalue(f"{request.param}_server")
    async with S3Proxy(server.endpoint) as proxy:
        soon = {"sockettimeout": "3000", "connectiontimeout": "3000", "maxerrorretry": "4"}
        spec = s3_spec(server, endpoint=proxy.endpoint, secretkey=server.secret_key, **soon) if request.param == "s3" else \
            swift_spec(server, url=f"{proxy.endpoint}/auth/v1.0", key=server.key, **soon)
        store = await open_store(spec, {})
        await store.test(spec.prefix)
        key = f"{spec.prefix}/snapshots/{uuid4()}"
        await store.put(key, BODY)
        yield Rig(store, spec, proxy, key)
        proxy.heal()
        for one in await keys(store, spec.prefix):
            await store.delete(one)
        await store.aclose()


async def test_errors_and_lost_answers_on_the_way_to_a_link_and_its_end_do_not_matter(rig: Rig) -> None:
    rig.proxy.fail(2, match=is_alias)
    rig.proxy.cut_answers(1, match=is_alias)
    link = await make_link(rig.store, rig.spec, rig.key, 600)
    assert await keys(rig.store, rig.spec.prefix) == sorted([rig.key, f"{rig.spec.prefix}/links/{link.id}"])
    rig.proxy.fail(2, match=is_revoke)
    try:
        await revoke_link(rig.store, rig.spec, link.id)
        rig.proxy.cut_answers(1, match=is_revoke)
        await revoke_link(rig.store, rig.spec, link.id)
    except Unknown:  # the answer was lost: asked again, it is so
        await revoke_link(rig.store, rig.spec, link.id)
    assert (await fetch(link.url))[0] in (403, 404)
    assert await keys(rig.store, rig.spec.prefix) == [rig.key]
    assert await rig.store.read(rig.key, 0, len(BODY)) == BODY


async def test_a_store_that_makes_none_is_named_and_nothing_stays(rig: Rig) -> None:
    rig.proxy.fail(1000, match=is_alias)
    with pytest.raises(WorkRetryable) as away:
        await make_link(rig.store, rig.spec, rig.key, 600)
    assert rig.spec.name in away.value.failure.cause
    rig.proxy.heal()
    assert await keys(rig.store, rig.spec.prefix) == [rig.key]


async def test_what_could_not_be_taken_back_goes_with_the_sweep(rig: Rig) -> None:
    """Every answer is lost from the alias on, so it is there and nobody was told; nor can it be removed."""
    rig.proxy.cut_answers(1000, match=is_alias)
    rig.proxy.fail(1000, match=is_revoke)
    with pytest.raises(Failed):
        await make_link(rig.store, rig.spec, rig.key, LONGEST_S)
    rig.proxy.heal()
    assert len(await keys(rig.store, rig.spec.prefix)) == 2
    now = datetime.now(UTC)
    assert await sweep_links(rig.store, rig.spec, now) == []
    assert len(await sweep_links(rig.store, rig.spec, now + timedelta(seconds=LONGEST_S + MARGIN_S + 60))) == 1
    assert await keys(rig.store, rig.spec.prefix) == [rig.key]
    assert await rig.store.read(rig.key, 0, len(BODY)) == BODY
