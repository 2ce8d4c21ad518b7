"""Connections to one Swift account: threads, tokens, retries, and what its answers and failures mean.

It owns every request: each runs on a connection of its own in a thread of the store's, and `ask` is the only place that
signs in, retries, waits and raises. python-swiftclient's own retries, its proxies and settings from the environment and
redirects (which would carry the token elsewhere) are off. It refuses to know images. Error texts are built from codes only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from swiftclient.client import http_connection
from swiftclient.exceptions import ClientException
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from agents import stall
from agents.image_stores.base import Bytes, LentSource, PartSource
from agents.image_stores.security import certificate_trouble
from agents.image_stores.swift_settings import Account, SwiftSettings
from agents.image_stores.trouble import Damaged, Trouble, at, back_off
from agents.uninterrupted import to_the_end
from schema.failure import Failed

log = logging.getLogger(__name__)
T = TypeVar("T")

POOL = 32
"""Connections, and threads, of one store."""
RENEWALS = 2
"""Tokens that one request may wear out."""
BLOCK = 256 << 10
_ANSWER = 4 << 20
"""Bytes of a token's or a catalogue's answer at most."""
for _name in ("swiftclient", "urllib3"):  # what they write at DEBUG and INFO has headers in it, and keys in those
    logging.getLogger(_name).setLevel(max(logging.getLogger(_name).level, logging.WARNING))


class Halted(Exception):
    """Nobody waits for this request any more."""


class NoEntry(Exception):
    """No token was given. `status` is the answer's; 0: it was no answer of such a service; 1: the catalogue has no store."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(str(status))


@dataclass(frozen=True, slots=True)
class Grant:
    """A token, and where it is good."""

    token: str
    url: str
    """http(s)://host:port/v1/AUTH_account"""


