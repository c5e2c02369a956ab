import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from mixmfl.core.errors import DataError
from mixmfl.data.grid import to_canonical
from mixmfl.data.image import read_grid, read_image, read_labels
from mixmfl.data.labels import Labels
from mixmfl.data.phantom import federation as phantom_federation
from mixmfl.data.phantom import patient as phantom
from mixmfl.data.phantom.federation import Case, Settings
from mixmfl.data.phantom.patient import Patient
from mixmfl.data.phantom.scanners import HELD_OUT, HOSPITALS, Pulses

COARSE = (4.0, 4.0, 4.0)
SMALL = Settings(spacing_mm=6, cases=3)  # the third case of each training hospital lacks one
UNSEEN = next(hospital for hospital in HOSPITALS if hospital.name == "unseen")
MODALITIES = ("t1", "t1c", "t2", "flair")

Image = npt.NDArray[np.int16]
Scans = list[tuple[Patient, dict[str, Image]]]


@pytest.fixture(scope="module")
def scans() -> Scans:
    """Four patients with all four modalities, scanned at the unseen hospital."""
    atlas = phantom.load_atlas()
    scanned = []
    for number in range(4):
        rng = np.random.default_rng(number)
        patient = phantom.make_patient(atlas, rng, COARSE, (14, 20), (14, 22))
        fields = phantom.Fields(rng, atlas.low, atlas.high, phantom.grid_axes(atlas, COARSE))
        images = {
            modality: phantom.render(patient, modality, UNSEEN, fields, COARSE)
            for modality in MODALITIES
        }
        scanned.append((patient, images))
    return scanned


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "federation"
    written = phantom_federation.write_federation(folder, SMALL)
    assert len(written) == 15
    return folder


def mean_in(image: Image, patient: Patient, tissue: str) -> float:
    """The image's mean in voxels that a tissue fills, relative to white matter."""
    names = list(phantom.TISSUES)
    limit = 0.5 if tissue == "oedema" else 0.8  # oedema is water among tissue
    where, white = (
        patient.brain & (patient.fractions[names.index(name)] > least)
        for name, least in ((tissue, limit), ("white", 0.8))
    )
    assert np.count_nonzero(where) > 5, tissue
    return float(image[where].mean() / image[white].mean())


