"""TLS in front of a server that speaks without: an authority of one test, and a forwarder with a certificate of its."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder: Path, *, host: str = "127.0.0.1", expired: bool = False) -> tuple[Path, Path]:
    """The files of an authority's certificate and of a server's, with its key, for the address `host`; `expired`: since
    a second."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("test authority", "test server")]

    def build(which: int) -> x509.CertificateBuilder:
        return (x509.CertificateBuilder().subject_name(names[which]).issuer_name(names[0]).public_key(keys[which].public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(seconds=-1 if which and expired else 86400)))

    authority = build(0).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(keys[0], hashes.SHA256())
    server = build(1).add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]),
                                    critical=False).sign(keys[0], hashes.SHA256())
    (folder / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM) + keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "ca.pem", folder / "server.pem"


@asynccontextmanager
async def behind_tls(url: str, server: Path) -> AsyncIterator[str]:
    """https://127.0.0.1:port, which forwards all bytes to the host and port of `url`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    parts = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while piece := await source.read(1 << 16):
                sink.write(piece)
                await sink.drain()
        sink.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection(parts.hostname, parts.port)
        for one in (copy(reader, down), copy(up, writer)):
            task = asyncio.ensure_future(one)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()
