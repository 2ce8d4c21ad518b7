"""What "How do I add an image store?" promises: one file and one entry point, in a distribution of its own, and it is there.

The newcomer's file is the memory store under another name; it is written beside an entry point, as `pip` would leave them, and
found by the registry alone. Nothing of Storebus is changed for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from agents.image_stores import memory, registry
from agents.image_stores.base import ImageStore
from schema.image import StoreSpec
from tests.contract import test_image_stores
from tests.contract.image_store import ImageStoreContract, Place
from tests.support.memory_links import served


@pytest.fixture(scope="module", autouse=True)
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One file and one entry point."""
    place = tmp_path_factory.mktemp("newcomer")
    source = Path(memory.__file__).read_text().replace('PROVIDER: ClassVar[str] = "memory"', 'PROVIDER: ClassVar[str] = "newcomer"')
    (place / "newcomer_store.py").write_text(source)
    (place / "newcomer-1.dist-info").mkdir()
    (place / "newcomer-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1\n")
    (place / "newcomer-1.dist-info/entry_points.txt").write_text(f"[{registry.GROUP}]\nnewcomer = newcomer_store:MemoryImageStore\n")
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))
    sys.modules.pop("newcomer_store", None)


class TestNewcomer(ImageStoreContract):
    @pytest.fixture
    def place(self) -> Place:
        spec = StoreSpec(id=uuid4(), name="n", provider="Newcomer", url=f"memory://{uuid4()}", prefix=str(uuid4()))
        return Place(registry.load(spec.provider), spec, outlives=False)

    def serving(self, store: ImageStore) -> AbstractContextManager[None]:
        return served(cast(Any, store)._bucket)

    def test_it_is_announced(self) -> None:
        announced = {provider.name: provider for provider in registry.providers()}
        assert announced["newcomer"].scope == "REGION"
        assert set(announced["newcomer"].settings["properties"]) == {"secretkey", "maxbytespersecond"}


def test_every_store_of_ours_is_in_the_contract_suite() -> None:
    """An entry point without a class in tests/contract/test_image_stores.py is a store that nobody tried."""
    ours = {point.name for point in distribution("storebus").entry_points if point.group == registry.GROUP}
    proved = {name.removeprefix("Test").lower() for name, value in vars(test_image_stores).items()
              if isinstance(value, type) and issubclass(value, ImageStoreContract) and value is not ImageStoreContract}
    assert ours <= proved, f"no contract class for {ours - proved}"
