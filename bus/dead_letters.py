"""Dead letters: what is kept of a message that nobody will handle, and the broker's own ones brought to Postgres.

Owns the rule that nothing secret is kept: of a stranger's message only CloudEvents headers, and no body that might hold a
secret. Refuses to judge why a message died.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from bus.envelope import MAX_BODY, PREFIX
from bus.errors import StoreAway
from bus.event_store import EventStore
from bus.sealing import NAMES
from bus.transport import Consumer, Delivery, Transport, dead
from schema.message import Secret

log = logging.getLogger(__name__)

HEADERS_KEPT = 64
NAME_KEPT, VALUE_KEPT, REASON_KEPT = 128, 1024, 2000
KNOWN = (PREFIX, "cloudEvents:", "traceparent", "x-first-death-", "x-death")
_URL_PASSWORD = re.compile(r"://[^/\s\"]*:[^/\s\"]*@")
_WORDS = re.compile(rb"secret|passw|passphrase|token|credential|private.?key|://[^/\s\"]*:[^/\s\"]*@", re.IGNORECASE)
RETRY_S = 1.0


def text(value: object, most: int) -> str:
    """As a database keeps it: bounded, without NUL and halves of characters."""
    return str(value)[:most].replace("\0", "\ufffd").encode(errors="replace").decode()


def headers_kept(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers worth keeping, as safe text."""
    known = [(name, value) for name, value in headers.items() if name.startswith(KNOWN)]
    return {text(name, NAME_KEPT): text(value, VALUE_KEPT) for name, value in known[:HEADERS_KEPT]}


def may_hold_secret(body: bytes) -> bool:
    """Whether a stranger's body might hold a clear secret: by the names in it, or by those words when it is no JSON."""
    try:
        return _in_json(json.loads(body))
    except (ValueError, RecursionError):
        return _WORDS.search(body) is not None


def _in_json(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_in_json(inner) or (NAMES.search(name) is not None and _clear(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return any(_in_json(inner) for inner in value)
    return isinstance(value, str) and _URL_PASSWORD.search(value) is not None


def _clear(value: Any) -> bool:
    return bool(value) and not (isinstance(value, str) and Secret.is_reference(value))


async def keep(store: EventStore, *, headers: Mapping[str, str], body: bytes, reason: str, source: str,
               partition: int = -1, trusted: bool = False) -> int:
    """Hold a dead letter; its number. `trusted`: it passed the door, so its body holds no clear secret."""
    if not trusted and may_hold_secret(body):
        body, reason = b"", f"{text(reason, REASON_KEPT)}; its body was not kept: it may hold a secret"
    return await store.hold(key="", partition=partition, headers=headers_kept(headers), body=body[:MAX_BODY],
                            reason=text(reason, REASON_KEPT), source=source)


class DeadLetters:
    """Brings the broker's dead letters (over the delivery limit, rejected) to Postgres, where people look."""

    def __init__(self, store: EventStore, transport: Transport) -> None:
        self.store, self.transport = store, transport
        self._consumer: Consumer | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin."""
        self._consumer = await self.transport.consume(dead(), self._take)

    async def stop(self) -> None:
        """What is in hand comes again."""
        if self._consumer is not None:
            await self._consumer.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._bury(delivery))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _bury(self, delivery: Delivery) -> None:
        message = delivery.message
        queue = message.headers.get("x-first-death-queue", "")
        reason = f"the broker gave it up: {message.headers.get('x-first-death-reason', 'unknown')} in {queue}"
        source = "commands" if "commands" in queue else "work"
        while True:
            try:
                await keep(self.store, headers=message.headers, body=message.body, reason=reason, source=source,
                           trusted=source == "work")
                break
            except StoreAway:
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("a dead letter cannot be kept and waits in the broker", extra={"action": "dead_letter_stuck"})
                return
        await delivery.ack()
