"""What is fuzzed: each reader of ours of bytes that somebody else wrote, with the errors that it says it raises.

A target returns, or raises one of its declared errors; whatever else it raises is a fault.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from agents import manifest as manifests
from agents import qcow2_header
from agents.download import parse_checksum
from agents.hypervisors.base import Extent
from agents.hypervisors.clusters import Clusters
from agents.image_stores.memory import MemoryImageStore, bucket
from agents.inspection import LOOK, Inspection
from agents.motion.delta import read_tables
from agents.qcow2 import CLUSTER, Layout
from agents.qcow2_compressed import CompressedFile, CompressedTables
from agents.qcow2_whole import SNAPSHOT, WINDOW, prove_whole
from agents.url_guard import UrlGuard, parse_allow
from api.listing import page_of
from api.parameters import parse
from api.registry import COMMANDS
from bus import patterns
from bus.envelope import Envelope
from bus.subscription import parse_start
from schema import vocabulary
from schema.codec import decode
from schema.examples import example
from schema.failure import BadParameter, Malformed, WorkFailed
from schema.image import ImageFormat, Manifest
from tests.support.attacks import Qcow2
from tests.support.images import iso

LOOP = asyncio.new_event_loop()
READ_MAX = 64 << 20
"""Bytes that the walk through a file of at most 1 MiB may ask for."""


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: what it is called with, what it may raise, where the fuzzer begins."""

    call: Callable[[bytes], Any]
    raises: tuple[type[Exception], ...]
    seeds: list[bytes]
    words: list[bytes] = field(default_factory=list)


