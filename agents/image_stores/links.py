"""Links: URLs by which anyone may get one object of a store, for as long as they say and until they are revoked.

Owns what a link is, its name in the store, its end and the sweep of what has ended. A signed URL cannot be taken back, so a
link that can be revoked signs another name of the object, made by the store itself: revoked means that this name is gone. The
name says until when it may be there, so nothing else has to remember it, and a process that dies between two requests leaves
nothing for ever. Refuses to know how a store signs and aliases, and to write, log or raise a URL.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

from agents.image_stores.base import ImageStore, Linkable
from agents.image_stores.trouble import at
from agents.uninterrupted import to_the_end
from schema.failure import Failed, Refused, WorkFailed
from schema.image import StoreSpec

LONGEST_S = 7 * 86400
"""What a signature of S3 is good for at most; so is every store's here."""
MARGIN_S = 3600
"""Seconds that a link's name stays after its end, at least, so that a download that began in time comes to its end."""
SLOWEST = 16 << 20
"""Bytes a second that a store makes an alias at, and somebody downloads at, at least: what the margin of large ones follows."""
FOLDER = "links"
_NAME = re.compile(r"(\d{10,12})-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Who has the URL has the object's bytes: it is given to the one who asked for it, and to nothing that keeps."""

    url: str = field(repr=False)
    expires_at: datetime
    """From then on the store refuses it (UTC)."""
    id: str
    """By this it is revoked; no secret. Empty: it cannot be revoked."""


def _linkable(store: ImageStore, name: str) -> Linkable:
    if "presigned_get" in store.CAPABILITIES:
        return cast(Linkable, store)
    raise Refused(f"the image store {name} gives no links: its provider {store.PROVIDER} lacks presigned_get, as it has no "
                  "server of its own that hands out objects", field="url",
                  remedy="copy the image to a store whose provider has it, such as s3 or swift")


async def make_link(store: ImageStore, spec: StoreSpec, key: str, lifetime_s: int, *, revocable: bool = True,
                    now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Link:
    """A link to the object `key` of the store that `spec` describes, good for 1 second to 7 days from when it is ready.

    Without `revocable` the object's own URL is signed: at once, for nothing, and good until its end whatever happens.
    Raises Refused when the store or the lifetime does not allow it, WorkFailed when the object is absent.
    """
    signer, name = _linkable(store, spec.name), spec.name
    if not 1 <= lifetime_s <= LONGEST_S:
        raise Refused(f"a link of {lifetime_s} s is outside 1 s to {LONGEST_S} s (7 days)", field="lifetime",
                      remedy="ask for another when it has ended")
    info = await store.stat(key)
    if info is None:
        raise WorkFailed(f"{at(f'make a link to {key}', name)}: the object is absent", remedy="it was deleted or never written")
    lifetime = timedelta(seconds=lifetime_s)
    if not revocable:
        return Link(expires_at=now() + lifetime, url=await signer.presign(key, lifetime_s), id="")
    margin = timedelta(seconds=max(MARGIN_S, info.size // SLOWEST))
    kept_until = now() + lifetime + margin
    id = f"{int(kept_until.timestamp())}-{secrets.token_hex(16)}"  # noqa: A001 - the contract's word
    alias = _key(spec.prefix, id)
    try:
        await signer.alias(key, alias)
        expires_at = now() + lifetime
        if expires_at >= kept_until:
            raise WorkFailed(f"{at(f'make a link to {key}', name)}: the store's copy took longer than {margin}",
                             remedy="ask again, or for a link that cannot be revoked")
        return Link(expires_at=expires_at, url=await signer.presign(alias, lifetime_s), id=id)
    except BaseException:
        await to_the_end(_forget(store, alias))
        raise


async def _forget(store: ImageStore, alias: str) -> None:
    with suppress(Failed):  # its name says until when it may be there: a sweep ends it
        await store.delete(alias)


async def revoke_link(store: ImageStore, spec: StoreSpec, id: str) -> None:  # noqa: A002 - the contract's word
    """From when this returns the store refuses the link. One that was revoked before, or has ended, is fine.

    Raises Refused for what is no id of a link, so that nothing else is ever deleted by it."""
    if not id:
        raise Refused("this link signs the object itself and cannot be revoked", field="id", remedy="it ends by itself")
    if not _NAME.fullmatch(id):
        raise Refused("this is no id of a link", field="id", remedy="give the one that came with the link")
    await store.delete(_key(spec.prefix, id))


async def sweep_links(store: ImageStore, spec: StoreSpec, now: datetime) -> Sequence[str]:
    """Remove what is left of links, also of half-made ones, whose end and the margin after it have passed; their ids. A store
    without links has none."""
    if "presigned_get" not in store.CAPABILITIES:
        return []
    folder = _key(spec.prefix, "").rstrip("/")
    found = {info.key async for info in store.list(folder)} | set(await store.unfinished(folder))
    ended = sorted(key for key in found if ended_by(spec.prefix, key, now))
    for key in ended:
        await store.delete(key)
    return [key.rpartition("/")[2] for key in ended]


def ended_by(prefix: str, key: str, now: datetime) -> bool | None:
    """Whether this is the key of a link that a sweep at `now` would remove; None: it is no link's."""
    start = _key(prefix, "")
    named = _NAME.fullmatch(key.removeprefix(start)) if key.startswith(start) else None
    return None if named is None else int(named[1]) < now.timestamp()


def _key(prefix: str, id: str) -> str:  # noqa: A002 - the contract's word
    return f"{prefix.rstrip('/')}/{FOLDER}/{id}".lstrip("/")
