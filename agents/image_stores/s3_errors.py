"""What went wrong with an S3 request, in the operator's words, and whether asking again may help.

It owns the reading of botocore's, aiohttp's and the system's exceptions. It refuses to retry and to know what a request
was for beyond its name. Texts are built from error codes only, never from a request, a header or an exception's text
that might hold one: that keeps credentials and signatures out of them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from agents.image_stores.security import NTP, SKEW_S, ahead, certificate_trouble, skew_words
from agents.image_stores.trouble import Damaged, Trouble
from schema.failure import Failed

_SKEW = ("details.endpoint", "the clocks of this host and of the store differ by more than S3 allows", NTP)
_KEY = ("details.accesskey", "the store does not know this access key", "give the key of an existing account")
_EXPIRED = ("details.accesskey", "the store takes these credentials no more", "give the account's current keys")
_SECRET = ("details.secretkey", "the secret key does not belong to the access key",
           "give the account's current secret key")
_BUCKET = ("details.bucket", "the bucket does not exist", "create it, or correct the name")
_DENIED = ("details.accesskey", "the account may not do this in the bucket",
           "allow it to list, get, put and delete objects and to use multipart uploads")
_REGION = ("details.region", "the bucket is in another region", "give the bucket's region")
_FULL = ("url", "the store has no room left", "free space or raise the quota")

_DEFINITE: dict[str, tuple[str, str, str]] = {
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": ("details.bucket", "S3 does not allow this bucket name", "correct the name"),
    "InvalidAccessKeyId": _KEY,
    "InvalidToken": _KEY,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "Unauthorized": _EXPIRED,
    "SignatureDoesNotMatch": _SECRET,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "InvalidObjectState": ("", "the object is archived", "restore it in the store first"),
    "NoSuchKey": ("", "the object is absent", "it was deleted or never written"),
    "NoSuchUpload": ("", "the upload was ended", "begin again"),
}
_PASSING: dict[str, tuple[str, str]] = {
    "SlowDown": ("the store asks to slow down", "try again later, or run fewer transfers at once"),
    "RequestTimeout": ("the store gave up waiting for data", "check the network to the store"),
    "BadDigest": ("the data arrived damaged", "check the network and the memory of both hosts"),
    "InvalidDigest": ("the data arrived damaged", "check the network and the memory of both hosts"),
    "IncompleteBody": ("the data arrived incomplete", "check the network to the store"),
    "XAmzContentChecksumMismatch": ("the data arrived damaged", "check the network and the memory of both hosts"),
    "XAmzContentSHA256Mismatch": ("the data arrived damaged", "check the network and the memory of both hosts"),
    "InvalidPart": ("the store does not find all parts as it acknowledged them", "try again; look into the store's log"),
    "OperationAborted": ("another request was changing the same object", "try again"),
}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
_AWAY = "check that the store runs and that this host can reach it"


def understand(error: BaseException, *, endpoint: str) -> Trouble | None:
    """What an exception of a request means; None when it is not about the request (then it is a bug, or a cancel)."""
    if isinstance(error, Failed):  # the disk's, while a part was read and sent
        return None
    if isinstance(error, boto.ClientError):
        return _answered(error.response)
    if isinstance(error, Damaged):
        return Trouble(code="Damaged", cause="the data arrived damaged or incomplete", field="url", passes=True,
                       remedy="check the network and the memory of both hosts", reached=True)
    if isinstance(error, boto.ParamValidationError):
        return Trouble(code="ParamValidation", cause="S3 does not allow this name or value", field="details.bucket",
                       remedy="correct the bucket's name")
    if isinstance(error, ResponseParserError):
        return Trouble(code="NotS3", cause=f"what answers at {endpoint} does not speak S3", field="details.endpoint",
                       remedy="check the address and the port", passes=True, reached=True)
    return _unanswered(error, endpoint)


def _answered(response: Mapping[str, Any]) -> Trouble:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _DEFINITE:
        field, cause, remedy = _DEFINITE[code]
        if _DEFINITE[code] is _SKEW:
            skew = ahead(str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")))
            if skew is not None and abs(skew) > SKEW_S:
                cause = f"{cause}: the store's is {skew_words(skew)}"
        return Trouble(code=code, field=field, cause=cause, remedy=remedy)
    if status == 401:
        return Trouble(code=code, field=_EXPIRED[0], cause=_EXPIRED[1], remedy=_EXPIRED[2])
    if status == 507:
        return Trouble(code=code, field=_FULL[0], cause=_FULL[1], remedy=_FULL[2])
    if code in _PASSING:
        cause, remedy = _PASSING[code]
        return Trouble(code=code, field="url", cause=cause, remedy=remedy, passes=True, busy=True)
    if status in _PASSING_STATUS or code in ("InternalError", "ServiceUnavailable"):
        # A 5xx says that the answer is lost, not that nothing happened.
        return Trouble(code=code, field="url", cause=f"the store answered {status} {_word(code)}".rstrip(),
                       remedy="look into the store's log; try again later", passes=True, reached=True, busy=True)
    if status in (301, 307):
        return Trouble(code=code, field=_REGION[0], cause=_REGION[1], remedy=_REGION[2])
    return Trouble(code=code, field="url", cause=f"the store refused with {status} {_word(code)}".rstrip(),
                   remedy="look the code up in the store's manual")


def _word(code: str) -> str:
    """A server's error code where it is a plain word; anything else is not repeated."""
    return code if code.isascii() and code.isalnum() and len(code) <= 60 and not code.isdigit() else ""