def bytes_of(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    assert found
    return found


def command() -> Callable[[Sequence[str]], int]:
    (found,) = entry_points(group="console_scripts", name="mixmfl_demo_data")
    return found.load()


def test_each_modality_orders_healthy_tissues_as_its_sequence_does(scans: Scans) -> None:
    for patient, images in scans:
        grey = {modality: mean_in(images[modality], patient, "grey") for modality in MODALITIES}
        csf = {modality: mean_in(images[modality], patient, "csf") for modality in MODALITIES}
        assert csf["t1"] < grey["t1"] < 1  # white matter is 1
        assert csf["t1c"] < grey["t1c"] < 1
        assert csf["t2"] > grey["t2"] > 1
        assert csf["flair"] < 1 < grey["flair"] < 1.4


def test_enhancing_tumour_is_bright_on_t1c_alone(scans: Scans) -> None:
    for patient, images in scans:
        rim = {modality: mean_in(images[modality], patient, "enhancing") for modality in MODALITIES}
        assert rim["t1c"] > 1.5
        assert rim["t1"] < 1
        for modality in ("t2", "flair"):  # no brighter than the oedema around it
            assert rim[modality] < 1.05 * mean_in(images[modality], patient, "oedema")


def test_oedema_shows_on_t2_and_flair_and_hardly_on_t1(scans: Scans) -> None:
    for patient, images in scans:
        oedema = {modality: mean_in(images[modality], patient, "oedema") for modality in MODALITIES}
        assert oedema["t2"] > 1.4
        assert oedema["flair"] > 1.3
        assert 0.55 < oedema["t1"] < 0.95
        assert oedema["t1c"] < 1


def test_necrosis_is_dark_on_t1c_and_bright_on_t2(scans: Scans) -> None:
    for patient, images in scans:
        necrosis = {m: mean_in(images[m], patient, "necrosis") for m in MODALITIES}
        assert necrosis["t1"] < 0.7
        assert necrosis["t1c"] < 0.6 * mean_in(images["t1c"], patient, "enhancing")
        assert necrosis["t2"] > 1.8
        assert necrosis["flair"] < mean_in(images["flair"], patient, "oedema")


def test_a_tumour_is_nested_and_lies_inside_the_brain(scans: Scans) -> None:
    for patient, _ in scans:
        labels = patient.labels
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        assert not labels[~patient.brain].any()
        whole, core, necrosis = labels > 0, labels > phantom.OEDEMA, labels == phantom.NECROSIS
        in_whole, in_core = (
            ndimage.distance_transform_edt(part, sampling=COARSE) for part in (whole, core)
        )
        assert in_whole[core].mean() > in_whole[whole & ~core].mean()
        assert in_core[necrosis].mean() > in_core[core & ~necrosis].mean()
        rim = labels[ndimage.binary_dilation(necrosis) & ~necrosis]
        assert np.mean(rim == phantom.ENHANCING) > 0.8


def test_fractions_of_a_voxel_sum_to_one_and_none_is_negative(scans: Scans) -> None:
    for patient, _ in scans:
        np.testing.assert_allclose(patient.fractions.sum(axis=0), 1, atol=1e-4)
        assert patient.fractions.min() > -1e-5


def test_outside_the_brain_an_image_is_exactly_zero_and_inside_it_never_is(scans: Scans) -> None:
    for patient, images in scans:
        for image in images.values():
            assert image.dtype == np.int16
            np.testing.assert_array_equal(image != 0, patient.brain)


def test_a_finer_grid_shows_the_same_patient() -> None:
    atlas = phantom.load_atlas()
    volumes = []
    for spacing in (COARSE, (2.5, 2.5, 2.5)):
        patient = phantom.make_patient(atlas, np.random.default_rng(5), spacing, (14, 20), (14, 22))
        volumes.append(np.bincount(patient.labels.ravel(), minlength=4)[1:] * np.prod(spacing))
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.25)


def test_signal_is_that_of_spin_echo_and_of_inversion_recovery() -> None:
    t1, t2 = np.full(1, 1000, dtype=np.float32), np.full(1, 100, dtype=np.float32)
    spin_echo = phantom.signal(Pulses(tr=1000, te=100), 0.8, t1, t2)
    assert spin_echo[0] == pytest.approx(0.8 * (1 - np.exp(-1)) * np.exp(-1), rel=1e-5)
    nulled = phantom.signal(Pulses(tr=1e6, te=100, ti=1000 * np.log(2)), 0.8, t1, t2)
    assert nulled[0] == pytest.approx(0, abs=1e-5)


def test_hospitals_have_different_modalities_and_each_is_held_by_two() -> None:
    training = [hospital for hospital in HOSPITALS if hospital.name not in HELD_OUT]
    assert len(training) == 4
    assert len({hospital.modalities for hospital in training}) == 4
    assert len({hospital.cases for hospital in training}) == 4
    for modality in MODALITIES:
        assert sum(modality in hospital.modalities for hospital in training) >= 2
    assert UNSEEN.modalities == MODALITIES


def test_some_patients_of_each_training_hospital_lack_a_modality_and_none_of_the_unseen() -> None:
    lacking = dict.fromkeys((hospital.name for hospital in HOSPITALS), 0)
    for case in Settings().list_cases():
        assert case.modalities
        lacking[case.hospital.name] += len(case.modalities) < len(case.hospital.modalities)
    assert lacking == {"north": 3, "east": 2, "south": 4, "west": 2, "unseen": 0}


