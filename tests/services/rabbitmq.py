"""A private RabbitMQ node on free loopback ports, from the distribution's package; killed, restarted and wiped at will."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

INSTALL = "apt-get install --no-install-recommends rabbitmq-server"
BIN = Path("/usr/lib/rabbitmq/bin")
READY_S = 180.0


def installed() -> bool:
    """Whether the distribution's package is here."""
    return (BIN / "rabbitmq-server").exists()


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@dataclass
class RabbitMQ:
    """One node."""

    root: Path
    node: str
    ports: list[int]
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """AMQP URL of its only user."""
        return f"amqp://guest:guest@127.0.0.1:{self.ports[0]}/"

    @property
    def port(self) -> int:
        """AMQP port."""
        return self.ports[0]

    def _environment(self) -> dict[str, str]:
        _, dist, epmd = self.ports
        return os.environ | {
            "HOME": str(self.root / "home"), "RABBITMQ_NODENAME": f"{self.node}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.root / "mnesia"), "RABBITMQ_LOG_BASE": str(self.root / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.root / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "enabled_plugins"), "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_CONF_ENV_FILE": str(self.root / "none"), "RABBITMQ_PID_FILE": str(self.root / "pid"),
            "ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_CRASH_DUMP": str(self.root / "crash.dump"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def start(self) -> None:
        """Start and wait until it takes connections."""
        out = (self.root / "out").open("wb")
        self._processes.append(subprocess.Popen([str(BIN / "rabbitmq-server")], env=self._environment(), stdin=subprocess.DEVNULL, stdout=out,
                         stderr=out, start_new_session=True))
        out.close()
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if b"completed with" in (self.root / "out").read_bytes():
                return
            time.sleep(0.1)
        raise RuntimeError((self.root / "out").read_text()[-1000:])

    @property
    def pid(self) -> int:
        """The node's own pid."""
        return int((self.root / "pid").read_text())

    def kill(self) -> None:
        """SIGKILL: a crash."""
        pid = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait(timeout=30)
        self._processes.clear()

    def restart(self) -> None:
        """Crash it and start it on the same data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Crash it, delete everything it knew, start it empty."""
        self.kill()
        shutil.rmtree(self.root / "mnesia")
        self.start()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        return subprocess.run([str(BIN / "rabbitmqctl"), *arguments], env=self._environment(), check=True,
                              capture_output=True, text=True, timeout=READY_S).stdout

    def stop(self) -> None:
        """End the node, its port mapper and its folder."""
        self.kill()
        wanted = f"ERL_EPMD_PORT={self.ports[2]}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


def start_rabbitmq() -> RabbitMQ:
    """A running node; the caller stops it."""
    root = Path(tempfile.mkdtemp(prefix="sb-rabbit-"))
    node = RabbitMQ(root, f"sb{secrets.token_hex(4)}", _ports(3))
    for part in ("home", "mnesia", "log"):
        (root / part).mkdir()
    (root / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{node.ports[0]}\ndisk_free_limit.absolute = 50MB\n"
        "vm_memory_high_watermark.absolute = 512MB\n")
    (root / "enabled_plugins").write_text("[].\n")
    cookie = root / "home/.erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o600)
    node.start()
    return node