class Line:
    """One connection, used by one thread at a time."""

    def __init__(self, url: str, settings: SwiftSettings, proxy: str) -> None:
        silence = settings.sockettimeout / 1000
        self.http = http_connection(url, cacert=settings.cafile or None, insecure=settings.insecure,
                                    timeout=(settings.connectiontimeout / 1000, silence))
        if settings.insecure:  # the operator said so; it is not repeated at each request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self.talk: Any = self.http[1]
        self.talk.request_session.trust_env = False
        self.talk.requests_args["allow_redirects"] = False
        if proxy:
            self.talk.requests_args["proxies"] = {"http": proxy, "https": proxy}
        for scheme in ("http://", "https://"):
            self.talk.request_session.mount(scheme, _Adapter(self))
        self.socket: socket.socket | None = None
        self._silence_s = silence
        self._halted = threading.Event()
        self.moved: Callable[[], None] = lambda: None
        """Called by the thread that uses it, when a piece of a body went or came."""

    def halt(self) -> None:
        """Make the thread that uses it stop now, whatever it waits for."""
        self._halted.set()
        if self.socket is not None:
            with contextlib.suppress(OSError):  # not TLS's own shutdown: it would talk to the other side first
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises Halted. Called between pieces of a body."""
        if self._halted.is_set():
            raise Halted
        self.moved()
        if self.socket is not None:
            self.socket.settimeout(self._silence_s)  # urllib3 sends with the time limit of a connect

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, Any, bytes]:
        """Status, headers and body of a request that swiftclient has no function for."""
        self.talk.request(method, path, body, dict(headers or {}))
        answer = self.talk.getresponse()
        content: bytes = answer.read(_ANSWER)
        answer.close()
        return int(answer.status), answer.headers, content

    def body(self, data: Bytes) -> Body:
        """Bytes to send over this line."""
        return Body(self, data)

    def close(self) -> None:
        """Let go."""
        self.talk.close()


class Body:
    """Bytes as requests sends them: a file of slices, nothing copied, stopped when nobody waits any more."""

    def __init__(self, line: Line, data: Bytes) -> None:
        self._line, self._view, self._at = line, memoryview(data).cast("B"), 0

    def read(self, size: int = -1) -> memoryview:
        """The next slice."""
        self._line.check()
        start = self._at
        self._at = len(self._view) if size < 0 else min(start + size, len(self._view))
        return self._view[start : self._at]


class StreamedBody:
    """A part that is read while it is sent, nothing copied."""

    def __init__(self, line: Line, slices: Iterator[memoryview]) -> None:
        self._line, self._slices = line, slices
        self._now, self._at = memoryview(b""), 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def end(self) -> str:
        """The hexadecimal MD5 of all. Whoever sends by length never asks for what is behind the last byte; the source is whole
        only then."""
        while len(self.read(BLOCK)):
            pass
        return self._md5.hexdigest()

    def read(self, size: int = -1) -> memoryview:
        """The next bytes, at most `size`; none at the end. They are valid until more is asked for."""
        self._line.check()
        if self._at == len(self._now):
            self._now, self._at = next(self._slices, memoryview(b"")), 0
            self._md5.update(self._now)  # at once: between pieces the threads would hand the interpreter to and fro
        end = len(self._now) if size < 0 else min(self._at + size, len(self._now))
        data, self._at = self._now[self._at : end], end
        return data


@contextlib.asynccontextmanager
async def threaded(source: PartSource) -> AsyncIterator[Callable[[], Generator[memoryview, None, None]]]:
    """What a thread calls for each reading of the part: its slices. It waits for the loop where it may not read by itself."""
    if isinstance(source, LentSource):
        async with source.lent() as slices:
            yield slices
        return
    loop = asyncio.get_running_loop()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def waiting() -> Generator[memoryview, None, None]:
        read = source.slices()

        async def following() -> memoryview:
            return await anext(read, memoryview(b""))

        async def close() -> None:
            await read.aclose()

        try:
            while len(view := wait(following())):
                yield view
        finally:
            wait(close())

    yield waiting


class _Adapter(HTTPAdapter):
    """One connection, that the line may shut; sent in large pieces, of which few wait in the kernel (a cancelled transfer
    stops at once, and silence is told from slowness)."""

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(pool_connections=2, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **_sending(), **kwargs)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return self._watch(super().proxy_manager_for(proxy, **_sending(), **kwargs))

    def _watch(self, manager: Any) -> Any:
        manager.pool_classes_by_scheme = {"http": _pool(HTTPConnectionPool, self._line),
                                          "https": _pool(HTTPSConnectionPool, self._line)}
        return manager


def _sending() -> dict[str, Any]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BLOCK))
    return {"blocksize": BLOCK, "socket_options": options}


def _pool(kind: type[HTTPConnectionPool], line: Line) -> type[HTTPConnectionPool]:
    known: Any = kind.ConnectionCls

    def connect(self: HTTPConnection) -> None:
        known.connect(self)
        line.socket = self.sock

    return type(kind.__name__, (kind,), {"ConnectionCls": type(known.__name__, (known,), {"connect": connect})})


class SwiftClient:
    """An account: its token, its connections."""

    def __init__(self, settings: SwiftSettings, account: Account, name: str = "") -> None:
        self.settings, self.account = settings, account
        self.name = name
        """The operator's name for the store, for error texts."""
        self._threads = ThreadPoolExecutor(POOL, thread_name_prefix="swift")
        self._slots = asyncio.Semaphore(POOL)
        self._idle: list[tuple[str, Line]] = []
        self._grant: Grant | None = None
        self._signing = asyncio.Lock()
        self._closed = False

    async def grant(self) -> Grant:
        """The token in use; signs in when there is none. Raises what the request raises."""
        async with self._signing:
            if self._grant is None:
                self._grant = await self._work(self.account.auth_url, self._sign_in)
            return self._grant

    async def once(self, call: Callable[[Line, Grant], T]) -> T:
        """One request, not repeated: raises whatever it raises."""
        grant = await self.grant()
        return await self._work(grant.url, lambda line: call(line, grant))

    async def ask(self, action: str, call: Callable[[Line, Grant], T], *, changes: bool = False,
                  plain: tuple[int, ...] = (), absent: tuple[int, ...] = ()) -> T | Any:
        """Send one request until it is answered, refused, or the retries are used up.

        `changes`: its effect is visible, so a lost answer is Unknown. Answers with a status in `plain` are raised as they are;
        a status in `absent` counts as success and answers None. A token that is refused is renewed, and costs no retry.
        """
        renewed = attempt = 0
        while True:
            used = self._grant
            try:
                return await self.once(call)
            except Exception as error:
                status = status_of(error)
                if status in plain:
                    raise
                if status in absent:
                    return None
                if status == 401 and renewed < RENEWALS:
                    renewed += 1
                    if self._grant is used or used is None:  # else another request renewed it meanwhile
                        self._grant = None
                    continue
                trouble = understand(error, auth_url=self.account.auth_url, url=used.url if used else "")
                if trouble is None:
                    raise
                if not trouble.passes or attempt == self.settings.maxerrorretry:
                    raise trouble.failure(at(action, self.name), changes=changes) from None
                attempt += 1
                log.info("%s: %s (%s), attempt %d of %d", action, trouble.cause, trouble.code, attempt,
                         self.settings.maxerrorretry + 1)
            await back_off(attempt)

    async def _work(self, url: str, call: Callable[[Line], T]) -> T:
        async with self._slots:
            line = await self._line(url)
            line.moved = stall.from_thread()
            work = asyncio.get_running_loop().run_in_executor(self._threads, _checked, line, call)
            whole = False
            try:
                result = await asyncio.shield(work)
                whole = True
                return result
            except asyncio.CancelledError:
                line.halt()
                with contextlib.suppress(Exception):
                    await to_the_end(work)  # the thread uses the caller's bytes until it ends
                raise
            except ClientException as error:
                whole = error.http_status in (404, 416)  # answered whole, and no body of ours was left half read
                raise
            finally:
                if whole and not self._closed:
                    self._idle.append((url, line))
                else:
                    line.close()

    async def _line(self, url: str) -> Line:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == url:
                return self._idle.pop(index)[1]
        while len(self._idle) >= POOL:
            self._idle.pop(0)[1].close()
        return await asyncio.to_thread(Line, url, self.settings, self.account.proxy)  # reads the file of authorities

    def _sign_in(self, line: Line) -> Grant:
        grant = (_sign_in_keystone if self.account.version == 3 else _sign_in_v1)(line, self.settings, self.account)
        if self.account.auth_url.startswith("https:") and not grant.url.startswith("https:"):
            raise NoEntry(2)
        return grant

    async def aclose(self) -> None:
        """Close all connections. Twice is fine."""
        self._closed = True
        while self._idle:
            self._idle.pop()[1].close()
        self._threads.shutdown(wait=False)


