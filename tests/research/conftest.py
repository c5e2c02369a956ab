"""The sites that attacks are measured on."""

import pytest
from small_federation import SiteStore

from mixmfl.federated.state import Site


@pytest.fixture(scope="session")
def sites(store: SiteStore) -> list[Site]:
    cases = [("t1", "t2"), ("t1",), ("t1", "t2"), ("t2",)]
    return [store.site(name, cases) for name in ("east", "north", "west")]
