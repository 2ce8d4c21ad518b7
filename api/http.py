"""HTTP: `/client/api` in CloudStack's envelopes, JSON or XML, `/events`, and the probes `/livez`, `/readyz` and `/metrics`.

Owns what a request may be: who may send it (Host, Origin, keys, how often), and in which form it is answered. Refuses to know
commands (all of that is the edge's) and sockets (`api.listener`). A listener without authentication, like CloudStack's
integration port, belongs on loopback, where a web page in somebody's browser must not reach it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api import deprecation
from api.access import SYSTEM, Principal
from api.answers.system import VERSION
from api.authentication import Authentication
from api.edge import Answer, Edge, refusal
from api.event_stream import EventStreams, wanted
from api.flood import UNLIMITED, Buckets, Rate, TooMany, Turns, hold
from api.metrics import Metrics, ready
from api.openapi import text as openapi_text
from api.request import read_parameters
from api.signature import Unauthorized, value_of
from api.xml import XML_TYPE, rendered
from schema.failure import BadParameter, Denied, Failed, Failure, Malformed

log = logging.getLogger(__name__)

JSON_TYPE = "application/json; charset=UTF-8"
CROSS_SITE = frozenset({"cross-site", "same-site"})

Endpoint = Callable[[Request], Awaitable[Response]]


class BadMethod(Malformed):
    """Neither GET nor POST."""

    code = 405


class Forbidden(Denied):
    """A request that a web page elsewhere may have made."""

    code = 403


# --- who may send a request -------------------------------------------------------------------------------------------


def check_origin(headers: Mapping[str, str], *, loopback: bool, named: bool = False) -> None:
    """Raises Forbidden for a foreign Host (a name that was re-bound to this address) and for another site's request.

    `loopback`: the listener is only reached from this machine, so Host is an address or name of it. Otherwise it is
    an address, or a name without a dot, which nobody outside can make point here. `named`: it may have any name, for each
    request proves who sends it.
    """
    host = headers.get("host", "")
    if not named and not _is_ours(host, loopback=loopback):
        raise Forbidden(f"the Host header {host[:64]!r} does not name this listener", field="Host",
                        remedy="use its address, for example http://127.0.0.1")
    origin = headers.get("origin")
    if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or (
            headers.get("sec-fetch-site", "none") in CROSS_SITE):
        raise Forbidden("another web site may not send requests here", field="Origin",
                        remedy="use a client on this machine")


def _is_ours(host: str, *, loopback: bool) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback or not loopback
    return bool(name) and not loopback and "." not in name


# --- answering --------------------------------------------------------------------------------------------------------


def json_response(status: int, body: Mapping[str, Any], error: str = "") -> Response:
    """JSON as CloudStack sends it; an error's text is in `X-Description` as well."""
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    if error:
        headers["X-Description"] = "".join(c if " " <= c <= "~" else "?" for c in error)[:1000]
    return Response(to_json(body), status, headers, media_type=JSON_TYPE)


def answered(answer: Answer, parameters: Mapping[str, str] | None = None) -> Response:
    """The answer in the form that the parameters ask for: CloudStack's is XML unless they say response=json."""
    response = json_response(answer.status, answer.body, answer.error)
    if more := deprecation.headers(answer.command):
        response.headers.update(more)
    if parameters is not None and value_of(parameters, "response").lower() != "json":
        response.body = rendered(answer.body, VERSION).encode()
        response.headers["content-type"] = XML_TYPE
        response.headers["content-length"] = str(len(response.body))
    return response


