"""Profiles: the installations that a person works with, by name, with the keys to ask them.

Owns the file `profiles.json` of the configuration directory, which only its owner may read. Refuses to show a secret key, and to
use a file that others may read.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from api.client.connection import NOTHING, Target, base_url
from api.settings import Settings
from schema.failure import BadParameter

FILE = "profiles.json"
NAME = re.compile(r"[\w.-]{1,64}")


class Profile(BaseModel):
    """One installation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    api_key: str = ""
    secret_key: SecretStr = NOTHING
    ca_file: Path | None = None

    @property
    def target(self) -> Target:
        """Where it is, and who asks."""
        return Target(url=self.url, api_key=self.api_key, secret_key=self.secret_key, ca_file=self.ca_file)


class Profiles(BaseModel):
    """All of them."""

    model_config = ConfigDict(extra="ignore")

    use: str = ""
    """The one that is meant when nothing else is said; empty: none."""
    profiles: dict[str, Profile] = Field(default_factory=dict)

    def get(self, name: str) -> Profile:
        """Raises BadParameter when there is none of this name."""
        found = self.profiles.get(name)
        if found is None:
            raise BadParameter(f"no profile is named {name[:64]!r}", field="profile", remedy="storebus profile list shows them")
        return found


def read(config_dir: Path) -> Profiles:
    """The profiles; none where there is no file. Raises BadParameter. Blocks for a file."""
    path = config_dir / FILE
    try:
        with path.open() as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadParameter(f"{path} may be read by others, and holds keys", field="profile",
                                   remedy=f"run: chmod 600 {path}")
            return Profiles.model_validate_json(file.read())
    except FileNotFoundError:
        return Profiles()
    except (ValidationError, ValueError, UnicodeDecodeError):
        raise BadParameter(f"{path} is not a file of profiles", field="profile", remedy="remove it, and add them again") from None
    except OSError as error:
        raise BadParameter(f"{path} cannot be read: {error.strerror}", field="profile") from None


def write(config_dir: Path, found: Profiles) -> None:
    """Write them, all or nothing, for this user only. Blocks for a file."""
    config_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    body = {"use": found.use, "profiles": {name: _written(each) for name, each in sorted(found.profiles.items())}}
    fresh = config_dir / f".{FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(config_dir / FILE)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _written(profile: Profile) -> dict[str, str]:
    fields = profile.model_dump(mode="json", exclude_defaults=True)
    if profile.api_key:
        fields["secret_key"] = profile.secret_key.get_secret_value()
    return fields


def add(config_dir: Path, name: str, profile: Profile) -> None:
    """Add a profile, or put it in the place of its namesake; the first one is in use at once. Raises BadParameter."""
    if NAME.fullmatch(name) is None:
        raise BadParameter(f"{name[:64]!r} is no name of a profile", field="name",
                           remedy="letters, digits, _ . and - are allowed")
    found = read(config_dir)
    found.profiles[name] = profile.model_copy(update={"url": base_url(profile.url)})
    found.use = found.use or name
    write(config_dir, found)


def use(config_dir: Path, name: str) -> None:
    """Mean this one from now on; empty: none. Raises BadParameter."""
    found = read(config_dir)
    if name:
        found.get(name)
    found.use = name
    write(config_dir, found)


def remove(config_dir: Path, name: str) -> None:
    """Forget one. Raises BadParameter."""
    found = read(config_dir)
    found.get(name)
    del found.profiles[name]
    if found.use == name:
        found.use = ""
    write(config_dir, found)


def target_of(given: str, settings: Settings | None = None) -> Target:
    """What a URL, or a profile's name, means; what is in use when it is empty. Raises BadParameter."""
    if "://" in given:
        return Target(url=base_url(given))
    settings = settings or Settings()
    found = read(settings.config_dir)
    name = given or settings.profile or found.use
    if not name:
        raise BadParameter("no profile is in use", field="profile",
                           remedy="name a URL or a profile, or: storebus profile use NAME")
    return found.get(name).target


__all__ = ["FILE", "Profile", "Profiles", "add", "read", "remove", "target_of", "use", "write"]
