"""What the demo and the benchmark of a network are laid out from."""

import json
from pathlib import Path

import pytest
from mixmfl.entrypoints import _local_network

from mixmfl.core.errors import MixmflError


def test_beyond_the_phantoms_four_hospitals_there_are_copies_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_local_network, "CASES", 1)
    monkeypatch.setattr(_local_network, "SPACING_MM", 8.0)
    out = tmp_path / "out"
    sites = _local_network.lay_out(out, 5)
    assert sites == ["north", "south", "west", "east", "north-2"]
    assert {path.name for path in (out / "kits").iterdir()} == {*sites, "authority", "coordinator"}
    first, again = (
        {path.relative_to(out / "federation" / name): path.stat().st_size for path in files}
        for name in ("north", "north-2")
        if (files := sorted((out / "federation" / name).rglob("*.nii.gz")))
    )
    assert first == again
    # a run in one process is to train what the network does
    record = json.loads((out / "federation" / "federation.json").read_text())
    others = {path.name for path in (out / "federation").iterdir() if path.is_dir()} - set(sites)
    assert set(record["held_out"]) >= others > set()
    assert f"$ mixmfl_provision -i {out / 'network.json'}" in capsys.readouterr().out
    with pytest.raises(MixmflError, match="is not empty; remove it, or name another folder by -o"):
        _local_network.lay_out(out)
