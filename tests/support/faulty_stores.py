"""The rigs of the fault suite: how each fault is brought about at each of our stores, and why one cannot be.

It owns that knowledge and nothing of what must hold afterwards (tests/contract/image_store_faults.py does).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from agents.image_stores.base import ImageStore
from agents.image_stores.folder import SENTINEL, FolderImageStore
from agents.image_stores.memory import Bucket, MemoryImageStore, bucket
from agents.image_stores.nfs import NfsImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_upload import segments_of
from schema.failure import WorkFailed, WorkRetryable
from schema.image import StoreSpec
from tests.contract.image_store_faults import READS, WRITES, Fault, Operation, Rig
from tests.services.s3_fixture import s3_spec
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.seaweedfs import SeaweedFS
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_spec
from tests.support.broken_disk import BrokenDisk

MANY = 1_000_000
NO_ROOM_NEEDED = "it takes no room"
NOT_LISTING = "it reads no listing"
MADE_EARLIER = "it needs nothing that was stored before"
AT_COMPLETE = "the same as complete: a look at the object that follows it is a request of S3 and Swift only"


class MemoryRig(Rig):
    """The double: its operations are refused before they begin."""

    KIND = MemoryImageStore
    NAME = "memory"
    ON = "double"
    WHAT = "a dictionary in the test's process; every fault is an error raised before the operation begins"
    FAILS: ClassVar[dict[Operation, str]] = {
        Operation.PUT: "put", Operation.PART: "part", Operation.COMPLETE: "complete", Operation.RANGE: "read", Operation.WHOLE: "read",
        Operation.LIST: "list", Operation.DELETE: "delete", Operation.STAT: "stat"}

    def __init__(self, store: MemoryImageStore, spec: StoreSpec, inside: Bucket) -> None:
        self.store = self.clear = store
        self.store_name, self.prefix, self.secrets, self._inside, self._hits = spec.name, spec.prefix, (), inside, 0

    @classmethod
    async def open(cls) -> MemoryRig:
        """A store of its own."""
        spec = StoreSpec(id=uuid4(), name="the-memory-store", provider="memory", url=f"memory://{uuid4()}", prefix=str(uuid4()))
        return cls(await MemoryImageStore.open(spec, {}), spec, bucket(spec.url))

    @classmethod
    def refuses(cls, fault: Fault, operation: Operation) -> str:
        if operation is Operation.CONFIRM:
            return AT_COMPLETE
        if fault in (Fault.WRONG_SUM, Fault.PARTIAL_LIST, Fault.HANG):
            return "a dictionary gives whole answers, at once"
        if fault is Fault.MISSING:
            return "" if operation in (*READS, Operation.COMPLETE) else MADE_EARLIER
        if fault is Fault.FULL and operation not in WRITES:
            return NO_ROOM_NEEDED
        return ""

    @classmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        return False

    async def inflict(self, fault: Fault, operation: Operation, key: str, *, once: bool) -> None:
        if fault is Fault.MISSING:
            self._hits += 1
            self._inside.objects.pop(key, None)
            self._inside.uploads.clear()
            return
        kind = WorkFailed if fault in (Fault.FULL, Fault.EXPIRED) else WorkRetryable

        async def fail(called: str, of: str) -> None:
            if called == self.FAILS[operation]:
                self._hits += 1
                if once:
                    self._inside.before = None
                raise kind(f"{called} {of} in the image store {self.store_name}: {fault}", remedy="it is a test")

        self._inside.before = fail

    async def heal(self) -> None:
        self._inside.before = None

    @property
    def hits(self) -> int:
        return self._hits

    async def aclose(self) -> None:
        await self.store.aclose()


class FolderRig(Rig):
    """A real directory; its system calls fail where the fault is."""

    KIND: ClassVar[type[FolderImageStore]] = FolderImageStore
    NAME = "folder"
    ON = "directory"
    SKIPS_PARTS = True
    WHAT = "a real directory; the named error comes from the system call that would raise it"
    URL: ClassVar[str] = "folder://{}"
    DETAILS: ClassVar[tuple[str, ...]] = ()
    """Those that say the directory."""
    CALLS: ClassVar[dict[Operation, tuple[str, int]]] = {
        Operation.PUT: ("pwrite", 1), Operation.PART: ("pwrite", 3), Operation.COMPLETE: ("replace", 0), Operation.CONFIRM: ("fsync", 1),
        Operation.RANGE: ("pread", 2), Operation.WHOLE: ("pread", 2), Operation.LIST: ("name", 1), Operation.DELETE: ("unlink", 0),
        Operation.STAT: ("stat", 1)}
    """The system call that fails, after how many that go well."""
    NUMBERS: ClassVar[dict[Fault, int]] = {Fault.FULL: errno.ENOSPC, Fault.BROKEN: errno.EIO, Fault.STALE: errno.ESTALE,
                                           Fault.PARTIAL_LIST: errno.EIO, Fault.WRONG_SUM: 0}

    def __init__(self, store: FolderImageStore, clear: FolderImageStore, spec: StoreSpec, root: Path) -> None:
        """`store` gets the disk that breaks."""
        self.store, self.clear, self.root = store, clear, root
        self.store_name, self.prefix, self.secrets = spec.name, spec.prefix, ()
        self.disk = store.disk = BrokenDisk()
        self._taken = 0

    @classmethod
    async def open(cls, root: Path) -> FolderRig:
        """A store in an empty directory."""
        spec = StoreSpec(id=uuid4(), name=f"the-{cls.NAME}-store", provider=cls.NAME, url=cls.URL.format(root), prefix="inst",
                         details={detail: str(root) for detail in cls.DETAILS})
        store, clear = await cls.KIND.open(spec, {}), await cls.KIND.open(spec, {})
        await clear.test(spec.prefix)
        return cls(store, clear, spec, root)

    @classmethod
    def refuses(cls, fault: Fault, operation: Operation) -> str:
        match fault:
            case Fault.INTERNAL | Fault.SLOW_DOWN | Fault.RESET | Fault.EXPIRED:
                return "a directory has no requests, connections or tokens"
            case Fault.HANG:
                return ("no store can call off a system call that the kernel does not answer: the agent ends the transfer after "
                        "STOREBUS_STALL_SECONDS and replaces the process that hangs")
            case Fault.WRONG_SUM:
                return "" if operation in (Operation.PUT, Operation.PART, Operation.WHOLE) else "no sum is compared: verified reads do"
            case Fault.PARTIAL_LIST:
                return "" if operation is Operation.LIST else NOT_LISTING
            case Fault.MISSING:
                return "" if operation in (Operation.COMPLETE, *READS) else MADE_EARLIER
            case Fault.FULL:
                return "" if operation in WRITES else NO_ROOM_NEEDED
        return ""

    @classmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        return False  # whether to try a file system again is for whoever has the whole transfer in view

    async def inflict(self, fault: Fault, operation: Operation, key: str, *, once: bool) -> None:
        if fault is Fault.MISSING:
            self._taken += 1
            if operation is Operation.COMPLETE:
                for left in self.root.rglob(".*.unfinished"):
                    left.unlink()
            elif operation is Operation.WHOLE:
                with (self.root / key).open("r+b") as file:
                    file.truncate(50_000)
            else:
                (self.root / key).unlink()
            return
        at, skip = self.CALLS[operation]
        if fault is Fault.WRONG_SUM:
            at = "pread"
        elif fault is Fault.FULL and operation is Operation.COMPLETE:
            at = "fsync"
        self.disk.breaks(at, self.NUMBERS[fault], skip, times=1 if once else MANY)

    async def heal(self) -> None:
        self.disk.breaks("", 0)

    @property
    def hits(self) -> int:
        return self.disk.hits + self._taken

    async def leftovers(self) -> list[str]:
        return sorted(str(path) for path in self.root.rglob("*") if path.name != SENTINEL)

    async def aclose(self) -> None:
        await self.store.aclose()
        await self.clear.aclose()


class NfsRig(FolderRig):
    """The NFS store on a directory: its code, and nothing of NFS."""

    KIND = NfsImageStore
    NAME = "nfs"
    WHAT = "a real directory that is on no NFS, as no kernel at hand has it; the named error comes from the system call"
    URL = "nfs://filer/export"
    DETAILS = ("mountpoint",)

    @classmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        return fault is Fault.STALE and operation in (*READS, Operation.DELETE, Operation.STAT)


class HttpRig(Rig):
    """A real server behind a proxy that misbehaves."""

    ON = "real"
    proxy: S3Proxy
    SILENCE_S = 0.5

    def __init__(self, patient: ImageStore, hasty: ImageStore, clear: ImageStore, spec: StoreSpec, proxy: S3Proxy, secret: str) -> None:
        self.store, self.patient, self.hasty, self.clear, self.proxy = patient, patient, hasty, clear, proxy
        self.store_name, self.prefix, self.secrets = spec.name, spec.prefix, (secret,)
        self._taken = 0
        self._waking: asyncio.TimerHandle | None = None

    @classmethod
    def refuses(cls, fault: Fault, operation: Operation) -> str:
        match fault:
            case Fault.BROKEN | Fault.STALE:
                return "a request has no errno: what breaks behind the server comes as 500"
            case Fault.PARTIAL_LIST:
                return "" if operation in (Operation.LIST, Operation.DELETE) else NOT_LISTING
            case Fault.FULL:
                return "" if operation in WRITES else NO_ROOM_NEEDED
            case Fault.MISSING:
                return "" if operation in (Operation.COMPLETE, *READS) else MADE_EARLIER
            case Fault.WRONG_SUM if operation not in (Operation.PUT, Operation.PART, Operation.WHOLE):
                return "its answer has no sum that could be compared: verified reads do"
        return ""

    @classmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        if fault is Fault.WRONG_SUM:
            return operation in (Operation.PUT, Operation.PART)
        return fault in (Fault.INTERNAL, Fault.SLOW_DOWN, Fault.RESET, Fault.PARTIAL_LIST, Fault.HANG)

    def expect(self, fault: Fault) -> None:
        self.store = self.hasty if fault is Fault.HANG else self.patient

    def match(self, operation: Operation) -> Callable[[Seen], bool]:
        """The requests that the fault meets."""
        raise NotImplementedError

    async def inflict(self, fault: Fault, operation: Operation, key: str, *, once: bool) -> None:
        count, match = (1 if once else MANY), self.match(operation)
        match fault:
            case Fault.INTERNAL:
                self.proxy.fail(count, status=500, code="InternalError", match=match)
            case Fault.SLOW_DOWN:
                self.proxy.fail(count, match=match)
            case Fault.EXPIRED:
                self.proxy.fail(count, status=401, code="ExpiredToken", match=match)
            case Fault.FULL:
                self.proxy.fail(count, status=507, code="InsufficientStorage", match=match)
            case Fault.RESET if operation in (Operation.PUT, Operation.PART):
                self.proxy.reset(count, after=40_000, match=match)
            case Fault.RESET if operation in (*READS, Operation.LIST):
                self.proxy.cut_answers(count, after=40_000 if operation in READS else 100, match=match)
            case Fault.RESET:
                self.proxy.cut_answers(count, match=match)
            case Fault.PARTIAL_LIST:
                self.proxy.alter(count, lambda head, body: (head, body[: len(body) // 2]), match=self.is_listing)
            case Fault.WRONG_SUM:
                self.proxy.alter(count, _flipped if operation is Operation.WHOLE else self.wrong_sum, match=match)
            case Fault.HANG:
                self.proxy.pause()
                if once:
                    self._waking = asyncio.get_running_loop().call_later(1.5 * self.SILENCE_S, self.proxy.resume)
                self._taken += 1
            case Fault.MISSING:
                await self.take(operation, key)
                self._taken += 1

    @staticmethod
    def is_listing(seen: Seen) -> bool:
        """Requests for a page of a listing."""
        raise NotImplementedError

    @staticmethod
    def wrong_sum(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """The answer to a write, with the sums of other bytes."""
        lines = head.split(b"\r\n")
        for at, line in enumerate(lines):
            name = line.split(b":")[0]
            if name.lower() == b"etag":
                lines[at] = name + b': "' + b"0" * 32 + b'"'
            elif name.lower() == b"x-amz-checksum-sha256":
                lines[at] = name + b": " + b"A" * 43 + b"="
        return b"\r\n".join(lines), body

    async def take(self, operation: Operation, key: str) -> None:
        """What the object or the upload is made of is removed behind the store's back."""
        raise NotImplementedError

    async def heal(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
        if not self.proxy.passes:  # who was kept waiting is gone by now: its request does not come late
            self.proxy.drop()
        self.proxy.heal()

    @property
    def hits(self) -> int:
        return self.proxy.failed + self.proxy.cuts + self.proxy.altered + self._taken

    async def aclose(self) -> None:
        for one in (self.patient, self.hasty, self.clear):
            await one.aclose()
        await self.proxy.stop()


def _flipped(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return head, bytes([body[0] ^ 1]) + body[1:]


PATIENT = {"sockettimeout": "8000", "connectiontimeout": "8000", "maxerrorretry": "1"}
HASTY = {"sockettimeout": str(int(1000 * HttpRig.SILENCE_S)), "connectiontimeout": "500", "maxerrorretry": "1"}


class S3Rig(HttpRig):
    """SeaweedFS."""

    KIND = S3ImageStore
    NAME = "s3"
    WHAT = "SeaweedFS, a real S3 server, behind a proxy that misbehaves"

    @classmethod
    async def open(cls, server: SeaweedFS) -> S3Rig:
        """On the shared server."""
        proxy = await S3Proxy(server.endpoint).start()
        spec = s3_spec(server, endpoint=proxy.endpoint, **PATIENT).model_copy(update={"name": "the-s3-store"})
        secrets = {"secretkey": server.secret_key}
        patient = await S3ImageStore.open(spec, secrets)
        hasty = await S3ImageStore.open(spec.model_copy(update={"details": spec.details | HASTY}), secrets)
        clear = await S3ImageStore.open(s3_spec(server, prefix=spec.prefix), secrets)
        rig = cls(patient, hasty, clear, spec, proxy, server.secret_key)
        for one in (patient, hasty, clear):  # it learns what this store checks
            await (await one.begin(f"{spec.prefix}/first", part_size=one.limits.min_part)).abort()
        return rig

    @classmethod
    def refuses(cls, fault: Fault, operation: Operation) -> str:
        if fault is Fault.MISSING and operation in READS:
            return "" if operation is Operation.RANGE else "the same as get range: S3 shows no parts of an object"
        return super().refuses(fault, operation)

    def match(self, operation: Operation) -> Callable[[Seen], bool]:
        return {
            Operation.PUT: lambda seen: seen.method == "PUT",
            Operation.PART: lambda seen: seen.method == "PUT" and "partNumber=" in seen.target,
            Operation.COMPLETE: lambda seen: seen.method == "POST" and "uploadId=" in seen.target,
            Operation.CONFIRM: lambda seen: seen.method in ("HEAD", "GET"),
            Operation.RANGE: lambda seen: seen.method == "GET" and "range" in seen.headers,
            Operation.WHOLE: lambda seen: seen.method == "GET" and "range" in seen.headers and ".manifest" not in seen.target,
            Operation.LIST: lambda seen: "list-type=2" in seen.target,
            Operation.DELETE: lambda seen: seen.method == "DELETE",
            Operation.STAT: lambda seen: seen.method in ("HEAD", "GET"),
        }[operation]

    @staticmethod
    def is_listing(seen: Seen) -> bool:
        return seen.method == "GET" and ("list-type=2" in seen.target or "uploads" in seen.target)

    async def take(self, operation: Operation, key: str) -> None:
        assert isinstance(self.clear, S3ImageStore)
        if operation is Operation.COMPLETE:
            await self.clear.end_uploads(key)
        else:
            await self.clear.delete(key)


class SwiftRig(HttpRig):
    """OpenStack Swift."""

    KIND = SwiftImageStore
    NAME = "swift"
    server: SwiftServer
    WHAT = "OpenStack Swift (account, container, object and proxy server, tempauth), behind a proxy that misbehaves"

    @classmethod
    async def open(cls, server: SwiftServer) -> SwiftRig:
        """On the shared server."""
        proxy = await S3Proxy(server.endpoint).start()
        spec = swift_spec(server, url=f"{proxy.endpoint}/auth/v1.0", **PATIENT).model_copy(update={"name": "the-swift-store"})
        secrets = {"key": server.key}
        patient = await SwiftImageStore.open(spec, secrets)
        hasty = await SwiftImageStore.open(spec.model_copy(update={"details": spec.details | HASTY}), secrets)
        clear = await SwiftImageStore.open(swift_spec(server, prefix=spec.prefix), secrets)
        for container in (clear.container, clear.segments):
            await clear._make(container, "")
        rig = cls(patient, hasty, clear, spec, proxy, f"X-Auth-Key: {server.key}")
        rig.server = server
        return rig

    @classmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        return fault is Fault.EXPIRED or super().recovers(fault, operation)

    def match(self, operation: Operation) -> Callable[[Seen], bool]:
        return {
            Operation.PUT: lambda seen: seen.method == "PUT",
            Operation.PART: lambda seen: seen.method == "PUT" and "/.segments/" in seen.target,
            Operation.COMPLETE: lambda seen: seen.method == "PUT" and "multipart-manifest=put" in seen.target,
            Operation.CONFIRM: lambda seen: seen.method == "HEAD" and "/.segments/" not in seen.target,
            Operation.RANGE: lambda seen: seen.method == "GET" and "range" in seen.headers,
            Operation.WHOLE: lambda seen: seen.method == "GET" and "range" in seen.headers and ".manifest" not in seen.target,
            Operation.LIST: lambda seen: seen.method == "GET" and "prefix=" in seen.target,
            Operation.DELETE: lambda seen: seen.method == "DELETE",
            Operation.STAT: lambda seen: seen.method == "HEAD",
        }[operation]

    @staticmethod
    def is_listing(seen: Seen) -> bool:
        return seen.method == "GET" and "prefix=" in seen.target

    async def inflict(self, fault: Fault, operation: Operation, key: str, *, once: bool) -> None:
        if fault is Fault.EXPIRED and once:  # the real thing: the server knows no token any more
            await asyncio.to_thread(self.server.forget_tokens)
            self._taken += 1
            return
        await super().inflict(fault, operation, key, once=once)

    async def take(self, operation: Operation, key: str) -> None:
        assert isinstance(self.clear, SwiftImageStore)
        async for name, _, _ in self.clear.names(self.clear.segments, segments_of(key)):
            if name.endswith("1") or operation is not Operation.COMPLETE:
                await self.clear.remove_segment(name)

    async def leftovers(self) -> list[str]:
        assert isinstance(self.clear, SwiftImageStore)
        return [name async for name, _, _ in self.clear.names(self.clear.segments, segments_of(self.prefix))]


RIGS: tuple[type[Rig], ...] = (S3Rig, SwiftRig, NfsRig, FolderRig, MemoryRig)
