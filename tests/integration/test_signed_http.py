"""The listener with identity: signatures and sessions over real HTTP, the whole system in memory behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api.authentication import FAILURES, Authentication
from api.edge import Edge
from api.first_keys import first_keys, read_keys
from api.listener import HttpListener
from api.signature import UNAUTHORIZED, sign
from tests.support.system import FakeSystem

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "canary-pass-17"}


@dataclass
class Signed:
    """A listener and the keys of its first admin."""

    system: FakeSystem
    url: str
    http: aiohttp.ClientSession
    keys: tuple[str, str]

    async def ask(self, command: str, keys: tuple[str, str] | None = None, *, form: str = "POST", **parameters: Any) -> tuple[int, dict[str, Any]]:
        key, secret = keys or self.keys
        sent = {"command": command, "response": "json", "apiKey": key, **{name: str(value) for name, value in parameters.items()}}
        return await self.plain(form=form, **sent, signature=sign(sent, secret))

    async def plain(self, *, form: str = "POST", **sent: str) -> tuple[int, dict[str, Any]]:
        sent = {"response": "json", **sent}
        where = {"data": sent} if form == "POST" else {"params": sent}
        async with self.http.request(form, f"{self.url}/client/api", **where) as answer:
            body: dict[str, Any] = await answer.json()
            return answer.status, body


@pytest.fixture
async def signed(tmp_path: Path) -> AsyncIterator[Signed]:
    system = await FakeSystem.start()
    await first_keys(system.runtime, system.vault, tmp_path)
    await first_keys(system.runtime, system.vault, tmp_path)  # the next start finds them
    assert (tmp_path / "admin.keys").stat().st_mode & 0o777 == 0o600
    keys = read_keys(tmp_path)
    assert keys is not None
    listener = HttpListener(Edge(system), authentication=Authentication(system))
    url = await listener.start()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield Signed(system, url, http, keys)
    await listener.aclose()


async def person(signed: Signed, name: str, **more: str) -> tuple[str, str]:
    """A new account's keys."""
    status, body = await signed.ask("createAccount", username=name, **PERSON, **more)
    assert status == 200, body
    user = body["createaccountresponse"]["account"]["user"][0]["id"]
    _, body = await signed.ask("registerUserKeys", id=user)
    keys = body["registeruserkeysresponse"]["userkeys"]
    return keys["apikey"], keys["secretkey"]


async def test_the_first_admin_signs_and_makes_the_next_user(signed: Signed) -> None:
    for form in ("GET", "POST"):
        status, body = await signed.ask("listZones", form=form, **{"Zed~*": "a b/[c]"})
        assert (status, body["listzonesresponse"]["count"]) == (200, 1)
    ann = await person(signed, "ann")
    status, body = await signed.ask("listUsers", ann)
    assert [user["username"] for user in body["listusersresponse"]["user"]] == ["ann"]
    status, body = await signed.ask("listStoragePools", ann)
    assert (status, list(body)) == (432, ["errorresponse"])


async def test_whatever_is_wrong_with_a_signature_has_one_text(signed: Signed) -> None:
    key, secret = signed.keys
    sent = {"command": "listZones", "response": "json", "apiKey": key}
    right = sign(sent, secret)
    for wrong in ({**sent, "signature": right[:-3] + "aa="}, {**sent, "signature": right, "name": "x"},
                  {**sent, "apiKey": "nobody", "signature": right}, {"command": "listZones"}, {**sent, "apiKey": ""}, sent,
                  {**sent, "signature": right, "signatureVersion": "3"}, {**sent, "signature": right, "APIKEY": key},
                  {"command": "listZones", "sessionkey": ""}):
        status, body = await signed.plain(**wrong)
        assert (status, body["listzonesresponse"]["errortext"]) == (401, UNAUTHORIZED)
    status, body = await signed.plain(response="json")
    assert (status, list(body)) == (401, ["errorresponse"])


