"""What goes wrong for a user, one class per kind of remedy.

Every message says what was looked at, what was found, what is needed and what to do. Commands
print it without a traceback; anything else that is raised is a fault of ours.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """Files that look like a case but cannot be used as one, and why."""

    name: str
    reason: str


class MixmflError(Exception):
    """Base of all errors that a user can mend."""


class DataError(MixmflError):
    """A folder, an image or a label is not what is needed."""


class PlansError(MixmflError):
    """Plans, presets or fingerprints are missing, damaged, or do not fit together."""


class AggregationError(MixmflError):
    """What the sites sent cannot be merged."""


class QuorumError(AggregationError):
    """Fewer sites answered than a round needs."""


class PrivacyError(MixmflError):
    """What a site demands for its privacy does not allow what was asked of it."""


class ModelError(MixmflError):
    """A model file or a run is missing, damaged, or of another version."""
