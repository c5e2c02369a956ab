"""The adapter to NVIDIA FLARE: only this package imports FLARE.

FLARE brings mutual TLS, authorisation, the audit log and the transport. A job that it starts names
two classes of ours, ``Coordinator`` and ``SiteExecutor``, and carries no code; the kits' policies
refuse any other class and any code.

Read the modules in this order: ``provisioning`` makes the start-up kits and ``kits`` reads them;
``processes`` runs FLARE's processes for the length of a ``with`` block; ``job`` describes what they
do; ``runner`` runs job after job for the coordinator's command; ``transfer`` carries messages;
``controller`` and ``executor`` are the two classes that run in a job.
"""

from mixmfl.federated.flare.controller import Coordinator
from mixmfl.federated.flare.executor import SiteExecutor
from mixmfl.federated.flare.kits import (
    COORDINATOR,
    check_writers,
    ends_soon,
    open_kit,
    site_names,
)
from mixmfl.federated.flare.processes import running_client
from mixmfl.federated.flare.provisioning import Network, provision, request_kit, revoke
from mixmfl.federated.flare.runner import run_jobs
from mixmfl.federated.flare.tunnel import check_login, check_proxy

__all__ = [
    "COORDINATOR",
    "Coordinator",
    "Network",
    "SiteExecutor",
    "check_login",
    "check_proxy",
    "check_writers",
    "ends_soon",
    "open_kit",
    "provision",
    "request_kit",
    "revoke",
    "run_jobs",
    "running_client",
    "site_names",
]
