"""Secrets: sealed, opened, never shown; found in commands before anything is sent. And the installation's record."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

import bus
from bus.grant_sealing import answer_to, seal_to
from bus.installation import Installation, default_data_dir, read_installation, with_password, write_installation
from bus.sealing import clear_secrets, refuse_password_in_url, sealed
from bus.vault import Vault, VaultBroken, load_or_create_key, parse_key
from schema.failure import BadParameter, Denied, Unavailable
from schema.image_store import AddImageStore
from schema.template import RegisterTemplate

CANARY = "hunter2-canary"


class Shelf:
    """The part of an event store that keeps what is sealed."""

    def __init__(self) -> None:
        self.kept: dict[UUID, bytes] = {}

    async def put_secret(self, id: UUID, sealed: bytes) -> None:  # noqa: A002 - the contract's word
        self.kept[id] = sealed

    async def get_secret(self, id: UUID) -> bytes | None:  # noqa: A002 - the contract's word
        return self.kept.get(id)

    async def drop_secret(self, id: UUID) -> None:  # noqa: A002 - the contract's word
        self.kept.pop(id, None)


def vault(shelf: Shelf, key: bytes = b"k" * 32, **more: Any) -> Vault:
    return Vault(shelf, key, **more)  # type: ignore[arg-type] # the three methods it uses


async def test_what_is_sealed_opens_again_and_nowhere_shows() -> None:
    shelf = Shelf()
    kept = vault(shelf)
    reference = await kept.seal(CANARY)
    assert reference.startswith("vault:")
    assert await kept.open(reference) == CANARY
    assert CANARY.encode() not in b"".join(shelf.kept.values())
    assert "kkk" not in repr(kept)
    assert await kept.seal(CANARY) != reference
    await kept.drop(reference)
    with pytest.raises(VaultBroken, match="names no secret"):
        await kept.open(reference)


async def test_what_an_agent_seals_to_the_vault_is_read_by_it_for_that_work_alone() -> None:
    work_id, kept = uuid4(), vault(Shelf())
    sealed = seal_to(base64.b64decode(kept.public_key), CANARY.encode(), answer_to(work_id))
    assert CANARY.encode() not in sealed
    text = base64.b64encode(sealed).decode()
    assert kept.unseal(text, work_id) == CANARY
    assert vault(Shelf(), b"n" * 32, old_keys=[b"k" * 32]).unseal(text, work_id) == CANARY, "the key was changed meanwhile"
    for other, of, given in ((vault(Shelf(), b"o" * 32), work_id, text), (kept, uuid4(), text), (kept, work_id, text[4:]),
                             (kept, work_id, ""), (kept, work_id, "no base64")):
        with pytest.raises(VaultBroken) as broken:
            other.unseal(given, of)
        assert CANARY not in str(broken.value)


async def test_the_same_command_sent_twice_has_the_same_reference() -> None:
    kept = vault(Shelf())
    first = await kept.seal(CANARY, name="job/details.key")
    assert await kept.seal(CANARY, name="job/details.key") == first
    assert await kept.seal("another", name="job/details.key") != first
    assert await kept.seal(CANARY, name="other/details.key") != first
    assert await kept.open(first) == CANARY


async def test_altered_swapped_and_foreign_secrets_do_not_open() -> None:
    shelf = Shelf()
    kept = vault(shelf)
    one, two = await kept.seal("one"), await kept.seal("two")
    ids = [UUID(each.removeprefix("vault:")) for each in (one, two)]
    shelf.kept[ids[0]], shelf.kept[ids[1]] = shelf.kept[ids[1]], shelf.kept[ids[0]]
    with pytest.raises(VaultBroken, match="altered"):
        await kept.open(one)
    shelf.kept[ids[0]] = shelf.kept[ids[0]][:-1] + b"!"
    with pytest.raises(VaultBroken, match="altered"):
        await kept.open(one)
    with pytest.raises(VaultBroken, match="key that is not here"):
        await vault(shelf, b"x" * 32).open(two)
    for not_one in (CANARY, f"vault:{CANARY}"):
        with pytest.raises(VaultBroken) as error:
            await kept.open(not_one)
        assert CANARY not in str(error.value)


async def test_a_new_key_seals_and_the_old_one_still_opens() -> None:
    shelf = Shelf()
    reference = await vault(shelf).seal(CANARY)
    renewed = vault(shelf, b"n" * 32, old_keys=[b"k" * 32])
    assert await renewed.open(reference) == CANARY
    fresh = await renewed.seal(CANARY)
    with pytest.raises(VaultBroken):
        await vault(shelf).open(fresh)


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_or_create_key, [path] * 32))
    assert len(keys) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["vault.key"]
    path.chmod(0o644)
    with pytest.raises(BadParameter, match="chmod 600"):
        load_or_create_key(path)
    for wrong in ("", "short", base64.b64encode(b"x" * 31).decode(), CANARY):
        with pytest.raises(BadParameter) as error:
            parse_key(wrong)
        assert CANARY not in str(error.value)


async def test_clear_secrets_in_commands_are_sealed() -> None:
    shelf, job = Shelf(), uuid4()
    kept = vault(shelf)
    command = AddImageStore(provider="s3", url="http://s3.example", details={
        "accesskey": "AKIA", "secretkey": CANARY, "bucket": "b", "endpoint": "http://s3.example"})
    assert clear_secrets(command.model_dump(mode="json")) == ["details.secretkey"]
    safe = await sealed(command, kept.seal, job_id=job)
    assert isinstance(safe, AddImageStore)
    assert CANARY not in safe.model_dump_json()
    assert await kept.open(safe.details["secretkey"]) == CANARY
    assert {**safe.details, "secretkey": CANARY} == command.details
    assert await sealed(command, kept.seal, job_id=job) == safe
    assert await sealed(safe, None, job_id=job) is safe
    with pytest.raises(Denied, match=r"details\.secretkey") as error:
        await sealed(command, None, job_id=job)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("name", ["secretkey", "key", "password", "Swift_Password", "api_key", "token", "private_key"])
def test_names_of_secrets(name: str) -> None:
    assert clear_secrets({"details": {name: CANARY}}) == [f"details.{name}"]
    assert clear_secrets({"details": {name: f"vault:{uuid4()}"}}) == []


@pytest.mark.parametrize("name", ["accesskey", "bucket", "endpoint", "account", "username", "region"])
def test_names_of_what_is_no_secret(name: str) -> None:
    assert clear_secrets({"details": {name: "x"}}) == []


def test_passwords_in_urls_are_refused_without_repeating_them() -> None:
    body = RegisterTemplate(name="t", url=f"https://user:{CANARY}@images.example/a.qcow2", format="qcow2")  # type: ignore[arg-type] # coerced
    with pytest.raises(Denied, match="url") as error:
        refuse_password_in_url(body.model_dump(mode="json"))
    assert CANARY not in str(error.value)
    refuse_password_in_url({"url": "https://images.example/a@b.qcow2", "name": "a@b"})


def test_the_installation_record(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="storebus up"):
        read_installation(tmp_path)
    (tmp_path / "password").write_text("p/w@1\n")
    record = Installation(database_url=SecretStr("postgresql://storebus@/storebus?host=/run/x"), pid=os.getpid(),
                          password_file=tmp_path / "password", amqp_url=SecretStr(f"amqp://u:{CANARY}@h"))
    path = write_installation(tmp_path, record)
    assert path.stat().st_mode & 0o777 == 0o600
    known = read_installation(tmp_path)
    assert known == record
    assert known.running
    assert known.dsn() == "postgresql://storebus:p%2Fw%401@/storebus?host=/run/x"
    assert CANARY not in repr(known)
    path.write_text("{")
    with pytest.raises(Unavailable, match="not an installation record"):
        read_installation(tmp_path)
    assert not Installation(database_url=SecretStr("x"), pid=2**22 + 1).running


def test_with_password() -> None:
    assert with_password("postgresql://u@h:5/d", "p") == "postgresql://u:p@h:5/d"
    assert with_password("postgresql://u:old@h/d", "p") == "postgresql://u:old@h/d"


def test_the_default_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOREBUS_DATA_DIR", "/srv/storebus")
    assert default_data_dir() == Path("/srv/storebus")
    monkeypatch.delenv("STOREBUS_DATA_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/home/u/data")
    assert default_data_dir() == Path("/home/u/data/storebus")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/storebus")


def test_what_the_bus_exports() -> None:
    assert sorted(bus.__all__) == bus.__all__
    assert bus.__all__ == [
        "Bus", "CallCancelled", "CallFailed", "CallTimedOut", "Conflict", "Dispatcher", "JobFailure", "JobHandle",
        "JobStopped", "LogBroken", "NoHandler", "Outcome", "Replay", "SubscribedEvent", "handles"]
    for name in bus.__all__:
        assert getattr(bus, name).__doc__, f"{name} says nothing of itself"


async def test_connecting_to_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="storebus up"):
        async with bus.Bus.connect(data_dir=tmp_path):
            pass
