"""The URL guard: the gate before any request that a user's URL causes. Resolve, check, pin; again at each redirect.

Rules: http and https only, no user or password in it, ports 80 and 443 or allowed ones, every address the name resolves to
must be public or allowed, and the connection goes to an address that was checked. Forms of IPv4 that only some
resolvers understand (decimal, hex, octal, short) are refused rather than interpreted, and so is a URL that the HTTP client
would read in another way. Refuses to fetch anything itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from yarl import URL

from schema.failure import BadParameter, WorkRetryable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str], Awaitable[list[str]]]

PORTS = frozenset({80, 443})
MAX_URL = 2048
NOT_PUBLIC = tuple(ipaddress.ip_network(network) for network in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32",
    "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
))
"""Not on the public internet (the IANA special-purpose registries), and a cloud's metadata service that has a public address."""
NAT64, SIX_TO_FOUR = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16")
_LOOKS_NUMERIC = re.compile(r"(^|\.)(0x[0-9a-f]*|\d+)\.?$", re.IGNORECASE)
"""No top-level domain is a number: what ends in one is meant as an address."""
_ALLOWED = re.compile(r"(?:(?P<v4>[0-9.]+(?:/\d+)?)|\[(?P<v6>[0-9a-fA-F:.]+(?:/\d+)?)\]|(?P<bare>[0-9a-fA-F:.]+/\d+))"
                      r"(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?")
