"""The URL guard: what may not be fetched is refused before anything is connected to, whatever it is dressed up as."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agents.url_guard import UrlGuard, parse_allow, system_resolve
from schema.failure import BadParameter, WorkRetryable

PUBLIC = "93.184.216.34"
INSIDE = {  # what an attacker's name server may answer
    "loop.example": ["127.0.0.1"], "both.example": [PUBLIC, "10.1.2.3"], "six.example": [PUBLIC, "fd00::1"],
    "mapped.example": ["::ffff:192.168.0.1"], "nat64.example": ["64:ff9b::a9fe:a9fe"], "tun.example": ["2002:7f00:1::1"],
    "localhost": ["127.0.0.1", "::1"], "metadata.google.internal": ["169.254.169.254"], "none.example": [],
    "zero.example": ["0.0.0.0"], "compat.example": ["::10.0.0.1"], "xn--lp-fka.example": ["127.0.0.1"],
}

REFUSED = """
ftp://example.com/x file:///etc/passwd gopher://example.com/ javascript:alert(1) data:text/plain,x HTTP//example.com //example.com/x
example.com/image ssh://example.com s3://bucket/key nfs://host/share http:example.com http:/example.com http:// https:///x
http://user@example.com/ http://user:pw@example.com/ http://@example.com/ http://:@example.com/ http://example.com@127.0.0.1/
http://example.com:22/ http://example.com:8080/ https://example.com:8443/ http://example.com:0/ http://example.com:65536/
http://example.com:-1/ http://example.com:80a/ http://example.com:8000/ http://93.184.216.34:25/
http://127.0.0.1/ http://127.0.0.1./ http://127.1.2.3/ http://127.255.255.254/ http://0.0.0.0/ http://0.1.2.3/
http://10.0.0.1/ http://172.16.0.1/ http://172.31.255.255/ http://192.168.1.1/ http://169.254.169.254/latest/meta-data
http://169.254.0.1/ http://100.64.0.1/ http://100.127.255.254/ http://100.100.100.200/ http://192.0.0.192/ http://192.0.2.1/
http://198.18.0.1/ http://198.51.100.7/ http://203.0.113.7/ http://224.0.0.1/ http://239.255.255.255/ http://240.0.0.1/
http://255.255.255.255/ http://168.63.129.16/ http://192.88.99.1/
http://2130706433/ http://017700000001/ http://0x7f000001/ http://0x7f.1/ http://0x7f.0.0.1/ http://0177.0.0.1/ http://127.1/
http://127.0.1/ http://1/ http://0/ http://08.8.8.8/ http://1.2.3.4.5/ http://example.com.0x1/ http://3232235777/ http://0X7F.0.0.1/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::ffff:a9fe:a9fe]/ http://[0:0:0:0:0:ffff:10.0.0.1]/
http://[64:ff9b::7f00:1]/ http://[64:ff9b::169.254.169.254]/ http://[64:ff9b:1::1]/ http://[2002:7f00:1::]/ http://[2002:a9fe:a9fe::]/
http://[fc00::1]/ http://[fd00:ec2::254]/ http://[fe80::1]/ http://[fe80::1%25eth0]/ http://[2606:4700::1%25lo]/ http://[fec0::1]/
http://[ff02::1]/ http://[2001:db8::1]/ http://[2001::1]/ http://[::127.0.0.1]/ http://[100::1]/ http://[v1.x]/ http://[1.2.3.4]/
http://[::1 http://[::1]x/ http://[]/ https://[2606:4700::1]@/ https://[::]:0x@///
http://loop.example/ http://both.example/ http://six.example/ http://mapped.example/ http://nat64.example/ http://tun.example/
http://localhost/ http://LOCALHOST./ http://metadata.google.internal/ http://none.example/ http://zero.example/ http://compat.example/
http://l\u00f6p.example/ http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/ http://\uff11\uff12\uff17.0.0.1/ http://127\u30020\u30020\u30021/
http://loop\u3002example/
http://a..b/ http://.../ http://-bad.example/ http://bad-.example/ http://a%00b.example/ http://a%2eexample/ http://ex\u200bample.com/
http://example.com\\@127.0.0.1/ http://example.com\\.loop.example/
""".split()  # noqa: SIM905 - a corpus is read and extended as a text
REFUSED += ["", "http://exa\tmple.com/", "http://example.com/\r\nHost:x", "\thttp://loop.example/", " http://example.com/", "http://example.com/a b", "http://example.com/\x00", "http://example.com/\x7f",
            "http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/", "http://example.com/" + "a" * 2048]
FETCHED = {
    "http://example.com/": 80, "https://example.com/a?b=c#d": 443, "HTTP://EXAMPLE.COM/": 80, "http://example.com.:80/": 80,
    "https://example.com:443/": 443, "http://example.com:443/": 443, "http://93.184.216.34/": 80, "http://[2606:4700::1]/": 80,
    "http://b\u00fccher.example/": 80, "http://xn--bcher-kva.example/": 80, "http://a_b.example/": 80,
    "http://example.com#@127.0.0.1/": 80, "http://example.com/?u=http://127.0.0.1/": 80, "http://8.8.8.8./": 80,
    "http://[64:ff9b::8.8.8.8]/": 80, "http://a.b.c.d.example/..%2f..%2f": 80,
}


async def resolve(host: str) -> list[str]:
    """The attacker's name server; every other name is public."""
    return INSIDE.get(host, [PUBLIC])


