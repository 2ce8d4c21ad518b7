"""Signatures: fixed vectors, computed from the contract's steps by hand, and what must not pass."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from api.signature import Unauthorized, check_form, sign, texts, verified

SECRET = "secret-1"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PLAIN = {"command": "listZones", "response": "json", "apiKey": "Key"}
# printf 'apikey=key&command=listzones&response=json' | openssl dgst -sha1 -hmac secret-1 -binary | base64
VECTORS = [
    (PLAIN, "T7lG42LxA52xmldC96+AOLaxzzM="),
    # printf 'apikey=key&command=createvolume&name=a%%20b%%2fc*%%7ed%%c3%%a9' ...: Java's encoding, ~ as %7E and * as it is
    ({"command": "createVolume", "name": "a b/c*~dé", "apiKey": "Key"}, "S95KG+9ci8XnUEuPXSUS+GM77Gg="),
    # the same with ~ left (Python)
    ({"command": "createVolume", "name": "a b/c*~dé", "apiKey": "Key"}, "6Cl6emiGd0uEMvXLO9Lkpe8aBCo="),
    # * encoded as well (urllib's own quote)
    ({"command": "createVolume", "name": "a b/c*~dé", "apiKey": "Key"}, "iApSdvyYkNZG8hkd0gt0rGfQRDw="),
    # sorted by name as it is (Z before a) ...
    ({"command": "listZones", "Zed": "1", "apiKey": "Key"}, "gmIzCqFGvzRfFagDTMj486DmHGM="),
    # ... and in lower case
    ({"command": "listZones", "Zed": "1", "apiKey": "Key"}, "CqQQLHzc9qfenOqvecZhWLESijo="),
    # names of maps stay raw; libcloud leaves [ and ] in values too
    ({"command": "x", "tags[0].key": "a[b]", "apiKey": "Key"}, "Z+AT8oGOcsvN7zqboeRdJRI4Z6I="),
]


@pytest.mark.parametrize(("parameters", "signature"), VECTORS)
def test_what_clients_sign_is_right(parameters: dict[str, str], signature: str) -> None:
    assert verified({**parameters, "signature": signature}, SECRET)
    assert verified({**parameters, "SIGNATURE": signature}, SECRET)
    assert not verified({**parameters, "signature": signature}, "secret-2")
    assert not verified({**parameters, "signature": signature[:-2] + "A="}, SECRET)
    assert not verified({**parameters, "signature": ""}, SECRET)
    for name in parameters:
        assert not verified({**parameters, name: "other", "signature": signature}, SECRET)
    assert not verified({**parameters, "more": "1", "signature": signature}, SECRET)


def test_what_is_signed_here_is_right() -> None:
    assert sign(PLAIN, SECRET) == VECTORS[0][1] and len(texts(PLAIN)) == 1


@pytest.mark.parametrize("expires", ["2026-11-23T12:00:01+0000", "2026-11-23T12:00:01Z", "2026-11-23T14:00:01+0200", "2026-11-23T12:00:01"])
def test_a_signature_with_an_end_counts_until_then(expires: str) -> None:
    check_form({**PLAIN, "signatureVersion": "3", "expires": expires}, NOW)


@pytest.mark.parametrize("more", [
    {"signatureVersion": "3"}, {"signatureVersion": "3", "expires": "2026-11-23T12:00:00+0000"},
    {"signatureversion": "3", "expires": "2026-11-23T11:59:59Z"}, {"signatureVersion": "3", "expires": "soon"},
    {"signatureVersion": "3", "expires": "2026-11-23T13:00:00+0200"}, {"a=1&b": "2"}, {"apikey": "other"}, {"signature": "x" * 300}])
def test_what_could_be_replayed_or_read_two_ways_is_refused(more: dict[str, str]) -> None:
    with pytest.raises(Unauthorized):
        check_form({**PLAIN, **more}, NOW)
