"""Sites of masked rounds in this process, and what their coordinator asks them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from small_federation import PLANS
from small_federation import SETTINGS as OPEN

from mixmfl.federated.client.client import Client
from mixmfl.federated.client.secure_aggregation import Signer
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.messages import Message, decode, encode
from mixmfl.federated.secure_aggregation.identities import KeyFiles, simulated_identities
from mixmfl.federated.secure_aggregation.protocol import Participants
from mixmfl.federated.secure_aggregation.signatures import Identity
from mixmfl.federated.server.secure_aggregation import (
    gather_participants,
    keys_tasks,
    masked_tasks,
)
from mixmfl.federated.state import Registration, ServerState, Site, first_state
from mixmfl.networks.build import prototype_sizes

SETTINGS = dataclasses.replace(OPEN, masked=True)
SIZES = prototype_sizes(PLANS, "2d")
START = first_state(PLANS, SETTINGS)

# t1 is held by four, t2 by three, flair by two
MODALITIES: dict[str, Sequence[Sequence[str]]] = {
    "east": [("t1", "t2"), ("t1",)],
    "north": [("t1", "t2")],
    "south": [("t1", "flair"), ("flair",), ("t1",)],
    "west": [("t1", "t2", "flair"), ("t2",)],
}


def write_keys(folder: Path, identity: Identity) -> KeyFiles:
    """Write what a kit has of a site's key, and return where it is."""
    folder.mkdir(parents=True)
    (folder / "client.key").write_bytes(identity.private)
    for name, content in (
        ("client.crt", identity.certificate),
        ("rootCA.pem", identity.authority),
    ):
        certificate = x509.load_der_x509_certificate(content)
        (folder / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    return KeyFiles(folder)


class MaskedFederation:
    """Sites in this process, asked one after another, and what they replied."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        files: Path | None = None,
        identities: Mapping[str, Identity] | None = None,
    ) -> None:
        self.sites, self.files = sites, files
        self.identities = dict(identities or simulated_identities(list(sites)))
        self.seen: dict[str, dict[str, Message]] = {}
        self.restart()

    def restart(self) -> None:
        """Forget all that is in memory."""
        records = {
            n: SummedSites(self.files / f"{n}.json" if self.files else None) for n in self.sites
        }
        self.clients = {
            name: Client(site, PLANS, SETTINGS, Signer(self.identities[name], "run", records[name]))
            for name, site in self.sites.items()
        }

    def ask(self, tasks: dict[str, Message]) -> dict[str, Message]:
        replies = {}
        for name, task in tasks.items():
            handled = self.clients[name].handle(decode(encode(task)), {})
            replies[name] = decode(encode(handled.reply))
            self.seen.setdefault(task.kind, {})[name] = replies[name]
        return replies


def asked(
    federation: MaskedFederation, registrations: dict[str, Registration], state: ServerState = START
) -> tuple[Participants, dict[str, Message]]:
    """Ask for keys, and return the participants and the tasks of a masked round."""
    keys = federation.ask(keys_tasks(state.round, registrations))
    participants = gather_participants(state, keys, registrations, SIZES)
    return participants, masked_tasks(state, participants, registrations)
