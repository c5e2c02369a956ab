"""The one door to NVIDIA FLARE: all else goes through here, and only what lies here imports it.

FLARE brings mutual TLS, authorisation, the audit log and the transport. A job that it starts names
two classes of ours, ``Coordinator`` and ``SiteExecutor``, and carries no code; the kits' policies
refuse any other class and any code.

To read in this order: ``kits``, what everyone gets once; ``processes``, FLARE's, as long as a
block; ``job``, what they are told to do; ``driver``, the coordinator's command, job after job;
``parcels``, how a message is carried; ``coordinator`` and ``site_executor``, what runs in a job.
"""

from mixmfl.federated.flare.controller import Coordinator
from mixmfl.federated.flare.executor import SiteExecutor
from mixmfl.federated.flare.processes import running_client
from mixmfl.federated.flare.provisioning import (
    COORDINATOR,
    Network,
    open_kit,
    provision,
    site_names,
)
from mixmfl.federated.flare.runner import drive

__all__ = [
    "COORDINATOR",
    "Coordinator",
    "Network",
    "SiteExecutor",
    "drive",
    "open_kit",
    "provision",
    "running_client",
    "site_names",
]
