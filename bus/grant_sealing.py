"""Sealing to one agent: what leaves the vault is readable by the agent it is for, and by nobody on the way; and back.

X25519 with a fresh key each time, HKDF-SHA256, AES-256-GCM; the associated data says which reference, agent and order it is
for, so a sealed secret cannot be passed off as another. Refuses to keep anything.
"""

from __future__ import annotations

import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from schema.failure import Denied


def answer_to(work_id: UUID) -> bytes:
    """What a secret is about that an agent seals to the vault: the work that it was asked for by."""
    return f"answer|{work_id}".encode()


def _key(shared: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"storebus grant|" + info).derive(shared)


def seal_to(public_key: bytes, clear: bytes, about: bytes) -> bytes:
    """`clear`, readable by the owner of `public_key` (32 bytes) who says the same `about`."""
    fresh = X25519PrivateKey.generate()
    mine = fresh.public_key().public_bytes_raw()
    nonce = os.urandom(12)
    key = _key(fresh.exchange(X25519PublicKey.from_public_bytes(public_key)), mine + public_key)
    return mine + nonce + AESGCM(key).encrypt(nonce, clear, about)


def unseal(private_key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What was sealed to this private key about this. Raises Denied for anything else."""
    own = X25519PrivateKey.from_private_bytes(private_key)
    theirs, nonce, body = sealed[:32], sealed[32:44], sealed[44:]
    try:
        key = _key(own.exchange(X25519PublicKey.from_public_bytes(theirs)), theirs + own.public_key().public_bytes_raw())
        return AESGCM(key).decrypt(nonce, body, about)
    except (InvalidTag, ValueError):
        raise Denied("a secret was not sealed to this reader for this work", field="sealed") from None
