"""Links of a Swift store: temp URLs, the two keys that sign them, and manifests that name another object.

It owns the keys of the container and what an alias is: a static large object whose one segment is the object itself, manifest or
not, checked by its ETag, so an alias never shows other bytes than it was made for. It refuses to retry by itself: every request
goes through the store's client. A key is only ever shown to the account's operators, a URL only to the caller.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from swiftclient import client as swift
from swiftclient.exceptions import ClientException
from swiftclient.utils import generate_temp_url

from agents.image_stores.swift_client import Grant, Line
from agents.image_stores.trouble import at
from schema.failure import WorkFailed

if TYPE_CHECKING:
    from agents.image_stores.swift import SwiftImageStore

KEYS = ("x-container-meta-temp-url-key", "x-container-meta-temp-url-key-2")
"""The two keys that links of a container may be signed with: the present one and the one before."""
ALIAS_OF = "x-object-meta-storebus-alias-of"
"""Metadata of an alias: the object whose bytes it gives. What its manifest names is never deleted with it."""
LONGEST_VALUE = 256
"""Of metadata, as Swift has it; for a person who looks, so the beginning will do."""


async def make_alias(store: SwiftImageStore, key: str, to: str) -> None:
    """Make `to` give the bytes of `key`. Raises WorkFailed when `key` is absent, or changes meanwhile."""
    action = at(f"make another name of {key}", store.client.name)
    seen = await store.look(key)
    if seen is None:
        raise WorkFailed(f"{action}: the object is absent", remedy="it was deleted or never written")
    size, found = int(seen["content-length"]), seen["etag"].strip('"')
    # A manifest may not name nothing: an empty object is its own.
    body = json.dumps([{"path": f"/{store.container}/{key}", "etag": found, "size_bytes": size}]).encode() if size else b""
    etag = hashlib.md5(found.encode() if size else b"", usedforsecurity=False).hexdigest()

    def put(line: Line, grant: Grant) -> None:
        swift.put_object(grant.url, grant.token, store.container, to, body, etag=etag, http_conn=line.http,
                         content_type="application/octet-stream", headers={ALIAS_OF: quote(key)[:LONGEST_VALUE]},
                         query_string="multipart-manifest=put" if size else None)

    try:
        await store.client.ask(action, put, plain=(400, 409, 422))
    except ClientException:
        raise WorkFailed(f"{action}: the object was changed meanwhile", remedy="see who writes or deletes it") from None


async def presign(store: SwiftImageStore, key: str, expires_s: int) -> str:
    """A URL by which anyone may get the object for `expires_s` seconds (at most 7 days). Treat it as a secret."""
    if not 1 <= expires_s <= 7 * 86400:
        raise WorkFailed(f"a link of {expires_s} s is outside 1 s to 7 days")
    signing = (await _signing_keys(store))[0] or await new_key(store)
    grant = await store.client.grant()
    parts = urlsplit(grant.url)
    digests = store.info["tempurl"].get("allowed_digests") or ["sha256"]
    path = generate_temp_url(f"{parts.path}/{store.container}/{key}", expires_s, signing, "GET",
                             digest="sha256" if "sha256" in digests else str(digests[0]))
    where, _, query = path.rpartition("?")
    return f"{parts.scheme}://{parts.netloc}{quote(where)}?{query}"


async def _signing_keys(store: SwiftImageStore) -> tuple[str, str]:
    """The present key and the one before; "" where there is none. Only an operator of the account is shown them."""
    if "tempurl" not in store.info:
        raise WorkFailed("this Swift signs no links", field="url", remedy="put tempurl into its proxy's pipeline")
    seen = await store.client.ask("look for the key of links", lambda line, grant: swift.head_container(
        grant.url, grant.token, store.container, http_conn=line.http))
    return seen.get(KEYS[0], ""), seen.get(KEYS[1], "")


async def new_key(store: SwiftImageStore) -> str:
    """Make a key the present one, and the present one that before. Answers what the container then has: of two writers
    one wins, and both use its key."""
    present, _ = await _signing_keys(store)
    given = store.settings.tempurlsecret
    made = given.get_secret_value() if given is not None and not present else secrets.token_urlsafe(32)
    headers = {KEYS[0]: made} | ({KEYS[1]: present} if present else {})
    await store.client.ask("change the key of links", lambda line, grant: swift.post_container(
        grant.url, grant.token, store.container, headers, http_conn=line.http), changes=True)
    found, _ = await _signing_keys(store)
    if not found:
        raise WorkFailed("the user may not see the key of links", field="details.username",
                         remedy="make it an operator of the account")
    return found
