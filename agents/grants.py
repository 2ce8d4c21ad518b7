"""Grants: an agent's key, and how it comes by the secrets that an order only names.

Owns the key file and the call to the vault's service. Refuses to write a secret anywhere: it is given to the caller, who
keeps it in memory for as long as the work lasts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bus.errors import BrokerAway, CallTimedOut, NoHandler, PublishUnknown, Unroutable
from bus.grant_sealing import unseal
from bus.rpc import Caller
from bus.transport import Transport
from schema.failure import WorkRetryable
from schema.image import StoreSpec
from schema.message import Order, Secret

SERVICE = "vault.grant"
TRIES = 60


class Grants:
    """One agent's key and its way to the vault."""

    def __init__(self, agent: str, private_key: bytes, transport: Transport) -> None:
        self.agent, self._key = agent, private_key
        self._caller = Caller(transport)

    @property
    def public_key(self) -> str:
        """Base64, for the hello."""
        return base64.b64encode(X25519PrivateKey.from_private_bytes(self._key).public_key().public_bytes_raw()).decode()

    def proof(self, token: bytes) -> str:
        """What lets the agent in: HMAC-SHA256 of `<agent>|<public key>` under the enrolment token."""
        return hmac.new(token, f"{self.agent}|{self.public_key}".encode(), hashlib.sha256).hexdigest()

    async def secrets(self, order: Order) -> dict[str, str]:
        """Clear values by the name of the detail that refers to them (of the store that is only read from where there are two,
        with `source.` before it); asked for anew at each start of the work.

        Waits (bounded) while the vault's service is away, then raises WorkRetryable; raises what it refuses.
        """
        names = {f"{prefix}{name}": value for prefix, field in (("", "store"), ("source.", "source"))
                 if isinstance(spec := getattr(order, field, None), StoreSpec)
                 for name, value in spec.details.items() if Secret.is_reference(value)}
        if not names:
            return {}
        request = {"agent": self.agent, "job_id": str(order.job_id), "work_id": str(order.work_id),
                   "attempt": order.attempt, "refs": sorted(set(names.values()))}
        for left in reversed(range(TRIES)):
            try:
                answer = await self._caller.call(SERVICE, request, timeout_s=10)
                break
            except (NoHandler, Unroutable, CallTimedOut, BrokerAway, PublishUnknown) as away:
                if not left:  # nothing was begun: the same order may work later
                    raise WorkRetryable(f"the store's secrets cannot be had: {away}",
                                        remedy="see whether handlers run") from None
                await asyncio.sleep(1.0)
        sealed = answer["sealed"]
        return {name: unseal(self._key, base64.b64decode(sealed[ref]),
                             f"{ref}|{self.agent}|{order.work_id}".encode()).decode() for name, ref in names.items()}

    async def aclose(self) -> None:
        """End the calls."""
        await self._caller.aclose()


def load_or_create_key(path: Path) -> bytes:
    """The agent's private key: a file for this user only, made at the first start. Blocks briefly."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(X25519PrivateKey.generate().private_bytes_raw())
    return path.read_bytes()
