import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from small import small_case, small_plans

from mixmfl.core.errors import DataError
from mixmfl.planning import nnunet_preprocessing
from mixmfl.planning.preprocessed_case import (
    PreprocessedCase,
    case_names,
    is_stored,
    open_case,
    save_case,
)


def store(folder: Path, name: str = "p01") -> tuple[np.ndarray, np.ndarray]:
    plans = small_plans()
    images, labels = small_case(("t1", "t2"), 0)
    data, seg, properties = nnunet_preprocessing.preprocess(
        list(images.values()), labels, (1, 1, 1), plans.nnunet, "2d", plans.labels
    )
    found = properties["class_locations"]
    planned = "by these plans"
    case = PreprocessedCase(folder, name, ("t1", "t2"), planned, (1, 1, 1), data, seg, found)
    save_case(case, "made from this", "these bytes", (16, 16))
    return data, seg


def test_a_stored_case_is_what_was_saved_and_says_which_modalities_it_has(tmp_path: Path) -> None:
    data, seg = store(tmp_path)
    case = open_case(tmp_path, "p01")
    assert case.modalities == ("t1", "t2")
    assert np.array_equal(case.images[:], data)
    assert np.array_equal(case.labels[:], seg)
    assert set(case.class_locations) == {1, 2}
    for label, voxels in case.class_locations.items():
        assert len(voxels) == np.count_nonzero(seg == label)
        assert (seg[tuple(voxels.T)] == label).all()


def test_a_full_disk_is_an_error_of_the_system_and_another_failure_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr(blosc2, "asarray", fail)
    with pytest.raises(RuntimeError, match="creating the NDArray"):
        store(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="No space left") as caught:
        store(tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    store(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {".b2nd", ".json"}
    assert not any(b"pickle" in f.read_bytes() for f in tmp_path.iterdir())


def test_a_case_without_its_record_was_left_half_done(tmp_path: Path) -> None:
    store(tmp_path, "whole")
    store(tmp_path, "half")
    (tmp_path / "half.json").unlink()
    assert case_names(tmp_path) == ("whole",)
    assert is_stored(tmp_path, "whole", "made from this")
    assert not is_stored(tmp_path, "half", "made from this")


def test_a_case_made_from_something_else_is_not_there(tmp_path: Path) -> None:
    store(tmp_path)
    assert not is_stored(tmp_path, "p01", "made from other files")


@pytest.mark.parametrize("suffix", ["p01.images.b2nd", "p01.labels.b2nd"])
def test_a_missing_or_damaged_array_is_reported_and_made_again(tmp_path: Path, suffix: str) -> None:
    store(tmp_path)
    file = tmp_path / suffix
    file.write_bytes(file.read_bytes()[:40])
    assert not is_stored(tmp_path, "p01", "made from this")
    with pytest.raises(DataError, match=r"b2nd: cannot be read.*run mixmfl_plan_preprocess again"):
        open_case(tmp_path, "p01")
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_case(tmp_path, "p01")


def fill(inputs: Any, output: Any, offset: Any) -> None:
    output[:] = 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_place_of_an_array_blocks_nobody(tmp_path: Path) -> None:
    store(tmp_path)
    file = tmp_path / "p01.images.b2nd"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=r"images\.b2nd: cannot be read .*a pipe or a device"):
        open_case(tmp_path, "p01")


def test_code_in_place_of_numbers_is_refused_and_not_run(tmp_path: Path) -> None:
    store(tmp_path)
    ran, file = tmp_path / "ran", tmp_path / "p01.labels.b2nd"
    shape = open_case(tmp_path, "p01").labels.shape
    file.unlink()
    inputs = blosc2.zeros(shape, dtype=np.int16, urlpath=str(tmp_path / "in.b2nd"), mode="w")
    blosc2.lazyudf(fill, (inputs,), np.int16, shape=shape).save(urlpath=str(file))
    written = blosc2.blosc2_ext.open(str(file), "a", 0)
    lazy = written.schunk.vlmeta["_LazyArray"]
    # what a reader that only takes __import__ away would still run
    lazy["UDF"] = (
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
        f".__init__.__globals__['system']('touch {ran}')\n" + lazy["UDF"]
    )
    written.schunk.vlmeta["_LazyArray"] = lazy
    del written
    with pytest.raises(DataError, match=r"labels\.b2nd: cannot be read \(holds more than numbers"):
        open_case(tmp_path, "p01")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("shape", [1, 2], "shape: has 2 entries"),
        ("shape", [10**9 * 3, 1, 1], "shape: is 3000000000"),
        ("shape", [2**11, 2**10, 2**10], r"shape: 2048 x 1024 x 1024 voxels are more than"),
        ("class_locations", {"1": [10**6]}, "class_locations: 1: lies beyond the 2160 voxels"),
        ("class_locations", {"__class__": [1]}, "it must be whole numbers with commas"),
        ("modalities", ["../t1", "t2"], "it must be a modality's name"),
        ("spacing", [1, 0, 1], "spacing: is 0"),
        ("also", 1, "unknown fields"),
    ],
)
def test_a_record_that_nobody_of_ours_wrote_is_refused(
    tmp_path: Path, field: str, value: object, why: str
) -> None:
    store(tmp_path)
    file = tmp_path / "p01.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(DataError, match=rf"p01\.json: .*{why}"):
        open_case(tmp_path, "p01")
    assert not is_stored(tmp_path, "p01", "made from this")


def test_a_region_keeps_its_places(tmp_path: Path) -> None:
    from mixmfl.data.labels import Labels

    regions = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2))
    plans = small_plans(labels=regions)
    images, labels = small_case(("t1",), 0)
    data, seg, properties = nnunet_preprocessing.preprocess(
        list(images.values()), labels, (1, 1, 1), plans.nnunet, "2d", regions
    )
    found = properties["class_locations"]
    case = PreprocessedCase(tmp_path, "p", ("t1",), "y", (1, 1, 1), data, seg, found)
    save_case(case, "x", "z", (16, 16))
    places = open_case(tmp_path, "p").class_locations
    assert set(places) == {(1, 2), 2}
    assert len(places[1, 2]) == np.count_nonzero(seg > 0)
