"""The faults of an image store as a suite: inherit, say how your store is made to fail, run pytest.

    class TestMyStore(FaultContract):
        RIG = MyRig

It owns the faults, the operations and what must hold after each: the right bytes, or a clear error that names the store and
is true about whether it happened; nothing half visible, nothing left over, no secret told, an end in time. It refuses to know
any store: a rig says how a fault is brought about there, and why one cannot be. A cell is run or is refused with its reason:
docs/reference/stores.md is written from the same rigs that the tests run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from agents.image_stores.base import ImageStore, Upload
from agents.manifest import delete_object, root_of, verify_object, write_manifest
from schema.failure import Damaged, Failed, Refused, Unknown, WorkFailed
from schema.image import ImageFormat, Manifest
from tests.conftest import SOAK
from tests.contract.image_store import data, keys

BOUND_S = 20.0
"""Seconds that any operation may take, whatever the store does. Where no answer comes the stores under test wait a fraction of a second."""


class Fault(StrEnum):
    """What goes wrong; the value is how the document calls it."""

    INTERNAL = "500"
    SLOW_DOWN = "503 SlowDown"
    RESET = "reset"
    WRONG_SUM = "wrong ETag or sum"
    PARTIAL_LIST = "partial list"
    EXPIRED = "401"
    MISSING = "missing segment"
    FULL = "ENOSPC"
    BROKEN = "EIO"
    STALE = "ESTALE"
    HANG = "hang"


class Operation(StrEnum):
    """What is being done meanwhile; the value is how the document calls it."""

    PUT = "put"
    PART = "upload part"
    COMPLETE = "complete"
    CONFIRM = "look after complete"
    RANGE = "get range"
    WHOLE = "read whole, verified"
    LIST = "list"
    DELETE = "delete"
    STAT = "head"


LIKE_OTHERS = (Fault.SLOW_DOWN, Fault.HANG)
"""That they pass is lived through as a 500 or a reset is: tried at large counts only. That they stay is always tried."""
READS = (Operation.RANGE, Operation.WHOLE)
WRITES = (Operation.PUT, Operation.PART, Operation.COMPLETE)


class Rig(ABC):
    """A store that can be made to fail."""

    KIND: ClassVar[type[ImageStore]]
    NAME: ClassVar[str]
    """How the document calls the store."""
    ON: ClassVar[str]
    """What its cells were run on: real, directory or double."""
    WHAT: ClassVar[str]
    """The same in a sentence."""

    SKIPS_PARTS: ClassVar[bool] = False
    """What its limits say of parts of zeros."""

    store: ImageStore
    """Behind the faults."""
    clear: ImageStore
    """The same place seen past the faults."""
    store_name: str
    """The operator's name for it, which every error must have."""
    prefix: str
    secrets: tuple[str, ...]
    """What no text may hold."""

    @classmethod
    @abstractmethod
    def refuses(cls, fault: Fault, operation: Operation) -> str:
        """Why this cannot happen to this store; empty when it can, and is run."""

    @classmethod
    @abstractmethod
    def recovers(cls, fault: Fault, operation: Operation) -> bool:
        """Whether the operation must succeed when the fault happens once."""

    def expect(self, fault: Fault) -> None:  # noqa: B027 - most stores are the same whatever comes
        """This comes next, before anything is prepared: a store that waits for answers waits short when none will come, and long else."""

    @abstractmethod
    async def inflict(self, fault: Fault, operation: Operation, key: str, *, once: bool) -> None:
        """From now on the fault meets this operation on `key`; once, or until `heal`."""

    @abstractmethod
    async def heal(self) -> None:
        """All is well again."""

    @property
    @abstractmethod
    def hits(self) -> int:
        """How often a fault has met a request or a call."""

    async def leftovers(self) -> list[str]:
        """What lies below the prefix that neither listing shows; a store that hides things overrides."""
        return []

    @abstractmethod
    async def aclose(self) -> None:
        """Close both."""