def test_the_corpus_is_large_enough() -> None:
    assert len(set(REFUSED)) >= 120


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:60])
async def test_what_may_not_be_fetched_is_refused_naming_the_url(url: str) -> None:
    with pytest.raises(BadParameter) as refused:
        await UrlGuard((), resolve).check(url)
    assert refused.value.failure.field == "url"
    assert "pw" not in refused.value.failure.text


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:60])
async def test_it_is_refused_as_a_redirect_too(url: str) -> None:
    """Relative ones that stay at the host they came from are no escape."""
    guard = UrlGuard((), resolve)
    try:
        target = await guard.check(url, base="http://example.com/image")
    except BadParameter:
        return
    assert target.host == "example.com"
    assert set(target.addresses) == {PUBLIC}


@pytest.mark.parametrize(("url", "port"), FETCHED.items())
async def test_public_addresses_are_fetched(url: str, port: int) -> None:
    target = await UrlGuard((), resolve).check(url)
    assert target.port == port
    assert target.addresses


async def test_the_name_is_asked_for_in_ascii_and_only_once() -> None:
    asked: list[str] = []

    async def ask(host: str) -> list[str]:
        asked.append(host)
        return [PUBLIC, "2606:4700::1"]

    target = await UrlGuard((), ask).check("http://B\u00dcCHER.example./x")
    assert asked == ["xn--bcher-kva.example"]
    assert (target.host, target.addresses) == (asked[0], (PUBLIC, "2606:4700::1"))


async def test_a_refused_url_is_not_even_looked_up() -> None:
    async def never(host: str) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    for url in ("ftp://example.com/", "http://u@example.com/", "http://127.0.0.1/", "http://0x7f.1/", "http://[::1]/", "http://:80/"):
        with pytest.raises(BadParameter):
            await UrlGuard((), never).check(url)


@pytest.mark.parametrize(("allow", "url", "passes"), [
    ("127.0.0.0/8:8000-8999", "http://127.0.0.1:8000/", True),
    ("127.0.0.0/8:8000-8999", "http://127.9.9.9:8999/", True),
    ("127.0.0.0/8:8000-8999", "http://127.0.0.1:7999/", False),
    ("127.0.0.0/8:8000-8999", "http://127.0.0.1:9000/", False),
    ("127.0.0.0/8:8000-8999", "http://127.0.0.1/", False),
    ("127.0.0.0/8:8000-8999", "http://93.184.216.34:8000/", False),
    ("127.0.0.0/8:8000-8999", "http://10.0.0.1:8000/", False),
    ("127.0.0.0/8:8000-8999", "http://[::ffff:127.0.0.1]:8000/", False),
    ("10.0.0.5", "http://10.0.0.5/", True),
    ("10.0.0.5/32", "https://10.0.0.5/", True),
    ("10.0.0.5/32", "http://10.0.0.6/", False),
    ("10.0.0.5/32", "http://10.0.0.5:8080/", False),
    ("10.0.0.5:8080", "http://10.0.0.5:8080/", True),
    ("[fd00::/8]:80", "http://[fd00::1]/", True),
    ("fd00::/8", "https://[fd12::1]/", True),
    ("[::1]:9000", "http://[::1]:9000/", True),
    ("fd00::/8", "http://[fe80::1]/", False),
    (" 127.0.0.1/32:8000 , 10.0.0.0/8:80 ", "http://10.200.0.1/", True),
    ("10.0.0.0/8", "http://both.example/", True),
    ("127.0.0.0/8", "http://both.example/", False),
    ("93.184.216.0/24:8080", "http://example.com:8080/", True),
])
async def test_what_is_allowed_is_let_through_and_nothing_beside_it(allow: str, url: str, passes: bool) -> None:
    guard = UrlGuard(parse_allow(allow), resolve)
    if passes:
        assert (await guard.check(url)).addresses
    else:
        with pytest.raises(BadParameter):
            await guard.check(url)


@pytest.mark.parametrize("text", ["everything", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8:", "10.0.0.0/8:0", "10.0.0.0/8:90-80",
                                  "10.0.0.0/8:70000", "10.0.0.0/8:1-2-3", "example.com:80", "*", "fd00::/129"])
def test_a_wrong_allowance_is_named(text: str) -> None:
    with pytest.raises(BadParameter) as refused:
        parse_allow(text)
    assert refused.value.failure.field == "STOREBUS_DOWNLOAD_ALLOW"
    assert text in refused.value.failure.cause


def test_nothing_is_allowed_by_default() -> None:
    assert parse_allow("") == parse_allow(" , ") == ()


async def test_a_relative_redirect_is_checked_against_where_it_leads() -> None:
    guard = UrlGuard((), resolve)
    assert (await guard.check("/b", base="http://example.com/a")).url == "http://example.com/b"
    assert (await guard.check("//other.example/b", base="https://example.com/a")).port == 443
    with pytest.raises(BadParameter):
        await guard.check("//loop.example/b", base="http://example.com/a")


async def test_names_without_an_answer_are_told_from_a_resolver_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadParameter, match="cannot be resolved"):
        await _failing(monkeypatch, socket.EAI_NONAME)
    with pytest.raises(WorkRetryable, match="for now"):
        await _failing(monkeypatch, socket.EAI_AGAIN)


async def _failing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def getaddrinfo(*arguments: object, **named: object) -> None:
        raise socket.gaierror(code, "as said")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    try:
        await system_resolve("host.example")
    finally:
        monkeypatch.undo()


async def test_this_hosts_resolver_gives_every_address_once() -> None:
    assert "127.0.0.1" in await system_resolve("localhost")
    assert await system_resolve("127.0.0.1") == ["127.0.0.1"]
