"""Print what pip installs from a folder of wheels, each with its hash: a requirements file.

Wheels that were built here, of packages that are published as source alone, have other hashes
than their sources, which deploy/requirements.lock has.
"""

import hashlib
import sys
from pathlib import Path


def lines(folder: Path) -> list[str]:
    """Return a line per wheel: name, version and SHA-256."""
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version, *_ = wheel.name.split("-")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        found.append(f"{name}=={version} --hash=sha256:{digest}")
    return found


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