@pytest.mark.parametrize(
    ("setting", "held"),
    [
        ("mix-modal", {"t1 t2", "t1c flair", "t1 t1c flair", "t2 flair"}),
        ("multi-modal", {"t1 t1c t2 flair"}),
        ("cross-modal", {"t1", "t1c", "t2", "flair"}),
    ],
)
def test_a_setting_decides_what_the_training_hospitals_hold(setting: str, held: set[str]) -> None:
    settings = Settings(setting=setting)
    training = [case for case in settings.list_cases() if case.hospital.name != "unseen"]
    hospitals = {case.hospital.name: case.hospital for case in training}.values()
    assert {" ".join(settings.modalities_of(hospital)) for hospital in hospitals} == held
    lacking = [
        case
        for case in training
        if len(case.modalities) < len(settings.modalities_of(case.hospital))
    ]
    assert bool(lacking) == (setting == "mix-modal")
    unseen = [case for case in settings.list_cases() if case.hospital.name == "unseen"]
    assert all(case.modalities == MODALITIES for case in unseen)


def test_test_patients_are_others_with_all_modalities_in_folders_of_their_own() -> None:
    settings = Settings(tests=3)
    cases = settings.list_cases()
    tests = [case for case in cases if case.is_test]
    assert len(tests) == 4 * 3
    assert len({case.name for case in cases}) == len(cases)
    assert {case.number for case in tests}.isdisjoint(
        case.number for case in cases if not case.is_test
    )
    assert all(case.modalities == MODALITIES for case in tests)
    assert {case.folder for case in tests} == set(settings.federation()["tests"].values())
    assert [case for case in cases if not case.is_test] == Settings().list_cases()


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(DataError, match=r"mixed-modal.*mix-modal, multi-modal, cross-modal"):
        Settings(setting="mixed-modal")
    with pytest.raises(DataError, match="tests is -1"):
        Settings(tests=-1)


def test_the_folder_holds_what_each_case_has(federation: Path) -> None:
    names = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}
    for case in SMALL.list_cases():
        folder = federation / case.hospital.name / case.name
        found = {path.name for path in folder.iterdir()}
        assert found == {"seg.nii.gz"} | {f"{names[m]}.nii.gz" for m in case.modalities}
        assert "phantom" in case.name
    assert len({case.name for case in SMALL.list_cases()}) == 15
    assert json.loads((federation / "federation.json").read_text()) == {"held_out": ["unseen"]}
    assert "These are no patients" in (federation / "README.md").read_text()


def test_labels_are_declared_as_regions_that_paint_back_to_the_labels(federation: Path) -> None:
    content = json.loads((federation / "dataset.json").read_text())
    declared = Labels.from_dataset_json(content, "dataset.json")
    assert declared.has_regions
    assert declared.regions_class_order is not None
    labels, _ = read_labels(federation / "unseen" / "unseen_phantom01" / "seg.nii.gz")
    painted = np.zeros_like(labels)
    for value, members in zip(
        declared.regions_class_order, declared.foreground.values(), strict=True
    ):
        painted[np.isin(labels, members)] = value
    np.testing.assert_array_equal(painted, labels)
    assert labels.any()


def test_files_of_a_case_share_a_grid_that_a_hospital_stores_in_its_own_way(
    federation: Path,
) -> None:
    directions = {}
    for case in SMALL.list_cases():
        folder = federation / case.hospital.name / case.name
        grids = {read_grid(path) for path in folder.iterdir()}
        assert len(grids) == 1
        directions[case.hospital.name] = grids.pop().direction
    assert len(set(directions.values())) >= 4


def test_stored_images_turn_back_to_the_head_up_and_the_face_to_the_front(
    federation: Path,
) -> None:
    """The brain fills the canonical grid alike at all hospitals, whatever their axes are."""
    for hospital in HOSPITALS:
        place = federation / hospital.name / f"{hospital.name}_phantom01"
        image, grid = read_image(
            next(path for path in place.iterdir() if path.name != "seg.nii.gz")
        )
        turned, canonical = to_canonical(image, grid)
        assert canonical.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        z, y, x = (
            np.argwhere(turned).mean(axis=0) * canonical.spacing + np.array(canonical.origin)[::-1]
        )
        assert abs(z - 9) < 8  # centre of the MNI152 brain in mm, LPS: (0, 18, 9)
        assert abs(y - 18) < 8
        assert abs(x) < 8


