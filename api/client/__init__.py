"""The Python client: every command of the API as a typed method, jobs with progress, lists that page.

    async with Client.connect("https://cloud.example", api_key=..., secret_key=...) as client:
        job = await client.create_volume(name="data", size=1)
        async for step in job.progress():
            print(step.percent, step.stage)
        volume = await job.result()

Owns how a client is made. What it raises is `schema.failure`'s tree, as in the process that refused. A command is sent with its
job's id, so a lost answer is asked for again, for a bounded time, and the command happens once. Refuses to know a database or a
broker: those are `bus.client`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import SecretStr

from api.client.commands import Commands
from api.client.connection import PATIENCE_S, REQUEST_S, Target
from api.client.job import Job, Progress
from api.client.listing import Listing


class Client(Commands):
    """One API, as one caller. Use it as an async context manager."""

    @classmethod
    def connect(cls, target: str = "", *, api_key: str = "", secret_key: str | SecretStr = "", username: str = "",
                password: str | SecretStr = "", domain: str = "/", ca_file: Path | str | None = None,
                timeout_s: float = REQUEST_S, patience_s: float = PATIENCE_S) -> Self:
        """A client of the API at a URL, or of a profile (`storebus profile`); without `target`, of the profile in use.

        With keys requests are signed; with a username and a password it logs in when entered; with neither it asks as the
        listener on loopback takes everybody. Keys that are given replace the profile's. `timeout_s`: longest for one request;
        `patience_s`: how long the API may be away. Raises BadParameter. Reads a file where a profile is meant."""
        from api.profiles import target_of  # which stands on this package's targets

        found = target_of(target)
        secret, word = _secret(secret_key), _secret(password)
        if api_key or secret_key or username:
            found = Target(url=found.url, api_key=api_key, secret_key=secret, username=username, password=word, domain=domain,
                           ca_file=found.ca_file)
        if ca_file is not None:
            found = Target(url=found.url, api_key=found.api_key, secret_key=found.secret_key, username=found.username,
                           password=found.password, domain=found.domain, ca_file=Path(ca_file))
        return cls(found, timeout_s=timeout_s, patience_s=patience_s)


def _secret(value: str | SecretStr) -> SecretStr:
    return value if isinstance(value, SecretStr) else SecretStr(value)


__all__ = ["Client", "Job", "Listing", "Progress", "Target"]
