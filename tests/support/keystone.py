"""A double of Keystone: password sign-in of version 3 in front of a real Swift with tempauth.

It checks what a client asks against the protocol as its documents describe it, and gives the token that tempauth gives. It is no
Keystone: whoever relies on it knows that our questions have the right form, and not that a Keystone takes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from swiftclient.client import get_auth

from tests.services.swift import SwiftServer

DEFAULT, OTHER = "Default", "Other"


@dataclass
class KeystoneDouble:
    """`url` ends in /v3."""

    swift: SwiftServer
    url: str = ""
    questions: list[dict[str, Any]] = field(default_factory=list)
    storage: str = ""
    """Address in the catalogue; unset: the true one."""

    async def tokens(self, request: web.Request) -> web.Response:
        """POST /v3/auth/tokens"""
        question = (await request.json())["auth"]
        self.questions.append(question)
        user = question["identity"]["password"]["user"]
        project = question["scope"]["project"]
        right = (question["identity"]["methods"] == ["password"] and user["name"] == self.swift.username
                 and user["password"] == self.swift.key and user["domain"] == {"name": DEFAULT}
                 and project == {"name": self.swift.account, "domain": {"name": OTHER}})
        if not right:
            return web.json_response({"error": {"code": 401, "message": "no", "title": "Unauthorized"}}, status=401)
        storage, token = await asyncio.to_thread(get_auth, self.swift.url, f"{self.swift.account}:{self.swift.username}",
                                                 self.swift.key)
        here = self.storage or storage
        catalogue = [
            {"type": "identity", "name": "keystone", "endpoints": []},
            {"type": "object-store", "name": "swift", "endpoints": [
                {"interface": "internal", "region": "north", "region_id": "north", "url": "http://127.0.0.1:1/v1/AUTH_x"},
                {"interface": "public", "region": "south", "region_id": "south", "url": "http://127.0.0.1:1/v1/AUTH_x"},
                {"interface": "public", "region": "north", "region_id": "north", "url": here}]},
        ]
        return web.json_response({"token": {"methods": ["password"], "catalog": catalogue}}, status=201,
                                 headers={"X-Subject-Token": token})


@asynccontextmanager
async def keystone(swift: SwiftServer) -> AsyncIterator[KeystoneDouble]:
    """A running double in front of this Swift."""
    double = KeystoneDouble(swift)
    app = web.Application()
    app.router.add_post("/v3/auth/tokens", double.tokens)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v3"
    try:
        yield double
    finally:
        await runner.cleanup()
