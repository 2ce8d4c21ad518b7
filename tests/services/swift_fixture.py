"""The pytest fixture `swift_server`: the process's one Swift, or a skip: it is optional, since it needs an environment of its own."""

from __future__ import annotations

import atexit
import functools
import os
from uuid import uuid4

import pytest

from schema.image import StoreSpec
from tests.services.swift import SwiftMissing, SwiftServer, start_swift


@functools.cache
def shared_swift() -> SwiftServer:
    """The one server of this process, started when first asked for and killed at its end."""
    server = start_swift()
    atexit.register(server.stop)
    return server


@pytest.fixture(scope="session")
def swift_server() -> SwiftServer:
    """A running Swift; shared, so write below a prefix, or into a container, of your own."""
    try:
        return shared_swift()
    except SwiftMissing as missing:
        if os.environ.get("STOREBUS_REQUIRE_SERVICES"):
            pytest.fail(str(missing))
        pytest.skip(f"{missing} (optional)")


def swift_spec(server: SwiftServer, *, prefix: str = "", url: str = "", **details: str) -> StoreSpec:
    """A store on this server; `url` and `details` override. Its secret is {"key": server.key}."""
    return StoreSpec(id=uuid4(), name="swift", provider="swift", url=url or server.url, prefix=prefix or str(uuid4()),
                     details={"account": server.account, "username": server.username, "container": "images", **details})