def test_the_same_seed_gives_the_same_bytes(federation: Path, tmp_path: Path) -> None:
    phantom_federation.write_federation(tmp_path / "again", SMALL)
    again = bytes_of(tmp_path / "again")
    assert again == bytes_of(federation)
    stamps = {content[4:8] for name, content in again.items() if name.endswith(".gz")}
    assert stamps == {bytes(4)}  # gzip's time of writing, which would differ a second later


def test_another_seed_gives_other_patients(federation: Path, tmp_path: Path) -> None:
    case = SMALL.list_cases()[0]
    phantom_federation.write_case(tmp_path, case, Settings(seed=1, spacing_mm=6, cases=3))
    ours = bytes_of(tmp_path)
    assert all((federation / name).read_bytes() != content for name, content in ours.items())


def test_a_case_does_not_depend_on_how_many_others_there_are(
    federation: Path, tmp_path: Path
) -> None:
    fewer = Settings(spacing_mm=6, cases=1)
    phantom_federation.write_federation(tmp_path / "fewer", fewer)
    for case in fewer.list_cases():
        part = Path(case.hospital.name, case.name)
        assert bytes_of(tmp_path / "fewer" / part) == bytes_of(federation / part)


def test_an_interrupted_federation_is_completed_with_the_same_bytes(
    federation: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(federation, broken)
    shutil.rmtree(broken / "east" / "east_phantom02")
    (broken / "unseen" / "unseen_phantom01" / "T2.nii.gz").unlink()
    (broken / "dataset.json").unlink()
    written = phantom_federation.write_federation(broken, SMALL)
    assert [case.name for case in written] == ["east_phantom02", "unseen_phantom01"]
    assert bytes_of(broken) == bytes_of(federation)


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis\.txt and no phantom\.json"):
        phantom_federation.write_federation(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match=r"is a file; give a new folder"):
        phantom_federation.write_federation(tmp_path / "thesis.txt", SMALL)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Settings(seed=7, spacing_mm=6, cases=3), r"seed 0, asked for 7"),
        (Settings(spacing_mm=5, cases=3), r"spacing_mm 6, asked for 5"),
        (Settings(spacing_mm=6), r"north 3, .*, asked for north 10, east 8"),
    ],
)
def test_a_phantom_of_other_settings_is_refused_and_left_alone(
    federation: Path, other: Settings, message: str
) -> None:
    before = bytes_of(federation)
    with pytest.raises(DataError, match=message):
        phantom_federation.write_federation(federation, other)
    assert bytes_of(federation) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"spacing_mm": 0.0}, "spacing is 0.0 mm; it must be between 0.5 and 8 mm"),
        ({"spacing_mm": float("nan")}, "spacing is nan mm"),
        ({"cases": 0}, "cases is 0; every hospital needs at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Settings(**changes)  # type: ignore[arg-type] # a mistyped number is the point


def test_the_command_writes_then_reports_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", str(tmp_path / "federation"), "--spacing", "8", "--cases", "1"]
    assert command()(arguments) == 0
    output = capsys.readouterr().out
    assert "5 of 5 cases written" in output
    assert "unseen: 1 case, t1, t1c, t2, flair, held out for testing" in output
    before = bytes_of(tmp_path)
    assert command()(arguments) == 0
    assert "exists already" in capsys.readouterr().out
    assert bytes_of(tmp_path) == before


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert command()(["-o", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mixmfl_demo_data: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_a_case_knows_its_hospital() -> None:
    assert Case(site=4, number=0, modalities=("t1",)).hospital is UNSEEN
