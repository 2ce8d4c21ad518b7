"""What the details of a Swift store mean and refuse; its form; that no secret of them is shown."""

from __future__ import annotations

from uuid import uuid4

import pytest

from agents.image_stores import registry
from agents.image_stores.details import read_details
from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_settings import Account, SwiftSettings, find_account
from bus.sealing import NAMES
from schema.failure import Refused
from schema.image import StoreSpec


def account(url: str, **details: str) -> Account:
    spec = StoreSpec(id=uuid4(), name="s", provider="swift", url=url, prefix="i", details={"username": "u", **details})
    return find_account(spec, read_details(SwiftSettings, spec, {"key": "CANARY"}))


def test_its_form_says_what_is_secret_and_each_secret_is_sealed_by_its_name() -> None:
    assert registry.load("Swift") is SwiftImageStore
    form = SwiftImageStore.Settings.model_json_schema()
    assert form["required"] == ["username", "key"]
    assert all(one["description"] for one in form["properties"].values())
    secret = {name for name, one in form["properties"].items() if "password" in str(one.get("format", one.get("anyOf")))}
    assert secret == {"key", "tempurlsecret"} == {name for name in form["properties"] if NAMES.search(name)}
    assert form["properties"]["insecure"]["default"] is False


@pytest.mark.parametrize(("url", "details", "auth_url", "version", "user"), [
    ("https://s:8080/auth/v1.0", {"account": "a"}, "https://s:8080/auth/v1.0", 1, "a:u"),
    ("https://s:8080/auth/v1.0/", {}, "https://s:8080/auth/v1.0", 1, "u"),
    ("http://s:8080", {"account": "a"}, "http://s:8080/auth/v1.0", 1, "a:u"),
    ("https://k:5000/v3", {"project": "p"}, "https://k:5000/v3", 3, "u"),
    ("https://k/identity", {"account": "p"}, "https://k/identity/v3", 3, "p:u"),
    ("https://k:5000", {"project": "p", "authversion": "3"}, "https://k:5000/v3", 3, "u"),
])
def test_where_tokens_come_from(url: str, details: dict[str, str], auth_url: str, version: int, user: str) -> None:
    found = account(url, **details)
    assert (found.auth_url, found.version, found.user) == (auth_url, version, user)
    assert (found.container, found.segments) == ("storebus", "storebus")
    assert version == 1 or found.project == "p"


@pytest.mark.parametrize(("url", "details", "field"), [
    ("swift://host/x", {}, "url"), ("", {}, "url"), ("https://u:CANARY@host/auth/v1.0", {}, "url"),
    ("https://host:99999/auth/v1.0", {}, "url"), ("https://host/v3", {}, "details.project"),
    ("https://host", {"container": "a/b"}, "details.container"), ("https://host", {"segmentcontainer": "x" * 251}, "details.segmentcontainer"),
    ("https://host", {"cafile": "/nowhere/ca.pem"}, "details.cafile"), ("https://host", {"proxy": "http://a:CANARY@b"}, "details.proxy"),
    ("https://host", {"proxy": "socks5://b:1"}, "details.proxy"), ("https://host", {"authversion": "2"}, "details.authversion"),
    ("https://host", {"endpointtype": "secret"}, "details.endpointtype"), ("https://host", {"s3signer": "x"}, "details.s3signer"),
    ("https://host", {"maxerrorretry": "many"}, "details.maxerrorretry"), ("https://host", {"username": ""}, "details.username"),
])
def test_what_makes_no_sense_is_refused_by_name(url: str, details: dict[str, str], field: str) -> None:
    with pytest.raises(Refused) as refused:
        account(url, **details)
    assert refused.value.failure.field == field
    assert "CANARY" not in str(refused.value)
