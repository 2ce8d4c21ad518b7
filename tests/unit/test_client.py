"""The Python client: what is generated is current, values become parameters, errors keep their kind, secrets stay secret."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import SecretStr

from api.client import Client
from api.client.calling import raw
from api.client.connection import Target, base_url
from api.client.failures import failed
from api.client_source import FOLDER, snake, sources
from api.edge import NotEnded, refusal
from api.registry import COMMANDS
from api.responses.job import job
from api.signature import Unauthorized
from schema.failure import (
    BadParameter,
    Cancelled,
    Denied,
    Failed,
    Failure,
    InUse,
    Malformed,
    NoRoom,
    Refused,
    Unavailable,
    Unknown,
    Unsupported,
    WorkFailed,
)

OURS = {"login", "logout"}


def test_the_generated_client_is_current() -> None:
    """Every file, and no other."""
    there = {str(path.relative_to(FOLDER)): path.read_text() for folder in ("commands", "objects")
             for path in (FOLDER / folder).glob("*.py")}
    wanted = sources()
    assert sorted(there) == sorted(wanted), "run `make golden`, or python -m api.client_source"
    assert not [name for name in wanted if there[name] != wanted[name]], "run `make golden`, or python -m api.client_source"


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.name not in OURS], ids=lambda command: command.name)
def test_every_command_is_a_method(command: object) -> None:
    assert callable(getattr(Client, snake(command.name)))  # type: ignore[attr-defined]  # the registry's entry


@pytest.mark.parametrize(("name", "method"), [
    ("createVolume", "create_volume"), ("addImageStoreS3", "add_image_store_s3"), ("listS3s", "list_s3s"),
    ("listVMSnapshot", "list_vm_snapshot"), ("registerIso", "register_iso")])
def test_names_of_methods(name: str, method: str) -> None:
    assert snake(name) == method


def test_values_become_parameters() -> None:
    assert raw({"a": None, "b": True, "c": 5, "d": UUID(int=1), "e": [UUID(int=1), "x"], "f": {"k": False, "l": "v"},
                "g": datetime(2026, 3, 1, 12, tzinfo=UTC), "h": datetime(2026, 3, 1),  # noqa: DTZ001 - without a zone it is UTC
                "i": ""}) == {
        "b": "true", "c": "5", "d": str(UUID(int=1)), "e": f"{UUID(int=1)},x", "f[0].key": "k", "f[0].value": "false",
        "f[1].key": "l", "f[1].value": "v", "g": "2026-03-01T12:00:00+0000", "h": "2026-03-01T00:00:00+0000", "i": ""}


@pytest.mark.parametrize("kind", [Malformed, BadParameter, Unsupported, Denied, NoRoom, InUse, Unavailable, WorkFailed])
def test_an_error_is_the_same_on_both_sides(kind: type[Failed]) -> None:
    """Class, codes, field, cause and remedy of what the edge was told."""
    raised = kind("it is so", field="name", remedy="do this")
    [body] = refusal(raised.failure).body.values()
    found = failed(body)
    assert type(found) is kind and found.failure == raised.failure and str(found) == str(raised)


def test_errors_without_a_class_of_their_own() -> None:
    assert type(failed({"errorcode": 535, "errortext": "x"})) is Failed
    assert type(failed({"errorcode": 404, "errortext": "x"})) is Refused
    assert type(failed({"errorcode": 401, "errortext": "x"})) is Unauthorized
    assert type(failed({"errorcode": 429, "errortext": "x"})) is Unavailable
    [body] = refusal(NotEnded("it goes on").failure).body.values()
    found = failed(body)
    assert type(found) is Unknown and not found.failure.definite
    assert failed({"errorcode": 431, "errortext": "name: missing"}).failure.cause == "name: missing"  # from an older API


def test_a_job_tells_its_failure_in_parts() -> None:
    failure = Failure(cause="it broke", field="url", remedy="mend it").model_dump()
    shown = job({"id": "1", "status": "failed", "command": "volume.create", "created": None, "failure": failure})
    found = failed(shown["jobresult"])
    assert (type(found), found.failure.field, found.failure.remedy) == (WorkFailed, "url", "mend it")
    assert type(failed(shown["jobresult"], cancelled=True)) is Cancelled


@pytest.mark.parametrize("url", ["x", "ftp://h", "http://", "http://u:p@h", "http://[::1", ""])
def test_what_is_no_url_of_an_api(url: str) -> None:
    with pytest.raises(BadParameter):
        base_url(url)


def test_a_url_may_name_the_page() -> None:
    assert base_url("https://h:1/client/api/") == base_url("https://h:1/client/api") == base_url("https://h:1/") == "https://h:1"


SHOWN: list[Callable[[Client, Target], str]] = [lambda client, _: repr(client), lambda client, _: str(client), lambda _, target: repr(target)]


@pytest.mark.parametrize("show", SHOWN)
def test_no_secret_is_shown(show: Callable[[Client, Target], str]) -> None:
    target = Target(url="http://h", api_key="k", secret_key=SecretStr("canary-1"), password=SecretStr("canary-2"))
    client = Client.connect("http://h", api_key="k", secret_key="canary-1")
    assert "canary" not in show(client, target)


def test_keys_come_in_pairs() -> None:
    with pytest.raises(BadParameter, match="secret_key"):
        Client.connect("http://h", api_key="k")
    with pytest.raises(BadParameter, match="api_key"):
        Client.connect("http://h", secret_key="k")