def _unanswered(error: BaseException, endpoint: str) -> Trouble | None:
    chain = _chain(error)
    tls = next((one for one in chain if isinstance(one, ssl.SSLError | aiohttp.ClientSSLError)), None)
    if tls is not None or any(isinstance(one, boto.SSLError) for one in chain):
        cause, remedy = certificate_trouble(chain) or (
            "it does not speak TLS there", "set usehttps to false, or give the TLS port")
        return Trouble(code="TLS", field="details.endpoint", cause=f"no secure connection to {endpoint}: {cause}",
                       remedy=remedy)
    names = [one for one in chain if isinstance(one, socket.gaierror)]
    if names or any(isinstance(one, aiohttp.ClientConnectorDNSError) for one in chain):
        return Trouble(code="DNS", field="details.endpoint", cause=f"no host by the name in {endpoint} is known",
                       remedy="correct the name, or check this host's name servers",
                       passes=any(one.errno == socket.EAI_AGAIN for one in names))
    if any(isinstance(one, boto.ProxyConnectionError | aiohttp.ClientProxyConnectionError) for one in chain):
        return Trouble(code="Proxy", field="details.proxy", cause="the proxy does not take connections",
                       remedy="correct its address", passes=True)
    connecting = (aiohttp.ClientConnectorError, boto.ConnectTimeoutError, aiohttp.ConnectionTimeoutError,
                  ConnectionRefusedError)
    if any(isinstance(one, connecting) for one in chain):
        late = any(isinstance(one, TimeoutError | boto.ConnectTimeoutError) for one in chain)
        return Trouble(code="Away", field="details.endpoint", remedy=_AWAY, passes=True,
                       cause=f"{endpoint} {'does not answer' if late else 'does not take connections'}")
    # botocore's EndpointConnectionError is here too: aiobotocore raises it for connections that broke half-way.
    broken = (aiohttp.ClientError, boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError,
              ConnectionError, TimeoutError, asyncio.IncompleteReadError, EOFError)
    if any(isinstance(one, broken) for one in chain):
        late = any(isinstance(one, TimeoutError | boto.ReadTimeoutError) for one in chain)
        return Trouble(code="Broken", field="details.endpoint", remedy=_AWAY, passes=True, reached=True, busy=not late,
                       cause=f"the connection to {endpoint} {'fell silent' if late else 'broke'}")
    if isinstance(error, OSError):
        return Trouble(code="OS", field="details.endpoint", cause=f"{endpoint} cannot be reached ({error.strerror})",
                       remedy=_AWAY, passes=True, reached=True)
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An exception with what caused it, outermost first (botocore wraps what aiohttp raised)."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo and len(found) < 20:
        one = todo.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        kwargs = getattr(one, "kwargs", None)
        inner = kwargs.get("error") if isinstance(kwargs, dict) else None
        todo += [inner if isinstance(inner, BaseException) else None, one.__cause__, one.__context__,
                 getattr(one, "os_error", None), getattr(one, "certificate_error", None)]
    return found
