"""The fields of the sites' replies, as the server takes them: types and bounds, and no others.

Whether they can be true, such as no more cases than a site has, is in ``update_checks``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import AggregationError, MixmflError
from mixmfl.core.json_fields import is_whole
from mixmfl.core.records import read_record
from mixmfl.core.text import quoted
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.evaluation.mask_quality import Confidence
from mixmfl.evaluation.reliability import Reliabilities
from mixmfl.evaluation.small_components import Components
from mixmfl.evaluation.subset_dice import BINS
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.signatures import (
    Certificate,
    PublicKey,
    Signature,
    SignedKey,
)
from mixmfl.federated.state import Cases, Registration
from mixmfl.inference.model_folder import CANDIDATES, Candidate, Configuration
from mixmfl.planning.bounds import MOST_ROUNDS
from mixmfl.planning.fingerprint import MOST_CASES

MOST_LOSS = 1e9
"""Largest absolute loss of a round; training stops at NaN long before."""

MOST_EPSILON = 1e12
"""Largest epsilon that a site can have spent of its privacy budget: more protects nobody."""

_MOST_SUBSETS = 10**6

Round = Annotated[int, within(0, MOST_ROUNDS)]
_Share = Annotated[float, within(0, 1)]

Sums = Annotated[
    Mapping[
        Annotated[str, text(LONGEST_NAME)], tuple[Annotated[float, within(0, MOST_CASES)], Cases]
    ],
    entries(0, MOST_LABELS),
]
"""By label or region the sum of Dice over cases, and their number."""

BinCounts = Annotated[
    Mapping[Annotated[str, text(LONGEST_NAME)], Annotated[tuple[Cases, ...], entries(BINS, BINS)]],
    entries(0, MOST_LABELS),
]
"""By label or region, how many cases have a Dice in each of the ranges."""

Compared = Annotated[Mapping[Candidate, Components], entries(0, len(CANDIDATES))]
"""By configuration, and of the mean of all, the sums of Dice without small components."""

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class FingerprintReply:
    """Statistics for planning.

    Attributes:
        fingerprint: A fingerprint, which ``Fingerprint.from_json`` checks; None: too few cases.
        labels: Labels, which ``Labels.from_dataset_json`` checks.
    """

    fingerprint: Any
    labels: Any


@dataclass(frozen=True)
class PreprocessReply:
    """How many cases were preprocessed, and how many refused, by configuration."""

    cases: Annotated[Mapping[Configuration, tuple[Cases, Cases]], entries(0, 2)]


@dataclass(frozen=True)
class JoinReply:
    """The counts of a site that joins a run."""

    registration: Registration


@dataclass(frozen=True)
class TrainReply:
    """What a round of training showed."""

    round: Round
    loss: Annotated[float, within(-MOST_LOSS, MOST_LOSS)]
    dice_loss: Annotated[float, within(-MOST_LOSS, MOST_LOSS)]


@dataclass(frozen=True)
class PrivateReply:
    """What a site with a privacy budget sends instead of a loss, which would say something."""

    round: Round
    epsilon: Annotated[float, within(0, MOST_EPSILON)]
    delta: _Share


@dataclass(frozen=True)
class QuietReply:
    """A round without a loss: the site withholds it, or it is in the sums of a masked run."""

    round: Round


@dataclass(frozen=True)
class KeyReply:
    """A public key of the round, signed by the site; see ``SignedKey``."""

    round: Round
    key: PublicKey
    certificate: Certificate
    signature: Signature

    @property
    def signed(self) -> SignedKey:
        """Return what is passed on to the other sites, which check it."""
        return SignedKey(self.key, self.certificate, self.signature)


@dataclass(frozen=True)
class ValidationReply:
    """Dice of a validation."""

    round: Round
    dice: Sums


@dataclass(frozen=True)
class MeasureReply:
    """Cases by Dice, for every subset of modalities; and what else is measured of masks."""

    round: Round
    subsets: Annotated[
        Sequence[
            tuple[
                Annotated[tuple[ModalityName, ...], entries(1, MOST_MODALITIES, distinct=True)],
                BinCounts,
            ]
        ],
        entries(0, _MOST_SUBSETS),
    ]
    confidence: Confidence
    reliability: Reliabilities
    components: Components


@dataclass(frozen=True)
class ComparisonReply:
    """Dice of two configurations and of their mean."""

    round: Round
    components: Compared


@dataclass(frozen=True)
class PersonalReply:
    """Mean Dice of a personalised model, and of the global model; None: of too few cases."""

    dice: _Share | None
    dice_before: _Share | None


def read_reply(
    kind: type[Reply],
    site: str,
    reply: Message,
    error: type[MixmflError] = AggregationError,
) -> Reply:
    """Return the record of a site's reply.

    Raises:
        MixmflError: A field is unknown, missing, of another type or beyond its bounds.
    """
    return read_record(kind, reply.record, f"site {site!r}", error)


def check_round(site: str, asked: str, reply: Message, round_number: int) -> None:
    """Check that a reply is of the kind and the round that were asked for.

    Raises:
        AggregationError: It is not.
    """
    number = reply.record.get("round")
    if reply.kind != asked or not is_whole(number, round_number, round_number):
        raise AggregationError(
            f"site {site!r} sent a {quoted(reply.kind)} reply to round {quoted(number)}; a "
            f"{asked!r} reply to round {round_number} was asked for"
        )