def _checked(line: Line, call: Callable[[Line], T]) -> T:
    line.check()
    return call(line)


def _sign_in_v1(line: Line, settings: SwiftSettings, account: Account) -> Grant:
    status, headers, _ = line.ask("GET", urlsplit(account.auth_url).path, headers={
        "X-Auth-User": account.user, "X-Auth-Key": settings.key.get_secret_value()})
    if not 200 <= status < 300:
        raise NoEntry(status)
    url, token = headers.get("X-Storage-Url", ""), headers.get("X-Storage-Token") or headers.get("X-Auth-Token", "")
    return _granted(url, token)


def _sign_in_keystone(line: Line, settings: SwiftSettings, account: Account) -> Grant:
    user = {"name": settings.username, "domain": {"name": settings.userdomain},
            "password": settings.key.get_secret_value()}
    project = {"name": account.project, "domain": {"name": settings.projectdomain or settings.userdomain}}
    question = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": project}}}
    status, headers, body = line.ask("POST", f"{urlsplit(account.auth_url).path}/auth/tokens", json.dumps(question).encode(),
                                     {"Content-Type": "application/json", "Accept": "application/json"})
    if not 200 <= status < 300:
        raise NoEntry(status)
    try:
        catalogue = json.loads(body)["token"]["catalog"]
        urls = [endpoint["url"] for service in catalogue if service["type"] == "object-store"
                for endpoint in service["endpoints"] if endpoint["interface"] == settings.endpointtype
                and settings.region in ("", endpoint.get("region_id") or endpoint.get("region"))]
    except (ValueError, KeyError, TypeError):
        raise NoEntry(0) from None
    if not urls:
        raise NoEntry(1)
    return _granted(str(urls[0]), headers.get("X-Subject-Token", ""))


def _granted(url: str, token: str) -> Grant:
    parts = urlsplit(url)
    if not token or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise NoEntry(0)
    return Grant(token, url.rstrip("/"))


# --- what failures mean ---------------------------------------------------------------------------------------------------

_AWAY = "check that the store runs and that this host can reach it"
_NO_ENTRY: dict[int, tuple[str, str, str]] = {
    0: ("url", "what answers there gives no tokens", "check the address, the port and the version (authversion)"),
    1: ("details.region", "Keystone's catalogue has no object store of this region and endpointtype", "correct them"),
    2: ("url", "tokens come over TLS, the store would take them without", "give the store an https address in the catalogue"),
    401: ("details.key", "the user or the key is wrong", "give an existing user and its current key"),
    403: ("details.key", "the user or the key is wrong", "give an existing user and its current key"),
    404: ("url", "nothing gives tokens at this address", "use the whole address: https://host:port/auth/v1.0, or .../v3"),
}
_DEFINITE: dict[int, tuple[str, str, str]] = {
    401: ("details.username", "the store takes no token of this account", "look into the store's log"),
    403: ("details.username", "the user may not do this in the container", "make it an operator of the account"),
    404: ("details.container", "the container does not exist", "create it, or add the store anew"),
    413: ("details.container", "the container takes no more: a quota is reached, or the object is too large",
          "raise the quota"),
    507: ("url", "the store has no room left", "free space or raise the quota"),
}
_PASSING: dict[int, tuple[str, str]] = {
    408: ("the store gave up waiting for data", "check the network to the store"),
    409: ("another request was changing the same object", "try again"),
    422: ("the data arrived damaged", "check the network and the memory of both hosts"),
    429: ("the store asks to slow down", "try again later, or run fewer transfers at once"),
    498: ("the store asks to slow down", "try again later, or run fewer transfers at once"),
    499: ("the store gave up waiting for data", "check the network to the store"),
}


