"""The pytest fixture `s3_server`: the process's one SeaweedFS, or a skip (on a laptop) or failure (where required)."""

from __future__ import annotations

import atexit
import functools
import os
from uuid import uuid4

import pytest

from schema.image import StoreSpec
from tests.services.seaweedfs import SeaweedFS, ServerMissing, start_seaweedfs


@functools.cache
def shared_seaweedfs() -> SeaweedFS:
    """The one server of this process, started when first asked for and killed at its end."""
    server = start_seaweedfs()
    atexit.register(server.kill)
    return server


@pytest.fixture(scope="session")
def s3_server() -> SeaweedFS:
    """A running S3 server with an empty bucket; shared, so write below a prefix of your own."""
    try:
        return shared_seaweedfs()
    except ServerMissing as missing:
        if os.environ.get("CI") or os.environ.get("STOREBUS_REQUIRE_SERVICES"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def s3_spec(server: SeaweedFS, *, prefix: str = "", **details: str) -> StoreSpec:
    """A store on this server; `details` override. Its secret is {"secretkey": server.secret_key}."""
    return StoreSpec(id=uuid4(), name="s3", provider="s3", url=f"s3://{server.bucket}", prefix=prefix or str(uuid4()),
                     details={"accesskey": server.access_key, "endpoint": server.endpoint, **details})
