"""Calls: a question to a service and its answer, over the transport. For what is not a fact and needs no log.

Owns the protocol (request, accepted, reply, cancel), correlation, deadlines and the typed errors. Refuses to retry: a
call that timed out may have had its effect, and only its caller knows whether to ask again.

    request   call(service)   headers type, id, sbcall=request|oneway, sbtimeout; reply_to, correlation_id; JSON body
    accepted  reply(caller)   after 50 ms of work; reply_to says where a cancel goes
    reply     reply(caller)   sbcall=ok|failed|nohandler|cancelled; JSON body: the result, or the failure
    cancel    reply(server)   correlation_id of the request
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from bus.envelope import MAX_BODY, PREFIX
from bus.errors import BrokerAway, CallCancelled, CallFailed, CallTimedOut, NoHandler, PublishUnknown, Unroutable
from bus.transport import Consumer, Delivery, Transport, WireMessage, reply
from bus.transport import call as call_address
from schema.codec import canonical, encode
from schema.failure import BadParameter, Failed, Failure
from schema.message import Message

log = logging.getLogger(__name__)

ServeHandler = Callable[[str, dict[str, Any]], Awaitable[BaseModel | Mapping[str, Any] | None]]
"""`await handler(command, body)` -> the result. `bus.handles.Dispatcher` is one."""
ACCEPT_AFTER_S = 0.05
MAX_TIMEOUT_S = 3600.0
_CALL = PREFIX + "sbcall"
_TIMEOUT = PREFIX + "sbtimeout"


def _body(request: BaseModel | Mapping[str, Any] | None) -> bytes:
    if isinstance(request, Message):
        body = encode(request)
    elif isinstance(request, BaseModel):
        body = canonical(request.model_dump(mode="json", exclude_none=True))
    else:
        body = canonical(dict(request or {}))
    if len(body) > MAX_BODY:
        raise BadParameter(f"it has {len(body)} bytes; at most {MAX_BODY} are taken", field="request")
    return body


def _headers(kind: str, *, id: str, type: str, timeout_s: float | None = None) -> dict[str, str]:  # noqa: A002 - wire
    headers = {PREFIX + "specversion": "1.0", PREFIX + "id": id, PREFIX + "type": type, PREFIX + "source": "storebus",
               _CALL: kind}
    if timeout_s is not None:
        headers[_TIMEOUT] = f"{timeout_s:.3f}"
    return headers


async def _settled(delivery: Delivery) -> None:
    """Calls are transient: taken once, when they come in."""
    with contextlib.suppress(BrokerAway, PublishUnknown):
        await delivery.ack()


class Tasks:
    """The tasks of one owner, so that none is lost and all end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work`, which must handle its own errors."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it."""
        await asyncio.sleep(0)  # a task that never ran could not clean up after itself
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Waiting:
    """One call that is out."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[WireMessage] = asyncio.get_running_loop().create_future()
        self.server: str = ""
        self.given_up = False


class Caller:
    """The calling side: one private reply queue for all calls of this client."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._name = f"caller-{uuid4()}"
        self._waiting: dict[str, _Waiting] = {}
        self._consumer: Consumer | None = None
        self._starting = asyncio.Lock()
        self._tasks = Tasks()
        self.late = 0
        """Replies that came after their caller had gone."""

    async def _ready(self) -> None:
        async with self._starting:
            if self._consumer is None:
                self._consumer = await self._transport.consume(reply(self._name), self._on_reply, prefetch=256)

    async def _on_reply(self, delivery: Delivery) -> None:
        message = delivery.message
        waiting = self._waiting.get(message.correlation_id)
        if waiting is None:
            self.late += 1
        elif message.headers.get(_CALL) == "accepted":
            waiting.server = message.reply_to
            if waiting.given_up:
                self._waiting.pop(message.correlation_id, None)
                self._tasks.start(self._send_cancel(message.correlation_id, waiting.server), "cancel a call")
        elif waiting.given_up:
            self._waiting.pop(message.correlation_id, None)
            self.late += 1
        elif not waiting.answer.done():
            waiting.answer.set_result(message)
        await _settled(delivery)

    async def call(self, address: str, request: BaseModel | Mapping[str, Any] | None = None, *, command: str = "",
                   timeout_s: float = 10.0) -> dict[str, Any]:
        """Ask `address` (a service) and wait for its answer. `command` defaults to the message's wire name.

        Raises NoHandler, CallFailed (with `remote`), CallTimedOut (it may have had its effect), CallCancelled (the
        service stopped it), BrokerAway. When the calling task is cancelled, the service is told to stop.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise BadParameter(f"it must be more than 0 and at most {MAX_TIMEOUT_S:g} seconds", field="timeout_s")
        await self._ready()
        id, waiting = str(uuid4()), _Waiting()  # noqa: A001 - the wire's word
        self._waiting[id] = waiting
        message = WireMessage(
            headers=_headers("request", id=id, type=command or _command_of(request), timeout_s=timeout_s),
            body=_body(request), reply_to=self._name, correlation_id=id, expiration_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.suppress(PublishUnknown):  # it may be there; the answer or the time will tell
                    await self._transport.publish(call_address(address), message)
                answer = await waiting.answer
        except Unroutable:
            self._waiting.pop(id, None)
            raise NoHandler(f"no service answers at {address!r}", field="address") from None
        except TimeoutError:
            self._give_up(id, waiting)
            raise CallTimedOut(f"{address} did not answer within {timeout_s:g} s", field="address",
                               remedy="it may have had its effect: look before asking again") from None
        except asyncio.CancelledError:
            self._give_up(id, waiting)
            raise
        except BaseException:
            self._waiting.pop(id, None)
            raise
        self._waiting.pop(id, None)
        return _answer(address, answer)

    async def cast(self, address: str, request: BaseModel | Mapping[str, Any] | None = None, *,
                   command: str = "") -> None:
        """One way: returns when the broker has it. Raises NoHandler when no service is there to take it."""
        headers = _headers("oneway", id=str(uuid4()), type=command or _command_of(request))
        try:
            await self._transport.publish(call_address(address), WireMessage(headers=headers, body=_body(request)))
        except Unroutable:
            raise NoHandler(f"no service answers at {address!r}", field="address") from None

    def _give_up(self, id: str, waiting: _Waiting) -> None:  # noqa: A002 - the wire's word
        """Tell the service to stop: at once if it said where, else when it does so (within a minute)."""
        if waiting.answer.done() and not waiting.answer.cancelled():  # cancelled with its caller: no answer came
            self._waiting.pop(id, None)
            return
        waiting.given_up = True
        if waiting.server:
            self._waiting.pop(id, None)
            self._tasks.start(self._send_cancel(id, waiting.server), "cancel a call")
        else:
            asyncio.get_running_loop().call_later(60.0, self._waiting.pop, id, None)

    async def _send_cancel(self, id: str, server: str) -> None:  # noqa: A002 - the wire's word
        message = WireMessage(headers=_headers("cancel", id=str(uuid4()), type="call.cancel"), body=b"{}",
                              correlation_id=id)
        with contextlib.suppress(Failed):  # the service may have gone; it has a deadline of its own
            await self._transport.publish(reply(server), message)

    async def aclose(self) -> None:
        """Forget the calls that are out; their callers get CallCancelled."""
        for waiting in self._waiting.values():
            if not waiting.answer.done() and not waiting.given_up:
                waiting.answer.set_exception(CallCancelled("the bus was closed"))
        self._waiting.clear()
        if self._consumer is not None:
            await self._consumer.stop()
        await self._tasks.aclose()


def _command_of(request: BaseModel | Mapping[str, Any] | None) -> str:
    return request.TYPE if isinstance(request, Message) else "call"


def _answer(address: str, message: WireMessage) -> dict[str, Any]:
    kind = message.headers.get(_CALL, "")
    if kind == "ok":
        result: dict[str, Any] = json.loads(message.body)
        return result
    try:
        failure = Failure.model_validate_json(message.body)
    except ValidationError:
        failure = Failure(cause=f"{address} answered with something that is no answer")
    if kind == "nohandler":
        raise NoHandler(failure.cause, field=failure.field, remedy=failure.remedy)
    if kind == "cancelled":
        raise CallCancelled(failure.cause, field=failure.field, remedy=failure.remedy)
    raise CallFailed(failure)


class Server:
    """The serving side: takes calls of one service and answers them. Made by `serve`."""

    def __init__(self, transport: Transport, service: str, handler: ServeHandler, *, concurrency: int = 64) -> None:
        self._transport, self._service, self._handler = transport, service, handler
        self._name = f"server-{uuid4()}"
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks = Tasks()
        self._closing = False
        self._running: dict[str, asyncio.Task[None]] = {}
        self._consumers: list[Consumer] = []

    async def start(self) -> None:
        """Begin to take calls."""
        self._consumers.append(await self._transport.consume(reply(self._name), self._on_control))
        self._consumers.append(
            await self._transport.consume(call_address(self._service), self._on_call, prefetch=self._concurrency))

    async def _on_control(self, delivery: Delivery) -> None:
        if delivery.message.headers.get(_CALL) == "cancel":
            task = self._running.get(delivery.message.correlation_id)
            if task is not None:
                task.cancel()
        await _settled(delivery)

    async def _on_call(self, delivery: Delivery) -> None:
        message = delivery.message
        task = self._tasks.start(self._one(delivery), f"call to {self._service}")
        if id := message.correlation_id:  # noqa: A001 - the wire's word
            self._running[id] = task
            task.add_done_callback(lambda _: self._running.pop(id, None))

    async def _one(self, delivery: Delivery) -> None:
        try:
            await self._slots.acquire()  # what waits here is not acked yet, so prefetch bounds how many do
        except asyncio.CancelledError:
            with contextlib.suppress(BrokerAway, PublishUnknown):
                await (delivery.reject(requeue=True) if self._closing else delivery.ack())
            return
        try:
            # Taken before the work: were this process to die, nobody does it again; the caller is told by its time.
            await _settled(delivery)
            await self._serve(delivery.message)
        finally:
            self._slots.release()

    async def _serve(self, message: WireMessage) -> None:
        work = asyncio.create_task(self._work(message), name=f"serve {self._service}")
        wants_answer = bool(message.reply_to)
        try:
            done, _ = await asyncio.wait([work], timeout=ACCEPT_AFTER_S)
            if not done and wants_answer:
                await self._answer(message, "accepted", b"{}")
            kind, body = await work
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait([work])
            kind, body = "cancelled", _failure_body(CallCancelled("the call was cancelled").failure)
        if wants_answer:
            await self._answer(message, kind, body)

    async def _work(self, message: WireMessage) -> tuple[str, bytes]:
        command, limit = message.headers.get(PREFIX + "type", "call"), None
        try:
            seconds = min(float(message.headers.get(_TIMEOUT, MAX_TIMEOUT_S)), MAX_TIMEOUT_S)
            body = json.loads(message.body)
            if not isinstance(body, dict):
                raise BadParameter("the request is not a JSON object", field="request")
            limit = asyncio.timeout(seconds)
            async with limit:
                result = await self._handler(command, body)
            return "ok", _body(result)
        except NoHandler as error:
            return "nohandler", _failure_body(error.failure)
        except Failed as error:
            return "failed", _failure_body(error.failure)
        except TimeoutError:
            if limit is None or not limit.expired():
                return "failed", _failure_body(CallTimedOut(f"{command} waited too long for something").failure)
            return "failed", _failure_body(CallTimedOut(f"{command} took longer than its caller waits").failure)
        except ValueError as error:
            # Its text may quote the request, which may hold what nobody may read: the class has to do.
            cause = f"the request cannot be read: {type(error).__name__}"
            return "failed", _failure_body(Failure(cause=cause, code=430, cscode=9999))
        except Exception as error:
            log.exception("a call of %s to %s failed", command, self._service)
            return "failed", _failure_body(Failure(cause=f"{self._service} failed: {type(error).__name__}"))

    async def _answer(self, message: WireMessage, kind: str, body: bytes) -> None:
        answer = WireMessage(headers=_headers(kind, id=str(uuid4()), type="call.reply"), body=body,
                             reply_to=self._name, correlation_id=message.correlation_id)
        try:
            await self._transport.publish(reply(message.reply_to), answer)
        except Unroutable:
            log.debug("the caller of %s has gone", self._service)
        except Failed as error:
            log.warning("an answer of %s could not be sent: %s", self._service, error)

    async def aclose(self) -> None:
        """Take no more calls; those in work are cancelled and answered so."""
        self._closing = True
        for consumer in self._consumers:
            await consumer.stop()
        self._consumers.clear()
        await self._tasks.aclose()


def _failure_body(failure: Failure) -> bytes:
    return canonical(failure.model_dump(mode="json"))


async def serve(transport: Transport, service: str, handler: ServeHandler, *, concurrency: int = 64) -> Server:
    """Answer the calls to `service` until `aclose` of what is returned."""
    server = Server(transport, service, handler, concurrency=concurrency)
    await server.start()
    return server


__all__ = ["Caller", "ServeHandler", "Server", "serve"]
