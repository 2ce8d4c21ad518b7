"""Credentials: passwords as salted hashes, and pairs of keys. What is secret leaves here for the vault and for nowhere else.

Owns the form of a hash and how keys are made. Refuses to keep anything. Rule: a password is hashed before it is put into a
message, and a secret key is shown once, by the answer to the request that made it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from typing import Any
from uuid import UUID

from api.api_command import ApiCommand
from schema.identity import RegisterUserKeys

COST = {"n": 1 << 14, "r": 8, "p": 1}
"""scrypt: 16 MiB and some 30 ms for each look at a password."""
KEY_BYTES = 48
HASHING = asyncio.Semaphore(4)
"""Passwords looked at at once: each takes memory and a thread."""


def new_key() -> str:
    """A key: 64 letters, digits, - and _."""
    return secrets.token_urlsafe(KEY_BYTES)


def hashed(password: str, salt: bytes) -> str:
    """`scrypt$<salt>$<hash>`, base64. Takes a while: call it in a thread."""
    found = hashlib.scrypt(password.encode(), salt=salt, dklen=32, **COST)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(found).decode()}"


def _matches(password: str, known: str) -> bool:
    kind, _, rest = known.partition("$")
    salt, _, _ = rest.partition("$")
    return kind == "scrypt" and hmac.compare_digest(hashed(password, base64.b64decode(salt)).encode(), known.encode())


async def matches(password: str, known: str) -> bool:
    """Whether `known`, made by `hashed`, is of this password."""
    async with HASHING:
        return await asyncio.to_thread(_matches, password, known)


async def prepare(command: ApiCommand, values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    """Replace a password in a request by its hash, and make the keys that it asks for: what the answer shows once, if any.

    The salt is the job's id: the same request sent again as the same job is the same command."""
    if command.command is None:
        return {}
    if "password" in values and "password" in command.command.SECRETS:
        async with HASHING:
            values["password"] = await asyncio.to_thread(hashed, values["password"], job_id.bytes)
    if command.command is RegisterUserKeys:
        values |= {"apikey": new_key(), "secretkey": new_key()}
        return {command.item: {"apikey": values["apikey"], "secretkey": values["secretkey"]}}
    return {}


__all__ = ["hashed", "matches", "new_key", "prepare"]
