"""The test of a store that is being added, on real servers: what each step says, and what is left when one fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from agents.operations import check_store
from agents.toolbox import Toolbox
from schema.agent import TestImageStore
from schema.failure import Refused
from schema.image import StoreSpec
from tests.contract.image_store import keys
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.seaweedfs import SeaweedFS
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_server, swift_spec
from tests.support.tls import behind_tls, certificate

__all__ = ["s3_server", "swift_server"]
needs_s3, needs_swift = pytest.mark.needs_s3, pytest.mark.needs_swift
STEPS = ["tls", "clock", "list", "put", "get", "range", "multipart", "delete"]


def order_for(spec: StoreSpec) -> TestImageStore:
    return TestImageStore(job_id=uuid4(), work_id=uuid4(), attempt=1, agent="a", reply_key="k", store=spec)


async def run(spec: StoreSpec, secrets: dict[str, str]) -> list[str]:
    return (await check_store(order_for(spec), Toolbox(), secrets, lambda stage, done, total: None)).steps


@pytest.fixture
async def proxy(s3_server: SeaweedFS) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy


@needs_s3
async def test_each_step_says_what_it_found(s3_server: SeaweedFS) -> None:
    lines = await run(s3_spec(s3_server), {"secretkey": s3_server.secret_key})
    assert [line.split(":")[0] for line in lines] == ["connect", *STEPS]
    assert "not encrypted" in lines[1]
    assert "agrees with" in lines[2]


@needs_swift
async def test_each_step_says_what_it_found_in_swift(swift_server: SwiftServer) -> None:
    lines = await run(swift_spec(swift_server), {"key": swift_server.key})
    assert [line.split(":")[0] for line in lines] == ["connect", *STEPS]
    assert "agrees with" in lines[2]


@needs_s3
@pytest.mark.parametrize(("ahead_s", "words"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_clock_that_is_wrong_is_named(s3_server: SeaweedFS, proxy: S3Proxy, ahead_s: int, words: str) -> None:
    spec, secret = s3_spec(s3_server, endpoint=proxy.endpoint), {"secretkey": s3_server.secret_key}
    proxy.clock_ahead_s = ahead_s
    with pytest.raises(Refused, match=f"test step clock.*(3599|3600|3601) s {words}.*passed before it: tls") as refused:
        await run(spec, secret)
    assert "NTP" in refused.value.failure.remedy
    proxy.fail(1, status=403, code="RequestTimeTooSkewed")  # the server says it first
    with pytest.raises(Refused, match=r"test step connect.*clocks") as refused:
        await run(spec, secret)
    assert "NTP" in refused.value.failure.remedy
    proxy.clock_ahead_s = ahead_s // 60
    assert re.search(rf"clock: (59|60|61) s {words}", " ".join(await run(spec, secret)))


@needs_swift
async def test_a_clock_that_is_wrong_is_named_by_swift_too(swift_server: SwiftServer) -> None:
    async with S3Proxy(swift_server.endpoint) as proxy:
        spec = swift_spec(swift_server)
        store = await SwiftImageStore.open(spec, {"key": swift_server.key})
        try:
            grant = await store.client.grant()
            store.client._grant = type(grant)(grant.token, grant.url.replace(swift_server.endpoint, proxy.endpoint))
            proxy.clock_ahead_s = 3600
            with pytest.raises(Refused, match=r"test step clock.* ahead of"):
                await store.test(spec.prefix)
        finally:
            await store.aclose()


@needs_s3
@pytest.mark.parametrize(("made", "trusted", "words", "remedy"), [
    ({}, False, "authority that signed it is unknown", "as cafile"),
    ({"expired": True}, True, "has expired", "renewed"),
    ({"host": "192.0.2.7"}, True, "is for another address", "issued for this"),
])
async def test_why_a_certificate_is_refused_is_named(s3_server: SeaweedFS, tmp_path: Path, made: dict[str, object], trusted: bool,
                                                     words: str, remedy: str) -> None:
    authority, server = await asyncio.to_thread(lambda: certificate(tmp_path, **made))  # type: ignore[arg-type] # parametrised
    async with behind_tls(s3_server.endpoint, server) as url:
        spec = s3_spec(s3_server, endpoint=url, **({"cafile": str(authority)} if trusted else {}))
        with pytest.raises(Refused, match=f"test step connect.*{words}") as refused:
            await run(spec, {"secretkey": s3_server.secret_key})
    assert refused.value.failure.field == "details.endpoint"
    assert remedy in refused.value.failure.remedy


@needs_swift
@pytest.mark.parametrize(("made", "words"), [({"expired": True}, "has expired"), ({"host": "192.0.2.7"}, "another (address|host)")])
async def test_why_swifts_certificate_is_refused_is_named(swift_server: SwiftServer, tmp_path: Path, made: dict[str, object],
                                                          words: str) -> None:
    authority, server = await asyncio.to_thread(lambda: certificate(tmp_path, **made))  # type: ignore[arg-type] # parametrised
    async with behind_tls(swift_server.endpoint, server) as url:
        spec = swift_spec(swift_server, url=f"{url}/auth/v1.0", cafile=str(authority))
        with pytest.raises(Refused, match=f"test step connect.*{words}"):
            await run(spec, {"key": swift_server.key})


@needs_s3
async def test_a_certificate_of_a_named_authority_is_taken(s3_server: SeaweedFS, tmp_path: Path) -> None:
    authority, server = await asyncio.to_thread(certificate, tmp_path)
    async with behind_tls(s3_server.endpoint, server) as url:
        lines = await run(s3_spec(s3_server, endpoint=url, cafile=str(authority)), {"secretkey": s3_server.secret_key})
    assert "TLS, the certificate was verified by cafile" in lines[1]


def _is(method: str, *, ranged: bool = False, query: str = "") -> Callable[[Seen], bool]:
    return lambda seen: seen.method == method and query in seen.target and (not ranged or "bytes=1000-" in seen.headers.get("range", ""))


@needs_s3
@pytest.mark.parametrize(("step", "match"), [
    ("get", _is("GET", query="/small")), ("range", _is("GET", ranged=True)), ("multipart", _is("PUT", query="partNumber=1")),
    ("multipart", _is("POST", query="uploadId=")), ("delete", _is("DELETE", query="/small"))])
async def test_what_passed_before_is_named_and_nothing_is_left(s3_server: SeaweedFS, proxy: S3Proxy, step: str,
                                                               match: Callable[[Seen], bool]) -> None:
    spec, secret = s3_spec(s3_server, endpoint=proxy.endpoint, maxerrorretry="0"), {"secretkey": s3_server.secret_key}
    proxy.fail(1, status=403, code="AccessDenied", match=match)
    with pytest.raises(Refused, match=f"test step {step}.*passed before it: {', '.join(STEPS[:STEPS.index(step)])}\\)"):
        await run(spec, secret)
    proxy.heal()
    store = await S3ImageStore.open(spec, secret)
    try:
        assert await keys(store, spec.prefix) == []
        assert await store.unfinished(spec.prefix) == []
    finally:
        await store.aclose()
