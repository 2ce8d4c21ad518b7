"""What a Swift image store is told: CloudStack's detail keys and a few more, and where tokens come from.

It owns the details' meaning and defaults. It refuses to open connections. Whatever could carry a secret outside the
secret fields (a password inside an address) is refused, so that everything but those may be shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from schema.failure import Refused
from schema.image import StoreSpec


class SwiftSettings(BaseModel):
    """Details of a Swift store. Times are milliseconds, as in CloudStack. The store's url is where tokens are given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str = Field("", description="Account. Version 1: its users sign in as account:username. Version 3: the project.")
    username: str = Field(min_length=1, description="User that signs in.")
    key: SecretStr = Field(min_length=1, description="The user's key or password.")
    authversion: Literal["", "1", "3"] = Field("", description="1 (tempauth and the like), 3 (Keystone); unset: by the url.")
    project: str = Field("", description="Keystone: project; unset: the account.")
    userdomain: str = Field("Default", min_length=1, description="Keystone: name of the user's domain.")
    projectdomain: str = Field("", description="Keystone: name of the project's domain; unset: the user's.")
    region: str = Field("", description="Keystone: region of the object store; unset: the first in the catalogue.")
    endpointtype: Literal["public", "internal", "admin"] = Field("public", description="Keystone: which of its addresses.")
    container: str = Field("storebus", description="Container of the images; made when the store is added.")
    segmentcontainer: str = Field("", description="Container of their segments; unset: the same. Links need the same.")
    storagepolicy: str = Field("", description="Policy of containers that are made; unset: the cluster's own.")
    tempurlsecret: SecretStr | None = Field(None, description="Key that signs links; unset: one is made, and kept in Swift.")
    cafile: str = Field("", description="File with the authorities that sign the certificates of tokens and store.")
    insecure: bool = Field(False, description="Take any certificate. Whoever is in between then reads keys and images.")
    proxy: str = Field("", description="HTTP proxy, http://host:port, without a password.")
    connectiontimeout: int = Field(10_000, ge=100, le=600_000, description="Milliseconds to wait for a connection.")
    sockettimeout: int = Field(60_000, ge=100, le=3_600_000, description="Milliseconds of silence before giving up.")
    maxerrorretry: int = Field(5, ge=0, le=20, description="How often a failed request is sent again.")


@dataclass(frozen=True, slots=True)
class Account:
    """Where tokens come from, and which containers are meant."""

    auth_url: str
    version: int
    """1 or 3."""
    user: str
    """As version 1 takes it: account:username."""
    project: str
    container: str
    segments: str
    proxy: str


def find_account(spec: StoreSpec, settings: SwiftSettings) -> Account:
    """The url and the details put together. Raises Refused naming what is missing or wrong."""
    url = _address(spec.url, "url")
    path = url.path.rstrip("/")
    version = int(settings.authversion or ("3" if re.search(r"/(v3|identity)$", path) else "1"))
    if version == 3 and not path.endswith("/v3"):
        path += "/v3"
    if version == 1 and not path:
        path = "/auth/v1.0"
    container = settings.container
    segments = settings.segmentcontainer or container
    for field, name in (("container", container), ("segmentcontainer", segments)):
        if not name or "/" in name or len(name) > 250:
            raise Refused("a container's name has 1 to 250 characters and no slash", field=f"details.{field}",
                          remedy="correct it")
    project = settings.project or settings.account
    if version == 3 and not project:
        raise Refused("missing", field="details.project", remedy="name the Keystone project that owns the containers")
    if settings.cafile and not Path(settings.cafile).is_file():
        raise Refused("there is no such file on this agent's host", field="details.cafile",
                      remedy="put the authority's certificate there")
    if settings.proxy:
        _address(settings.proxy, "details.proxy")
    user = f"{settings.account}:{settings.username}" if settings.account else settings.username
    return Account(auth_url=f"{url.scheme}://{url.netloc}{path}", version=version, user=user, project=project,
                   container=container, segments=segments, proxy=settings.proxy.rstrip("/"))


def _address(text: str, field: str) -> SplitResult:
    """An http(s) address in its parts; a password inside it is refused without being repeated."""
    try:
        found = urlsplit(text)
        _ = found.port
    except ValueError:
        raise Refused("not an address", field=field, remedy="correct it") from None
    if "@" in found.netloc:
        raise Refused("an address may not hold a user or password", field=field, remedy="use the details instead")
    if found.scheme not in ("http", "https") or not found.hostname or found.query or found.fragment:
        raise Refused("not an http or https address", field=field,
                      remedy="use https://host:port/auth/v1.0, or https://host:5000/v3 for Keystone"
                      if field == "url" else "use http://host:port")
    return found
