"""One publish channel of RabbitMQ and its unconfirmed publishes.

Owns delivery tags, confirms, returns, the window, and what the end of the channel means for whoever waits. Writes straight
into the connection's queue, everything of one turn of the loop in one piece. Refuses to know queues and addresses. Rule: a
future is set exactly once: by the broker's confirm, its refusal, its return, or the loss of the channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from aiormq.abc import ChannelFrame

from bus.amqp_frames import publish_frames
from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.rabbit_link import Link

WINDOW = 512
"""Unconfirmed publishes of one channel."""
PUBLISH_S = 15.0
"""Longest wait for a confirm, and for room to send."""
SILENT_S = 8.0
"""Without any confirm for so long, a channel with unconfirmed publishes is given up. A quorum queue whose leader was not
elected yet when the broker came back drops a publish, and then waits for it: no later one on that channel is confirmed."""
BLOCKED_S = 5.0
"""Longest wait while the broker takes nothing (memory or disk alarm)."""
FULL_S = 0.005
"""Until the next look at the connection's queue when it was full."""


class PublishChannel:
    """A channel in confirm mode. `raw` is aiormq's."""

    def __init__(self, link: Link, raw: Any, user_id: str) -> None:
        self.link, self.raw, self.user_id = link, raw, user_id
        self._loop = asyncio.get_running_loop()
        self._window = asyncio.Semaphore(WINDOW)
        self._unconfirmed: dict[int, tuple[asyncio.Future[None], float, str]] = {}
        """Delivery tag -> its future, when it was sent, where to; in the order of the tags."""
        self._tag = 0
        self._unique = uuid4().hex[:12]
        self._heard = 0.0
        self._pending: list[bytes] = []
        self._flushing = False
        self._lost = ""
        # The library's own handlers keep a task, a lock and a table for each publish.
        raw._on_confirm_frame = self._on_confirm
        raw._on_return_frame = self._on_return
        raw.closing.add_done_callback(lambda _: self.fail("the channel closed before a confirm came"))

    async def landed(self) -> None:
        """Wait for the confirms of what was sent so far."""
        if self._unconfirmed:
            await asyncio.wait([future for future, _, _ in self._unconfirmed.values()])

    # --- out ----------------------------------------------------------------------------------------------------

    async def send(self, exchange: str, key: str, body: bytes, headers: Mapping[str, str], *, mandatory: bool,
                   durable: bool = True, reply_to: str = "", correlation_id: str = "",
                   expiration_ms: int | None = None) -> asyncio.Future[None]:
        """Hand one message over; waits for room only, bounded. The future is the confirm.

        Raises BrokerAway when it was not sent. The future raises Unroutable, BrokerAway (refused), or PublishUnknown.
        """
        if self._window.locked() or self.link.blocked:
            await self._room()
        else:
            await self._window.acquire()  # does not wait
        if self._lost or self.raw.is_closed:
            self._window.release()
            raise BrokerAway("the channel to RabbitMQ is closed")
        self._tag = tag = self._tag + 1
        self._pending.append(publish_frames(
            self.raw.number, exchange, key, mandatory=mandatory, headers=headers, body=body, durable=durable,
            message_id=f"{self._unique}-{tag}",  # new for each attempt: a returned message is known by it
            user_id=self.user_id, reply_to=reply_to, correlation_id=correlation_id, expiration_ms=expiration_ms,
            frame_max=self.raw.max_content_size + 8))
        now = self._loop.time()
        if not self._unconfirmed:
            self._heard = now
        future: asyncio.Future[None] = self._loop.create_future()
        self._unconfirmed[tag] = future, now, f"{exchange or 'the default exchange'}: {key}"
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    async def _room(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S):
                if self.link.blocked:
                    async with asyncio.timeout(BLOCKED_S):
                        await self.raw.connection.ready()
                await self._window.acquire()
        except TimeoutError:
            raise BrokerAway("the broker takes no messages for now", remedy="free its memory or disk") from None

    def _flush(self) -> None:
        self._flushing = False
        if self._lost or not self._pending:
            self._pending.clear()
            return
        try:
            self.raw.write_queue.put_nowait(ChannelFrame(payload=b"".join(self._pending), should_close=False))
        except asyncio.QueueFull:
            self._flushing = True
            self._loop.call_later(FULL_S, self._flush)
        else:
            self._pending.clear()

    # --- back ---------------------------------------------------------------------------------------------------

    async def _on_confirm(self, frame: Any) -> None:
        self._heard = self._loop.time()
        last = frame.delivery_tag
        if frame.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > last:
                    break
                tags.append(tag)
        else:
            tags = [last] if last in self._unconfirmed else []
        refused = frame.name != "Basic.Ack"
        for tag in tags:
            future, _, _ = self._unconfirmed.pop(tag)
            self._window.release()
            if future.done():
                continue  # returned, or nobody waits for it any more
            if refused:
                _fail(future, BrokerAway("the broker refused the message for now (nack)"))
            else:
                future.set_result(None)

    async def _on_return(self, frame: Any) -> None:
        """The broker found no queue for a mandatory message. Its confirm follows."""
        _, header = await self.raw.frames.get()
        self.raw.frames.task_done()
        await self.raw._read_content(frame, header)
        unique, _, tag = (header.properties.message_id or "").partition("-")
        known = self._unconfirmed.get(int(tag)) if unique == self._unique and tag.isdecimal() else None
        if known is not None and not known[0].done():
            _fail(known[0], Unroutable(f"no queue takes {known[2]}"))

    # --- the end ------------------------------------------------------------------------------------------------

    def overdue(self) -> str:
        """Why this channel should be given up; empty: it is well."""
        if not self._unconfirmed:
            return ""
        now = self._loop.time()
        if now - self._heard > SILENT_S and not self.link.blocked:
            return f"no confirm came for {SILENT_S:.0f} s"
        _, sent, _ = next(iter(self._unconfirmed.values()))
        return f"no confirm came within {PUBLISH_S:.0f} s" if now - sent > PUBLISH_S else ""

    def fail(self, why: str) -> None:
        """The channel is lost: whether what is unconfirmed arrived is not known."""
        self._lost = self._lost or why
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for future, _, _ in unconfirmed.values():
            self._window.release()
            if not future.done():
                _fail(future, PublishUnknown(why))


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    """A sender that went away meanwhile leaves nobody to hear of it: that is no error of the program's."""
    future.set_exception(error)
    future.exception()
