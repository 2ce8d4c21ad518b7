"""Primary stores opened by orders, on real folders: which places are refused and why, what an agent remembers and tells."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.census import Census
from agents.operations import OPERATIONS
from agents.primary_stores import registry
from agents.primary_stores.base import Usage
from agents.primary_stores.opened import MARK, OPENED, OpenedStores
from agents.toolbox import Toolbox
from schema.agent import ClosePrimary, OpenPrimary
from schema.failure import Refused
from schema.image import PrimarySpec


def spec(path: Path | str, kind: str = "folder") -> PrimarySpec:
    return PrimarySpec(id=uuid4(), name="p", kind=kind, path=str(path), zone_id=UUID(int=1), agent="a")


async def do(order: type[OpenPrimary] | type[ClosePrimary], primary: PrimarySpec, state: Path, **more: Any) -> None:
    about = {"job_id": uuid4(), "work_id": uuid4(), "agent": "a", "reply_key": "k", "primary": primary}
    await OPERATIONS[order](order(**about, **more), Toolbox(state=str(state)), {}, lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


async def test_an_empty_folder_is_opened_remembered_and_told_of(tmp_path: Path, folder: Path) -> None:
    one, state = spec(folder), tmp_path / "state"
    for _ in range(2):  # twice is once
        await do(OpenPrimary, one, state)
    census = Census(configured=(spec(tmp_path),), opened=state / OPENED)
    found = await census.take()
    assert found.primaries == [census.configured[0], one] and {each.id for each in found.usage} == {each.id for each in found.primaries}
    assert all(0 < each.free_bytes <= each.total_bytes for each in found.usage)
    (folder / "f47ac10b-58cc-4372-a567-0e02b2c3d479.qcow2").write_bytes(b"a disk")
    await do(OpenPrimary, one, state)  # ours, with what lives there
    for _ in range(2):
        await do(ClosePrimary, one, state)
    assert (await census.take()).primaries == [census.configured[0]]
    assert [each.name for each in folder.iterdir()] == ["f47ac10b-58cc-4372-a567-0e02b2c3d479.qcow2"]


async def test_places_that_are_somebodys_are_refused_untouched(tmp_path: Path, folder: Path) -> None:
    state = tmp_path / "state"

    async def refused(path: Path, why: str) -> None:
        before = sorted(each.name for each in path.iterdir()) if path.is_dir() else None
        with pytest.raises(Refused, match=why) as told:
            await do(OpenPrimary, spec(path), state)
        assert told.value.failure.field == "url" and told.value.failure.remedy
        assert (sorted(each.name for each in path.iterdir()) if path.is_dir() else None) == before
        assert OpenedStores(state / OPENED).all() == []

    await refused(tmp_path / "absent", "not there")
    (tmp_path / "file").write_text("")
    await refused(tmp_path / "file", "no folder")
    (tmp_path / "link").symlink_to(folder)
    await refused(tmp_path / "link", "symbolic link")
    (folder / "holiday.jpg").write_bytes(b"x")
    await refused(folder, "not empty: 'holiday.jpg'")
    (folder / "holiday.jpg").unlink()
    await do(OpenPrimary, spec(folder), tmp_path / "another agent")
    await refused(folder, "it is the primary store")
    (folder / MARK).write_text("{")
    await refused(folder, "damaged mark")


async def test_devices_are_judged_as_those_of_the_settings(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Refused, match="not a block device"):
        await do(OpenPrimary, spec(folder, "block"), tmp_path / "state", devices=["/dev/null"])
    assert OpenedStores(tmp_path / "state" / OPENED).all() == []


async def test_a_disk_that_hangs_is_left_out_and_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    class Hanging:
        def __init__(self, path: str) -> None:
            self.path = path

        async def usage(self) -> Usage:
            nonlocal asked
            asked += 1
            await answer.wait()
            return Usage(total=2, free=1)

    answer = asyncio.Event()
    monkeypatch.setitem(registry.PRIMARY_STORES, "hanging", Hanging)
    monkeypatch.setattr("agents.census.PATIENCE_S", 0.05)
    census = Census(configured=(spec(folder), spec("/h", "hanging")))
    for _ in range(3):
        found = await census.take()
        assert len(found.primaries) == 2 and [each.id for each in found.usage] == [census.configured[0].id]
    answer.set()
    assert len((await census.take()).usage) == 2 and asked == 1