async def test_a_session_is_a_cookie_and_its_key(signed: Signed) -> None:
    await person(signed, "ann")
    login = {"command": "login", "username": "ann", "password": PERSON["password"], "domain": "/", "response": "json"}
    status, body = await signed.plain(**{**login, "password": "wrong"})
    assert (status, body["loginresponse"]["errortext"]) == (401, UNAUTHORIZED)
    status, body = await signed.plain(**login)
    told = body["loginresponse"]
    assert (status, told["account"], told["type"]) == (200, "ann", "0")
    ask = {"command": "listUsers", "response": "json"}
    assert (await signed.plain(**ask))[0] == 401  # the cookie alone may be another site's doing
    status, body = await signed.plain(**ask, sessionkey=told["sessionkey"])
    assert (status, body["listusersresponse"]["count"]) == (200, 1)
    assert (await signed.plain(command="logout", sessionkey=told["sessionkey"]))[0] == 200
    assert (await signed.plain(**ask, sessionkey=told["sessionkey"]))[0] == 401


async def test_passwords_are_not_guessed_for_long(signed: Signed) -> None:
    found = {(await signed.plain(command="login", username="admin", password=str(n)))[0] for n in range(FAILURES)}
    assert found == {401}
    assert (await signed.plain(command="login", username="admin", password="x"))[0] == 429


async def test_new_keys_end_the_old_ones(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.authentication.REMEMBERED_S", 0.0)
    ann = await person(signed, "ann")
    _, body = await signed.ask("listUsers", ann)
    status, body = await signed.ask("registerUserKeys", ann, id=body["listusersresponse"]["user"][0]["id"])
    assert status == 200
    assert (await signed.ask("listZones", ann))[0] == 401
    keys = body["registeruserkeysresponse"]["userkeys"]
    assert (await signed.ask("listZones", (keys["apikey"], keys["secretkey"])))[0] == 200


async def test_one_user_does_not_take_every_place(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.flood.IN_HAND", 3)
    ann = await person(signed, "ann")
    answers = await asyncio.gather(*(signed.ask("listZones", ann) for _ in range(40)), signed.ask("listZones"))
    assert answers[-1][0] == 200 and {status for status, _ in answers} <= {200, 429}


async def test_the_cs_client_runs_unchanged(signed: Signed) -> None:
    """CloudStack's Python client, as its users have it."""
    cs = pytest.importorskip("cs")
    key, secret = signed.keys
    client = cs.CloudStack(endpoint=f"{signed.url}/client/api", key=key, secret=secret)
    zones = await asyncio.to_thread(client.listZones, fetch_list=True)
    assert len(zones) == 1
    async with signed.system.working():
        made = await asyncio.to_thread(client.createVolume, name="a b~*/é [x]", size=1, fetch_result=True)
        assert made["volume"]["name"] == "a b~*/é [x]" and made["volume"]["account"] == "admin"
        volume = made["volume"]["id"]
        done = await asyncio.to_thread(client.createTags, resourceids=[volume], resourcetype="Volume", fetch_result=True,
                                       tags=[{"key": "tier", "value": "gold & more"}, {"key": "token", "value": "x"}])
        assert done == {"success": True}
    assert len(await asyncio.to_thread(client.listTags, fetch_list=True)) == 2
    [tagged] = await asyncio.to_thread(client.listVolumes, tags=[{"key": "tier", "value": "gold & more"}], fetch_list=True)
    assert tagged["id"] == volume and {each["key"]: each["value"] for each in tagged["tags"]} == {"tier": "gold & more", "token": "x"}
    await asyncio.to_thread(client.deleteTags, resourceids=[volume], resourcetype="Volume", tags=[{"key": "tier"}], fetch_result=True)
    assert [each["key"] for each in await asyncio.to_thread(client.listTags, fetch_list=True)] == ["token"]
    for name in ("listOsTypes", "listOsCategories", "listHypervisors", "listDomains", "listAccounts", "listUsers", "listResourceLimits",
                 "listBackupProviders"):
        assert await asyncio.to_thread(getattr(client, name), fetch_list=True), name
    for name in ("listPublicIpAddresses", "listPortForwardingRules", "listIpForwardingRules"):  # asked before machines are listed
        assert await asyncio.to_thread(getattr(client, name)) == {}, name
    user = await asyncio.to_thread(client.getUser, userapikey=key)
    assert user["user"]["username"] == "admin"
    with pytest.raises(cs.CloudStackApiException, match="no volume has the id"):
        await asyncio.to_thread(client.deleteVolume, id="6f1d1f2e-0f0a-4c2a-9d0e-2f6b7a1c3d4e")
    wrong = cs.CloudStack(endpoint=f"{signed.url}/client/api", key=key, secret="x" * 64)
    with pytest.raises(cs.CloudStackApiException, match="401"):
        await asyncio.to_thread(wrong.listZones)
