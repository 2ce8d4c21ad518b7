"""Where an installation is: what `storebus up` writes down so that a second terminal finds it.

Owns the default data directory, the record `<data dir>/installation.json` and the three environment variables that
say where to connect (`Bus.connect()` without arguments must work in any Python program; everything else of the
environment is `api.settings`'s). Refuses to connect to anything.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from schema.failure import Unavailable

FILE = "installation.json"
ENV_PREFIX = "STOREBUS_"


class Connectable(Protocol):
    """All that `Bus.connect` needs to know; `api.settings.Settings` is one."""

    @property
    def amqp_url(self) -> SecretStr | str | None:
        """RabbitMQ; None: commands are submitted to the database."""

    @property
    def database_url(self) -> SecretStr | str | None:
        """Postgres; None: the embedded one that `data_dir` names."""

    @property
    def data_dir(self) -> Path:
        """Where an embedded installation lives."""


class Installation(BaseModel):
    """A running (or stopped) installation, as it wrote itself down."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    database_url: SecretStr
    """Postgres; for the embedded one over its unix socket, without the password."""
    password_file: Path | None = None
    """File holding nothing but the database password."""
    amqp_url: SecretStr | None = None
    vault_key_file: Path | None = None
    """File of the vault's key, where this user may read it."""
    api_url: str = ""
    api_port: int = 0
    pid: int = 0
    """Process of `storebus up`."""

    def dsn(self) -> str:
        """The database URL with its password. Reads a file; never print it."""
        url = self.database_url.get_secret_value()
        if self.password_file is None:
            return url
        return with_password(url, self.password_file.read_text().strip())

    @property
    def running(self) -> bool:
        """True while the process that wrote the record lives."""
        if self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def with_password(url: str, password: str) -> str:
    """`url` with the password put in; a URL that has one keeps it."""
    parts = urlsplit(url)
    if parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def default_data_dir() -> Path:
    """`$STOREBUS_DATA_DIR`; else `/var/lib/storebus` (root), `$XDG_DATA_HOME/storebus` or `~/.local/share/storebus`."""
    if given := os.environ.get(ENV_PREFIX + "DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/storebus")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "storebus"


class Environment(BaseModel):
    """What the environment says about where to connect: a Connectable."""

    model_config = ConfigDict(frozen=True)

    amqp_url: SecretStr | None
    database_url: SecretStr | None
    data_dir: Path


def from_environment() -> Environment:
    """The installation that this environment means: its URLs, else the default data directory's."""
    def url(name: str) -> SecretStr | None:
        value = os.environ.get(ENV_PREFIX + name)
        return SecretStr(value) if value else None

    return Environment(amqp_url=url("AMQP_URL"), database_url=url("DATABASE_URL"), data_dir=default_data_dir())


def write_installation(data_dir: Path, record: Installation) -> Path:
    """Write the record (mode 0600, all or nothing); its path. Blocks briefly: call it in a thread."""
    body = record.model_dump(mode="json", exclude_none=True)
    body["database_url"] = record.database_url.get_secret_value()
    if record.amqp_url is not None:
        body["amqp_url"] = record.amqp_url.get_secret_value()
    fresh = data_dir / f".{FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(body, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(data_dir / FILE)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return data_dir / FILE


def read_installation(data_dir: Path) -> Installation:
    """The record in `data_dir`. Raises Unavailable naming the cause and what to do. Blocks briefly."""
    path = data_dir / FILE
    try:
        return Installation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise Unavailable(f"no installation is in {data_dir}", field="data_dir",
                          remedy="run `storebus up`, or name its folder with --data-dir or STOREBUS_DATA_DIR") from None
    except PermissionError:
        raise Unavailable(f"{path} may not be read by this user", field="data_dir",
                          remedy="run as the user who started `storebus up`") from None
    except ValidationError:
        raise Unavailable(f"{path} is not an installation record", field="data_dir",
                          remedy="restart `storebus up`; it writes a new one") from None


__all__ = [
    "Connectable", "Environment", "Installation", "default_data_dir", "from_environment", "read_installation",
    "with_password", "write_installation",
]
