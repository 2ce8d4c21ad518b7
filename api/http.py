"""HTTP: `/client/api` in CloudStack's envelopes, JSON or XML, and the probes `/livez`, `/readyz` and `/metrics`.

Owns the listener and what a request may be: who may send it (Host, Origin), and in which form it is answered.
Refuses to know commands: all of that is the edge's. A listener without authentication, like CloudStack's integration port,
belongs on loopback, where a web page in somebody's browser must not reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from api.answers.system import VERSION
from api.authentication import Authentication
from api.edge import Answer, Edge, refusal
from api.metrics import Metrics, ready
from api.request import read_parameters
from api.signature import Unauthorized, value_of
from api.xml import XML_TYPE, rendered
from schema.failure import BadParameter, Denied, Failed, Failure, Malformed

log = logging.getLogger(__name__)

JSON_TYPE = "application/json; charset=UTF-8"
MAX_CONNECTIONS = 512
"""Requests at once; more are answered 503 by the server."""
CLOSE_S = 5.0
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
    return Response(json.dumps(body, ensure_ascii=False), status, headers, media_type=JSON_TYPE)


def answered(answer: Answer, parameters: Mapping[str, str] | None = None) -> Response:
    """The answer in the form that the parameters ask for: CloudStack's is XML unless they say response=json."""
    response = json_response(answer.status, answer.body, answer.error)
    if parameters is not None and value_of(parameters, "response").lower() != "json":
        response.body = rendered(answer.body, VERSION).encode()
        response.headers["content-type"] = XML_TYPE
        response.headers["content-length"] = str(len(response.body))
    return response


async def authenticated(edge: Edge, authentication: Authentication, parameters: Mapping[str, str],
                        sent: Mapping[str, str]) -> tuple[Answer, dict[str, str]]:
    """(answer, cookies to set) of a request that must prove who sends it. Raises Unauthorized or TooMany."""
    match value_of(parameters, "command").lower():
        case "login":
            session_id, told = await authentication.login(parameters)
            return Answer(200, {"loginresponse": told}, "login"), {"JSESSIONID": session_id, "sessionkey": told["sessionkey"]}
        case "logout":
            authentication.logout(parameters, sent)
            return Answer(200, {"logoutresponse": {"description": "success"}}, "logout"), {"JSESSIONID": "", "sessionkey": ""}
        case "":
            raise Unauthorized
    principal = await authentication.principal(parameters, sent)
    with authentication.in_hand(principal):
        return await edge.call(parameters, principal=principal), {}


Checks = Mapping[str, Callable[[], str]]
"""Name of a part of this process -> "" when it works, else what is wrong."""


def make_app(edge: Edge, *, loopback: bool = True, checks: Checks | None = None,
             authentication: Authentication | None = None) -> Starlette:
    """The ASGI application. `checks`: what /readyz asks besides the database. With `authentication` every request to
    `/client/api` is signed or of a session; the probes are everybody's."""
    counted = Metrics()

    async def client_api(request: Request) -> Response:
        began = time.monotonic()
        parameters: dict[str, str] = {}
        cookies: dict[str, str] = {}
        try:
            await read_parameters(request, parameters)
            if request.method not in ("GET", "POST"):
                raise BadMethod(f"{request.method[:16]} is not allowed", field="method", remedy="use GET or POST")
            if authentication is None:
                answer = await edge.call(parameters)
            else:
                answer, cookies = await authenticated(edge, authentication, parameters, request.cookies)
        except Failed as failed:
            answer = refusal(failed.failure, value_of(parameters, "command"))
        seconds = time.monotonic() - began
        counted.answered(answer.command, answer.status, seconds)
        log.log(logging.INFO if answer.worth_a_line else logging.DEBUG, "answered", extra={
            "action": "answered", "command": answer.command, "status": answer.status, "seconds": round(seconds, 4)})
        response = answered(answer, parameters)
        for name, value in cookies.items():
            response.set_cookie(name, value, path="/client", httponly=True, samesite="lax",
                                secure=request.url.scheme == "https", max_age=None if value else 0)
        return response

    async def livez(request: Request) -> Response:
        return json_response(200, {"live": True})

    async def readyz(request: Request) -> Response:
        yes, found = await ready(edge.system, checks or {})
        return json_response(200 if yes else 503, {"ready": yes, "checks": found})

    async def scrape(request: Request) -> Response:
        return Response(await counted.text(edge.system), media_type="text/plain; version=0.0.4; charset=utf-8")

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
    return Starlette(routes=[
        Route("/client/api", guarded(client_api), methods=every), Route("/livez", guarded(livez)),
        Route("/readyz", guarded(readyz)), Route("/metrics", guarded(scrape)),
    ], exception_handlers={404: _no_such_page})


async def _no_such_page(request: Request, error: Exception) -> Response:
    return answered(refusal(Failure(code=404, cscode=9999, cause="no such page", remedy="the API is at /client/api")))


# --- the listener -----------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn inside a process that handles its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class HttpListener:
    """A listener that answers from `start` until `aclose`. `url` is where. `checks`: see make_app."""

    def __init__(self, edge: Edge, *, host: str = "127.0.0.1", port: int = 0, checks: Checks | None = None,
                 authentication: Authentication | None = None) -> None:
        self._edge, self._host, self._port, self._checks = edge, host, port, checks
        self._authentication = authentication
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> str:
        """Listen; the URL. Raises BadParameter when the address cannot be had."""
        listener = _bind(self._host, self._port)
        address = listener.getsockname()
        self.url = f"http://{_reachable(address[0])}:{address[1]}"
        app = make_app(self._edge, loopback=ipaddress.ip_address(address[0]).is_loopback,
                       checks=self._checks, authentication=self._authentication)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none",
                                limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=int(CLOSE_S),
                                timeout_keep_alive=30)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)
        return self.url

    async def aclose(self) -> None:
        """Finish the requests in hand, bounded, and stop listening."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        try:
            await asyncio.wait_for(asyncio.shield(self._task), CLOSE_S + 2)
        except TimeoutError:
            self._server.force_exit = True
            await asyncio.wait([self._task], timeout=CLOSE_S)


def _reachable(address: str) -> str:
    """How this machine reaches a listener: one on every address is reached on loopback."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "[::1]" if ip.version == 6 else "127.0.0.1"
    return f"[{address}]" if ip.version == 6 else address


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise BadParameter(f"{host}:{port} cannot be listened on: {error.strerror or error}", field="api_port",
                           remedy="choose another with --api-port, 0 takes any free one") from None


__all__ = ["HttpListener", "answered", "check_origin", "json_response", "make_app"]
