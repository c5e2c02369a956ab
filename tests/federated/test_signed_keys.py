"""A coordinator between the sites, which passes its own keys on as theirs, reads nothing."""

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from masked_federation import SETTINGS, START, MaskedFederation, asked
from small_federation import PLANS
from small_federation import SETTINGS as OPEN

from mixmfl.core.errors import PrivacyError, QuorumError
from mixmfl.federated.client import secure_aggregation as client
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation import signatures
from mixmfl.federated.secure_aggregation.crypto import from_words, key_pair, key_stream
from mixmfl.federated.secure_aggregation.identities import read_peers, simulated_identities
from mixmfl.federated.secure_aggregation.protocol import Participants
from mixmfl.federated.secure_aggregation.signatures import Identity, SignedKey
from mixmfl.federated.server import coordinator
from mixmfl.federated.server.merge import train_task
from mixmfl.federated.server.secure_aggregation import masked_tasks, summed_blocks
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import Registration, ServerState, Site

OTHERS = ("east", "south", "west")


@pytest.fixture(scope="module")
def federation(sites: Mapping[str, Site]) -> MaskedFederation:
    return MaskedFederation(sites)


def passed_on(participants: Participants, keys: Mapping[str, SignedKey]) -> Participants:
    """Return what a coordinator in the middle says of who takes part."""
    return dataclasses.replace(participants, keys={**participants.keys, **keys})


