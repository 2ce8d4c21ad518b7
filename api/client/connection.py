"""One API over HTTP: requests that are signed, of a session, or plain; asked again where that is safe.

Owns the request, its bounds and what may be repeated: a question always; what changes something only with its job's id, by which
the API knows it again. Refuses to know any command. Rule: no secret is in a URL, a log line, a repr or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from pydantic import SecretStr

from api.client.failures import failed
from api.signature import Unauthorized, sign
from schema.failure import BadParameter, Failed, Malformed, Unavailable, Unknown

SIGNED_FOR = timedelta(minutes=10)
"""How long a signature counts."""
REQUEST_S, CONNECT_S = 90.0, 10.0
"""Longest for one request: more than a synchronous command waits for its job."""
PATIENCE_S = 30.0
"""How long a request that may be repeated goes on when the API does not answer."""
PAUSE_S = (0.1, 2.0)
"""Between two tries: it begins with the first and doubles up to the second."""
MOST = 64 << 20
"""Bytes of an answer."""
NOTHING = SecretStr("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an API is, and who asks it. Without keys and user: as the listener on loopback takes everybody."""

    url: str
    """http(s)://host:port, without /client/api."""
    api_key: str = ""
    secret_key: SecretStr = NOTHING
    username: str = ""
    password: SecretStr = NOTHING
    domain: str = "/"
    """Path of the user's domain, for a login."""
    ca_file: Path | None = None
    """Certificates to trust besides the system's."""


def base_url(url: str) -> str:
    """`url` without its path. Raises BadParameter when it is no http(s) URL, or holds a password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise BadParameter("this is not an http or https URL", field="url", remedy="for example http://127.0.0.1:8096")
    if parts.username or parts.password:
        raise BadParameter("the URL holds a user or a password", field="url", remedy="give keys, or a username and a password")
    return url.rstrip("/").removesuffix("/client/api").rstrip("/")


class Connection:
    """See the module. Used as an async context manager, or opened by the first question and closed by `aclose`."""

    def __init__(self, target: Target, *, timeout_s: float = REQUEST_S, patience_s: float = PATIENCE_S) -> None:
        if bool(target.api_key) != bool(target.secret_key.get_secret_value()):
            missing = "secret_key" if target.api_key else "api_key"
            raise BadParameter("missing", field=missing, remedy="the API key and the secret key come together")
        self._target, self._timeout_s, self._patience_s = target, timeout_s, patience_s
        self.url = base_url(target.url)
        self._http: aiohttp.ClientSession | None = None
        self._session_key = ""
        self._logging_in = asyncio.Lock()

    def __repr__(self) -> str:
        """Where it leads, and nothing else."""
        return f"<{type(self).__name__} {self.url}>"

    async def __aenter__(self) -> Self:
        """Log in, where there is a user."""
        try:
            if self._target.username:
                await self._login("")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Log out and let go of the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Log out and let go of the connections. Never raises for an API that is away."""
        if self._http is None:
            return
        if self._session_key:
            with contextlib.suppress(Failed, TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    await self._once("logout", {"sessionkey": self._session_key})
            self._session_key = ""
        await self._http.close()
        self._http = None

    async def ask(self, command: str, parameters: Mapping[str, str], *, repeat: bool = False,
                  patience_s: float | None = None) -> dict[str, Any]:
        """The body below the envelope. Raises the API's own error; Unavailable when it does not answer and nothing was done;
        Unknown when an answer is missing. `repeat`: asking again is safe; for `patience_s` at most."""
        clock = asyncio.get_running_loop().time
        ends = clock() + (self._patience_s if patience_s is None else patience_s)
        pause, renewed = PAUSE_S[0], False
        while True:
            key = self._session_key
            try:
                return await self._once(command, {**parameters, "sessionkey": key} if key else parameters, repeat=repeat)
            except Unauthorized:
                if not key or renewed:
                    raise
                renewed = True  # the session is over: the API does nothing for one that is
                await self._login(key)
            except Failed as error:
                if not repeat or not error.failure.retryable or clock() + pause > ends:
                    raise
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, guards nothing
                pause = min(PAUSE_S[1], pause * 2)

    async def _login(self, old: str) -> None:
        """A new session, unless another request made one meanwhile."""
        async with self._logging_in:
            if self._session_key != old:
                return
            target = self._target
            told = await self._once("login", {
                "username": target.username, "password": target.password.get_secret_value(), "domain": target.domain})
            self._session_key = str(told.get("sessionkey", ""))

    async def _once(self, command: str, parameters: Mapping[str, str], *, repeat: bool = False) -> dict[str, Any]:
        form = {**parameters, "command": command, "response": "json"}
        if self._target.api_key and not any(name.lower() == "apikey" for name in form):
            ends = (datetime.now(UTC) + SIGNED_FOR).strftime("%Y-%m-%dT%H:%M:%S+0000")
            form |= {"apiKey": self._target.api_key, "signatureVersion": "3", "expires": ends}
            form["signature"] = sign(form, self._target.secret_key.get_secret_value())
        if self._http is None:
            self._http = await self._open()
        away = Unavailable if repeat else Unknown
        try:
            async with self._http.post(f"{self.url}/client/api", data=form, allow_redirects=False) as answer:
                text = await self._read(answer)
        except aiohttp.ClientConnectorError as error:  # it was never sent
            raise Unavailable(f"the API at {self.url} does not answer: {error or type(error).__name__}", field="url",
                              remedy="start it with `storebus up`, or say where it is") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise away(f"the API at {self.url} did not answer: {error or type(error).__name__}", field="url",
                       remedy="ask for the job, or send it again with the same customjobid") from None
        try:
            [body] = json.loads(text).values()
            if not isinstance(body, dict):
                raise ValueError
        except (ValueError, AttributeError):
            raise Unavailable(f"{self.url} answers {answer.status}, not as a Storebus API", field="url",
                              remedy="check the URL") from None
        if "errorcode" in body:
            raise failed(body)
        return body

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        chunks, size = [], 0
        async for chunk in answer.content.iter_chunked(1 << 16):
            size += len(chunk)
            if size > MOST:
                raise Malformed(f"the answer has more than {MOST} bytes", field="pagesize", remedy="ask for smaller pages")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _open(self) -> aiohttp.ClientSession:
        tls: ssl.SSLContext | bool = True
        if self._target.ca_file is not None:
            try:
                tls = await asyncio.to_thread(_trusting, self._target.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise BadParameter(f"{self._target.ca_file} cannot be read: {error}", field="ca_file") from None
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=CONNECT_S),
            connector=aiohttp.TCPConnector(ssl=tls, limit=100), cookie_jar=aiohttp.CookieJar(unsafe=True))


def _trusting(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=ca_file)
    return context


__all__ = ["Connection", "Target", "base_url"]
