"""What is true of any store that is spoken to over a network: its certificate, and its clock.

It owns the reading of a certificate that was refused and of an HTTP date. It refuses to know a store or a library beyond
Python's own ssl: words come from OpenSSL's numbers, never from a certificate's texts.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime

SKEW_S = 900
"""Seconds between the clocks of a store and of this host that a signed request bears (version 4 signatures: 15 minutes)."""
NTP = "synchronise the clocks of both with NTP"

_CERTIFICATE: dict[int, tuple[str, str]] = {
    9: ("its certificate is not valid yet", "check this host's clock, or have the certificate renewed"),
    10: ("its certificate has expired", "have the certificate renewed on the server; check this host's clock"),
    23: ("its certificate was revoked", "have another one issued for the server"),
    62: ("its certificate is for another host name", "use the name in the certificate, or have one issued for this name"),
    64: ("its certificate is for another address", "use the name in the certificate, or have one issued for this address"),
}
"""OpenSSL's X509_V_ERR_... -> cause, remedy. The others are about an authority that is not known."""


def certificate_trouble(chain: Iterable[BaseException]) -> tuple[str, str] | None:
    """Why a certificate was refused, as an exception and those behind it tell: (cause, remedy); None: it was not refused."""
    refused = [error for error in chain if isinstance(error, ssl.SSLCertVerificationError)]
    if not refused:
        return None
    code = max(int(getattr(error, "verify_code", 0)) for error in refused)  # libraries' own subclasses have none
    return _CERTIFICATE.get(code, ("its certificate is not trusted: the authority that signed it is unknown",
                                   "give the authority's certificate as cafile"))


def ahead(date: str, now: Callable[[], float] = time.time) -> float | None:
    """Seconds by which the sender of an HTTP `Date` is ahead of this host; None when it is no date. Dates have whole seconds."""
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5 - now()
    except (ValueError, TypeError, OverflowError):
        return None


def skew_words(seconds: float) -> str:
    """`12 s ahead of this host's`."""
    return f"{abs(round(seconds))} s {'ahead of' if seconds > 0 else 'behind'} this host's"


__all__ = ["NTP", "SKEW_S", "ahead", "certificate_trouble", "skew_words"]
