"""The one door to NVIDIA FLARE: all else goes through here, and only what lies here imports it.

FLARE brings mutual TLS, authorisation, the audit log and the transport. A job that it starts names
two classes of ours, ``Coordinator`` and ``SiteExecutor``, and carries no code; the kits' policies
refuse any other class and any code.

To read in this order: ``kits``, what everyone gets once; ``processes``, FLARE's, as long as a
block; ``job``, what they are told to do; ``driver``, the coordinator's command, job after job;
``parcels``, how a message is carried; ``coordinator`` and ``site_executor``, what runs in a job.
"""

from mixmfl.flare.coordinator import Coordinator
from mixmfl.flare.driver import drive
from mixmfl.flare.kits import COORDINATOR, Network, open_kit, provision, site_names
from mixmfl.flare.processes import attending
from mixmfl.flare.site_executor import SiteExecutor

__all__ = [
    "COORDINATOR",
    "Coordinator",
    "Network",
    "SiteExecutor",
    "attending",
    "drive",
    "open_kit",
    "provision",
    "site_names",
]