class Door:
    """Who comes in, and how often: by its key or session, or, for whoever is nobody yet, by its address."""

    def __init__(self, edge: Edge, authentication: Authentication | None, rate: Rate) -> None:
        self._edge, self._authentication = edge, authentication
        self._users, self._addresses, self._turns = Buckets(rate), Buckets(rate), Turns()

    async def call(self, request: Request, parameters: dict[str, str]) -> tuple[Answer, dict[str, str]]:
        """(answer, cookies to set). Fills in `parameters` as they are read. Raises Failed for what never reaches a command."""
        address = request.client.host if request.client else ""
        await read_parameters(request, parameters)
        if named := request.path_params.get("command"):  # /client/api/listZones, as the OpenAPI document has it
            if value_of(parameters, "command"):
                raise BadParameter("given twice", field="command", remedy="name it in the path or as a parameter")
            parameters["command"] = str(named)
        if request.method not in ("GET", "POST"):
            raise BadMethod(f"{request.method[:16]} is not allowed", field="method", remedy="use GET or POST")
        if self._authentication is None:
            self._addresses.take(address)
            return await self._edge.call(parameters), {}
        return await self._authenticated(self._authentication, parameters, request.cookies, address)

    async def principal(self, parameters: Mapping[str, str], cookies: Mapping[str, str], address: str) -> Principal:
        """Who asks. Raises Unauthorized, or TooMany when it asks too often."""
        if self._authentication is None:
            self._addresses.take(address)
            return SYSTEM
        user_id = self._authentication.known(parameters, cookies)
        if not user_id:
            self._addresses.take(address)  # before anything is looked up
        else:
            self._users.look(user_id)  # before anything is compared
        try:
            principal = await self._authentication.principal(parameters, cookies)
        except Unauthorized:
            self._addresses.take(address)
            raise
        self._users.take(str(principal.user_id))
        return principal

    async def again(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> Principal:
        """Whoever was let in, as it is now. Raises Unauthorized when its key or session is worth nothing any more."""
        if self._authentication is None:
            return SYSTEM
        return await self._authentication.again(parameters, cookies)

    async def _authenticated(self, authentication: Authentication, parameters: Mapping[str, str], sent: Mapping[str, str],
                             address: str) -> tuple[Answer, dict[str, str]]:
        match value_of(parameters, "command").lower():
            case "login":
                self._addresses.take(address)
                session_id, told = await authentication.login(parameters)
                cookies = {"JSESSIONID": session_id, "sessionkey": told["sessionkey"]}
                return Answer(200, {"loginresponse": told}, "login"), cookies
            case "logout":
                authentication.logout(parameters, sent)
                gone = {"JSESSIONID": "", "sessionkey": ""}
                return Answer(200, {"logoutresponse": {"description": "success"}}, "logout"), gone
            case "":
                raise Unauthorized
        principal = await self.principal(parameters, sent, address)
        async with self._turns.in_hand(str(principal.user_id)) as turn:
            return await self._edge.call(parameters, principal=principal, turn=turn), {}


class App:
    """The ASGI application. The one page that is asked all the time is found without looking through the routes of the others."""

    def __init__(self, direct: Mapping[str, Endpoint], others: Starlette, streams: EventStreams) -> None:
        self._direct, self._others, self.streams = direct, others, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        endpoint = self._direct.get(scope.get("path", "")) if scope["type"] == "http" else None
        if endpoint is None:
            await self._others(scope, receive, send)
        else:
            await (await endpoint(Request(scope, receive, send)))(scope, receive, send)


Checks = Mapping[str, Callable[[], str]]
"""Name of a part of this process -> "" when it works, else what is wrong."""


def make_app(edge: Edge, *, loopback: bool = True, checks: Checks | None = None,
             authentication: Authentication | None = None, rate: Rate = UNLIMITED) -> App:
    """The ASGI application. `checks`: what /readyz asks besides the database. With `authentication` every request to
    `/client/api` is signed or of a session; the probes are everybody's. `rate`: of one user, or of one address."""
    counted, door = Metrics(), Door(edge, authentication, rate)

    async def client_api(request: Request) -> Response:
        began = time.monotonic()
        parameters: dict[str, str] = {}
        cookies: dict[str, str] = {}
        more: dict[str, str] = {}
        try:
            answer, cookies = await door.call(request, parameters)
        except Failed as failed:
            answer = refusal(failed.failure, value_of(parameters, "command"))
            if isinstance(failed, TooMany):
                more["Retry-After"] = str(failed.retry_s)
                await hold()
        seconds = time.monotonic() - began
        counted.answered(answer.command, answer.status, seconds)
        log.log(logging.INFO if answer.worth_a_line else logging.DEBUG, "answered", extra={
            "action": "answered", "command": answer.command, "status": answer.status, "seconds": round(seconds, 4)})
        response = answered(answer, parameters)
        if more:
            response.headers.update(more)
        for name, value in cookies.items():
            response.set_cookie(name, value, path="/client", httponly=True, samesite="lax",
                                secure=request.url.scheme == "https", max_age=None if value else 0)
        return response

    streams = EventStreams(edge.system.store)

    async def livez(request: Request) -> Response:
        return json_response(200, {"live": True})

    async def readyz(request: Request) -> Response:
        yes, found = await ready(edge.system, checks or {})
        return json_response(200 if yes else 503, {"ready": yes, "checks": found})

    async def scrape(request: Request) -> Response:
        return Response(await counted.text(edge.system), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(request: Request) -> Response:
        return Response(openapi_text(), media_type="application/json", headers={"Cache-Control": "no-store"})

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def check(request: Request) -> Response:
            try:
                check_origin(request.headers, loopback=loopback, named=authentication is not None)
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except Failed as failed:
                return answered(refusal(failed.failure))

        return check

    every = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]
    asked = guarded(client_api)
    return App({"/client/api": asked}, Starlette(routes=[
        Route("/events", guarded(partial(event_stream, edge, door, streams)), methods=every),
        Route("/openapi.json", guarded(openapi), methods=["GET"]),
        Route("/client/api/{command}", asked, methods=every), Route("/livez", guarded(livez)),
        Route("/readyz", guarded(readyz)), Route("/metrics", guarded(scrape)),
    ], exception_handlers={404: _no_such_page}), streams)


async def event_stream(edge: Edge, door: Door, streams: EventStreams, request: Request) -> Response:
    """`/events`: whoever comes in reads what it may see, for as long as it may."""
    parameters: dict[str, str] = {}
    try:
        await read_parameters(request, parameters)
        if request.method != "GET":
            raise BadMethod(f"{request.method[:16]} is not allowed", field="method", remedy="use GET")
        principal = await door.principal(parameters, request.cookies, request.client.host if request.client else "")
        asked = await wanted(edge.system.store, parameters, request.headers.get("last-event-id", ""))
        told = await streams.read(asked, principal, partial(door.again, parameters, request.cookies))
    except TooMany as failed:
        await hold()
        response = answered(refusal(failed.failure))
        response.headers["Retry-After"] = str(failed.retry_s)
        return response
    return StreamingResponse(told, media_type="text/event-stream", headers={
        "Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _no_such_page(request: Request, error: Exception) -> Response:
    return answered(refusal(Failure(code=404, cscode=9999, cause="no such page", remedy="the API is at /client/api")))


__all__ = ["Checks", "Door", "answered", "check_origin", "json_response", "make_app"]
