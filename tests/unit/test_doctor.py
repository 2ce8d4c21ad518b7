"""The doctor's words: what is wrong is named by whoever tried it, with a remedy, and a check never breaks off the others."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from api import doctor
from api.doctor import BOUND_S, Finding, examine
from api.doctor.certificates import judge
from api.doctor.cloud import AgentSeen, StoreSeen, judge_agents, judge_room, judge_store, judge_stores
from api.doctor.finding import span_text
from api.doctor.servers import skew
from api.output import Format, Output
from api.settings import Settings
from bus import transport_rabbit
from schema.version import installed_version
from tests.support.tls import behind_tls, certificate

GIB = 1 << 30


async def test_a_broker_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BOUND_S > transport_rabbit.START_S + transport_rabbit.CLOSE_S, "the transport's own words come before the doctor's"
    monkeypatch.setattr(transport_rabbit, "START_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    [found] = await examine("broker", Settings(amqp_url=SecretStr(f"amqp://guest:hidden@127.0.0.1:{port}/")))
    assert found.state == "fault"
    assert "refused" in found.detail or "Connect call failed" in found.detail
    assert "hidden" not in found.detail


async def test_a_check_that_breaks_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(settings: Settings) -> Finding:
        raise RuntimeError("canary-secret")

    async def hangs(settings: Settings) -> Finding:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(doctor, "BOUND_S", 0.05)
    monkeypatch.setattr(doctor, "CHECKS", {"one": breaks, "two": hangs})
    out = io.StringIO()
    assert await doctor.doctor(Settings(), Output(Format.JSON, out=out)) == 1
    one, two = json.loads(out.getvalue())
    assert (one["state"], two["state"]) == ("fault", "fault") and "RuntimeError" in one["detail"] and "canary" not in out.getvalue()
    assert one["remedy"] and two["remedy"]


def test_agents_that_are_silent_old_or_missing() -> None:
    ours = installed_version() or "1"
    found = judge_agents([AgentSeen("a", ("storage",), 20, ours), AgentSeen("b", ("hypervisor",), 400, ours),
                          AgentSeen("c", ("storage",), None), AgentSeen("d", ("storage",), 1, "0.0.1")])
    states = {each.of: each.state for each in found}
    assert states == {"a": "ok", "b": "fault", "c": "fault", "d": "warning" if installed_version() else "ok", "": "warning"}
    assert "heard 20 s ago" in found[0].detail and "silent for 7 min" in found[1].detail and "no volume" in found[-1].detail
    assert judge_agents([])[0].state == "fault"
    assert all(each.remedy for each in found if each.state != "ok")


@pytest.mark.parametrize(("store", "state", "says"), [
    (StoreSeen("s", False, 5 * GIB, 10 * GIB, "2026-01-01"), "ok", "5.0 GiB of 10.0 GiB used, scrubbed 2026-01-01"),
    (StoreSeen("s", False, 5 * GIB), "ok", "never scrubbed"), (StoreSeen("s", False), "ok", "never scrubbed"),
    (StoreSeen("s", False, 95 * GIB, 100 * GIB), "warning", "95.0 GiB of 100.0 GiB"),
    (StoreSeen("s", False, 99 * GIB, 100 * GIB), "fault", "used"), (StoreSeen("s", True), "warning", "read-only"),
    (StoreSeen("s", False, damaged=2), "fault", "2 images"), (StoreSeen("s", False, state="Testing"), "warning", "Testing"),
])
def test_stores(store: StoreSeen, state: str, says: str) -> None:
    found = judge_store(store)
    assert (found.state, found.of) == (state, "s") and says in found.detail and bool(found.remedy) is (state != "ok")


def test_no_store_is_worth_a_word_and_room_is_judged() -> None:
    assert judge_stores([])[0].state == "warning"
    assert [judge_room("p", 100 * GIB, free * GIB).state for free in (50, 5, 1)] == ["ok", "warning", "fault"]


@pytest.mark.parametrize(("apart_s", "state"), [(0.5, "ok"), (-0.5, "ok"), (10, "warning"), (-10, "warning"), (120, "fault")])
def test_clocks(apart_s: float, state: str) -> None:
    before = datetime(2026, 1, 1, tzinfo=UTC)
    found = skew("the database", before + timedelta(seconds=apart_s), before, before + timedelta(milliseconds=20))
    assert found.state == state and bool(found.remedy) is (state != "ok")


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59, "59 s"), (150, "2 min"), (7300, "2 h"), (86_400 * 30, "30 d")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


@pytest.mark.parametrize(("expired", "state"), [(False, "warning"), (True, "fault")])
async def test_a_certificate_that_ends_soon_or_has_ended(tmp_path: Path, expired: bool, state: str) -> None:
    """Whoever signed it. The test's authority gives a day."""
    _, server = certificate(tmp_path, expired=expired)
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with listener, behind_tls(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", server) as url:
        [found] = await judge([url, f"{url}/client/api", "http://127.0.0.1:1", "not a url"])
    assert found.state == state and found.of == url.removeprefix("https://") and found.remedy


async def test_a_server_without_tls_shows_none() -> None:
    assert (await judge(["https://127.0.0.1:1"]))[0].state == "warning"
    assert (await judge(["http://h", "amqp://h"]))[0].state == "ok"
