"""Servers in Docker, from the images of compose.yaml, where an engine answers: RabbitMQ 4 and Postgres 18.

Owns how a container takes the place of a private local server: the same attributes and the same ways to kill, restart and
wipe it. Refuses to be required: whoever asks falls back to the machine's own programs when a container does not come up.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

IMAGES = {"rabbitmq": "rabbitmq:4-management", "postgres": "postgres:18"}
"""As in compose.yaml; a test of the architecture compares."""
READY_S = 180.0


@functools.cache
def docker_answers() -> bool:
    """Whether an engine answers a ping on DOCKER_HOST or its usual socket (the command alone proves nothing)."""
    where = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX if where.scheme == "unix" else socket.AF_INET) as probe:
        probe.settimeout(3)
        probe.connect(where.path if where.scheme == "unix" else (where.hostname, where.port or 2375))
        probe.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
        return probe.recv(64).startswith(b"HTTP/1.1 200")
    return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class _Container:
    """One container on a fixed port of its host, so that it is found again after a restart."""

    def __init__(self, image: str, port: int, environment: dict[str, str], ready: tuple[str, ...]) -> None:
        self.port = _free_port()
        self._make: Callable[[], Any] = functools.partial(_container, image, port, self.port, environment)
        self._ready = ready
        self._running: Any = None

    @property
    def host(self) -> str:
        """Where its port is."""
        return str(self._running.get_container_host_ip())

    def _wait(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self._running.exec(list(self._ready)).exit_code == 0:
                return
            time.sleep(0.5)
        raise TimeoutError(f"{self._ready[0]} did not succeed within {READY_S:.0f} s")

    def start(self) -> None:
        """Start it, on what it kept if it was killed, and wait until it answers."""
        if self._running is None:
            self._running = self._make()
            self._running.start()
        else:
            self._running.get_wrapped_container().start()
        self._wait()

    def kill(self) -> None:
        """SIGKILL."""
        self._running.get_wrapped_container().kill()

    def restart(self) -> None:
        """Crash it and start it on the same data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Crash it and start an empty one in its place."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End it and delete what it kept."""
        if self._running is not None:
            self._running.stop()
            self._running = None


def _container(image: str, inside: int, outside: int, environment: dict[str, str]) -> Any:
    from testcontainers.core.container import DockerContainer

    made = DockerContainer(image).with_bind_ports(inside, outside)
    for name, value in environment.items():
        made = made.with_env(name, value)
    return made


class RabbitContainer(_Container):
    """RabbitMQ 4."""

    def __init__(self) -> None:
        self._password = secrets.token_hex(16)
        super().__init__(IMAGES["rabbitmq"], 5672,
                         {"RABBITMQ_DEFAULT_USER": "storebus", "RABBITMQ_DEFAULT_PASS": self._password},
                         ("rabbitmq-diagnostics", "-q", "check_port_connectivity"))

    @property
    def url(self) -> str:
        """AMQP URL of its only user."""
        return f"amqp://storebus:{self._password}@{self.host}:{self.port}/"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        answer = self._running.exec(["rabbitmqctl", *arguments])
        assert answer.exit_code == 0, answer.output
        return bytes(answer.output).decode()


class PostgresContainer(_Container):
    """Postgres 18."""

    def __init__(self) -> None:
        self._password = secrets.token_hex(16)
        super().__init__(IMAGES["postgres"], 5432, {"POSTGRES_USER": "storebus", "POSTGRES_PASSWORD": self._password,
                                                    "POSTGRES_DB": "storebus"},
                         ("pg_isready", "-h", "127.0.0.1", "-U", "storebus"))

    @property
    def dsn(self) -> str:
        """Of its first database, in the form that tests.services.postgres.fresh_database takes."""
        return f"postgresql://storebus:{self._password}@/storebus?host={self.host}&port={self.port}"