_LABEL = re.compile(r"^(?!-)[a-z0-9_-]{1,63}(?<!-)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A network, with the ports that may be reached there (empty: the usual ones)."""

    network: IPNetwork
    first: int = 0
    last: int = 0

    def port(self, port: int) -> bool:
        """Whether this port may be reached there."""
        return self.first <= port <= self.last if self.first else port in PORTS


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL and the address to connect to."""

    url: str
    host: str
    port: int
    addresses: tuple[str, ...]


def parse_allow(text: str) -> tuple[Allowed, ...]:
    """`127.0.0.0/8:8000-8999,10.0.0.5/32,[fd00::/8]:80`. Raises BadParameter naming the entry."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        matched = _ALLOWED.fullmatch(entry)
        try:
            if matched is None:
                raise ValueError("it is not network[:port[-port]]")
            first = int(matched["first"] or 0)
            last = int(matched["last"] or first)
            if (matched["first"] and not 0 < first <= 65535) or not first <= last <= 65535:
                raise ValueError("ports are 1 to 65535, the lower one first")
            found.append(Allowed(ipaddress.ip_network(matched["v4"] or matched["v6"] or matched["bare"]), first, last))
        except ValueError as error:
            raise BadParameter(f"{entry!r}: {error}", field="STOREBUS_DOWNLOAD_ALLOW",
                               remedy="write it as 127.0.0.0/8:8000-8999") from None
    return tuple(found)


async def system_resolve(host: str) -> list[str]:
    """Every address of a name, by this host's resolver. Raises BadParameter, WorkRetryable when the resolver is away."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == socket.EAI_AGAIN:
            raise WorkRetryable(f"{host} cannot be resolved for now: {error.strerror}", field="url",
                                remedy="it is tried again") from None
        raise BadParameter(f"{host} cannot be resolved: {error.strerror}", field="url") from None
    return sorted({str(entry[4][0]).split("%")[0] for entry in found})


class UrlGuard:
    """One policy, asked about every URL and every redirect."""

    def __init__(self, allow: tuple[Allowed, ...] = (), resolve: Resolve = system_resolve) -> None:
        self.allow, self._resolve = allow, resolve

    async def check(self, url: str, *, base: str = "") -> Target:
        """The target of a URL (or of a redirect from `base`). Raises BadParameter naming what is wrong."""
        _refuse_odd_text(url)  # before it is joined: joining would drop some of it
        try:
            url = urljoin(base, url) if base else url
        except ValueError as error:
            raise BadParameter(f"it cannot be parsed: {error}", field="url") from None
        host, port = self._parts(url)
        literal = _literal(host)
        addresses = [str(literal)] if literal is not None else await self._resolve(host)
        if not addresses:
            raise BadParameter(f"{host} has no address", field="url")
        for address in addresses:
            self._address(ipaddress.ip_address(address), port, host)
        return Target(url, host, port, tuple(addresses))

    def _parts(self, url: str) -> tuple[str, int]:
        try:
            parts = urlsplit(url)
            port, client = parts.port, URL(url)
        except (ValueError, IndexError) as error:  # the client's parser has both for brackets that are not closed
            raise BadParameter(f"it cannot be parsed: {error}", field="url") from None
        if parts.scheme not in ("http", "https"):
            raise BadParameter(f"{parts.scheme or 'no scheme'}: only http and https are fetched", field="url")
        if parts.username is not None or parts.password is not None:
            raise BadParameter("a user or password in the URL is refused: it would be kept for ever", field="url")
        if not (parts.hostname or "").strip("."):
            raise BadParameter("it names no host", field="url")
        if port == 0:
            raise BadParameter("port 0 is not fetched from", field="url", remedy="use 80 or 443")
        if "[" in parts.netloc and ":" not in (parts.hostname or ""):
            raise BadParameter("brackets hold an IPv6 address and nothing else", field="url")
        _refuse_odd_literal(parts.hostname or "")
        host = (client.raw_host or "").rstrip(".")  # in ASCII, as it is asked for
        if not _same(parts.hostname or "", host) or client.user is not None or port != client.explicit_port:
            raise BadParameter("it can be read in more than one way", field="url", remedy="write it plainly")
        return host, port or (443 if parts.scheme == "https" else 80)

    def _address(self, address: IPAddress, port: int, host: str) -> None:
        for inner in (address, *_embedded(address)):
            allowed = [entry for entry in self.allow if inner.version == entry.network.version and inner in entry.network]
            if any(entry.port(port) for entry in allowed):
                continue
            if any(inner.version == network.version and inner in network for network in NOT_PUBLIC):
                raise BadParameter(f"{host} is {inner}, which is not a public address", field="url",
                                   remedy="allow it with STOREBUS_DOWNLOAD_ALLOW if it is meant")
            if port not in PORTS:
                raise BadParameter(f"port {port} is not fetched from", field="url",
                                   remedy="use 80 or 443, or allow it with STOREBUS_DOWNLOAD_ALLOW")


def _refuse_odd_text(url: str) -> None:
    if len(url) > MAX_URL or any(ord(char) < 33 or ord(char) == 127 for char in url) or "\\" in url:
        raise BadParameter("it is too long, or holds spaces, control characters or backslashes", field="url")


def _refuse_odd_literal(host: str) -> None:
    """An address in a form that not everybody reads alike, or none of the name's forms."""
    try:
        ipaddress.ip_address(host.rstrip("."))
        odd = "%" in host  # a zone: which interface is meant is this host's affair
    except ValueError:
        odd = _LOOKS_NUMERIC.search(host) is not None or "%" in host or ":" in host
    if odd:
        raise BadParameter(f"{host[:64]!r} is an address in a form that is not accepted", field="url",
                           remedy="write it as four decimal numbers, or as IPv6 in brackets")


def _same(written: str, host: str) -> bool:
    """Whether the client's host is the one that was written, but for its letters' case and its spelling in ASCII."""
    written = written.rstrip(".")
    if not written.isascii():
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return True  # it is looked up under the ASCII name, which is what is checked
        return False  # letters that only look like digits
    try:
        return ipaddress.ip_address(written) == ipaddress.ip_address(host)
    except ValueError:
        return written.lower() == host.lower()


def _literal(host: str) -> IPAddress | None:
    """The address when the host is written as one, None for a name. Raises for what is neither."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    _refuse_odd_literal(host)
    if len(host) > 253 or not all(_LABEL.match(label) for label in host.split(".")):
        raise BadParameter(f"{host[:64]!r} is not a host name", field="url")
    return None


def _embedded(address: IPAddress) -> list[IPAddress]:
    """IPv4 addresses carried inside an IPv6 one: they are where the bytes would go."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    found: list[IPAddress] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address in NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in SIX_TO_FOUR:
        found.append(ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF))
    if int(address) >> 32 == 0 and int(address) > 1:  # ::a.b.c.d, long obsolete
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found
