"""Which installation a command of the command line means, and how its settings came about.

Owns settings with options over the environment, their origins and their masking, and where the database and the API
of an installation are found. Refuses to run anything.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr, ValidationError

from api import profiles
from api.client.connection import NOTHING, Target, base_url
from api.first_keys import read_keys
from api.settings import Settings
from bus.installation import Installation, read_installation
from schema.failure import BadParameter, Unavailable

ENV = "STOREBUS_"
HIDDEN = "********"


def settings(**options: Any) -> Settings:
    """The settings: options that were given, then the environment, then the defaults. Raises BadParameter by name."""
    try:
        return Settings(**given(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise BadParameter(str(first["msg"]), field=f"{ENV}{name.upper()}",
                           remedy="storebus config shows every setting") from None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def dsn(found: Settings) -> str:
    """The database of the installation. Raises Unavailable saying where it was looked for. Reads files."""
    if found.database_url is not None:
        return found.database_url.get_secret_value()
    record = read_installation(found.data_dir)
    if not record.running:
        raise Unavailable(f"the installation in {found.data_dir} is not running", field="data_dir",
                          remedy="start it with `storebus up`, or name a database with --database-url")
    return record.dsn()


def api_url(found: Settings, url: str | None = None) -> str:
    """Where the API answers: what was given, what the installation wrote down, or the listener's settings."""
    if url:
        return url.rstrip("/").removesuffix("/client/api")
    if "api_port" not in found.model_fields_set:
        try:
            record: Installation = read_installation(found.data_dir)
            if record.api_url:
                return record.api_url
        except Unavailable:
            pass
    host = f"[{found.api_host}]" if ":" in found.api_host else found.api_host
    return f"http://{host}:{found.api_port}"


def target(found: Settings, *, url: str | None = None, profile: str | None = None) -> Target:
    """Which API is asked, and as whom: what was given; else a data directory that was chosen; else the profile in use; else the
    installation of the default data directory. Keys of the environment come before a profile's and an installation's. Reads
    files. Raises BadParameter."""
    if url and profile:
        raise BadParameter("give either a URL or a profile", field="profile", remedy="leave one of them out")
    name = profile or found.profile
    if not (url or name or "data_dir" in found.model_fields_set):
        name = profiles.read(found.config_dir).use
    if name and not url:
        chosen = profiles.read(found.config_dir).get(name).target
    else:
        api_key, secret_key = read_keys(found.data_dir) or ("", "")
        chosen = Target(url=base_url(api_url(found, url)), api_key=api_key, secret_key=SecretStr(secret_key))
    if found.api_key or found.secret_key:
        chosen = replace(chosen, api_key=found.api_key, secret_key=found.secret_key or NOTHING)
    return chosen


def masked(value: Any) -> Any:
    """A setting's value fit to be shown: of a URL everything but its secrets, of other secrets nothing."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, SecretStr):
        return value
    text = value.get_secret_value()
    try:
        parts = urlsplit(text)
        if not (parts.scheme and parts.hostname):
            return HIDDEN
        user = f"{parts.username}:{HIDDEN}@" if parts.password else f"{parts.username}@" if parts.username else ""
        where = parts.netloc.rpartition("@")[2]
        query = re.sub(r"=[^&]*", f"={HIDDEN}", parts.query)
        return urlunsplit(parts._replace(netloc=user + where, query=query))
    except ValueError:
        return HIDDEN


def origins(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Every setting: name, value (secrets masked), origin (option, environment, default), meaning."""
    found, chosen = settings(**options), given(options)
    rows = []
    for name, info in Settings.model_fields.items():
        origin = "option" if name in chosen else "environment" if name in found.model_fields_set else "default"
        rows.append({"name": ENV + name.upper(), "value": masked(getattr(found, name)), "origin": origin,
                     "description": info.description or ""})
    return rows


__all__ = ["api_url", "dsn", "given", "masked", "origins", "settings", "target"]