class FaultContract:
    """What every image store must do when things go wrong."""

    RIG: ClassVar[type[Rig]]
    SIZE: ClassVar[int] = 100_000
    clean = ""
    """The key that the test at hand has cleaned up itself."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each cell that the rig does not refuse: a fault that stays, and one that passes where it is lived through."""
        if "fault" in metafunc.fixturenames:
            cells = [(fault, operation) for fault in Fault for operation in Operation if not self.RIG.refuses(fault, operation)]
            tests = [(*cell, once) for cell in cells for once in (True, False)
                     if not once or (self.RIG.recovers(*cell) and (SOAK or cell[0] not in LIKE_OTHERS))]
            metafunc.parametrize(("fault", "operation", "once"), tests, ids=[
                f"{fault.name}-{operation.name}-{'once' if once else 'stays'}" for fault, operation, once in tests])

    @pytest.fixture
    def rig(self) -> Rig:
        """Override: open, of this class or this session."""
        raise NotImplementedError

    @pytest.fixture
    async def key(self, rig: Rig) -> AsyncIterator[str]:
        """A key that nobody used; whatever a failed test leaves there is removed."""
        key = f"{rig.prefix}/{uuid4()}/image"
        yield key
        await rig.heal()
        if self.clean == key:
            return
        below = key.rsplit("/", 1)[0]
        for left in {*await keys(rig.clear, below), *await rig.clear.unfinished(below)}:
            await rig.clear.delete(left)

    def test_says_whether_parts_may_be_skipped(self, rig: Rig) -> None:
        assert rig.store.limits.parts_may_skip is self.RIG.SKIPS_PARTS

    async def test_fault(self, rig: Rig, key: str, fault: Fault, operation: Operation, once: bool,
                         caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        rig.expect(fault)
        case = _Case(rig, key, data(self.SIZE))
        await case.prepare(operation)
        before = rig.hits
        await rig.inflict(fault, operation, key, once=once)
        started = time.monotonic()
        error: Failed | None = None
        try:
            async with asyncio.timeout(2 * BOUND_S):
                await case.run(operation)
        except Failed as failed:
            error = failed
        took = time.monotonic() - started
        assert rig.hits > before, "the fault met nothing: this cell proves nothing"
        await rig.heal()
        assert took < BOUND_S
        if error is not None:
            _clear(error, rig)
            assert not once, f"it passes, and is to be lived through: {error}"
        for secret in rig.secrets:
            assert secret not in caplog.text, "a secret in the log"
        await case.judge(operation, error)
        await case.clean()
        self.clean = key


def _clear(error: Failed, rig: Rig) -> None:
    """A person can act on it, and nobody learns a secret from it."""
    failure, text = error.failure, f"{error} {error!r} {error.failure!r}"
    assert isinstance(error, Refused | WorkFailed | Unknown), "only these leave a store"
    # What verifies an object knows no store: it names the object, and its caller the store.
    assert isinstance(error, Damaged) or rig.store_name in text, f"it does not name the store: {text}"
    assert failure.cause and failure.remedy, "cause and remedy"
    assert failure.definite is not isinstance(error, Unknown)
    for secret in rig.secrets:
        assert secret not in text, "a secret in an error"


class _Case:
    """One operation, its beginning and what may be there after it."""

    def __init__(self, rig: Rig, key: str, body: bytes) -> None:
        self.rig, self.key, self.body, self.old = rig, key, body, b"what was there before"
        self.upload: Upload | None = None
        self.result: Any = None
        """What the operation answered."""

    @property
    def below(self) -> str:
        return self.key.rsplit("/", 1)[0]

    async def prepare(self, operation: Operation) -> None:
        """All is well so far."""
        clear, body = self.rig.clear, self.body
        if operation is Operation.PUT:
            await clear.put(self.key, self.old)
        elif operation in (Operation.PART, Operation.COMPLETE, Operation.CONFIRM):
            self.upload = await self.rig.store.begin(self.key, part_size=self.rig.store.limits.min_part)
            if operation is not Operation.PART:
                await self._parts()
        else:
            await self._whole(clear)
            if operation is Operation.WHOLE:
                size = clear.limits.min_part
                parts = [hashlib.sha256(body[at : at + size]).hexdigest() for at in range(0, len(body), size)]
                await write_manifest(clear, Manifest(
                    installation="i", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1", key=self.key,
                    format=ImageFormat.RAW, virtual_size=len(body), physical_size=len(body), part_size=size, parts=parts,
                    root=root_of(parts), created="2026-01-01T00:00:00Z"))
            if operation is Operation.LIST:
                for number in range(2):
                    await clear.put(f"{self.key}-{number}", b"x")

    async def _whole(self, store: ImageStore) -> None:
        size = store.limits.min_part
        upload = await store.begin(self.key, part_size=size)
        for number, at in enumerate(range(0, len(self.body), size), 1):
            await upload.part(number, self.body[at : at + size])
        await upload.complete(len(self.body))

    async def _parts(self) -> None:
        assert self.upload is not None
        size = self.rig.store.limits.min_part
        for number, at in enumerate(range(0, len(self.body), size), 1):
            await self.upload.part(number, self.body[at : at + size])

    async def run(self, operation: Operation) -> None:
        """The operation, which fails or not."""
        store = self.rig.store
        match operation:
            case Operation.PUT:
                await store.put(self.key, self.body)
            case Operation.PART:
                await self._parts()
            case Operation.COMPLETE | Operation.CONFIRM:
                assert self.upload is not None
                self.result = await self.upload.complete(len(self.body))
            case Operation.RANGE:
                self.result = await store.read(self.key, 1_000, 80_000)
            case Operation.WHOLE:
                await verify_object(store, self.key)
                self.result = await store.read(self.key, 0, len(self.body))
            case Operation.LIST:
                self.result = await keys(store, self.below)
            case Operation.DELETE:
                await store.delete(self.key)
            case Operation.STAT:
                self.result = await store.stat(self.key)

    async def judge(self, operation: Operation, error: Failed | None) -> None:
        """What is there is what the answer says: whole or not at all."""
        if operation is Operation.PUT:
            seen = await self._seen()
            allowed = [self.body] if error is None else [self.old] if error.definite else [self.old, self.body]
            assert seen in allowed, "the old or the new, as the answer says"
        elif operation is Operation.PART:
            await self._not_complete(error)
        elif operation in (Operation.COMPLETE, Operation.CONFIRM):
            seen = await self._seen()
            allowed = [self.body] if error is None else [None] if error.definite else [None, self.body]
            assert seen in allowed, "whole or not at all, as the answer says"
        elif operation is Operation.DELETE:
            if error is None:
                assert await self._seen() is None
        elif error is None:
            self._right(operation)

    async def _not_complete(self, error: Failed | None) -> None:
        assert self.upload is not None
        assert await self.rig.clear.stat(self.key) is None, "a part shows nothing"
        if error is not None:
            with pytest.raises(Failed):
                await self.upload.complete(len(self.body))
            assert await self.rig.clear.stat(self.key) is None
        else:
            await self.upload.complete(len(self.body))
            assert await self._seen() == self.body
            self.upload = None

    def _right(self, operation: Operation) -> None:
        match operation:
            case Operation.RANGE:
                assert self.result == self.body[1_000:81_000]
            case Operation.WHOLE:
                assert self.result == self.body
            case Operation.LIST:
                assert self.result == sorted([self.key, *(f"{self.key}-{number}" for number in range(2))])
            case Operation.STAT:
                assert (self.result.key, self.result.size) == (self.key, len(self.body))

    async def _seen(self) -> bytes | None:
        """What anyone reads there."""
        if await self.rig.clear.stat(self.key) is None:
            return None
        return await self.rig.clear.read(self.key, 0, 2 * len(self.body))  # in one: a late write may come between two

    async def clean(self) -> None:
        """Abandoned, then deleted: nothing is left, neither shown nor hidden."""
        if self.upload is not None:
            await self.upload.abort()
        for key in await keys(self.rig.clear, self.below):
            await delete_object(self.rig.clear, key)
        await self.rig.clear.delete(self.key)
        assert await keys(self.rig.clear, self.below) == []
        assert list(await self.rig.clear.unfinished(self.below)) == []
        assert await self.rig.leftovers() == []
