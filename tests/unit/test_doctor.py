"""The doctor's words: a broker that is not there is said to be so, by whoever tried it."""

from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr

from api.cli_check import BOUND_S, examine
from api.settings import Settings
from bus import transport_rabbit


async def test_a_broker_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BOUND_S > transport_rabbit.START_S + transport_rabbit.CLOSE_S, "the transport's own words come before the doctor's"
    monkeypatch.setattr(transport_rabbit, "START_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = await examine("broker", Settings(amqp_url=SecretStr(f"amqp://guest:hidden@127.0.0.1:{port}/")))
    assert found.state == "fault"
    assert "refused" in found.detail or "Connect call failed" in found.detail
    assert "hidden" not in found.detail
