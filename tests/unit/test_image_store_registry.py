"""The registry: plug-ins by entry point, a missing library named with its remedy. And what the details refuse."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores import registry
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3_settings import S3Settings, find_place
from schema.failure import Refused
from schema.image import StoreSpec


def test_what_is_installed_is_announced_with_its_form() -> None:
    found = {provider.name: provider for provider in registry.providers()}
    assert {"s3", "folder", "memory"} <= set(found)
    assert (found["s3"].scope, found["folder"].scope) == ("REGION", "ZONE")
    properties = found["s3"].settings["properties"]
    assert properties["secretkey"]["format"] == "password"
    assert {name for name, form in properties.items() if form.get("format") == "password"} == {"secretkey"}
    assert all(form["description"] for form in properties.values())
    assert found["s3"].settings["required"] == ["accesskey", "secretkey"]
    assert "presigned_get" in found["s3"].capabilities


async def test_a_store_is_opened_by_its_providers_name_in_any_case() -> None:
    spec = StoreSpec(id=uuid4(), name="m", provider="Memory", url=f"memory://{uuid4()}", prefix="i")
    assert isinstance(await registry.open_store(spec, {}), MemoryImageStore)


def test_an_unknown_provider_is_refused_with_what_there_is() -> None:
    with pytest.raises(Refused) as refused:
        registry.load("gopher")
    assert refused.value.failure.field == "provider"
    assert "folder" in refused.value.failure.remedy


def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking_plugin.py").write_text("import library_that_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = registry.installed() | {
        "lacking": EntryPoint("lacking", "lacking_plugin:Store", registry.GROUP),
        "broken": EntryPoint("broken", "agents.image_stores.not_there:Store", registry.GROUP),
    }
    monkeypatch.setattr(registry, "installed", lambda: points)
    with pytest.raises(Refused, match="library_that_is_not_here") as refused:
        registry.load("lacking")
    assert refused.value.failure.remedy == "run: pip install 'storebus[lacking]'"
    with pytest.raises(ModuleNotFoundError):  # ours, broken: not a matter of an extra
        registry.load("broken")
    del points["broken"]
    names = [provider.name for provider in registry.providers()]
    assert "lacking" not in names
    assert "s3" in names
    sys.modules.pop("lacking_plugin", None)


@pytest.mark.parametrize(("url", "details", "endpoint", "bucket"), [
    ("s3://images", {}, None, "images"),
    ("s3://images", {"endpoint": "s3.example.com"}, "https://s3.example.com", "images"),
    ("s3://images", {"endpoint": "s3.example.com:9000", "usehttps": "false"}, "http://s3.example.com:9000", "images"),
    ("s3://images", {"endpoint": "http://10.0.0.1:9000/", "bucket": "other"}, "http://10.0.0.1:9000", "other"),
    ("https://s3.example.com:9000/images", {}, "https://s3.example.com:9000", "images"),
    ("http://[::1]:9000/images/", {}, "http://[::1]:9000", "images"),
    ("", {"endpoint": "https://s3.example.com", "bucket": "images"}, "https://s3.example.com", "images"),
])
def test_endpoint_and_bucket_from_url_and_details(url: str, details: dict[str, str], endpoint: str | None,
                                                  bucket: str) -> None:
    settings = S3Settings.model_validate({"accesskey": "k", "secretkey": "s", **details})
    place = find_place(StoreSpec(id=uuid4(), name="s", provider="s3", url=url, prefix="i"), settings)
    assert (place.endpoint, place.bucket) == (endpoint, bucket)
    assert place.tls == (not (endpoint or "").startswith("http:")), "who speaks TLS has its certificate looked at"


@pytest.mark.parametrize(("url", "details", "field"), [
    ("s3://", {}, "details.bucket"), ("https://host:9000", {}, "details.bucket"), ("https://host/a/b", {}, "details.bucket"),
    ("https://host/a", {"bucket": "b"}, "details.bucket"), ("ftp://host/a", {}, "url"),
    ("https://key:secret@host/a", {}, "url"), ("s3://a", {"endpoint": "https://k:s@host"}, "details.endpoint"),
    ("s3://a", {"endpoint": "host:99999"}, "details.endpoint"), ("s3://a", {"endpoint": "http://h/path"}, "details.endpoint"),
    ("s3://a", {"endpoint": "http://h", "usehttps": "true"}, "details.usehttps"),
    ("s3://a", {"proxy": "socks5://h:1"}, "details.proxy"),
])
def test_addresses_that_make_no_sense_are_refused_by_name(url: str, details: dict[str, str], field: str) -> None:
    settings = S3Settings.model_validate({"accesskey": "k", "secretkey": "s", **details})
    with pytest.raises(Refused) as refused:
        find_place(StoreSpec(id=uuid4(), name="s", provider="s3", url=url, prefix="i"), settings)
    assert refused.value.failure.field == field
    assert "secret" not in str(refused.value)
