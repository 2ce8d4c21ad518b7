"""The part of the image store contract about links: fetched with the standard library, which knows nothing of ours.

A store without presigned_get must refuse, saying what is missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from agents.image_stores.base import ImageStore
from agents.image_stores.links import LONGEST_S, MARGIN_S, Link, make_link, revoke_link, sweep_links
from schema.failure import Refused, WorkFailed
from tests.contract.image_store_resume import Place, data, keys


async def fetch(url: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, int]:
    """Status, body and length as the headers say it (of the whole object, where a range came)."""
    def get() -> tuple[int, bytes, int]:
        try:
            with urlopen(Request(url, method=method, headers=headers), timeout=20) as answer:
                total = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "-1")
                return answer.status, answer.read(), int(total)
        except HTTPError as error:
            with error:
                return error.code, b"", -1

    return await asyncio.to_thread(get)


class LinksContract:
    """What anyone can do with a link, and what not."""

    def serving(self, store: ImageStore) -> AbstractContextManager[None]:
        """Override where the store has no server of its own that serves links."""
        return nullcontext()

    @pytest.fixture
    async def linking(self, place: Place, store: ImageStore) -> AsyncIterator[ImageStore]:
        """The store, its links served; skipped where it has none."""
        if "presigned_get" not in place.store.CAPABILITIES:
            pytest.skip("not this plug-in's: it has no presigned_get")
        with self.serving(store):
            yield store

    async def _in_parts(self, store: ImageStore, key: str) -> bytes:
        """In three parts."""
        size = store.limits.min_part
        body = data(2 * size + 77)
        upload = await store.begin(key, part_size=size)
        for number in (1, 2, 3):
            await upload.part(number, body[(number - 1) * size:number * size])
        await upload.complete(len(body))
        return body

    async def test_a_store_without_links_says_what_is_missing(self, place: Place, store: ImageStore, key: str) -> None:
        if "presigned_get" in place.store.CAPABILITIES:
            pytest.skip("not this plug-in's: it has presigned_get")
        await store.put(key, b"x")
        with pytest.raises(Refused, match="presigned_get") as refused:
            await make_link(store, place.spec, key, 60)
        assert place.spec.name in str(refused.value) and refused.value.failure.remedy

    async def test_a_link_gives_the_object_until_it_is_revoked(self, linking: ImageStore, place: Place, key: str,
                                                               caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        body, size = await self._in_parts(linking, key), linking.limits.min_part
        before = datetime.now(UTC)
        link = await make_link(linking, place.spec, key, 600)
        assert timedelta(seconds=599) <= link.expires_at - before <= timedelta(seconds=660)
        other = await make_link(linking, place.spec, key, 600)
        assert other.id != link.id
        assert await fetch(link.url) == (200, body, len(body))
        part = await fetch(link.url, Range=f"bytes={size - 5}-{size + 4}")
        assert part == (206, body[size - 5:size + 5], len(body))
        assert (await fetch(link.url, Range="bytes=0-0"))[2] == len(body), "the length can be asked for everywhere"
        # S3 signs the method too. Whoever answers HEAD answers truly.
        assert await fetch(link.url, method="HEAD") in ((200, b"", len(body)), (403, b"", -1))
        await revoke_link(linking, place.spec, link.id)
        assert (await fetch(link.url))[0] in (403, 404)
        await revoke_link(linking, place.spec, link.id)
        assert (await fetch(other.url))[:2] == (200, body), "the other link is another"
        await revoke_link(linking, place.spec, other.id)
        assert await linking.read(key, 0, len(body)) == body, "the object is as it was"
        assert await keys(linking, place.spec.prefix) == [key]
        assert link.url not in repr(link) and link.url.partition("?")[2] not in caplog.text

    async def test_an_object_put_whole_and_an_empty_one_are_linked_too(self, linking: ImageStore, place: Place, key: str) -> None:
        for body in (b"", b"a manifest"):
            await linking.put(key, body)
            link = await make_link(linking, place.spec, key, 60)
            assert await fetch(link.url) == (200, body, len(body))
            await revoke_link(linking, place.spec, link.id)
            assert (await fetch(link.url))[0] in (403, 404)
            assert await linking.read(key, 0, 100) == body

    async def test_a_link_ends_by_itself_and_nothing_of_it_stays(self, linking: ImageStore, place: Place, key: str) -> None:
        body = await self._in_parts(linking, key)
        links = [await make_link(linking, place.spec, key, 2), await make_link(linking, place.spec, key, 2, revocable=False)]
        long = await make_link(linking, place.spec, key, 600)
        assert [(await fetch(link.url))[:2] for link in links] == [(200, body)] * 2
        assert links[1].id == ""
        await asyncio.sleep(max(0.0, (links[1].expires_at - datetime.now(UTC)).total_seconds()) + 1.1)  # their clocks have seconds
        assert all([(await fetch(link.url))[0] in (401, 403, 404) for link in links])
        assert await sweep_links(linking, place.spec, datetime.now(UTC)) == [], "who began in time may come to the end"
        later = datetime.now(UTC) + timedelta(seconds=MARGIN_S)
        assert await sweep_links(linking, place.spec, later) == [links[0].id]
        assert await sweep_links(linking, place.spec, later) == []
        assert (await fetch(long.url))[:2] == (200, body)
        assert await linking.read(key, 0, len(body)) == body
        assert await sweep_links(linking, place.spec, later + timedelta(seconds=600)) == [long.id]
        assert await keys(linking, place.spec.prefix) == [key]

    async def test_what_a_killed_maker_left_of_a_link_is_swept(self, linking: ImageStore, place: Place, key: str) -> None:
        half, whole = (f"{place.spec.prefix}/links/{1_000_000_000 + number}-{number:032x}" for number in (1, 2))
        await linking.begin(half, part_size=linking.limits.min_part)
        await linking.put(whole, b"of no object that is left")
        await linking.put(f"{place.spec.prefix}/links/not-a-link", b"is no link")
        assert await sweep_links(linking, place.spec, datetime.now(UTC)) == [one.rpartition("/")[2] for one in (half, whole)]
        assert await keys(linking, place.spec.prefix) == [f"{place.spec.prefix}/links/not-a-link"]
        assert list(await linking.unfinished(place.spec.prefix)) == []

    async def test_no_other_objects_link_can_be_made_of_one(self, linking: ImageStore, place: Place, key: str) -> None:
        await linking.put(key, b"mine")
        await linking.put(f"{key}x", b"not for you")
        mine = await make_link(linking, place.spec, key, 600)
        plain = await make_link(linking, place.spec, key, 600, revocable=False)
        for url in (mine.url.replace(f"links/{mine.id}", key.partition("/")[2]), plain.url.replace(key, f"{key}x"),
                    mine.url[:-1] + ("0" if mine.url[-1] != "0" else "1"), plain.url.partition("?")[0]):
            assert url not in (mine.url, plain.url)
            assert (await fetch(url))[0] in (401, 403), "the signature is of one object and one end"
        assert (await fetch(mine.url, method="DELETE"))[0] >= 400
        assert (await fetch(mine.url))[:2] == (200, b"mine")

    async def test_a_deleted_objects_link_gives_all_or_nothing(self, linking: ImageStore, place: Place, key: str) -> None:
        body = await self._in_parts(linking, key)
        link = await make_link(linking, place.spec, key, 600)
        await linking.delete(key)
        status, found, _ = await fetch(link.url)
        assert (status, found) == (200, body) or (status, found) in ((404, b""), (409, b""))
        await revoke_link(linking, place.spec, link.id)
        assert (await fetch(link.url))[0] in (403, 404)
        assert await keys(linking, place.spec.prefix) == []
        assert list(await linking.unfinished(place.spec.prefix)) == []

    async def test_only_links_are_revoked_and_lifetimes_are_bounded(self, linking: ImageStore, place: Place, key: str) -> None:
        await linking.put(key, b"stays")
        below = key.partition("/")[2]
        for no_link in ("", key, below, f"../{below}", "1700000000-x", "1700000000-" + "0" * 32 + "/"):
            with pytest.raises(Refused) as refused:
                await revoke_link(linking, place.spec, no_link)
            assert refused.value.failure.remedy
        for seconds in (0, -1, LONGEST_S + 1):
            with pytest.raises(Refused) as refused:
                await make_link(linking, place.spec, key, seconds)
            assert refused.value.failure.field == "lifetime"
        with pytest.raises(WorkFailed, match="absent"):
            await make_link(linking, place.spec, f"{key}-absent", 60)
        assert await keys(linking, place.spec.prefix) == [key]
        assert isinstance(await make_link(linking, place.spec, key, LONGEST_S, revocable=False), Link)
