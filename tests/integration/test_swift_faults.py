"""The Swift store on a real Swift: behind a proxy that misbehaves, with tokens that expire, segments and containers that vanish."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from swiftclient.client import Connection, post_container

from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_client import Line
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec
from tests.contract.image_store import data
from tests.services.s3_proxy import S3Proxy
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_server, swift_spec
from tests.support.keystone import DEFAULT, OTHER, keystone
from tests.support.swift_store import (
    MIB,
    PART,
    is_get,
    is_manifest,
    is_part,
    is_sign_in,
    key,
    proxy,
    read,
    segments,
    soon,
    spec,
    store,
    write,
)
from tests.support.tls import behind_tls, certificate

__all__ = ["key", "proxy", "soon", "spec", "store", "swift_server"]
pytestmark = pytest.mark.needs_swift

# --- the network, and a busy store ------------------------------------------------------------------------------------------


async def test_parts_told_to_slow_down_are_sent_again(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.fail(2, status=503, match=is_part)
    proxy.fail(2, status=498, match=is_part)
    proxy.fail(1, status=500, match=is_manifest)
    await write(store, key, body)
    assert proxy.failed == 5
    assert await read(store, key, len(body)) == body


async def test_connections_cut_mid_segment_do_not_matter(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.reset(2, after=PART // 2, match=is_part)
    proxy.cut_answers(1, match=is_part)
    proxy.cut_answers(1, match=is_manifest)
    await write(store, key, body)
    assert proxy.cuts == 4
    assert await read(store, key, len(body)) == body
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []
    assert len(await segments(store, key)) == 4, "one for each part, no mark"


async def test_a_manifest_whose_answers_were_lost_is_found_done(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(PART + 5)
    proxy.cut_answers(1000, match=is_manifest)
    await write(store, key, body)
    assert proxy.cuts == 5
    assert await read(store, key, len(body)) == body


async def test_after_a_cut_answer_only_the_rest_is_asked_for(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(2 * PART)
    await write(store, key, body)
    proxy.clear()
    proxy.cut_answers(1, after=600_000, match=is_get)
    proxy.fail(1, match=is_get)
    assert await store.read(key, 0, 2 * PART) == body
    assert (proxy.cuts, proxy.failed) == (1, 1)
    starts = [int(seen.headers["range"][6:].split("-")[0]) for seen in proxy.requests if is_get(seen)]
    assert starts[0] == 0 < starts[1] == starts[2] < 2 * PART


async def test_retries_are_bounded_and_the_failure_says_what_to_do(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    upload = await store.begin(key, part_size=PART)
    proxy.clear()
    proxy.fail(1000, status=429, match=is_part)
    with pytest.raises(WorkRetryable) as failed:
        await upload.part(1, b"x")
    assert proxy.failed == 5
    assert "slow down" in failed.value.failure.cause
    assert failed.value.failure.remedy
    proxy.heal()
    await upload.abort()


async def test_an_unanswered_write_is_unknown_an_unanswered_part_is_not(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    upload = await store.begin(f"{key}-parts", part_size=PART)
    proxy.cut_answers(1000, match=lambda seen: seen.method == "PUT")
    with pytest.raises(Unknown):
        await store.put(key, b"may have happened")
    with pytest.raises(WorkRetryable):
        await upload.part(1, b"invisible in any case")
    proxy.heal()
    await upload.abort()


async def test_bytes_damaged_on_the_way_are_refused_by_the_store(store: SwiftImageStore, key: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await store.begin(key, part_size=PART)
    real = Line.body
    monkeypatch.setattr(Line, "body", lambda line, view: real(line, bytes(len(view))))  # what arrives is not what was hashed
    with pytest.raises(WorkRetryable, match="damaged"):
        await upload.part(1, b"right")
    await upload.abort()


async def test_an_etag_of_other_bytes_is_noticed(store: SwiftImageStore, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import agents.image_stores.swift_upload as module

    upload = await store.begin(key, part_size=PART)
    real, lies = module.put_object, 2

    def lying(*arguments: Any, **named: Any) -> Any:
        nonlocal lies
        answer = real(*arguments, **named)
        if lies:
            lies -= 1
            return "0" * 32
        return answer

    monkeypatch.setattr(module, "put_object", lying)
    await upload.part(1, b"right")
    assert lies == 0
    assert (await upload.complete(5)).size == 5


async def test_a_slow_store_is_waited_for_a_silent_one_is_given_up(swift_server: SwiftServer, proxy: S3Proxy, key: str) -> None:
    spec = swift_spec(swift_server, url=f"{proxy.endpoint}/auth/v1.0", sockettimeout="2500", maxerrorretry="1", prefix=key)
    store = await SwiftImageStore.open(spec, {"key": swift_server.key})
    await store._make(store.container, "")
    upload = await store.begin(f"{key}/slow", part_size=PART)
    proxy.clear()
    proxy.rate = 0.25 * MIB
    started = time.monotonic()
    await upload.part(1, data(PART))
    assert time.monotonic() - started > 2.5, "longer than sockettimeout"
    assert len([seen for seen in proxy.requests if is_part(seen)]) == 1, "sent once"
    proxy.rate = None
    proxy.pause()
    started = time.monotonic()
    with pytest.raises(WorkRetryable, match="silent"):
        await upload.part(2, data(PART))
    assert time.monotonic() - started < 15
    proxy.heal()
    await upload.abort()
    await store.aclose()


@pytest.mark.parametrize("through", ["straight", "a proxy that is named"])
async def test_a_cancelled_request_ends_now_though_the_store_hangs(swift_server: SwiftServer, proxy: S3Proxy, key: str,
                                                                   through: str) -> None:
    where = {"url": f"{proxy.endpoint}/auth/v1.0"} if through == "straight" else {"proxy": proxy.endpoint}
    spec = swift_spec(swift_server, sockettimeout="60000", prefix=key, **where)
    store = await SwiftImageStore.open(spec, {"key": swift_server.key})
    await store._make(store.container, "")
    await store.put(f"{key}/small", b"x")
    upload = await store.begin(f"{key}/image", part_size=8 * MIB)
    proxy.pause()
    tasks = [asyncio.create_task(upload.part(1, data(8 * MIB))), asyncio.create_task(store.read(f"{key}/small", 0, 1))]
    await asyncio.sleep(0.3)
    started = time.monotonic()
    for task in tasks:
        task.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True))
    assert time.monotonic() - started < 1
    proxy.heal()
    await upload.abort()
    await store.delete(f"{key}/small")
    assert await segments(store, key) == []
    await store.aclose()


async def test_where_nothing_answers_it_says_so(swift_server: SwiftServer) -> None:
    for url, error, field in (("http://127.0.0.1:1/auth/v1.0", WorkRetryable, "url"),
                              ("https://127.0.0.1:" + swift_server.endpoint.rsplit(":", 1)[1] + "/auth/v1.0", Refused, "url"),
                              (f"{swift_server.endpoint}/nowhere", Refused, "url"),
                              ("http://no-such-host.invalid/auth/v1.0", Failed, "url")):
        with pytest.raises(error) as failed:
            await SwiftImageStore.open(swift_spec(swift_server, url=url, connectiontimeout="1000"), {"key": "k"})
        assert failed.value.failure.field == field
        assert failed.value.failure.remedy


async def test_a_store_that_is_busy_while_it_is_opened_is_asked_again(spec: StoreSpec, swift_server: SwiftServer, proxy: S3Proxy) -> None:
    proxy.fail(1, status=503, match=is_sign_in)
    proxy.fail(1, status=500, match=lambda seen: seen.target == "/info")
    proxy.cut_answers(1, match=lambda seen: seen.target == "/info")
    await (await SwiftImageStore.open(spec, {"key": swift_server.key})).aclose()
    assert [seen.target for seen in proxy.requests] == ["/auth/v1.0"] * 2 + ["/info"] * 3


@pytest.mark.parametrize(("status", "field"), [(403, "details.username"), (404, "details.container"), (413, "details.container"),
                                               (507, "url"), (418, "url")])
async def test_refusals_in_the_middle_are_final(store: SwiftImageStore, proxy: S3Proxy, key: str, status: int, field: str) -> None:
    upload = await store.begin(key, part_size=PART)
    proxy.clear()
    proxy.fail(100, status=status, match=is_part)
    with pytest.raises(WorkFailed) as failed:
        await upload.part(1, b"x")
    assert not failed.value.retryable
    assert failed.value.failure.field == field
    assert failed.value.failure.remedy
    assert proxy.failed == 1
    proxy.heal()
    await upload.abort()


async def test_a_quota_that_is_reached_is_named(swift_server: SwiftServer, key: str) -> None:
    store = await SwiftImageStore.open(swift_spec(swift_server, container=f"small-{uuid4()}"), {"key": swift_server.key})
    await store.test(key)
    await store.client.ask("limit", lambda line, grant: post_container(grant.url, grant.token, store.container, {
        "X-Container-Meta-Quota-Bytes": "1000"}))
    upload = await store.begin(key, part_size=PART)
    with pytest.raises(WorkFailed, match="quota") as failed:
        await upload.part(1, data(PART))
    assert failed.value.failure.field == "details.container"
    await upload.abort()
    assert [one async for one in store.names(store.container, "")] == []
    await store.aclose()


async def test_free_room_is_what_the_quotas_leave(swift_server: SwiftServer, key: str) -> None:
    store = await SwiftImageStore.open(swift_spec(swift_server, container=f"room-{uuid4()}"), {"key": swift_server.key})
    await store.test(key)
    assert await store.free_bytes() is None
    await store.client.ask("limit", lambda line, grant: post_container(grant.url, grant.token, store.segments, {
        "X-Container-Meta-Quota-Bytes": "1000000"}))
    assert await store.free_bytes() == 1_000_000
    await store.aclose()


async def test_all_goes_through_the_proxy_that_is_named_and_none_from_the_environment(
        swift_server: SwiftServer, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with S3Proxy(swift_server.endpoint) as forward:
        spec = swift_spec(swift_server, url="http://swift.invalid/auth/v1.0", proxy=forward.endpoint)
        store = await SwiftImageStore.open(spec, {"key": swift_server.key})
        await store.test(key)
        assert all(seen.target.startswith("http://") for seen in forward.requests) and len(forward.requests) > 10
        await store.aclose()
    direct = await SwiftImageStore.open(swift_spec(swift_server), {"key": swift_server.key})
    assert await direct.stat(key) is None
    await direct.aclose()


# --- tokens -----------------------------------------------------------------------------------------------------------------


async def test_a_token_that_ends_in_the_middle_of_a_transfer_is_renewed_once(store: SwiftImageStore, swift_server: SwiftServer,
                                                                              proxy: S3Proxy, key: str) -> None:
    body = data(6 * PART + 7)
    upload = await store.begin(key, part_size=PART)
    await upload.part(1, body[:PART])
    await asyncio.to_thread(swift_server.forget_tokens)
    await asyncio.gather(*(upload.part(number, body[at : at + PART])
                           for number, at in enumerate(range(PART, len(body), PART), 2)))
    assert len([seen for seen in proxy.requests if is_sign_in(seen)]) == 1, "all parts share the new one"
    await asyncio.to_thread(swift_server.forget_tokens)
    await upload.complete(len(body))
    await asyncio.to_thread(swift_server.forget_tokens)
    assert await read(store, key, len(body)) == body


async def test_tokens_that_are_never_taken_are_not_asked_for_for_ever(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    proxy.fail(1000, status=401, match=lambda seen: seen.method == "PUT")
    with pytest.raises(WorkFailed) as failed:
        await store.put(key, b"x")
    assert failed.value.failure.field == "details.username"
    assert len([seen for seen in proxy.requests if is_sign_in(seen)]) <= 2


async def test_a_key_that_was_changed_meanwhile_is_named(store: SwiftImageStore, swift_server: SwiftServer, proxy: S3Proxy,
                                                         key: str) -> None:
    proxy.fail(1, status=401, match=is_sign_in)
    swift_server.forget_tokens()
    with pytest.raises(WorkFailed) as failed:
        await store.put(key, b"x")
    assert failed.value.failure.field == "details.key"


async def test_who_may_not_is_refused_and_no_secret_is_shown(swift_server: SwiftServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for details, secret, field in (({}, "wrong-CANARY", "details.key"), ({"username": "nobody"}, "k-CANARY", "details.key"),
                                   ({"username": "reader"}, "reading", "details.username")):
        with pytest.raises(Refused) as refused:
            store = await SwiftImageStore.open(swift_spec(swift_server, **details), {"key": secret})
            try:
                await store.test("prefix")
            finally:
                await store.aclose()
        assert refused.value.failure.field == field
        assert refused.value.failure.remedy
        assert secret not in str(refused.value)
    assert "CANARY" not in caplog.text and "X-Auth-Key" not in caplog.text


async def test_an_unknown_policy_and_another_policy_are_refused(swift_server: SwiftServer) -> None:
    for details in ({"storagepolicy": "tin", "container": "fresh"}, {"storagepolicy": "tin"}):
        store = await SwiftImageStore.open(swift_spec(swift_server, **details), {"key": swift_server.key})
        await store.client.ask("make", lambda line, grant: Connection(
            preauthurl=grant.url, preauthtoken=grant.token).put_container("images"))
        with pytest.raises(Refused) as refused:
            await store.test("prefix")
        assert refused.value.failure.field == "details.storagepolicy"
        await store.aclose()
    store = await SwiftImageStore.open(swift_spec(swift_server, storagepolicy="Gold"), {"key": swift_server.key})
    await store.test("prefix")
    await store.aclose()


async def test_keystone_by_a_double(swift_server: SwiftServer, key: str) -> None:
    async with keystone(swift_server) as double:
        spec = swift_spec(swift_server, url=double.url, prefix=key, projectdomain=OTHER, userdomain=DEFAULT, region="north")
        store = await SwiftImageStore.open(spec, {"key": swift_server.key})
        await store.test(key)
        await asyncio.to_thread(swift_server.forget_tokens)
        await store.put(f"{key}/x", b"after a renewal")
        assert len(double.questions) == 2
        await store.delete(f"{key}/x")
        await store.aclose()
        for details, field in (({"projectdomain": DEFAULT}, "details.key"), ({"region": "west"}, "details.region"),
                               ({"endpointtype": "admin"}, "details.region")):
            other = spec.model_copy(update={"details": spec.details | details})
            with pytest.raises(Refused) as refused:
                await SwiftImageStore.open(other, {"key": swift_server.key})
            assert refused.value.failure.field == field


async def test_tls_is_verified_and_a_token_never_leaves_it(swift_server: SwiftServer, key: str, tmp_path: Path) -> None:
    authority, server = await asyncio.to_thread(certificate, tmp_path)
    async with keystone(swift_server) as double, behind_tls(swift_server.endpoint, server) as safe, \
            behind_tls(double.url, server) as entry:
        double.storage = f"{safe}/v1/AUTH_{swift_server.account}"
        spec = swift_spec(swift_server, url=f"{entry}/v3", prefix=key, projectdomain=OTHER, region="north")
        for details in ({"cafile": str(authority)}, {"insecure": "true"}):
            store = await SwiftImageStore.open(spec.model_copy(update={"details": spec.details | details}), {"key": swift_server.key})
            await store.test(key)
            await store.aclose()
        with pytest.raises(Refused, match="not trusted") as refused:
            await SwiftImageStore.open(spec, {"key": swift_server.key})
        assert (refused.value.failure.field, "cafile" in refused.value.failure.remedy) == ("url", True)
        trusting = spec.model_copy(update={"details": spec.details | {"cafile": str(authority)}})
        double.storage = ""  # Swift's own address, without TLS
        with pytest.raises(Refused, match="without"):
            await SwiftImageStore.open(trusting, {"key": swift_server.key})
