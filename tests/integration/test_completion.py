"""Completion in the shells themselves, and what it knows: commands, parameters, values, ids of things with their names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from api import completion
from api.edge import Edge
from api.listener import HttpListener
from bus.installation import Installation, write_installation
from tests.conftest import missing
from tests.support.shells import START, Terminal, fish
from tests.support.system import FakeSystem


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[str]:
    """The id of a volume named database-disk, in an API that the data directory names."""
    system = await FakeSystem.start()
    listener = HttpListener(Edge(system))
    write_installation(tmp_path, Installation.model_validate({
        "database_url": "postgresql:///none", "api_url": await listener.start(), "pid": os.getpid()}))
    async with system.working():
        job = uuid4()
        answer = await Edge(system).call({"command": "createVolume", "name": "database-disk", "size": "1", "customjobid": str(job)})
        await system.wait_for_end(job, timeout_s=60)
    yield answer.body["createvolumeresponse"]["id"]
    await listener.aclose()


@pytest.mark.parametrize("shell", sorted(START))
async def test_a_shell_completes(volume: str, tmp_path: Path, shell: str) -> None:
    """TAB finishes a command's name, shows parameters, and finishes the id of a volume whose name it shows beside others."""
    if shutil.which(shell) is None:
        missing(shell, f"apt-get install {shell}")

    def work() -> None:
        terminal = Terminal(shell, folder(tmp_path), {"STOREBUS_DATA_DIR": str(tmp_path)})
        try:
            terminal.complete("storebus call revertSnapsh", want="revertSnapshot ")
            shown = terminal.complete("storebus call createVolume ", want="snapshotid=", tabs=2)
            assert "name=" in shown and "size in GiB" in shown
            terminal.complete("storebus call createSnapshot vol", want="volumeid=")
            terminal.complete("storebus call createSnapshot volumeid=", want=f"volumeid={volume}")
            terminal.complete("storebus call listZones -o y", want="yaml ")
        finally:
            terminal.close()

    await asyncio.to_thread(work)


def folder(tmp_path: Path) -> Path:
    """Where `storebus` is a program."""
    made = tmp_path / "bin"
    made.mkdir()
    return made


async def test_fish_completes(volume: str, tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        missing("fish", "apt-get install fish")
    where, environment = folder(tmp_path), {"STOREBUS_DATA_DIR": str(tmp_path)}
    for line, offered in (("storebus call revertSnapsh", "revertSnapshot\t"),
                          ("storebus call createSnapshot volumeid=", f"volumeid={volume}\tdatabase-disk Ready"),
                          ("storebus call listZones -o y", "yaml")):
        [found] = await asyncio.to_thread(fish, line, where, environment)
        assert found.startswith(offered)


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process means the installation of the test."""
    monkeypatch.setenv("STOREBUS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STOREBUS_CONFIG_DIR", str(tmp_path / "config"))


async def said(line: str, shell: str = "fish") -> dict[str, str]:
    """Values and their help. In a thread: it runs a loop of its own."""
    text = await asyncio.to_thread(completion.answer, shell, line)
    return dict(each.split("\t") for each in text.splitlines())


@pytest.mark.usefixtures("ours")
async def test_ids_come_with_names_and_states(volume: str) -> None:
    for line in ("createSnapshot volumeid=", f"deleteVolume id={volume[:5]}", "listVolumes ids="):
        name = line.split()[1].split("=")[0]
        assert await said(f"storebus call {line}") == {f"{name}={volume}": "database-disk Ready"}
    assert await said(f"storebus call listVolumes ids={volume},{volume[:3]}") == {
        f"ids={volume},{volume}": "database-disk Ready"}
    assert await said("storebus call deleteVolume id=zz") == {}
    zones = await said("storebus plan createVolume zoneid=")
    assert list(zones.values()) == ["zone-1"]
    assert list((await said("storebus jobs ")).values()) == ["org.apache.cloudstack.api.command.user.volume.CreateVolumeCmd"]


@pytest.mark.usefixtures("ours")
async def test_an_api_that_is_away_or_slow_offers_nothing_and_is_not_waited_for(tmp_path: Path) -> None:
    assert await said("storebus call deleteVolume --api-url http://127.0.0.1:1 id=") == {}

    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until whoever asked lets go
            writer.close()
            await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await said(f"storebus call deleteVolume --api-url http://127.0.0.1:{port} id=") == {}
    await asyncio.wait_for(gone.wait(), 60)  # it is never answered, so it was not waited for
    server.close()


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("line", "has", "lacks"), [
    ("storebus ", {"call", "profile", "doctor"}, {"complete", "demo"}),
    ("storebus held ", {"redrive", "show"}, set()),
    ("storebus call ", {"createVolume", "listZones"}, set()),
    ("storebus publish ", {"createVolume"}, {"listZones"}),
    ("storebus call createvolume ", {"name=", "size=", "zoneid="}, {"bogus="}),
    ("storebus call createVolume --wait name=x ", {"size="}, {"name="}),
    ("storebus call -o json createVolume ", {"size="}, {"createVolume"}),
    ("storebus call addImageStore ", {"details.", "provider="}, set()),
    ("storebus call registerTemplate isextractable=", {"isextractable=true", "isextractable=false"}, set()),
    ("storebus call listTemplates TEMPLATEFILTER=f", {"TEMPLATEFILTER=featured"}, {"TEMPLATEFILTER=self"}),
    ("storebus call listZones --", {"--query", "--output", "--profile"}, set()),
    ("storebus call listZones -o ", {"json", "table"}, set()),
    ("storebus serve ", {"agent", "api"}, set()), ("storebus completion ", {"zsh"}, set()),
    ("storebus call noSuchCommand ", set(), {"name="}), ("storebus call 'createV", {"createVolume"}, set()),
    ("storebus call createVolume \"nam", {"name="}, set()), ("storebus nothing ", set(), set()),
])
async def test_words(line: str, has: set[str], lacks: set[str]) -> None:
    found = set(await said(line))
    assert has <= found and not lacks & found


@pytest.mark.usefixtures("ours")
async def test_bash_takes_up_behind_the_last_equals_sign() -> None:
    """Where bash begins a word; one word is finished with a space, one that goes on is not; help only beside others."""
    assert completion.answer("bash", "storebus call listTemplates templatefilter=fea") == "featured \n"
    assert completion.answer("bash", "storebus call createVolume snapshotid") == "snapshotid=\n"
    several = completion.answer("bash", "storebus call createV")
    assert several == "createVolume \n"
    assert "  (" in completion.answer("bash", "storebus call create")
    assert "  (" not in completion.answer("bash", "storebus call create", several=False)


def test_what_is_wrong_with_the_line_or_the_machine_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles.json").write_text("no json")
    (tmp_path / "profiles.json").chmod(0o600)
    monkeypatch.setenv("STOREBUS_CONFIG_DIR", str(tmp_path))
    assert completion.answer("fish", "storebus profile use ") == ""
    assert completion.answer("fish", "") != ""
