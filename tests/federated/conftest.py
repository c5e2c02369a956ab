"""The sites of masked rounds, for all tests of these."""

from collections.abc import Mapping

import pytest
from masked_federation import MODALITIES
from small_federation import SiteStore

from mixmfl.federated.state import Registration, Site, register


@pytest.fixture(scope="session")
def sites(store: SiteStore) -> Mapping[str, Site]:
    return store.federation(MODALITIES).sites


@pytest.fixture(scope="session")
def registrations(sites: Mapping[str, Site]) -> dict[str, Registration]:
    return {name: register(site) for name, site in sites.items()}
