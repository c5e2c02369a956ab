"""A small federation in this process: sites that are stored once for all tests, and its rounds."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from small import small_plans, stored_site

from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message, decode, encode
from mixmfl.federated.server.merge import merge_round, train_task
from mixmfl.federated.state import (
    Diagnostics,
    Registration,
    RunSettings,
    ServerState,
    Site,
    first_state,
    register,
)
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans

PLANS = small_plans()
SETTINGS = RunSettings("2d", seed=0, rounds=2, local_steps=2, learning_rate=1e-2)
Cases = Sequence[Sequence[str]]


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@dataclasses.dataclass(frozen=True)
class SmallFederation:
    """Sites by name, and the plans and settings of their run."""

    sites: Mapping[str, Site]
    plans: Plans = PLANS
    settings: RunSettings = SETTINGS

    @cached_property
    def registrations(self) -> dict[str, Registration]:
        return {name: register(site) for name, site in self.sites.items()}

    @cached_property
    def start(self) -> ServerState:
        """Return the state before the first round."""
        return first_state(self.plans, self.settings)

    @cached_property
    def replies(self) -> dict[str, Message]:
        """Return what the sites reply in the first round."""
        return self.train(self.start)

    def train(self, state: ServerState) -> dict[str, Message]:
        """Return the sites' replies to a round, as they arrive."""
        replies = {}
        for name, site in self.sites.items():
            task = decode(encode(train_task(state, self.registrations[name])))
            reply, _ = train_at_site(task, site, self.plans, self.settings, {})
            replies[name] = decode(encode(reply))
        return replies

    def merge(
        self, replies: Mapping[str, Message], state: ServerState | None = None, **options: Any
    ) -> tuple[ServerState, Diagnostics]:
        """Merge a round's replies, by default of the first."""
        start = self.start if state is None else state
        known = self.registrations
        return merge_round(start, replies, known, self.plans, self.settings, **options)

    def round(self, state: ServerState) -> tuple[ServerState, dict[str, Message]]:
        """Do a round of all sites; return the state after it and their replies."""
        replies = self.train(state)
        return self.merge(replies, state)[0], replies

    def only(self, *names: str) -> "SmallFederation":
        """Return the same with some of the sites."""
        return dataclasses.replace(self, sites={name: self.sites[name] for name in names})


class SiteStore:
    """Sites of the small plans, each stored once, as tests only read their cases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[tuple[str, tuple[tuple[str, ...], ...]], Site] = {}

    def site(self, name: str, cases: Cases, validation: int = 0) -> Site:
        """Return a site whose cases are given by their modalities; the last ones validate."""
        key = name, tuple(map(tuple, cases))
        if key not in self._stored:
            folder = self._folder / str(len(self._stored))
            self._stored[key] = stored_site(folder, name, cases, PLANS)
        found = self._stored[key]
        cut = len(cases) - validation
        return dataclasses.replace(
            found, training=found.training[:cut], validation=found.training[cut:]
        )

    def federation(
        self, cases: Mapping[str, Cases], validation: Mapping[str, int] | int = 0
    ) -> SmallFederation:
        """Return a federation of sites, given by their cases."""
        counts = (
            dict.fromkeys(cases, validation) if isinstance(validation, int) else dict(validation)
        )
        return SmallFederation(
            {name: self.site(name, each, counts.get(name, 0)) for name, each in cases.items()}
        )


def write_work(folder: Path, cases: Mapping[str, Cases], plans: Plans = PLANS) -> Path:
    """Write plans and preprocessed cases, as ``mixmfl_plan_preprocess`` does; return the folder."""
    plans.save(folder / "plans.json")
    for name, each in cases.items():
        stored_site(folder, name, each, plans)
    return folder
