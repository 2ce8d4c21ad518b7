"""Runs inside Swift's own virtual environment: writes the configuration and the rings, starts the four servers, ends them.

    python -P swift_processes.py all DIRECTORY PROXY ACCOUNT CONTAINER OBJECT   (ports; serves until standard input ends)
    python -P swift_processes.py KIND DIRECTORY                              (one server; started by the above)

It owns what is asked of Swift's configuration. It refuses to import anything of this repository: eventlet must not meet
asyncio, so Swift lives in an environment of its own and this file is all of us that it sees (-P: else the file `swift.py`
beside it would be taken for Swift).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KINDS = ("account", "container", "object")
_SWIFT = """[swift-hash]
swift_hash_path_prefix = storebus
swift_hash_path_suffix = storebus
[storage-policy:0]
name = gold
default = yes
"""
_SERVER = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
recon_cache_path = {cache}
"""
_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "bulk", "tempurl", "tempauth", "copy",
            "container_quotas", "slo", "dlo", "versioned_writes", "symlink")
_OWN = {
    "cache": "paste.filter_factory = swift_processes:cache_factory\nforget = {forget}",
    "tempurl": "use = egg:swift#tempurl\nmethods = GET HEAD PUT POST DELETE\nallowed_digests = sha1 sha256 sha512",
    "tempauth": ("use = egg:swift#tempauth\nuser_test_tester = testing .admin\nuser_test_reader = reading\n"
                 "storage_url_scheme = http"),
    "slo": "use = egg:swift#slo\nmax_manifest_segments = {segments}",
}
_PROXY = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {etc}
log_level = WARNING
[pipeline:main]
pipeline = {filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
"""


def write(root: Path, ports: dict[str, int], segments: int) -> None:
    """Configuration and rings for one device on these ports."""
    import pwd

    from swift.common.ring import RingBuilder

    etc, user = root / "etc", pwd.getpwuid(os.getuid()).pw_name
    (root / "srv" / "d1").mkdir(parents=True)
    etc.mkdir()
    (etc / "swift.conf").write_text(_SWIFT)
    for kind in KINDS:
        (etc / f"{kind}-server.conf").write_text(_SERVER.format(
            kind=kind, port=ports[kind], user=user, etc=etc, devices=root / "srv", cache=root))
        builder = RingBuilder(4, 1, 0)
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": ports[kind], "device": "d1", "weight": 1.0,
                         "replication_ip": "127.0.0.1", "replication_port": ports[kind], "meta": ""})
        builder.rebalance()
        builder.get_ring().save(str(etc / f"{kind}.ring.gz"))
    text = _PROXY.format(port=ports["proxy"], user=user, etc=etc, filters=" ".join(_FILTERS))
    for name in _FILTERS:
        text += f"[filter:{name}]\n" + _OWN.get(name, "use = egg:swift#" + name).format(
            forget=root / "forget", segments=segments) + "\n"
    (etc / "proxy-server.conf").write_text(text)


class Cache:
    """What Swift wants of memcached, in this one process. Everything is forgotten when the file `forget` appears."""

    def __init__(self, forget: Path) -> None:
        self._forget = forget
        self._kept: dict[str, tuple[float, Any]] = {}

    def _look(self) -> dict[str, tuple[float, Any]]:
        if self._forget.exists():
            self._kept.clear()
            self._forget.unlink()
        return self._kept

    def get(self, key: str, raise_on_error: bool = False) -> Any:
        """The value, or None."""
        until, value = self._look().get(key, (0.0, None))
        return value if not until or until > time.time() else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        """Keep a value; `time` as memcached means it: seconds, or a date."""
        self._look()[key] = (_until(time), value)

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Count."""
        value = int(self.get(key) or 0) + delta
        self.set(key, value, time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Count down."""
        return self.incr(key, -delta, time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        """Forget one."""
        self._look().pop(key, None)

    def set_multi(self, mapping: dict[str, Any], server_key: str, time: float = 0, **_: Any) -> None:
        """Keep several."""
        for key, value in mapping.items():
            self.set(key, value, time)

    def get_multi(self, keys: list[str], server_key: str) -> list[Any]:
        """Several values."""
        return [self.get(key) for key in keys]


def _until(seconds: float) -> float:
    if not seconds:
        return 0.0
    return seconds if seconds > 30 * 86400 else time.time() + seconds


def cache_factory(_: dict[str, str], **settings: str) -> Any:
    """Paste's factory of the filter that lends the cache to each request."""
    cache = Cache(Path(settings["forget"]))

    def filtered(app: Any) -> Any:
        def call(environ: dict[str, Any], start: Any) -> Any:
            environ["swift.cache"] = cache
            return app(environ, start)

        return call

    return filtered


def serve_one(kind: str, root: Path) -> int:
    """One server, in the foreground."""
    from swift.common import utils

    sys.modules["swift_processes"] = sys.modules["__main__"]  # by this name the configuration asks for the cache
    utils.set_swift_dir(str(root / "etc"))  # before the next import, which reads it
    from swift.common.wsgi import run_wsgi

    return int(run_wsgi(str(root / "etc" / f"{kind}-server.conf"), f"{kind}-server", verbose=True) or 0)


def serve_all(root: Path, ports: dict[str, int], segments: int) -> None:
    """All four, whose largest manifest has so many segments, until standard input ends: then they are killed, and this process ends."""
    if not (root / "etc").exists():  # else: the same again, on what it had
        write(root, ports, segments)
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    running = []
    try:
        for kind in (*KINDS, "proxy"):
            with (root / f"{kind}.log").open("wb") as log:
                running.append(subprocess.Popen([sys.executable, "-P", __file__, kind, str(root)], env=environment,
                                                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT))
        sys.stdin.read()
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "all":
        serve_all(Path(sys.argv[2]), dict(zip(("proxy", *KINDS), map(int, sys.argv[4:]), strict=True)), int(sys.argv[3]))
    else:
        sys.exit(serve_one(sys.argv[1], Path(sys.argv[2])))
