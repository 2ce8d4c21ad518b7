"""Certificates of what is spoken to with TLS: when they end.

Owns the look at a server's certificate, whoever signed it: whether it is trusted is found out by who uses it. Refuses to send
anything but a handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from cryptography import x509

from api.cli_bus import views
from api.cli_target import api_url
from api.doctor.finding import Finding, span_text
from api.settings import Settings
from schema.failure import Failed

LOOK_S = 5.0
SOON = timedelta(days=30)
PORTS = {"https": 443, "amqps": 5671}
"""Schemes that are TLS from the first byte, and their ports."""
MOST = 50
"""Servers that are looked at."""


async def ends(host: str, port: int) -> datetime:
    """When the certificate that a server shows ends. Raises OSError, TimeoutError or ValueError."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its end is asked for, not whom it belongs to
    async with asyncio.timeout(LOOK_S):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.close()
    if not shown:
        raise ValueError("it shows no certificate")
    return x509.load_der_x509_certificate(shown).not_valid_after_utc


async def judge(urls: Iterable[str]) -> list[Finding]:
    """One for each server that is spoken to with TLS."""
    places: dict[str, tuple[str, int]] = {}
    for url in urls:
        try:
            parts = urlsplit(url)
            if parts.scheme in PORTS and parts.hostname:
                port = parts.port or PORTS[parts.scheme]
                places[f"{parts.hostname}:{port}"] = (parts.hostname, port)
        except ValueError:
            continue
    chosen = sorted(places)[:MOST]
    found = list(await asyncio.gather(*(_one(name, *places[name]) for name in chosen)))
    return found or [Finding("ok", "nothing is spoken to with TLS")]


async def _one(name: str, host: str, port: int) -> Finding:
    try:
        end = await ends(host, port)
    except (OSError, TimeoutError, ValueError) as error:
        return Finding("warning", f"no certificate could be seen: {error or type(error).__name__}", "see whether it answers",
                       name)
    left = end - datetime.now(UTC)
    if left <= timedelta(0):
        return Finding("fault", f"it ended on {end:%Y-%m-%d}", "renew the certificate and load it into the server", name)
    text = f"it ends on {end:%Y-%m-%d}, in {span_text(left.total_seconds())}"
    return Finding("warning", text, "renew it", name) if left < SOON else Finding("ok", text, of=name)


async def certificates(settings: Settings) -> list[Finding]:
    """Of the API, the broker and the image stores."""
    urls = [await asyncio.to_thread(api_url, settings)]
    if settings.amqp_url is not None:
        urls.append(settings.amqp_url.get_secret_value())
    try:
        async with views(settings) as model:
            rows, _ = await model.rows("image_store", {"removed": None})
        urls += [str(row["url"] or "") for row in rows]
    except Failed:
        pass  # the database's own check tells
    return await judge(urls)


__all__ = ["certificates", "ends", "judge"]
