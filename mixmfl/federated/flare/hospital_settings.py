"""What FLARE reads at a hospital: settings that are written here, never those that came in a kit.

Whoever makes a kit may be someone whom the hospital does not let run anything. FLARE builds the
classes that its settings name, imports what lies in ``local/custom``, and writes logs into the kit.
So a kit brings an address, a name and certificates, and no file beside those that
``mixmfl_provision`` writes.
"""

import re
from pathlib import Path
from typing import Any

from nvflare.fuel.utils import log_utils

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.text import quoted

SITE_CONFIG = "mixmfl.json"  # in local/ of a hospital's kit: its SiteConfig, read by the job
SITE_CLASS = "mixmfl.federated.flare.SiteExecutor"
"""The class that a job may run. Kits outlast our files' names, so this path must not change."""

BEYOND = "beyond_tunnel"
"""The field of a kit's address that has the coordinator's where the target is a tunnel's."""

_ROLE = "project_admin"
_KEY = "client.key"  # may be a link, to where the hospital keeps its keys
_FILES = {
    "startup": {
        *("client.crt", _KEY, "rootCA.pem", "fed_client.json", "signature.json"),
        *("start.sh", "stop_fl.sh", "sub_start.sh"),  # never run
    },
    "local": {
        *("authorization.json", "authorization.json.default", "privacy.json.sample"),
        *("resources.json", "resources.json.default", SITE_CONFIG),
        *("log_config.json", "log_config.json.default", "comm_config.json"),
    },
}
_MADE_BY_FLARE = re.compile("transfer|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Folders that FLARE makes in a kit: one, and one per job."""

_PROGRAMS = {".py", ".pyc", ".so", ".pyd", ".pth"}

_NOTHING_BUT_JOBS = {
    "submit_job": "any",
    "manage_job": "any",
    "clone_job": "none",
    "download_job": "none",
    "view": "none",
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
}
"""The coordinator's rights at a hospital: start and stop jobs. It sees no file and no log."""

_COMMON = "nvflare.app_common"
_COMPONENTS: list[dict[str, Any]] = [
    {
        "id": "resource_manager",
        "path": f"{_COMMON}.resource_managers.gpu_resource_manager.GPUResourceManager",
        "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
    },
    {
        "id": "resource_consumer",
        "path": f"{_COMMON}.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
        "args": {},
    },
    {
        "id": "process_launcher",
        "path": f"{_COMMON}.job_launcher.client_process_launcher.ClientProcessJobLauncher",
        "args": {},
    },
]
"""FLARE's own parts. Its streamer of logs is left out: logs stay at the hospital."""


def check_files(kit: Path) -> None:
    """Check that a hospital's kit has nothing that FLARE or Python might run, no link and no pipe.

    Raises:
        DataError: It has.
    """
    folders = [kit / name for name in _FILES if (kit / name).is_dir()]
    for path in sorted(kit.iterdir()):
        if path.is_dir() and path not in folders and not _MADE_BY_FLARE.fullmatch(path.name):
            raise _unknown(path)
        if path.suffix in _PROGRAMS:  # FLARE's processes run in this folder
            raise _unknown(path)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name not in _FILES[folder.name]:
                raise _unknown(path)
    for folder in (kit, *folders):
        for path in sorted(folder.iterdir()):
            if path.is_symlink() and path.name != _KEY:
                raise DataError(
                    f"{path}: is a link, and FLARE would read or write where it leads; of a kit "
                    f"only startup/{_KEY} may be a link. Replace it by what it leads to, or remove "
                    "it"
                )
            if path.exists() and not path.is_file() and not path.is_dir():
                raise DataError(
                    f"{path}: is no file, as everything in a kit must be; ask whoever made the kit "
                    "for another"
                )


def _unknown(path: Path) -> DataError:
    return DataError(
        f"{path.parent}: holds {quoted(path.name)}, which mixmfl_provision does not write, and "
        "which might be run; ask whoever made the kit what it is for, and remove it"
    )


def write_policies(local: Path) -> None:
    """Write what FLARE at a hospital allows others to do, and what it builds itself."""
    write_json(
        local / "resources.json",
        {
            "format_version": 2,
            "class_list_enforcement_mode": "enforce",
            "class_allow_list": [SITE_CLASS],
            "allow_log_streaming": False,
            "client": {"retry_timeout": 30, "compression": "Gzip"},
            "components": _COMPONENTS,
        },
    )
    permissions = {_ROLE: _NOTHING_BUT_JOBS}
    write_json(local / "authorization.json", {"format_version": "1.0", "permissions": permissions})
    write_connections(local)
    # FLARE's own, as it is installed here: such a file names classes, too
    write_json(
        local / "log_config.json", read_json(Path(log_utils.__file__).with_name("log_config.json"))
    )


def write_connections(local: Path) -> None:
    """Write that FLARE's processes on one machine show each other the kit's certificate.

    Else whoever has an account on that machine connects to them, and commands them as any other.
    """
    resources = {"host": "localhost", "connection_security": "mtls"}
    write_json(
        local / "comm_config.json",
        {"allow_adhoc_conns": False, "internal": {"scheme": "tcp", "resources": resources}},
    )


def write_address(
    startup: Path, name: str, server: str, identity: str, through: str | None = None
) -> None:
    """Write where FLARE at a hospital connects to, and as whom; always by TLS of both ends.

    Args:
        startup: Folder of a kit.
        name: Name of the hospital.
        server: ``host:port`` of the coordinator.
        identity: Name in the certificate of the coordinator's server.
        through: ``host:port`` of a tunnel to the coordinator; None: it is reached directly.
    """
    service = {"target": through or server, "scheme": "http"}
    if through is not None:
        service[BEYOND] = server
    client = {
        **{"ssl_private_key": _KEY, "ssl_cert": "client.crt", "ssl_root_cert": "rootCA.pem"},
        **{"fqsn": name, "is_leaf": True, "connection_security": "mtls"},
    }
    write_json(
        startup / "fed_client.json",
        {
            "format_version": 2,
            "servers": [{"name": "mixmfl", "service": service, "identity": identity}],
            "client": client,
        },
    )