def _inspect(declared: ImageFormat) -> Callable[[bytes], Any]:
    def call(data: bytes) -> None:
        cut = 1 + (data[-1] * 97 if data else 0)
        for step in (cut, LOOK):
            inspection = Inspection(declared, max_virtual_size=1 << 44)
            for at in range(0, len(data), max(step, len(data) // 64)):
                inspection.feed(data[at:at + max(step, len(data) // 64)])
            assert 0 < inspection.finish() <= 1 << 44

    return call


def _snapped() -> bytes:
    """A disk with a snapshot `s` of its one cluster."""
    return Qcow2(snapshots=1, snapshots_at=6 * CLUSTER).body() + SNAPSHOT.pack(3 * CLUSTER, 1, 1, 1, 0, 0, 0, 0, 16) + bytes(16) + b"1s"


def _clusters(data: bytes) -> None:
    """The places of a snapshot's data: within the file, or nowhere."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        found = Clusters.of(file.name, "s")
        if found is None:
            raise ValueError("it is left to qemu")
        asked: list[int] = []
        for offset in (0, 3 * CLUSTER // 2, 1 << 29, 1 << 40):
            found.read_into(memoryview(bytearray(3 * CLUSTER)), offset, lambda piece, at: asked.append(len(piece)))
        found.close()
        assert sum(asked) <= 12 * CLUSTER


def _walk(data: bytes) -> None:
    """The tables of what the header's check lets through."""
    qcow2_header.prove_sound(data[:qcow2_header.FRONT])
    asked = 0

    async def read(at: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        assert length <= WINDOW and asked <= READ_MAX, f"{asked} bytes are read of {len(data)}"
        return data[at:at + length]

    LOOP.run_until_complete(prove_whole(read, len(data)))


def _delta(data: bytes) -> None:
    """Our own layout, read back from a store."""
    front = SimpleNamespace(at=0, manifest=SimpleNamespace(key="k", physical_size=len(data), virtual_size=int.from_bytes(data[24:32], "big")))

    async def read(length: int) -> bytes:
        body = data[front.at:front.at + length]
        if len(body) < length:
            raise WorkFailed("it ends")
        front.at += length
        return body

    front.read = read
    LOOP.run_until_complete(read_tables(front))  # type: ignore[arg-type]  # a double of _Front: what it reads is not hashed


def _compressed(data: bytes) -> None:
    """The tables of our own compressed file, read back from a store."""
    if len(data) < CLUSTER:
        raise ValueError("no header")
    tables = CompressedTables(data[:CLUSTER], len(data))
    tables.take_l1(data[tables.l1_at:tables.l1_at + 8 * tables.l1_size])
    for number in range(tables.l1_size):
        if at := tables.table_at(number):
            for stored in tables.stored(data[at:at + CLUSTER]):
                assert stored is None or (stored.length <= CLUSTER and stored.at + stored.length <= len(data))


def _packed() -> bytes:
    file = CompressedFile(8 << 20)
    chunks = [bytes(part) for guest, small in ((0, b"a" * 900), (1, b"b" * 700), (2, None), (9, b"c" * 2000))
              for part in file.add(guest, small, bytes(CLUSTER))]
    chunks += [bytes(part) for part in file.end()]
    return file.header + b"".join(chunks)


def _manifest(data: bytes) -> None:
    where = bucket("memory://fuzz")
    where.objects[manifests.manifest_key("k")] = data
    LOOP.run_until_complete(manifests.find_manifest(MemoryImageStore(where), "k"))


def _envelope(data: bytes) -> None:
    headers: dict[str, Any] = {}
    for line in data.split(b"\n"):
        name, _, value = line.partition(b": ")
        headers[name.decode(errors="replace")] = value if value[:1] == b"!" else value.decode(errors="replace")
    Envelope.read(headers, data)


def _message(data: bytes) -> None:
    name, _, body = data.partition(b"\n")
    decode(name.decode(errors="replace"), 1, body)


async def _resolve(host: str) -> list[str]:
    return ["93.184.216.34"]


def _url(data: bytes) -> None:
    base, _, url = data.decode(errors="surrogateescape").rpartition("\n")
    target = LOOP.run_until_complete(UrlGuard(resolve=_resolve).check(url, base=base))
    assert target.host.isascii() and target.port in (80, 443) and target.addresses


def _parameters(data: bytes) -> None:
    number, _, rest = data.partition(b"\n")
    command = COMMANDS[sum(number) % len(COMMANDS)]
    pairs = (pair.partition("=") for pair in rest.decode(errors="replace").split("&"))
    values = parse(command.parameters, {name: value for name, _, value in pairs}).values
    if command.name.startswith("list"):
        page_of(values)


def _text(call: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: call(data.decode(errors="replace"))


def _own(extents: list[Extent], **more: Any) -> bytes:
    layout = Layout(8 << 20, extents, **more)
    return b"".join(piece.data if piece.data is not None else b"\1" * piece.length for piece in layout.pieces(0, layout.size))


def _targets() -> dict[str, Target]:
    qcow2 = [Qcow2().body(), Qcow2(version=2).body(), Qcow2(extensions=[(0x23852875, struct.pack(">IIQQ", 1, 0, 8, 5 * CLUSTER)), (0x6803F857, bytes(48))]).body(),
             Qcow2(snapshots=1, snapshots_at=5 * CLUSTER, data=struct.pack(">QIHHIIQII", 3 * CLUSTER, 1, 1, 1, 0, 0, 0, 0, 16) + bytes(24)).body()]
    other = [b"KDMV" + bytes(2048), b"vhdxfile" + bytes(70_000), b"conectix" + bytes(600), bytes(0x8000) + b"\x01CD001\x01" + bytes(2048), b"LUKS\xba\xbe\0\1" + bytes(600),
             b"QED\0" + bytes(600), b"<<< disk >>>".ljust(64) + b"\x7f\x10\xda\xbe" + bytes(600), bytes(510) + b"\x55\xaa" + b"EFI PART" + bytes(600), b"x" * 257 + b"ustar" + bytes(600)]
    made = Manifest(installation="i", kind="template", thing_id=UUID(int=1), job_id=UUID(int=2), work="w", key="k", format=ImageFormat.QCOW2, virtual_size=1, physical_size=1,
                    part_size=1, parts=["00" * 32], root=manifests.root_of(["00" * 32]), created="2026-01-01T00:00:00Z")
    messages = [f"{name}\n{json.dumps(example(kind))}".encode() for (name, version), kind in sorted(vocabulary().items()) if version == 1][:40]
    urls = [b"\nhttp://example.com/a?b#c", b"\nhttps://[2606:4700::1]:443/", b"http://a.example/b\n../c", b"\nhttp://127.0.0.1/", b"\nhttp://b\xc3\xbccher.example/"]
    every = [(str(number % 256) + "\n").encode() + "&".join(f"{each.name}=1" for each in command.parameters).encode() for number, command in enumerate(COMMANDS)]
    bad, head = (BadParameter,), b"cloudEvents_id: 00000000-0000-0000-0000-000000000001\ncloudEvents_type: snapshot.create\ncloudEvents_sbposition: 7\ncloudEvents:sbkey: !k"
    return {
        "inspection of qcow2": Target(_inspect(ImageFormat.QCOW2), bad, qcow2 + other, [b"QFI\xfb", b"DATA", b"\x7f\x10\xda\xbe"]),
        "inspection of raw": Target(_inspect(ImageFormat.RAW), bad, other + qcow2, [b"QFI\xfb", b"version=1\n", b"# x\n", b"koly"]),
        "inspection of iso": Target(_inspect(ImageFormat.ISO), bad, [iso(18), iso(18, head=bytes(510) + b"\x55\xaa"), *other], [b"CD001", b"QFI\xfb", b"\xff"]),
        "qcow2 header": Target(lambda data: qcow2_header.prove_sound(data[:qcow2_header.FRONT]), bad, qcow2),
        "qcow2 tables": Target(_walk, (BadParameter, WorkFailed), qcow2),
        "plain clusters": Target(_clusters, (ValueError,), [_snapped()]),
        "delta tables": Target(_delta, (WorkFailed,), [_own([Extent(offset=0, length=CLUSTER, zero=False)]), _own([], zeros=[(1, 3)], backing=b"parent")]),
        "compressed tables": Target(_compressed, (ValueError,), [_packed()]),
        "manifest": Target(_manifest, (WorkFailed,), [made.model_dump_json().encode()], [b"null", b"-1", b"1e999", b"[]", b'"', b"9" * 40, b"\\ud800"]),
        "envelope": Target(_envelope, (Malformed,), [head], [b"cloudEvents_", b"\n", b": ", b"-", b"9" * 30, b"\xff"]),
        "message": Target(_message, (Malformed,), messages, [b"null", b"-1", b"1e999", b"[[[[", b'"', b"9" * 40, b"\\ud800", b"{", b"\xff"]),
        "url": Target(_url, bad, urls, [b"@", b"//", b"[", b"]", b"%00", b"0x7f.1", b"\\", b":", b"\xe2\x91\xa0", b"\xe3\x80\x82", b"xn--", b"..", b"?", b"#", b"\xc2\xad"]),
        "allow list": Target(_text(parse_allow), bad, [b"127.0.0.0/8:8000-8999,10.0.0.5/32,[fd00::/8]:80"], [b"/", b":", b"-", b"[", b"99999"]),
        "checksum": Target(_text(parse_checksum), bad, [b"{SHA-256}" + b"0" * 64, b"d41d8cd98f00b204e9800998ecf8427e"], [b"{", b"}", b"MD5", b"\xd9\xa1"]),
        "parameters": Target(_parameters, (BadParameter, Malformed), every, [b"[0].key=", b"[1].value=", b"&", b"=", b"%", b"page=0", b"pagesize=-1", b"\xd9\xa1", b"9" * 25]),
        "start": Target(_text(parse_start), bad, [b"beginning", b"7", b"2026-01-31T12:00:00Z"], [b"\xc2\xb2", b"\xd9\xa1", b"9" * 5000, b"+", b"0001-01-01"]),
        "pattern": Target(lambda data: patterns.matches(*(data.decode(errors="replace") + "\n").split("\n")[:2]), bad, [b"snapshot.*\nsnapshot.x", b"#.a.#.b\na.a.b"], [b"#", b"*", b"."]),
    }


TARGETS = _targets()
__all__ = ["TARGETS", "Target"]