def status_of(error: BaseException) -> int:
    """The HTTP status of a refused request; 0 for anything else."""
    return int(error.http_status or 0) if isinstance(error, ClientException) else 0


def understand(error: BaseException, *, auth_url: str, url: str) -> Trouble | None:
    """What an exception of a request means; None when it is not about the request (then it is a bug, or a cancel)."""
    if isinstance(error, Failed):  # the disk's, while a part was read and sent
        return None
    if isinstance(error, NoEntry):
        if error.status in _NO_ENTRY:
            field, cause, remedy = _NO_ENTRY[error.status]
            return Trouble(code=f"entry {error.status}", field=field, cause=cause, remedy=remedy)
        passes = error.status >= 500 or error.status in _PASSING
        return Trouble(code=f"entry {error.status}", field="url", cause=f"signing in was answered {error.status}",
                       remedy="look into the log of the service that gives tokens", passes=passes, busy=passes)
    if isinstance(error, ClientException):
        return _answered(status_of(error))
    if isinstance(error, Damaged):
        return Trouble(code="Damaged", cause="the data arrived damaged or incomplete", field="url", passes=True,
                       remedy="check the network and the memory of both hosts", reached=True)
    return _unanswered(error, _place(url or auth_url))


def _answered(status: int) -> Trouble:
    if status in _DEFINITE:
        field, cause, remedy = _DEFINITE[status]
        return Trouble(code=str(status), field=field, cause=cause, remedy=remedy)
    if status in _PASSING:
        cause, remedy = _PASSING[status]
        return Trouble(code=str(status), field="url", cause=cause, remedy=remedy, passes=True, busy=True)
    if status >= 500:  # the answer is lost, which does not say that nothing happened
        busy = " (busy, or short of servers)" if status == 503 else ""
        return Trouble(code=str(status), field="url", cause=f"the store answered {status}{busy}",
                       remedy="look into the store's log; try again later", passes=True, reached=True, busy=True)
    return Trouble(code=str(status), field="url", cause=f"the store refused with {status}",
                   remedy="check that the url is Swift's, and look into its log")


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _unanswered(error: BaseException, endpoint: str) -> Trouble | None:
    chain = _chain(error)
    if _any(chain, ssl.SSLError, requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        cause, remedy = certificate_trouble(chain) or ("it does not speak TLS there", "use http, or give the TLS port")
        return Trouble(code="TLS", field="url", cause=f"no secure connection to {endpoint}: {cause}", remedy=remedy)
    names = [one for one in chain if isinstance(one, socket.gaierror)]
    if names or _any(chain, urllib3.exceptions.NameResolutionError):
        return Trouble(code="DNS", field="url", cause=f"no host by the name in {endpoint} is known",
                       remedy="correct the name, or check this host's name servers",
                       passes=any(one.errno == socket.EAI_AGAIN for one in names))
    if _any(chain, requests.exceptions.ProxyError, urllib3.exceptions.ProxyError):
        return Trouble(code="Proxy", field="details.proxy", cause="the proxy does not take connections",
                       remedy="correct its address", passes=True)
    late = _any(chain, TimeoutError, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)
    if _any(chain, requests.exceptions.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError,
            urllib3.exceptions.NewConnectionError, ConnectionRefusedError):
        return Trouble(code="Away", field="url", remedy=_AWAY, passes=True,
                       cause=f"{endpoint} {'does not answer' if late else 'does not take connections'}")
    if isinstance(error, OSError | EOFError | urllib3.exceptions.HTTPError):  # requests' own are OSErrors
        return Trouble(code="Broken", field="url", remedy=_AWAY, passes=True, reached=True, busy=not late,
                       cause=f"the connection to {endpoint} {'fell silent' if late else 'broke'}")
    return None


def _any(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception with what caused it, outermost first (requests wraps what urllib3 raised in its arguments)."""
    found: list[BaseException] = []
    todo: list[Any] = [error]
    while todo and len(found) < 20:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        todo += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]
    return found
