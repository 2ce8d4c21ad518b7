"""Authentication: a request's keys or session into a principal, or 401.

Owns the look-up of users (remembered for a moment) and sessions. Refuses to decide what a principal may do (`api.access`) and
how often it may ask (`api.flood`). A session lives in the API process that made it and ends with it; rule: every
way of not being who one says is answered with the same text.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from api.access import Principal, resource_of
from api.credentials import hashed, matches
from api.flood import TooMany
from api.signature import Unauthorized, check_form, value_of, verified
from bus.gathering import Gathered
from schema.identity import ROOT_DOMAIN, Role

log = logging.getLogger(__name__)

REMEMBERED_S = 1.0
"""How long a user's row and key are taken as they were: a replaced key works that much longer."""
USERS = 10_000
"""Users remembered at once."""
AHEAD = 8
"""Users looked up at once before what is remembered of them is too old."""
SESSION_S = 1800
"""A session ends after so long without a request."""
SESSIONS = 10_000
FAILURES, FAILURES_S = 10, 60.0
"""Wrong passwords for one name in so many seconds; then it waits."""


@functools.cache
def nobody() -> str:
    """Compared with when there is no such user, so that an answer takes as long. The first call takes a while: in a thread."""
    return hashed("nobody", bytes(16))


class System(Protocol):
    """What is asked of the installation."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""

    async def open_secret(self, reference: str) -> str:
        """What a vault reference stands for."""


@dataclass(slots=True)
class Session:
    """One login."""

    user_id: str
    key: str
    """What each request must repeat as `sessionkey`."""
    used: float


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    row: dict[str, Any]
    secret: str
    until: float


class Authentication:
    """Of one API process."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._users: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._asked = Gathered(self._look_up)
        self._ahead: set[asyncio.Task[_Known | None]] = set()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failed: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    async def principal(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> Principal:
        """Who sends a request. Raises Unauthorized."""
        if value_of(parameters, "apikey") or value_of(parameters, "signature"):
            return await self._signed(parameters)
        session = self._session(parameters, cookies)
        return (await self._user("id", session.user_id)).principal

    async def _signed(self, parameters: Mapping[str, str]) -> Principal:
        check_form(parameters, datetime.now(UTC))
        key = value_of(parameters, "apikey")
        if not key:
            raise Unauthorized
        known = await self._user("api_key", key)
        if not verified(parameters, known.secret):
            raise Unauthorized
        return known.principal

    async def _user(self, column: str, value: str) -> _Known:
        """The user of a key or an id, as it was at most REMEMBERED_S ago. Raises Unauthorized when there is none."""
        found, now = self._users.get((column, value)), time.monotonic()
        if found is not None and found.until > now:
            if found.until - now < REMEMBERED_S / 2 and len(self._ahead) < AHEAD:  # whoever asks all the time never waits for it
                task = asyncio.create_task(self._remember(column, value))
                self._ahead.add(task)
                task.add_done_callback(self._looked)
            return found
        known = await self._remember(column, value)
        if known is None:
            raise Unauthorized
        return known

    def _looked(self, task: asyncio.Task[_Known | None]) -> None:
        self._ahead.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asks when it is too old hears of it

    async def _remember(self, column: str, value: str) -> _Known | None:
        known = (await self._asked.get([f"{column} {value}"])).get(f"{column} {value}")
        if known is None:
            self._users.pop((column, value), None)
            return None
        self._users[column, value] = known
        while len(self._users) > USERS:
            self._users.popitem(last=False)
        return known

    async def _look_up(self, keys: list[str]) -> dict[str, _Known]:
        """Of many requests of one user that come when its row has been remembered long enough, one looks."""

        async def one(key: str) -> _Known | None:
            column, _, value = key.partition(" ")
            rows, _ = await self._system.rows("user", {column: value}, limit=2)
            if len(rows) != 1:
                return None
            if column != "api_key":
                return _Known(await self.of(rows[0]), rows[0], "", time.monotonic() + REMEMBERED_S)
            secret, principal = await asyncio.gather(self._system.open_secret(rows[0]["secret_key"]), self.of(rows[0]))
            return _Known(principal, rows[0], secret, time.monotonic() + REMEMBERED_S)

        found = await asyncio.gather(*(one(key) for key in keys))
        return {key: known for key, known in zip(keys, found, strict=True) if known is not None}

    async def of(self, row: dict[str, Any]) -> Principal:
        """A row of the table `user` as a principal."""
        members, _ = await self._system.rows("project_account", {"account_id": row["account_id"]}, limit=1000)
        projects: frozenset[UUID] = frozenset()
        if members:
            owned, _ = await self._system.rows("project", {"id": {"in": [each["project_id"] for each in members]}}, limit=1000)
            projects = frozenset(UUID(each["account_id"]) for each in owned)
        return Principal(user_id=UUID(row["id"]), name=row["name"], role=Role(row["role"]),
                         owner=resource_of("user", row).owner, projects=projects)

    async def again(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> Principal:
        """Whose the key or the session is now, of a request that was let in before. Raises Unauthorized."""
        if key := value_of(parameters, "apikey"):
            return (await self._user("api_key", key)).principal
        return (await self._user("id", self._session(parameters, cookies).user_id)).principal

    def known(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> str:
        """The user whose the request's key or session was lately, or empty: telling costs nothing and proves nothing."""
        if key := value_of(parameters, "apikey"):
            user = self._users.get(("api_key", key))
            return str(user.principal.user_id) if user is not None else ""
        session = self._sessions.get(cookies.get("JSESSIONID", ""))
        return session.user_id if session is not None else ""

    # --- sessions ---

    def _session(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> Session:
        session = self._sessions.get(cookies.get("JSESSIONID", ""))
        told = value_of(parameters, "sessionkey")
        if session is None or not hmac.compare_digest(told.encode(), session.key.encode()):
            raise Unauthorized
        now = time.monotonic()
        if now - session.used > SESSION_S:
            self._sessions.pop(cookies["JSESSIONID"], None)
            raise Unauthorized
        session.used = now
        self._sessions.move_to_end(cookies["JSESSIONID"])
        return session

    async def login(self, parameters: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """(session id, the answer's fields). Raises Unauthorized, or TooMany after too many wrong passwords."""
        username, password = value_of(parameters, "username"), value_of(parameters, "password")
        parts = [part for part in value_of(parameters, "domain").split("/") if part]
        path = "".join(f"{part}/" for part in ("", *(parts[1:] if parts[:1] == ["ROOT"] else parts)))
        if max(len(username), len(password), len(path)) > 255:
            raise Unauthorized
        name = (path.lower(), username.lower())
        now = time.monotonic()
        recent = [at for at in self._failed.get(name, []) if now - at < FAILURES_S]
        if len(recent) >= FAILURES:
            raise TooMany("too many wrong passwords for this name", remedy=f"try again in {FAILURES_S:.0f} s",
                          retry_s=FAILURES_S)
        where: dict[str, Any] = {"name": username, "domain_path": path}
        if domain_id := value_of(parameters, "domainid"):
            where = {"name": username, "domain_id": domain_id}
        rows, _ = await self._system.rows("user", where, limit=2)
        known = none = await asyncio.to_thread(nobody)
        if len(rows) == 1 and rows[0]["password"]:
            known = await self._system.open_secret(rows[0]["password"])
        if not await matches(password, known) or known is none:
            self._failed[name] = [*recent, now]
            self._failed.move_to_end(name)
            while len(self._failed) > USERS:
                self._failed.popitem(last=False)
            raise Unauthorized
        self._failed.pop(name, None)
        session_id, session = secrets.token_urlsafe(32), Session(rows[0]["id"], secrets.token_urlsafe(24), now)
        self._sessions[session_id] = session
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return session_id, _told(rows[0], session)

    def logout(self, parameters: Mapping[str, str], cookies: Mapping[str, str]) -> None:
        """End the session. Raises Unauthorized when there is none."""
        self._session(parameters, cookies)
        self._sessions.pop(cookies["JSESSIONID"], None)


def _told(row: Mapping[str, Any], session: Session) -> dict[str, Any]:
    kinds = {Role.USER: "0", Role.ADMIN: "1", Role.DOMAIN: "2", Role.RESOURCE: "3"}
    return {"username": row["name"], "userid": row["id"], "domainid": row["domain_id"] or str(ROOT_DOMAIN), "timeout": SESSION_S,
            "account": row["account"], "firstname": row["first_name"] or "", "lastname": row["last_name"] or "",
            "type": kinds[Role(row["role"])], "timezone": row["timezone"] or "", "registered": "false",
            "sessionkey": session.key}


__all__ = ["Authentication"]
