"""Profiles and --query, as a person uses them: processes of their own against a listener with identity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.authentication import Authentication
from api.edge import Edge
from api.first_keys import first_keys, read_keys
from api.listener import HttpListener
from tests.integration.test_cli import Shell, shell
from tests.support.system import FakeSystem

Guarded = tuple[FakeSystem, str, tuple[str, str]]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    """(the system, its URL, its admin's keys): keys that the data directory of the shell does not have."""
    system = await FakeSystem.start()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    await first_keys(system.runtime, system.vault, elsewhere)
    keys = read_keys(elsewhere)
    assert keys is not None
    listener = HttpListener(Edge(system), authentication=Authentication(system))
    yield system, await listener.start(), keys
    await listener.aclose()


def at_home(tmp_path: Path, **more: str) -> Shell:
    """A shell of somebody who chose no data directory."""
    run = shell(tmp_path, XDG_DATA_HOME=str(tmp_path / "share"), HOME=str(tmp_path), **more)
    run.environment.pop("STOREBUS_DATA_DIR")
    return run


async def test_a_profile_signs_and_its_secret_is_never_shown(guarded: Guarded, tmp_path: Path) -> None:
    _, url, (key, secret) = guarded
    run = at_home(tmp_path)
    assert (await run("call", "listZones", "--api-url", url)).status == 1  # 401
    added = await run("profile", "add", "prod", "--url", f"{url}/client/api", "--api-key", key, typed=secret + "\n")
    assert (added.status, added.out) == (0, ""), added.err
    file = tmp_path / "config" / "profiles.json"
    assert file.stat().st_mode & 0o777 == 0o600 and secret in file.read_text()
    zones = await run("call", "listZones")  # the first one is in use
    assert zones.status == 0 and zones.json["count"] == 1, zones.err
    other = await run("profile", "add", "other", "--url", "http://127.0.0.1:1")
    assert other.status == 0
    listed = await run("profile", "list")
    assert [(row["name"], row["use"], row["url"]) for row in listed.json] == [
        ("other", False, "http://127.0.0.1:1"), ("prod", True, url)]
    said = [added, zones, listed, await run("config")]
    assert (await run("call", "listZones", "--profile", "other")).status == 1
    assert (await run("profile", "use", "other")).status == 0
    away = await run("call", "listZones")
    assert away.status == 1 and "does not answer" in away.err
    chosen = await run("call", "listZones", "--profile", "prod")
    assert chosen.status == 0
    assert (await at_home(tmp_path, STOREBUS_PROFILE="prod")("call", "listZones")).status == 0
    assert (await run("profile", "remove", "prod")).status == 0
    gone = await run("call", "listZones", "--profile", "prod")
    assert gone.status == 1 and "profile: no profile is named 'prod'" in gone.err
    assert secret not in file.read_text()
    assert not [ran for ran in [*said, away, chosen, gone] if secret in ran.out + ran.err]


async def test_keys_come_from_the_environment_or_a_file(guarded: Guarded, tmp_path: Path) -> None:
    _, url, (key, secret) = guarded
    run = at_home(tmp_path, STOREBUS_API_KEY=key, STOREBUS_SECRET_KEY=secret)
    assert (await run("call", "listZones", "--api-url", url)).status == 0
    assert (await run("profile", "add", "a", "--url", url)).status == 0
    (tmp_path / "key").write_text(secret + "\n")
    plain = at_home(tmp_path)
    assert (await plain("call", "listZones", "--profile", "a")).status == 0
    assert (await plain("profile", "add", "b", "--url", url, "--api-key", key, "--secret-key-file", str(tmp_path / "key"))).status == 0
    assert (await plain("call", "listZones", "--profile", "b")).status == 0
    half = await plain("profile", "add", "c", "--url", url, "--api-key", key, typed="\n")
    assert half.status == 1 and "secret_key: missing" in half.err


@pytest.mark.parametrize(("words", "text"), [
    (("add", "a/b", "--url", "http://h"), "is no name of a profile"), (("add", "a", "--url", "h"), "url: this is not"),
    (("use", "x"), "no profile is named"), (("remove", "x"), "no profile is named"),
    (("add", "a", "--url", "http://u:canary@h"), "url: the URL holds"),
])
async def test_what_is_no_profile(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    ran = await shell(tmp_path)("profile", *words)
    assert ran.status == 1 and text in ran.err and "canary" not in ran.err


async def test_a_file_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    run = at_home(tmp_path)
    await run("profile", "add", "a", "--url", "http://127.0.0.1:1")
    (tmp_path / "config" / "profiles.json").chmod(0o644)
    ran = await run("call", "listZones")
    assert ran.status == 1 and "chmod 600" in ran.err


async def test_a_data_directory_that_is_chosen_comes_before_the_profile_in_use(guarded: Guarded, tmp_path: Path) -> None:
    _, url, (key, secret) = guarded
    await at_home(tmp_path)("profile", "add", "a", "--url", url, "--api-key", key, typed=secret + "\n")
    ran = await shell(tmp_path, STOREBUS_API_PORT="1")("call", "listZones")
    assert ran.status == 1 and "127.0.0.1:1 " in ran.err
    both = await at_home(tmp_path)("call", "listZones", "--profile", "a", "--api-url", url)
    assert both.status == 1 and "either a URL or a profile" in both.err


# --- --query ----------------------------------------------------------------------------------------------------------


async def test_a_query_is_asked_of_the_data(guarded: Guarded, tmp_path: Path) -> None:
    system, url, (key, secret) = guarded
    run = at_home(tmp_path, STOREBUS_API_KEY=key, STOREBUS_SECRET_KEY=secret)
    await run("profile", "add", "a", "--url", url)
    async with system.working():
        made = await run("call", "createVolume", "name=v\x1b[31m", "size=1", "--wait", "--query", "volume.name", "-o", "jsonl")
        assert made.status == 1 and "control character" in made.err
        made = await run("call", "createVolume", "name=v", "size=1", "--wait", "--query", "volume.[name, size]", "-o", "jsonl")
        assert made.out == '"v"\n1073741824\n', made
    asked = {"volume[0].name": '"v"\n', "volume[].size": "[\n  1073741824\n]\n", "nothing": "null\n", "count": "1\n"}
    for query, out in asked.items():
        assert (await run("call", "listVolumes", "--query", query)).out == out
    assert (await run("call", "listVolumes", "--query", "volume[].name", "-o", "table")).out == "v\n"
    table = await run("call", "listVolumes", "--query", "volume[].{called: name, bytes: size}", "-o", "table")
    assert table.out.split() == ["called", "bytes", *table.out.split()[2:-2], "v", "1073741824"]
    assert (await run("call", "listVolumes", "--query", "volume[].{n: name}", "-o", "yaml")).out == "- n: v\n"
    assert (await run("config", "--query", "[?name=='STOREBUS_ZONE'].value | [0]")).out == '"zone-1"\n'


@pytest.mark.parametrize("query", ["volume[", "length(count)", "a" * 5000, "nosuch(@)"])
async def test_a_query_that_cannot_be_asked(guarded: Guarded, tmp_path: Path, query: str) -> None:
    """One that cannot be read is wrong usage, and nothing is called."""
    _, url, (key, secret) = guarded
    run = at_home(tmp_path, STOREBUS_API_KEY=key, STOREBUS_SECRET_KEY=secret)
    ran = await run("call", "listZones", "--api-url", url, "--query", query)
    assert ran.out == "" and "query" in ran.err
    assert ran.status == (1 if query in ("length(count)", "nosuch(@)") else 2)
