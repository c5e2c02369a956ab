"""Errors that a user can fix, one class per kind of remedy.

Every message says what was looked at, what was found, what is needed and what to do. Commands
print it without a traceback; any other exception is a bug in mixmfl.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """Files that look like a case but cannot be used as one, and why."""

    name: str
    reason: str


class MixmflError(Exception):
    """Base of all errors that a user can fix."""


class DataError(MixmflError):
    """A folder, an image or a label is missing, damaged or of the wrong kind."""


class PlansError(MixmflError):
    """Plans, presets or fingerprints are missing, damaged, or do not fit together."""


class AggregationError(MixmflError):
    """The updates of the sites cannot be merged."""


class QuorumError(AggregationError):
    """Fewer sites answered than a round needs."""


class PrivacyError(MixmflError):
    """A site's privacy settings forbid the requested task."""


class ModelError(MixmflError):
    """A model file or a checkpoint is missing, damaged, or of another version."""