def test_a_coordinator_in_the_middle_would_read_a_site_that_checks_nothing(
    federation: MaskedFederation,
    sites: Mapping[str, Site],
    registrations: dict[str, Registration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack that signatures stop: with the others' keys its own, it takes the masks off."""
    monkeypatch.setattr(Identity, "check", lambda *_: None)
    participants, _ = asked(federation, registrations)
    pairs = {name: key_pair() for name in OTHERS}
    keys = {n: dataclasses.replace(participants.keys[n], key=pairs[n][1].hex()) for n in OTHERS}
    forged = passed_on(participants, keys)
    task = masked_tasks(START, forged, registrations)["north"]
    words = federation.ask({"north": task})["north"].tensors["masked.shared"].numpy().view("u8")
    common = client.round_digests(task, forged, "north", {})
    for name, (private, _) in pairs.items():
        key = client.RoundKey(0, private, forged.keys[name])
        purpose = f"'shared', {common[name]}"
        seed, add_or_subtract = client.pair_mask(key, forged, name, "north", purpose)
        words = add_or_subtract(words, key_stream(seed, len(words)))
    found = from_words(words, 32) / registrations["north"].weights["shared"]
    plain = train_task(START, registrations["north"])
    blocks = {**plain.record, "blocks": summed_blocks(START.weights, registrations)}
    exact = dataclasses.replace(OPEN, half_updates=False)
    reply, _ = train_at_site(
        dataclasses.replace(plain, record=blocks), sites["north"], PLANS, exact, {}
    )
    own = torch.cat([reply.tensors[n].flatten() for n in sorted(reply.tensors) if "shared." in n])
    assert float(np.abs(found - own.double().numpy()).max()) < 1e-9


SIGNATURE = "its signature is not of this federation, run, plans, settings, round and key"

Forge = Callable[[Participants, MaskedFederation], dict[str, SignedKey]]


def another_key(participants: Participants, _: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": dataclasses.replace(participants.keys["east"], key=key_pair()[1].hex())}


def of_another_round(_: Participants, federation: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": federation.identities["east"].sign("run", 1, key_pair()[1])}


def of_another_run(_: Participants, federation: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": federation.identities["east"].sign("other", 0, key_pair()[1])}


def of_another_federation(_: Participants, federation: MaskedFederation) -> dict[str, SignedKey]:
    east = federation.identities["east"]
    elsewhere = simulated_identities(["x"])["x"].authority
    return {"east": dataclasses.replace(east, authority=elsewhere).sign("run", 0, key_pair()[1])}


def of_a_false_authority(_: Participants, federation: MaskedFederation) -> dict[str, SignedKey]:
    false = simulated_identities(["east"])["east"]
    real = federation.identities["east"].authority
    return {"east": dataclasses.replace(false, authority=real).sign("run", 0, key_pair()[1])}


def of_another_site(participants: Participants, _: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": participants.keys["west"]}


def of_nobody(participants: Participants, _: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": dataclasses.replace(participants.keys["east"], certificate="ab")}


def unsigned(participants: Participants, _: MaskedFederation) -> dict[str, SignedKey]:
    return {"east": dataclasses.replace(participants.keys["east"], signature="a")}


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (
            another_key,
            SIGNATURE,
        ),
        (
            of_another_round,
            SIGNATURE,
        ),
        (
            of_another_run,
            SIGNATURE,
        ),
        (
            of_another_federation,
            SIGNATURE,
        ),
        (unsigned, SIGNATURE),
        (of_a_false_authority, "its certificate is not of this federation's authority"),
        (of_another_site, "its certificate is that of 'west'"),
        (of_nobody, "its certificate cannot be read"),
    ],
)
def test_a_key_that_is_not_shown_to_be_a_sites_stops_the_others(
    federation: MaskedFederation, registrations: dict[str, Registration], forge: Forge, why: str
) -> None:
    participants, _ = asked(federation, registrations)
    forged = passed_on(participants, forge(participants, federation))
    task = masked_tasks(START, forged, registrations)["north"]
    with pytest.raises(PrivacyError, match=rf"site 'east' in round 1 .*: {why}\. Nothing is sent"):
        federation.ask({"north": task})


def test_a_site_notices_that_its_own_key_was_exchanged(
    federation: MaskedFederation, registrations: dict[str, Registration]
) -> None:
    participants, _ = asked(federation, registrations)
    again = federation.identities["north"].sign("run", 0, key_pair()[1])
    task = masked_tasks(START, passed_on(participants, {"north": again}), registrations)["north"]
    with pytest.raises(PrivacyError, match="another key as that of this site in round 1 than the"):
        federation.ask({"north": task})


def test_the_coordinators_own_certificates_make_no_sites() -> None:
    """The authority issued them, too; with two of them and one hospital no sum hides anything."""
    known = simulated_identities(["north", "mixmfl.example.org"])
    north = dataclasses.replace(known["north"], no_sites=("mixmfl.example.org",))
    keys = {"mixmfl.example.org": known["mixmfl.example.org"].sign("run", 0, key_pair()[1])}
    known["north"].check("run", 0, keys)
    with pytest.raises(PrivacyError, match="its certificate is the coordinator's and no hospital"):
        north.check("run", 0, keys)


def test_a_key_other_than_the_one_compared_by_telephone_is_refused(tmp_path: Path) -> None:
    known = simulated_identities(["north", "south"])
    keys = {"south": known["south"].sign("run", 0, key_pair()[1])}
    file, digits = tmp_path / "peers.json", known["south"].fingerprint
    by_phone = " ".join(digits[i : i + 4] for i in range(0, 64, 4)).upper()
    file.write_text(json.dumps({"south": by_phone}))
    dataclasses.replace(known["north"], peers=read_peers(file)).check("run", 0, keys)
    other = "0" * 64
    for peers, why in (({"south": other}, f"this site knows {other}"), ({"west": other}, "no key")):
        with pytest.raises(
            PrivacyError, match=f"its key has the fingerprint {digits}, and .*{why}"
        ):
            dataclasses.replace(known["north"], peers=peers).check("run", 0, keys)
    for content in ({"south": "ab"}, {"south": "x"}, {}, {"south": 3}):
        file.write_text(json.dumps(content))
        with pytest.raises(PrivacyError, match=r"peers\.json"):
            read_peers(file)


def test_a_certificate_of_another_version_or_algorithm_is_refused() -> None:
    site, other = (simulated_identities(["north", "south"])[n] for n in ("north", "south"))
    good = other.sign("run", 0, bytes(32))
    der = base64.b64decode(good.certificate)
    at, ed25519 = der.index(b"\xa0\x03\x02\x01") + 4, b"\x06\x03\x2b\x65\x70"
    for forged in (
        der[:at] + b"\x03" + der[at + 1 :],
        der[:at] + b"\x01" + der[at + 1 :],
        der.replace(ed25519, b"\x06\x03\x2b\x65\x7f"),
        der[:100],
    ):
        key = dataclasses.replace(good, certificate=base64.b64encode(forged).decode())
        with pytest.raises(PrivacyError, match="is not shown to be of that site: its certificate"):
            site.check("run", 0, {"south": key})


def test_a_certificate_that_has_ended_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(timezone.utc) + timedelta(days=4000)

    known = simulated_identities(["north", "south"])
    keys = {"south": known["south"].sign("run", 0, key_pair()[1])}
    monkeypatch.setattr(signatures, "datetime", Later)
    with pytest.raises(PrivacyError, match=r"its certificate is valid from \S+ to \S+, and it is"):
        known["north"].check("run", 0, keys)


def test_in_a_simulation_a_coordinator_in_the_middle_gets_no_round(
    tmp_path: Path, sites: Mapping[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(
        state: ServerState, participants: Participants, registrations: Mapping[str, Registration]
    ) -> dict[str, Message]:
        forged = {
            name: dataclasses.replace(signed, key=key_pair()[1].hex())
            for name, signed in participants.keys.items()
        }
        tasks = {}
        for name in participants.keys:
            keys = {**forged, name: participants.keys[name]}
            tasks[name] = masked_tasks(state, passed_on(participants, keys), registrations)[name]
        return tasks

    monkeypatch.setattr(coordinator, "masked_tasks", swapped)
    with pytest.raises(QuorumError, match="site 'north' in round 1 is not shown to be of that si"):
        simulate(PLANS, list(sites.values()), SETTINGS, "all", tmp_path / "run")


def test_whoever_signs_the_model_is_the_same_byte_for_byte(
    tmp_path: Path, sites: Mapping[str, Site]
) -> None:
    """Keys, certificates and signatures are other ones in every run."""
    models = []
    for name in ("one", "other"):
        settings = dataclasses.replace(SETTINGS, rounds=1)
        run = simulate(PLANS, list(sites.values()), settings, "all", tmp_path / name)
        models.append((run.folder / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_a_masked_run_without_a_key_to_sign_with_is_not_joined(sites: Mapping[str, Site]) -> None:
    with pytest.raises(PrivacyError, match="this site has no key of a kit to sign its part with"):
        Client(sites["north"], PLANS, SETTINGS)
    plain = Client(sites["north"], PLANS, OPEN)
    with pytest.raises(PrivacyError, match="a masked reply in a run that was agreed to be plain"):
        plain.handle(Message("keys", {"round": 0}, {}), {})
