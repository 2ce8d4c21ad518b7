"""Settings: the environment read once, into one frozen object, at start. Nothing else reads the environment.

Every field is `STOREBUS_<FIELD>`; the command line overrides it. `storebus config` prints each with its origin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.installation import default_data_dir


def default_config_dir() -> Path:
    """`$XDG_CONFIG_HOME/storebus`, or `~/.config/storebus`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "storebus"


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="STOREBUS_", frozen=True, extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir, description="Where an embedded installation lives.")
    config_dir: Path = Field(default_factory=default_config_dir, description="Where a person's profiles are kept.")
    profile: str = Field("", description="The profile that the command line and the Python client mean; unset: the one in use.")
    api_key: str = Field("", description="With secret_key: who the command line asks the API as, in place of a profile's keys.")
    secret_key: SecretStr | None = Field(None, description="Of api_key; `storebus profile add` keeps it.")
    amqp_url: SecretStr | None = Field(None, description="RabbitMQ, amqp(s)://user:password@host:port/vhost; unset: memory.")
    database_url: SecretStr | None = Field(None, description="Postgres 15 to 18; unset: the embedded server in data_dir.")
    api_host: str = Field("127.0.0.1", description="Address of the HTTP listener; without identity it belongs on loopback.")
    api_port: int = Field(8096, ge=0, le=65535,
                          description="Port of the HTTP listener, CloudStack's integration port; 0: any free.")
    identity: bool = Field(False, description="The HTTP listener takes signed requests and logins only; "
                           "data_dir/admin.keys holds the first admin's keys.")
    open_port: int | None = Field(None, ge=0, le=65535, description="With identity: port of a second listener, on 127.0.0.1, "
                                  "without authentication; unset: there is none.")
    api_limit: int = Field(2500, ge=0, description="Requests that one user, or one address without a user, may send to an API "
                           "process in api_limit_interval, all at once if need be; 0: no limit.")
    api_limit_interval: int = Field(10, ge=1, le=3600, description="Seconds in which api_limit requests may be sent.")
    zone: str = Field("zone-1", description="Name of the zone that is made at first start.")
    primary_path: Path | None = Field(None, description="Folder of the primary store; unset: data_dir/primary.")
    primary_devices: str = Field("", description="Block devices of a primary store, comma-separated absolute paths "
                                 "(/dev/disk/by-id/...): one volume on each. Only free and empty ones are taken.")
    agent_machines: Path | None = Field(None, description="Folder that says which machines the KVM agent runs, a JSON file for "
                                        "each; unset: none.")
    agent_name: str = Field("", description="Name of this agent; unset: <host>-<role>.")
    agent_token: SecretStr | None = Field(
        None, description="Enrolment token shared by handlers and agents; unset: data_dir/agent.token.")
    vault_key: SecretStr | None = Field(None, description="Base64 AES-256 key of the vault; unset: data_dir/vault.key.")
    download_allow: str = Field("", description="What the URL guard lets through besides public addresses and ports 80 and 443: "
                                "comma-separated networks with optional ports, e.g. 127.0.0.0/8:8000-8999.")
    max_image_bytes: int = Field(50 << 30, description="Largest object that a download may be, bytes.")
    max_virtual_size: int = Field(2000 << 30, description="Largest virtual disk, bytes (CloudStack's storage.max.volume.size).")
    max_volume_gib: int = Field(2000, description="Largest volume, GiB.")
    snapshot_chain: int = Field(8, ge=1, le=100, description="Links of a chain of incremental snapshots, the full one among "
                                "them (CloudStack's snapshot.delta.max); 1: every backup is full.")
    snapshot_collapse: int = Field(10, ge=0, le=100, description="Deleted snapshots that others are built on are merged into "
                                   "these when at least so many percent of the bytes that are moved may be given back; 0: "
                                   "always, 100: never.")
    snapshot_compression: Literal["none", "zstd"] = Field("none", description="How full backups are compressed on the way to "
                                                          "their store; the KVM agent's host needs the extra zstd.")
    volume_expunge_delay_s: int = Field(86_400, ge=0, description="Seconds for which a destroyed volume can be recovered; then "
                                        "it is expunged (CloudStack's storage.cleanup.delay).")
    extract_lifetime_s: int = Field(14_400, ge=1, le=604_800, description="Seconds for which the URL of an extraction is good, "
                                    "unless the caller says so (CloudStack's extract.url.expiration.interval).")
    public_templates: bool = Field(True, description="Accounts outside of ROOT may make their templates public (CloudStack's "
                                   "allow.public.user.templates).")
    scrub_every: str = Field("", description="How often every image store is scrubbed by itself, e.g. 1d, 12h, 30m; "
                             "unset: never.")
    scrub_share: str = Field("5%", description="How much of a store one scrub by itself reads, e.g. 5% or 0.05.")
    transfers: int = Field(4, ge=1, le=64, description="Transfers that an agent runs at once.")
    parts_in_flight: int = Field(4, ge=1, le=32, description="Parts of one transfer that are on their way at once.")
    stall_seconds: float = Field(60.0, gt=0, le=86_400, description="Seconds after which a transfer of which no byte moves is "
                                 "ended; nothing limits how long one takes that moves.")
    agent_bytes_per_second: int = Field(0, ge=0, description="Bytes a second that an agent moves to and from image stores, all "
                                        "transfers together; 0: no limit.")
    amqp_users: str = Field("", description="The broker's users who may send commands: user=tenant,...; unset: every user the "
                            "broker lets in, in the tenant root. With identity: user=name,... or user=domain/path/name,..., the "
                            "account's user that each is; nobody else is let in.")
    cloudstack_events: bool = Field(False, description="Publish CloudStack's own events too: to the exchange cloudstack-events, "
                                    "with CloudStack's routing keys and bodies.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING, ERROR.")
    log_format: str = Field("text", description="text or json.")
    failpoints: str = Field("", description="For fault tests: name=kill,name=raise,name=sleep:S at named places of the code.")
