"""The vault: secrets sealed before the first append, so that the log, which is for ever, only ever holds references.

Owns the sealed form (AES-256-GCM; key id, nonce, ciphertext; the reference's uuid as associated data, so that one
sealed secret cannot be passed off as another) and the key file. Refuses to log, print or raise a secret or a key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bus.event_store import EventStore
from bus.grant_sealing import answer_to, unseal
from schema.failure import BadParameter, Denied, Failed
from schema.message import Secret

KEY_BYTES = 32
_FORM = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12


class VaultBroken(Failed):
    """A reference names nothing, or what it names cannot be opened with the keys that this process has."""


def parse_key(text: str) -> bytes:
    """A base64 AES-256 key. Raises BadParameter without repeating the text."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise BadParameter("it is not the base64 form of 32 bytes", field="vault_key",
                           remedy="`openssl rand -base64 32` makes one")
    return key


def load_or_create_key(path: Path) -> bytes:
    """The key in `path` (base64, mode 0600), made at first. Blocks for a few file operations: call it in a thread.

    Raises BadParameter when others may read the file or when it holds no key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # of two processes starting at once, the first one's counts
                path.hardlink_to(fresh)
        finally:
            fresh.unlink()
    if path.stat().st_mode & 0o077:
        raise BadParameter(f"others may read {path}", field="vault_key", remedy=f"chmod 600 {path}")
    return parse_key(path.read_text())


class Vault:
    """Seals and opens secrets. `old_keys` only open: give a new key first, keep the old ones until all is resealed."""

    def __init__(self, store: EventStore, key: bytes, *, old_keys: Sequence[bytes] = ()) -> None:
        self._store = store
        self._key = key
        self._keys = (key, *old_keys)
        self._ciphers = {_key_id(each): AESGCM(each) for each in self._keys}

    def __repr__(self) -> str:
        """Without the key."""
        return f"Vault(key_id={_key_id(self._key).hex()})"

    async def seal(self, value: str, *, name: str = "") -> str:
        """Keep `value`; its reference `vault:<uuid>`.

        With a `name` (a job id and a field) the same value gets the same reference, so that a command which is sent
        twice stays the same command; another value gets another one.
        """
        if name:
            digest = hmac.digest(self._key, b"storebus vault\0" + f"{name}\0{value}".encode(), "sha256")
            id = UUID(bytes=digest[:16], version=4)  # noqa: A001 - the contract's word
        else:
            id = uuid4()  # noqa: A001 - the contract's word
        nonce = secrets.token_bytes(_NONCE_BYTES)
        key_id = _key_id(self._key)
        sealed = _FORM + key_id + nonce + self._ciphers[key_id].encrypt(nonce, value.encode(), id.bytes)
        await self._store.put_secret(id, sealed)
        return f"{Secret.PREFIX}{id}"

    async def open(self, reference: str) -> str:
        """The secret that `reference` stands for. Raises VaultBroken; the text never holds the secret."""
        id = _id_of(reference)  # noqa: A001 - the contract's word
        sealed = await self._store.get_secret(id)
        if sealed is None:
            raise VaultBroken(f"{reference} names no secret",
                              remedy="it was erased, or the database was restored without it")
        head = len(_FORM) + _ID_BYTES
        cipher = self._ciphers.get(sealed[len(_FORM):head])
        if sealed[:len(_FORM)] != _FORM or cipher is None:
            raise VaultBroken(f"{reference} was sealed with a key that is not here",
                              remedy="set STOREBUS_VAULT_KEY, or put back the data directory's vault.key")
        try:
            return cipher.decrypt(sealed[head:head + _NONCE_BYTES], sealed[head + _NONCE_BYTES:], id.bytes).decode()
        except (InvalidTag, ValueError):
            raise VaultBroken(f"what {reference} names was altered", remedy="set the secret again") from None

    @property
    def public_key(self) -> str:
        """Base64 X25519 key to which an agent seals a secret that it was asked to make (a link's URL). It follows from the
        vault's key."""
        return base64.b64encode(_answering(self._key).public_key().public_bytes_raw()).decode()

    def unseal(self, sealed: str, work_id: UUID) -> str:
        """The secret that an agent sealed to this vault's public key for this work. Raises VaultBroken."""
        for key in self._keys:
            with contextlib.suppress(Denied, ValueError):
                return unseal(_answering(key).private_bytes_raw(), base64.b64decode(sealed, validate=True),
                              answer_to(work_id)).decode()
        raise VaultBroken("what an agent sealed cannot be opened: it is of another work, or for a key that is not here",
                          remedy="ask for it again")

    async def drop(self, reference: str) -> None:
        """Erase the secret; an unknown one counts as erased."""
        await self._store.drop_secret(_id_of(reference))


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"storebus key id\0" + key).digest()[:_ID_BYTES]


def _answering(key: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(
        HKDF(algorithm=SHA256(), length=32, salt=None, info=b"storebus vault answers").derive(key))


def _id_of(reference: str) -> UUID:
    try:
        if not Secret.is_reference(reference):
            raise ValueError
        return UUID(reference.removeprefix(Secret.PREFIX))
    except ValueError:
        # The text is not repeated: it may be the secret itself.
        raise VaultBroken("a value that should be a vault reference is not one",
                          remedy="send the secret through the API") from None


__all__ = ["KEY_BYTES", "Vault", "VaultBroken", "load_or_create_key", "parse_key"]
