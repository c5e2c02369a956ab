import csv
import gzip
import io
import json
import os
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest

from mixmfl.core.errors import DataError
from mixmfl.data.accounting import aside_table
from mixmfl.data.cases import FolderCases, MappingEntry, account, describe, find_cases
from mixmfl.data.image import are_copies
from mixmfl.data.labels import Labels
from mixmfl.data.mapping import mapping_table, read_mapping
from mixmfl.data.modalities import Modalities

LESION = Labels({"background": 0, "lesion": 1})
CHANNELS = {"channel_names": {"0": "T1", "1": "FLAIR"}}


def make_files(folder: Path, *names: str) -> None:
    """Make empty files: finding cases looks at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def taken(found: FolderCases) -> dict[str, dict[str, str]]:
    """Return the files of each case by modality, as paths below the folder."""
    assert found.refused == ()
    files: dict[str, dict[str, str]] = {}
    for case in found.cases:
        assert list(case.images) == sorted(case.images)
        named = {**case.files, **({"label": case.label} if isinstance(case.label, Path) else {})}
        files[case.name] = {
            kind: path.relative_to(found.folder).as_posix() for kind, path in named.items()
        }
    return files


def refusals(found: FolderCases) -> dict[str, str]:
    return {refused.name: refused.reason for refused in found.refused}


# --- layouts


def test_nnunet_channel_files_are_cases_and_may_be_missing(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {**CHANNELS, **LESION.to_json()})
    make_files(tmp_path, "imagesTr/p1_0000.nii.gz", "imagesTr/p1_0001.nii.gz")
    make_files(tmp_path, "imagesTr/p2_0001.nii.gz", "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz")
    make_files(tmp_path, "imagesTs/p3_0000.nii.gz")
    found = find_cases(tmp_path, labels_needed=True)
    assert "nnU-Net" in found.layout
    assert found.labels == LESION
    assert taken(found) == {
        "p1": {
            "t1": "imagesTr/p1_0000.nii.gz",
            "flair": "imagesTr/p1_0001.nii.gz",
            "label": "labelsTr/p1.nii.gz",
        },
        "p2": {"flair": "imagesTr/p2_0001.nii.gz", "label": "labelsTr/p2.nii.gz"},
    }


@pytest.mark.parametrize("described", ["a/dataset.json", "dataset.json"])
def test_a_flat_nnunet_folder_is_described_beside_it_or_above(
    tmp_path: Path, described: str
) -> None:
    write_json(tmp_path / described, {"modality": {"0": "T1", "1": "FLAIR"}})  # nnU-Net v1's key
    make_files(tmp_path / "a", "p1_0000.nrrd", "p1_0001.nrrd")
    assert taken(find_cases(tmp_path / "a")) == {
        "p1": {"t1": "p1_0000.nrrd", "flair": "p1_0001.nrrd"}
    }


def test_nnunet_test_cases_are_taken_where_there_are_no_others(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", CHANNELS)
    make_files(tmp_path, "imagesTs/p3_0000.nii.gz", "labelsTs/p3.nii.gz")
    files = {"t1": "imagesTs/p3_0000.nii.gz", "label": "labelsTs/p3.nii.gz"}
    assert taken(find_cases(tmp_path)) == {"p3": files}
    inside = find_cases(tmp_path / "imagesTs")
    assert [case.name for case in inside.cases] == ["p3"]
    assert inside.cases[0].label == tmp_path / "labelsTs/p3.nii.gz"


def test_nnunet_channels_without_names_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "imagesTr/p1_0000.nii.gz")
    with pytest.raises(DataError, match=r'files named case_0000 need "channel_names" in dataset'):
        find_cases(tmp_path)
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T1", "1": "t1w"}})
    with pytest.raises(DataError, match=r"channels \[0, 1\] are all t1"):
        find_cases(tmp_path)


def test_channels_that_two_keys_name_otherwise_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "imagesTr/p1_0000.nii.gz")
    earlier = {"modality": {"0": "FLAIR", "1": "T1"}}  # of nnU-Net v1, left by a converter
    write_json(tmp_path / "dataset.json", CHANNELS | earlier)
    with pytest.raises(DataError, match=r'is t1 by "channel_names" and flair by "modality"'):
        find_cases(tmp_path)
    write_json(tmp_path / "dataset.json", CHANNELS | {"modality": {"0": "MRI", "1": "MRI"}})
    assert [case.name for case in find_cases(tmp_path).cases] == ["p1"]


def test_a_table_with_a_case_in_other_capitals_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/FLAIR.nii.gz")
    mapping = {"p1/FLAIR.nii.gz": MappingEntry("P1", "flair", "table, line 2", is_file=True)}
    with pytest.raises(DataError, match=r"table, line 2: case 'P1' differs from 'p1' in upper"):
        find_cases(tmp_path, mapping=mapping)
    mapping = {
        f"p1/{name}.nii.gz": MappingEntry(case, "t1", f"table, line {line}", is_file=True)
        for line, (name, case) in enumerate((("T1", "Anna"), ("FLAIR", "anna")), start=2)
    }
    with pytest.raises(DataError, match=r"table, line 3: case 'anna' differs from 'Anna'"):
        find_cases(tmp_path, mapping=mapping)


def test_a_channel_beyond_those_named_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", CHANNELS)
    make_files(tmp_path, "p1_0000.nii.gz", "p1_0007.nii.gz", "other.nii.gz")
    reasons = refusals(find_cases(tmp_path))
    assert reasons.pop("p1") == "p1_0007.nii.gz is channel 7, but channel_names has [0, 1]"
    assert reasons.pop("other").startswith("no known modality, only other.nii.gz; ")
    assert not reasons


def test_channel_numbers_without_a_dataset_json_are_explained(tmp_path: Path) -> None:
    make_files(tmp_path, "p1_0000.nii.gz")
    assert "_0000 need a dataset.json" in refusals(find_cases(tmp_path))["p1_0000"]


def test_a_folder_per_case_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/t1ce.nii.gz", "p1/seg.nii.gz", "p2/FLAIR.mha")
    make_files(tmp_path, "p3/scan/T2.nii", "p3/scan/lesion.nii", "p1/notes.txt")
    found = find_cases(tmp_path)
    assert found.layout == "a folder per case"
    assert taken(found) == {
        "p1": {"t1": "p1/T1.nii.gz", "t1c": "p1/t1ce.nii.gz", "label": "p1/seg.nii.gz"},
        "p2": {"flair": "p2/FLAIR.mha"},
        "p3": {"t2": "p3/scan/T2.nii", "label": "p3/scan/lesion.nii"},
    }


def test_all_below_a_case_folder_belongs_to_the_case(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/anat/T1.nii.gz", "p1/masks/seg.nii.gz", "p1/new/axial_FLAIR.nii.gz")
    assert taken(find_cases(tmp_path)) == {
        "p1": {
            "t1": "p1/anat/T1.nii.gz",
            "flair": "p1/new/axial_FLAIR.nii.gz",
            "label": "p1/masks/seg.nii.gz",
        }
    }


def test_a_case_folder_itself_may_be_given(tmp_path: Path) -> None:
    make_files(tmp_path / "p7", "T1.nii.gz", "seg.nii.gz")
    assert list(taken(find_cases(tmp_path / "p7"))) == ["p7"]


def test_examinations_of_one_patient_are_cases_of_their_own(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/2019/T1.nii.gz", "p1/2020/T2.nii.gz", "p2/T1.nii.gz")
    assert list(taken(find_cases(tmp_path))) == ["p1_2019", "p1_2020", "p2"]


def test_brats_names_are_read_flat_or_in_folders(tmp_path: Path) -> None:
    name = "BraTS20_Training_001"
    make_files(tmp_path / "flat", f"{name}_t1ce.nii.gz", f"{name}_t2.nii.gz", f"{name}_seg.nii.gz")
    make_files(tmp_path / "in", f"{name}/{name}_t1ce.nii.gz", f"{name}/{name}_t2.nii.gz")
    make_files(tmp_path / "in", f"{name}/{name}_seg.nii.gz", "b/BraTS-GLI-00001-000-t2f.nii.gz")
    flat = find_cases(tmp_path / "flat")
    assert flat.layout == "names with modality"
    assert taken(flat) == {
        name: {
            "t1c": f"{name}_t1ce.nii.gz",
            "t2": f"{name}_t2.nii.gz",
            "label": f"{name}_seg.nii.gz",
        }
    }
    nested = taken(find_cases(tmp_path / "in"))
    assert list(nested) == ["BraTS-GLI-00001-000", name]
    assert list(nested[name]) == ["t1c", "t2", "label"]


def test_bids_sessions_are_cases_and_derivatives_give_labels_alone(tmp_path: Path) -> None:
    make_files(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    make_files(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz")
    make_files(tmp_path, "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz")
    make_files(tmp_path, "derivatives/x/sub-01/ses-1/anat/sub-01_ses-1_space-MNI_T1w.nii.gz")
    make_files(tmp_path, "derivatives/x/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz")
    found = find_cases(tmp_path)
    derived = "derivatives/x/sub-01/ses-1/anat/sub-01_ses-1"
    assert taken(found) == {
        "sub-01_ses-1": {
            "t1": "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
            "t1c": "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
            "label": f"{derived}_label-lesion_mask.nii.gz",
        },
        "sub-01_ses-2": {"flair": "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz"},
    }
    assert [each.path for each in found.aside] == [tmp_path / f"{derived}_space-MNI_T1w.nii.gz"]


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    make_files(tmp_path, "images/p1_t1.nii.gz", "images/p2_t1.nii.gz", "labels/p1.nii.gz")
    make_files(tmp_path, "labels/p2_t1.nii.gz")
    files = taken(find_cases(tmp_path))
    assert files["p1"] == {"t1": "images/p1_t1.nii.gz", "label": "labels/p1.nii.gz"}
    assert files["p2"] == {"t1": "images/p2_t1.nii.gz", "label": "labels/p2_t1.nii.gz"}


@pytest.mark.parametrize("name", ["FLAIR-00{}", "T1 trial 0{}", "mask study {}", "post 0{}"])
def test_a_patient_whose_folder_is_named_as_a_kind_keeps_all_images(
    tmp_path: Path, name: str
) -> None:
    patients = [name.format(number) for number in (1, 2)]
    for patient in patients:
        make_files(tmp_path / patient, "t1.nii.gz", "flair.nii.gz", "seg.nii.gz")
    assert taken(find_cases(tmp_path)) == {
        patient: {
            "flair": f"{patient}/flair.nii.gz",
            "t1": f"{patient}/t1.nii.gz",
            "label": f"{patient}/seg.nii.gz",
        }
        for patient in patients
    }


def test_the_same_name_in_two_folders_is_two_cases(tmp_path: Path) -> None:
    make_files(tmp_path, "a/001_t1.nii.gz", "b/001_t2.nii.gz", "b/002_t2.nii.gz")
    assert taken(find_cases(tmp_path)) == {
        "002": {"t2": "b/002_t2.nii.gz"},
        "a_001": {"t1": "a/001_t1.nii.gz"},
        "b_001": {"t2": "b/001_t2.nii.gz"},
    }


def test_two_cases_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1_t2.nii.gz")
    assert refusals(find_cases(tmp_path)) == {
        "p1": "is the name of 2 cases: p1/T1.nii.gz, p1_t2.nii.gz; rename one"
    }


def test_hidden_files_are_passed_over_and_links_in_circles_end(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/._T1.nii.gz", ".trash/T1.nii.gz")
    make_files(tmp_path.parent / "elsewhere", "T2.nii.gz")
    os.symlink(tmp_path, tmp_path / "p1" / "again")
    os.symlink(tmp_path.parent / "elsewhere", tmp_path / "p2")
    found = find_cases(tmp_path)
    assert taken(found) == {"p1": {"t1": "p1/T1.nii.gz"}, "p2": {"t2": "p2/T2.nii.gz"}}
    assert found.aside == ()


# --- what is refused and what is ignored


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_named_as_an_image_is_no_image(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/FLAIR.nii.gz")
    os.mkfifo(tmp_path / "p1" / "T1.nii.gz")  # reading it would wait for ever
    found = account(find_cases(tmp_path))
    assert taken(found) == {"p1": {"flair": "p1/FLAIR.nii.gz"}}
    assert ("T1.nii.gz", "is no file") in {(each.path.name, each.why) for each in found.aside}


def test_a_folder_without_images_is_refused_and_the_layouts_are_shown(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no such folder. Needed is one of\n(.*\n)*.*nnU-Net"
    ):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no image \(\.nii\.gz, (.|\n)*labelsTr"):
        find_cases(tmp_path)


def test_a_damaged_dataset_json_is_named(tmp_path: Path) -> None:
    make_files(tmp_path, "p1_t1.nii.gz")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json: cannot be read as JSON"):
        find_cases(tmp_path)


def test_two_files_for_one_modality_refuse_their_case_alone(tmp_path: Path) -> None:
    make_files(tmp_path, "p1_t1.nii.gz", "p1_t1w.nii.gz", "p2_t1.nii.gz")
    make_files(tmp_path, "p3_t1.nii.gz", "p3_seg.nii.gz", "p3_mask.nii.gz", "p2_seg.nii.gz")
    found = find_cases(tmp_path, labels_needed=True)
    assert [case.name for case in found.cases] == ["p2"]
    assert refusals(found) == {
        "p1": "2 files for t1: p1_t1.nii.gz, p1_t1w.nii.gz; keep one of them",
        "p3": "2 files for label: p3_mask.nii.gz, p3_seg.nii.gz; keep one of them",
    }


def test_an_ambiguous_name_refuses_its_case(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1_C.nii.gz", "p1/seg.nii.gz", "p2/T1.nii.gz", "q_t1_t2.nii.gz")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["p2"]
    assert "p1/T1_C.nii.gz: the name 'T1_C' is undecided ('t1' is a T1" in refusals(found)["p1"]
    assert "rename it so that it fits one, or say by --mapping" in refusals(found)["p1"]
    assert "these are different sequences" in refusals(found)["q"]


def test_a_case_without_a_known_modality_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/scan.nii.gz", "p1/other.nii.gz", "p2_bold.nii.gz", "p3_seg.nii.gz")
    make_files(tmp_path, "p4_t1.nii.gz")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["p4"]
    reasons = refusals(found)
    assert len(reasons) == 3
    assert reasons["p1"].startswith("no known modality, only p1/other.nii.gz, p1/scan.nii.gz; ")
    assert "give --alias NAME=ALIAS" in reasons["p2_bold"]
    assert "only p3_seg.nii.gz" in reasons["p3"]
    found = find_cases(tmp_path, Modalities().with_aliases(["fmri=bold"]))
    assert [case.name for case in found.cases] == ["p2", "p4"]


def test_unknown_files_beside_a_case_are_ignored_and_listed(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/brain_mask.nii.gz", "p2_t1.nii.gz", "p2_bold.nii.gz")
    make_files(tmp_path, "p3/patient3_T1.nii.gz", "p3/bold.nii.gz")
    make_files(tmp_path, "p4/T1.nii.gz", "p4/raw/bold.nii.gz")
    found = find_cases(tmp_path)
    assert list(taken(found)) == ["p1", "p2", "p4", "patient3"]
    assert [each.path.relative_to(tmp_path).as_posix() for each in found.aside] == [
        "p1/brain_mask.nii.gz",
        "p2_bold.nii.gz",
        "p4/raw/bold.nii.gz",
        "p3/bold.nii.gz",
    ]
    alone = find_cases(tmp_path / "p1")
    assert list(taken(alone)) == ["p1"]
    assert [each.path.name for each in alone.aside] == ["brain_mask.nii.gz"]


def test_training_refuses_a_case_without_label(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p2/T1.nii.gz", "p2/seg.nii.gz")
    found = find_cases(tmp_path, labels_needed=True)
    assert [case.name for case in found.cases] == ["p2"]
    assert refusals(found) == {"p1": "no label, which training needs"}


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, *(f"{name}/T1.nii.gz" for name in ("p\n1", "%2e%2e", "%2E", "ok")))
    refused = dict.fromkeys(("p\n1", "..", "."), "a file cannot have this name; rename the case")
    assert refusals(find_cases(tmp_path)) == refused


@pytest.mark.parametrize(
    "file",
    [
        "a%2F..%2F..%2Fb/T1.nii.gz",
        "a%2F..%2F..%2Fb_T1.nii.gz",
        "p/a%2fb_T1.nii.gz",
        "a%2Fb/anat/T1.nii.gz",
        "a%252Fb/T1.nii.gz",
    ],
)
def test_a_folder_that_a_name_hides_in_percent_signs_is_none(tmp_path: Path, file: str) -> None:
    make_files(tmp_path, file)
    found = find_cases(tmp_path)
    names = [case.name for case in found.cases] + [each.name for each in found.refused]
    assert names
    assert not any("/" in name for name in names)


# --- what is printed


def test_the_description_says_what_was_taken_for_what(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/t1ce.nii.gz", "p1/seg.nii.gz", "p1/bold.nii.gz")
    make_files(tmp_path, "p2/T1.nii.gz", "p3/T1.nii.gz", "p3/T1w.nii.gz")
    assert describe(find_cases(tmp_path)).splitlines() == [
        f"{tmp_path}: 2 cases (layout: a folder per case)",
        "  t1 in 2, t1c in 1, label in 1",
        "  p1 -> t1: T1.nii.gz, t1c: t1ce.nii.gz, label: seg.nii.gz",
        "  p2 -> t1: T1.nii.gz",
        "refused 1 case:",
        "  p3: 2 files for t1: p3/T1.nii.gz, p3/T1w.nii.gz; keep one of them, or say by "
        "--mapping what is meant",
        "set aside 3 files:",
        "  p1/bold.nii.gz: its name says functional",
        "  p3/T1.nii.gz: 2 files fit t1",
        "  p3/T1w.nii.gz: 2 files fit t1",
    ]
    make_files(tmp_path / "other", "T1/p1.nii.gz", "FLAIR/p1.nii.gz")
    lines = describe(find_cases(tmp_path / "other")).splitlines()
    assert lines[2] == "  other -> flair: FLAIR/p1.nii.gz, t1: T1/p1.nii.gz"


def test_a_long_description_is_cut(tmp_path: Path) -> None:
    make_files(tmp_path, *(f"p{i:02}_t1.nii.gz" for i in range(57)))
    lines = describe(find_cases(tmp_path)).splitlines()
    assert len(lines) == 2 + 20 + 1
    assert lines[-1] == "  … and 37 more"


# --- one patient's folder is one case


def test_default_names_of_dcm2niix_are_one_case_per_patient(tmp_path: Path) -> None:
    names = {
        "t1": "t1_mprage_sag_p2_iso_20190101120000_5",
        "t2": "t2_tse_tra_p2_20190101120000_7",
        "flair": "t2_tirm_tra_dark-fluid_20190101120000_9",
        "t1c": "t1_mprage_sag_p2_iso_KM_20190101120000_12",
    }
    make_files(tmp_path / "folders", *(f"p01/p01_{name}.nii.gz" for name in names.values()))
    make_files(tmp_path / "flat", *(f"p01_{name}.nii.gz" for name in names.values()))
    make_files(tmp_path / "flat", f"p02_{names['t1']}.nii.gz", f"p02_{names['t2']}.nii.gz")
    make_files(tmp_path / "bare", *(f"p01/{name}.nii.gz" for name in names.values()))
    make_files(tmp_path / "p01", *(f"{name}.nii.gz" for name in names.values()))
    for folder in ("folders", "bare", "p01"):
        files = taken(find_cases(tmp_path / folder))
        assert list(files) == ["p01"]
        assert {kind: Path(file).name for kind, file in files["p01"].items()} == {
            kind: f"{'p01_' if folder == 'folders' else ''}{name}.nii.gz"
            for kind, name in names.items()
        }
    flat = find_cases(tmp_path / "flat")
    assert {name: set(files) for name, files in taken(flat).items()} == {
        "p01": {"t1", "t1c", "t2", "flair"},
        "p02": {"t1", "t2"},
    }
    assert flat.refused == ()


@pytest.mark.parametrize(
    ("files", "case"),
    [
        # the rests of the names differ
        (("p/3D_T1.nii.gz", "p/Ax_FLAIR.nii.gz", "p/head_T2_tse.nii.gz"), "p"),
        (("p/DICOM_AX_T1_20190101_3.nii.gz", "p/DICOM_AX_FLAIR_20190101_5.nii.gz"), "p"),
        # numbers of series come first
        (("p/201_T1W.nii.gz", "p/301_T2W.nii.gz", "p/401_FLAIR.nii.gz"), "p"),
        # a folder per sequence
        (("p/T1/image.nii.gz", "p/FLAIR/image.nii.gz"), "p"),
        (("p/x.MR_T1.54/x.MR_T1.54.mha", "p/x.MR_Flair.55/x.MR_Flair.55.mha"), "p"),
        (("p/20190101_120000t1mpragesag.nii.gz", "p/20190101_120000t2tse.nii.gz"), None),
    ],
)
def test_a_folder_that_holds_one_patient_is_one_case(
    tmp_path: Path, files: tuple[str, ...], case: str | None
) -> None:
    make_files(tmp_path, *files)
    found = find_cases(tmp_path)
    assert found.refused == ()
    (only,) = found.cases
    assert case is None or only.name == case
    assert len(only.images) == len(files)


def test_numbers_behind_the_words_tell_patients_where_they_come_back(tmp_path: Path) -> None:
    make_files(tmp_path, "T1_001.nii.gz", "T2_001.nii.gz", "T1_002.nii.gz", "T2_002.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "001": {"t1", "t2"},
        "002": {"t1", "t2"},
    }


def test_what_may_be_one_patient_or_several_is_refused_once_with_a_hint(tmp_path: Path) -> None:
    make_files(tmp_path, "site/p1_t1.nii.gz", "site/p2_flair.nii.gz", "q/T1.nii.gz")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["q"]
    assert list(refusals(found)) == ["site"]
    assert refusals(found)["site"].startswith("looks like one patient, or like several of one")
    assert "name the files PATIENT_t1.nii.gz" in refusals(found)["site"]


@pytest.mark.parametrize(
    ("files", "cases"),
    [
        # of one patient's series, or of patients with one image each: a question
        ("001_t1 002_flair", {}),
        ("001_t1 002_flair 003_t2", {}),
        ("5_t1 7_flair", {}),
        ("s5_t1 s7_flair", {}),
        ("t1_1 t2_2", {}),
        ("5_t1 7_t2 9_flair 12_t1", {}),
        ("p/03_t1 p/04_t2", {}),
        ("p/003_t1 p/004_t2 p/005_flair", {}),
        ("003_t1 004_t2 007_flair 011_t1_KM", {}),
        ("a/1_t1 a/2_t2 b/1_t2 b/2_t1", {}),
        # of series
        ("5_t1 7_t2 9_flair", {"in": "flair t1 t2"}),
        ("p/t1_mprage_5 p/t2_tse_7", {"p": "t1 t2"}),
        ("p/1_t1 p/2_t2 q/1_t1 q/2_t2", {"p": "t1 t2", "q": "t1 t2"}),
        ("001_t1 002_flair seg", {"in": "flair t1"}),
        ("p/003_t1 p/004_t2 p/007_flair p/011_t1_KM", {"p": "flair t1 t1c t2"}),
        # of patients
        ("001_t1 001_seg 002_flair 002_seg", {"001": "t1", "002": "flair"}),
        ("001_t1 002_t1 003_flair 004_flair 005_t1", None),
        ("p5_t1 p7_flair", {"p5": "t1", "p7": "flair"}),
    ],
)
def test_numbers_of_series_and_of_patients_are_told_apart_or_asked_for(
    tmp_path: Path, files: str, cases: dict[str, str] | None
) -> None:
    make_files(tmp_path / "in", *(f"{name}.nii.gz" for name in files.split()))
    found = find_cases(tmp_path / "in")
    if cases is None:
        assert len(found.cases) == 5
    else:
        assert {case.name: " ".join(case.images) for case in found.cases} == cases
    for reason in refusals(found).values():
        assert reason.startswith("the numbers in ")
        assert "may be of one patient's series or of several patients" in reason
        assert reason.endswith("or say by --mapping which case each is of")
    assert bool(found.refused) == (cases == {})


def test_numbers_of_series_may_stand_behind_the_patient(tmp_path: Path) -> None:
    for patient in ("PAT001", "PAT002"):  # dcm2niix -f %i_%s_%d
        make_files(tmp_path / "a", f"{patient}_4_T1.nii.gz", f"{patient}_6_FLAIR.nii.gz")
        make_files(tmp_path / "a", f"{patient}_9_T1_GAD.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path / "a")).items()} == {
        "PAT001": {"t1", "t1c", "flair"},
        "PAT002": {"t1", "t1c", "flair"},
    }
    make_files(tmp_path / "b", "Training_001_t1.nii.gz", "Training_002_flair.nii.gz")
    assert set(taken(find_cases(tmp_path / "b"))) == {"Training_001", "Training_002"}
    make_files(tmp_path / "c", "PAT001_1_t1.nii.gz", "PAT001_2_flair.nii.gz", "q_T1.nii.gz")
    found = find_cases(tmp_path / "c")
    assert [case.name for case in found.cases] == ["q"]
    assert refusals(found)["PAT001"].startswith("the numbers in PAT001_1_t1.nii.gz, PAT001_2_")


def test_times_of_one_day_before_the_words_are_of_one_examination_in_a_patients_folder(
    tmp_path: Path,
) -> None:
    names = ["20190312101530_t1.nii.gz", "20190312101530_t2.nii.gz", "20190312103000_t1_KM.nii.gz"]
    make_files(tmp_path / "a", *(f"p9/{name}" for name in names))
    make_files(tmp_path / "b", *names)
    make_files(tmp_path / "c", "p9/20190312_t1.nii.gz", "p9/20200101_t2.nii.gz")
    assert set(taken(find_cases(tmp_path / "a"))["p9"]) == {"t1", "t2", "t1c"}
    make_files(tmp_path / "d", "AX_T1_20190101101010.nii.gz", "AX_FLAIR_20190202101010.nii.gz")
    for folder in "bd":  # of two patients, perhaps, and of two days
        (refused,) = find_cases(tmp_path / folder).refused
        assert "parts of the body in their names, and may be of one" in refused.reason
    assert set(taken(find_cases(tmp_path / "c"))) == {"p9_20190312", "p9_20200101"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("T1_2019-03-12", "FLAIR_2020-05-01"), ("T1_12.03.2019", "FLAIR_01.05.2020"),
        ("T1_190312", "FLAIR_200501"), ("T1_2019", "FLAIR_2020"), ("T1_Mar2019", "FLAIR_May2019"),
        ("T1_V1", "FLAIR_V2"), ("T1_m12", "FLAIR_m06"),
        ("T1_pre_op", "FLAIR_post_op"), ("T1_vor_OP", "FLAIR_nach_OP"),
        ("T1_first", "FLAIR_second"), ("T1_24h", "FLAIR_90d"), ("T1_D0", "FLAIR_D90"),
        ("19530412_T1_20190312", "19530412_FLAIR_20200312"),
    ],
)  # fmt: skip
def test_other_days_visits_or_states_behind_the_words_are_a_question(
    tmp_path: Path, one: str, other: str
) -> None:
    make_files(tmp_path, f"p1/p1_{one}.nii.gz", f"p1/p1_{other}.nii.gz")
    make_files(tmp_path, f"p2/p2_{one}.nii.gz", f"p2/p2_{one.replace('T1', 'FLAIR')}.nii.gz")
    found = find_cases(tmp_path)
    (case,) = found.cases
    assert case.name.startswith("p2")
    (refused,) = found.refused
    assert refused.name.startswith("p1")
    assert "have other days, times, sides or parts of the body in their names" in refused.reason


def test_numbers_of_series_are_no_days_or_visits(tmp_path: Path) -> None:
    make_files(
        tmp_path, "p1/p1_T1_1901.nii.gz", "p1/p1_FLAIR_2001.nii.gz", "p1/p1_T2_101540.nii.gz"
    )
    assert set(taken(find_cases(tmp_path))["p1"]) == {"t1", "t2", "flair"}


def test_a_t1_beside_a_t0_may_be_a_time_point(tmp_path: Path) -> None:
    make_files(tmp_path, "p1_T0_FLAIR.nii.gz", "p1_T1_FLAIR.nii.gz", "p1_T2_FLAIR.nii.gz")
    make_files(tmp_path, "p2_T1_FLAIR.nii.gz", "p2_T2_FLAIR.nii.gz")  # GE's names
    found = find_cases(tmp_path)
    assert [(case.name, set(case.images)) for case in found.cases] == [
        ("p1_T0", {"flair"}),
        ("p2", {"t1", "flair"}),
    ]
    assert (
        "p1_T1_FLAIR.nii.gz: the name 'p1_T1_FLAIR' has a T1 or T2 that may be a time point, "
        in (refusals(found)["p1"])
    )


@pytest.mark.parametrize(
    ("others", "modality"),
    [
        (("T1", "T2", "FLAIR"), "t1c"), (("T1",), "t1c"),
        # of a computed tomography, or coronal, or a T1c is there
        (("T2",), ""), (("T1", "CT2"), ""), (("T1", "AT1", "ST1"), ""), (("T1", "T1c"), ""),
    ],
)  # fmt: skip
def test_ct1_beside_t1_is_a_t1_with_contrast_agent(
    tmp_path: Path, others: tuple[str, ...], modality: str
) -> None:
    make_files(tmp_path, *(f"p1/p1_{name}.nii.gz" for name in ("CT1", *others)))
    (case,) = find_cases(tmp_path).cases
    assert {case.files[name].name for name in case.files if "CT1" in case.files[name].name} == (
        {"p1_CT1.nii.gz"} if modality else set()
    )
    assert (case.files.get("t1c") == tmp_path / "p1/p1_CT1.nii.gz") == bool(modality)


def test_what_dcm2nii_turned_and_cropped_is_no_patient_of_its_own(tmp_path: Path) -> None:
    name = "s002a1001_t1_mprage.nii.gz"
    make_files(tmp_path, f"p1/{name}", f"p1/o{name}", f"p1/co{name}", "p2/bo_t1.nii.gz")
    make_files(tmp_path, "p2/obo_t1.nii.gz")  # two people
    found = find_cases(tmp_path)
    assert [case.files["t1"].name for case in found.cases][2] == name
    assert [case.name for case in found.cases] == ["bo", "obo", "s002a1001"]
    assert {each.why for each in found.aside} == {
        "its name says an image that dcm2nii made of s002a1001_t1_mprage"
    }


def test_raw_data_beside_derivatives_are_one_bids_data_set(tmp_path: Path) -> None:
    make_files(tmp_path, "rawdata/sub-01/anat/sub-01_T1w.nii.gz", "sourcedata/sub-01/T1.nii.gz")
    make_files(tmp_path, "derivatives/masks/sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    (case,) = find_cases(tmp_path, labels_needed=True).cases
    assert case.files["t1"] == tmp_path / "rawdata/sub-01/anat/sub-01_T1w.nii.gz"


def test_a_folder_of_what_was_sorted_out_is_not_used(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p1/not_used/T2.nii.gz")
    found = find_cases(tmp_path)
    assert set(taken(found)["p1"]) == {"t1"}
    assert [each.why for each in found.aside] == ["its name says a file of the folder 'not_used'"]


def test_patients_with_letters_of_another_script_are_kept_apart(tmp_path: Path) -> None:
    for name in ("\u0418\u0432\u0430\u043d", "\u041f\u0451\u0442\u0440"):
        make_files(tmp_path, f"T1_{name}.nii.gz", f"FLAIR_{name}.nii.gz")
    assert [set(files) for files in taken(find_cases(tmp_path)).values()] == [{"t1", "flair"}] * 2


def test_two_names_of_people_in_one_folder_may_be_two_patients(tmp_path: Path) -> None:
    make_files(tmp_path, "north/anna_t1.nii.gz", "north/bert_flair.nii.gz")
    assert refusals(find_cases(tmp_path))["north"].startswith("looks like one patient, or like")
    make_files(tmp_path, "north/carl_t2.nii.gz")
    assert refusals(find_cases(tmp_path))["north"].startswith("looks like one patient, or like")


def test_single_digits_behind_the_words_tell_patients_too(tmp_path: Path) -> None:
    make_files(tmp_path, "t1_1.nii.gz", "t1_2.nii.gz", "flair_1.nii.gz", "flair_2.nii.gz")
    assert set(taken(find_cases(tmp_path))) == {"1", "2"}


def test_time_points_behind_the_words_are_examinations(tmp_path: Path) -> None:
    make_files(tmp_path, "p1_T1_tp1.nii.gz", "p1_FLAIR_tp2.nii.gz", "p1_T1_tp2.nii.gz")
    make_files(tmp_path, "q/T1_baseline.nii.gz", "q/T2_baseline.nii.gz", "q/FLAIR_followup.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "p1_tp1": {"t1"},
        "p1_tp2": {"flair", "t1"},
        "q_baseline": {"t1", "t2"},
        "q_followup": {"flair"},
    }


def test_a_date_alone_is_no_name_of_a_case(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1_20190101.nii.gz", "p1/FLAIR_20190101.nii.gz")
    make_files(tmp_path, "p1/T1_20200202.nii.gz", "p1/FLAIR_20200202.nii.gz", "p2/T1.nii.gz")
    assert set(taken(find_cases(tmp_path))) == {"p1_20190101", "p1_20200202", "p2"}


def test_a_folder_of_originals_goes_before_that_of_what_was_made_of_them(tmp_path: Path) -> None:
    """Lay patients out as the challenges on white matter and multiple sclerosis do."""
    for kind in ("orig", "pre"):
        make_files(tmp_path, f"0/{kind}/FLAIR.nii.gz", f"0/{kind}/T1.nii.gz")
    make_files(tmp_path, "0/wmh.nii.gz", "a/orig/a_01_t2.nii.gz", "a/masks/a_01_mask1.nii")
    make_files(tmp_path, "a/preprocessed/a_01_t2_pp.nii", "b/pre/T1.nii.gz", "b/pre/T2.nii.gz")
    assert taken(find_cases(tmp_path)) == {
        "0": {
            "flair": "0/orig/FLAIR.nii.gz",
            "t1": "0/orig/T1.nii.gz",
            "label": "0/wmh.nii.gz",
        },
        "a_01": {"t2": "a/orig/a_01_t2.nii.gz", "label": "a/masks/a_01_mask1.nii"},
        "b": {"t1": "b/pre/T1.nii.gz", "t2": "b/pre/T2.nii.gz"},  # before an agent
    }


@pytest.mark.parametrize(
    "name", ["segm", "mask1", "TumorMask", "finalSegmentation_2", "L\u00e4sion", "masque"]
)
def test_a_label_may_be_glued_numbered_or_of_another_language(tmp_path: Path, name: str) -> None:
    make_files(tmp_path, "p/T1.nii.gz", f"p/{name}.nii.gz")
    assert taken(find_cases(tmp_path))["p"]["label"] == f"p/{name}.nii.gz"


def test_archives_of_patients_are_read_as_they_are(tmp_path: Path) -> None:
    vsd = "a/01/VSD.Brain.XX.O.{0}.5/VSD.Brain.XX.O.{0}.5.mha"  # BraTS and ISLES 2015
    make_files(tmp_path, *(vsd.format(kind) for kind in ("MR_T1", "MR_T2", "MR_Flair", "OT")))
    for kind in ("structural", "structural_unstripped"):  # UPENN-GBM
        for name in ("T1", "T1GD"):
            make_files(tmp_path, f"b/images_{kind}/UPENN-GBM-1_11/UPENN-GBM-1_11_{name}.nii.gz")
    make_files(tmp_path, "b/images_segm/UPENN-GBM-1_11_segm.nii.gz")
    for place, file in (("anat2", "T1w"), ("anat4", "T2w"), ("swi1", "acq-TSE_T2star")):  # OASIS
        make_files(tmp_path, f"c/OAS_d1/{place}/NIFTI/sub-OAS_ses-d1_{file}.nii.gz")
    make_files(
        tmp_path, "d/T1.nii.gz", "d/Masks/Consensus.nii.gz", "d/Masks/ManualSegmentation_1.nii.gz"
    )
    for number, name in ((2, "t1_mprage"), (5, "flair")):
        make_files(tmp_path, f"e/s1/SCANS/{number}/NIFTI/{number}_{name}.nii.gz")  # XNAT
    for number, name in ((3, "AX T1"), (5, "AX FLAIR"), (7, "AX T1 POST")):  # TCIA
        make_files(tmp_path, f"f/P1/01-01-2000-MR-1/{number}.000000-{name}-{number}11/1-01.nii.gz")
    found = {
        name: sorted(files)
        for folder in "abcdef"
        for name, files in taken(
            find_cases(tmp_path / folder, labels_needed=folder in "abd")
        ).items()
    }
    assert found == {
        "01": ["flair", "label", "t1", "t2"],
        "UPENN-GBM-1_11": ["label", "t1", "t1c"],
        "sub-OAS_ses-d1": ["t1", "t2", "t2star"],
        "d": ["label", "t1"],
        "s1": ["flair", "t1"],
        "P1": ["flair", "t1", "t1c"],
    }


def test_an_original_goes_before_what_was_made_of_it(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1.nii.gz", "p/T1_brain.nii.gz", "p/T1Warped.nii.gz", "p/T1_SyN.nii.gz")
    make_files(tmp_path, "p/T1InverseWarped.nii.gz", "p/T1_bet_mask.nii.gz", "p/FLAIR_N4.nii.gz")
    make_files(tmp_path, "p/FLAIR_N4_brain.nii.gz", "p/T10GenericAffine.mat")
    found = account(find_cases(tmp_path))
    assert taken(found) == {"p": {"flair": "p/FLAIR_N4.nii.gz", "t1": "p/T1.nii.gz"}}
    assert {each.path.name: each.why for each in found.aside} == {
        "T1_brain.nii.gz": "another t1; T1.nii.gz is taken",
        "T1Warped.nii.gz": "another t1; T1.nii.gz is taken",
        "T1_SyN.nii.gz": "another t1; T1.nii.gz is taken",
        "FLAIR_N4_brain.nii.gz": "another flair; FLAIR_N4.nii.gz is taken",
        "T1InverseWarped.nii.gz": "its name says deformation",
        "T1_bet_mask.nii.gz": "its name says mask",
        "T10GenericAffine.mat": "an empty file",
    }


def test_where_two_files_fit_the_user_is_asked_and_prediction_goes_on(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1_bet.nii.gz", "p/T1_n4.nii.gz", "p/FLAIR.nii.gz", "p/seg.nii.gz")
    make_files(tmp_path, "p/T1_bet_n4.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert list(case.images) == ["flair"]
    assert case.warnings == (
        "not used: 2 files for t1: p/T1_bet.nii.gz, p/T1_n4.nii.gz; keep one of them, or say by "
        "--mapping what is meant",
    )
    training = find_cases(tmp_path, labels_needed=True)
    assert refusals(training) == {
        "p": "2 files for t1: p/T1_bet.nii.gz, p/T1_n4.nii.gz; keep one of them"
    }


def test_a_file_alone_in_a_folder_per_sequence_is_of_the_patient_of_its_name(
    tmp_path: Path,
) -> None:
    make_files(tmp_path, "T1/a.nii.gz", "T1/b.nii.gz", "FLAIR/a.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "a": {"t1", "flair"},
        "b": {"t1"},
    }


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1 (2).nii.gz", "p/T2.nii", "p/FLAIR.nii.gz")
    content = bytes(range(256)) * 9
    for name, packed in (("T1.nii", False), ("T1.nii.gz", True), ("T2_5.nii.gz", True)):
        (tmp_path / "p" / name).write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "p" / "T1 (2).nii.gz").write_bytes(gzip.compress(content, 1))
    (tmp_path / "p" / "T2.nii").write_bytes(content[:-1] + b"x")
    (case,) = find_cases(tmp_path).cases
    assert list(case.images) == ["flair", "t1"]
    assert [warning[:30] for warning in case.warnings] == ["not used: 2 files for t2: p/T2"]


def test_images_in_two_files_are_copies_if_their_voxels_are(tmp_path: Path) -> None:
    for place, voxels in (("p/a", b"x"), ("p/b", b"y"), ("q/a", b"x"), ("q/b", b"x")):
        make_files(tmp_path, f"{place}/T1.hdr")
        (tmp_path / place / "T1.hdr").write_bytes(b"the same header")
        (tmp_path / place / "T1.img").write_bytes(voxels)
    assert are_copies([tmp_path / "q" / "a" / "T1.hdr", tmp_path / "q" / "b" / "T1.hdr"])
    assert not are_copies([tmp_path / "p" / "a" / "T1.hdr", tmp_path / "p" / "b" / "T1.hdr"])
    (tmp_path / "q" / "b" / "T1.img").unlink()
    assert not are_copies([tmp_path / "q" / "a" / "T1.hdr", tmp_path / "q" / "b" / "T1.hdr"])


def test_even_slices_go_before_the_uneven_ones_that_they_were_made_of(tmp_path: Path) -> None:
    make_files(tmp_path, "p/p_t2_5.nii.gz", "p/p_t2_5_Eq_1.nii.gz", "p/p_t1_4.nii.gz")
    assert taken(find_cases(tmp_path))["p"]["t2"] == "p/p_t2_5_Eq_1.nii.gz"


def test_what_spm_made_of_an_image_is_no_patient_of_its_own(tmp_path: Path) -> None:
    make_files(tmp_path, "p/x1_T1.nii", "p/x1_FLAIR.nii", "p/c1x1_T1.nii", "p/mx1_T1.nii")
    make_files(tmp_path, "p/wmx1_T1.nii", "p/rx1_FLAIR.nii", "p/y_x1_T1.nii", "p/mri/mwp1x1_T1.nii")
    make_files(tmp_path, "q/01_T1.nii", "q/01_T2.nii", "q/s01_T1.nii", "q/s01_T2.nii")
    make_files(tmp_path, "r/am_T1.nii", "r/sam_T1.nii", "s/T1.nii", "s/mT1.nii")
    found = find_cases(tmp_path)
    assert {name: set(files) for name, files in taken(found).items()} == {
        "x1": {"t1", "flair"},
        "01": {"t1", "t2"},
        "s01": {"t1", "t2"},  # a patient, not a smoothed image of 01
        "am": {"t1"},
        "sam": {"t1"},
        "s": {"t1"},
    }
    assert {each.path.name for each in found.aside} >= {"c1x1_T1.nii", "mwp1x1_T1.nii"}
    assert {each.why for each in found.aside} == {
        "its name says an image that SPM made of x1_T1",
        "its name says an image that SPM made of x1_FLAIR",
        "its name says an image that SPM made of T1",
    }


def test_a_diffusion_image_and_its_map_are_no_patient_of_their_own(tmp_path: Path) -> None:
    make_files(tmp_path, "p01/p01_ep2d_3scan_trace_8.nii.gz", "p01/p01_t2_tse_3.nii.gz")
    make_files(tmp_path, "p01/p01_ep2d_3scan_trace_8_ADC.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "p01": {"adc", "dwi", "t2"}
    }


def test_a_file_without_patient_is_of_the_patient_of_its_folder(tmp_path: Path) -> None:
    make_files(tmp_path, "p01/T1 nach KM.nii.gz", "p01/p01_FLAIR.nii.gz", "q/T2.nii.gz")
    make_files(tmp_path, "q/x7_FLAIR.nii.gz")
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "p01": {"t1c", "flair"},
        "q": {"t2", "flair"},
    }


def test_a_folder_per_series_may_lie_above_others(tmp_path: Path) -> None:
    for patient in ("S1", "S2"):
        make_files(tmp_path / "xnat", f"{patient}/SCANS/4-T1/NIFTI/image.nii.gz")
        make_files(tmp_path / "xnat", f"{patient}/SCANS/5-t2_flair/resources/NIFTI/files/x.nii.gz")
        make_files(tmp_path / "xnat", f"{patient}/SCANS/6-MASK/NIFTI/image.nii.gz")
        make_files(tmp_path / "egd", f"{patient}/1_T1/NIFTI/T1.nii.gz")
        make_files(tmp_path / "egd", f"{patient}/2_FLAIR/NIFTI/FLAIR.nii.gz")
        make_files(tmp_path / "egd", f"{patient}/5_MASK/NIFTI/MASK.nii.gz")
    for layout in ("xnat", "egd"):
        found = find_cases(tmp_path / layout, labels_needed=True)
        assert {name: set(files) for name, files in taken(found).items()} == {
            "S1": {"t1", "flair", "label"},
            "S2": {"t1", "flair", "label"},
        }


def test_a_folder_per_image_is_one_patient_where_names_and_folders_say_so(tmp_path: Path) -> None:
    for day, number in (("2011-06-02", 70), ("2012-07-03", 90)):
        for name in ("MPRAGE", "FLAIR"):
            place = f"ADNI/002_S_0295/{name}/{day}_07_57_03.0/I{number + len(name)}"
            file = f"ADNI_002_S_0295_MR_{name}_br_raw_I{number + len(name)}.nii"
            make_files(tmp_path, f"{place}/{file}")
    make_files(tmp_path, "OAS3_MR_d01/anat2/sub-OAS3_ses-d01_T1w.nii.gz")
    make_files(tmp_path, "OAS3_MR_d01/anat4/sub-OAS3_ses-d01_T2w.nii.gz")
    make_files(tmp_path, "a/1/x_p7_t1.nii.gz", "a/2/x_p7_t2.nii.gz")  # of one number at two places
    assert {name: set(files) for name, files in taken(find_cases(tmp_path)).items()} == {
        "2011-06-02_ADNI_002_S_0295": {"t1", "flair"},
        "2012-07-03_ADNI_002_S_0295": {"t1", "flair"},
        "sub-OAS3_ses-d01": {"t1", "t2"},
        "a_1_x_p7": {"t1"},
        "a_2_x_p7": {"t2"},
    }


def test_a_file_whose_name_has_no_word_does_not_end_the_search(tmp_path: Path) -> None:
    make_files(tmp_path, "_.nii.gz", "---.nii.gz", "p1_T1.nii.gz")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["p1"]
    assert [(each.name, each.reason[:17]) for each in found.refused] == [
        ("---", "no known modality"),
        ("_", "no known modality"),
    ]


def test_a_folder_may_tell_of_the_contrast_agent(tmp_path: Path) -> None:
    make_files(tmp_path, "a/pre_contrast/T1.nii.gz", "a/post contrast/T1.nii.gz", "a/T2.nii.gz")
    make_files(tmp_path, "b/nach KM/T1.nii.gz", "b/T2.nii.gz", "Gad_Ben/T1.nii.gz")
    make_files(tmp_path, "NC/T1c.nii.gz", "g/T1.nii.gz")  # of groups, not of agents
    make_files(tmp_path, "T1C/f_T1.nii.gz", "T1/f_T1.nii.gz")
    make_files(tmp_path, "h/nativ/T1.nii.gz", "h/KM/T1.nii.gz", "h/KM/FLAIR.nii.gz")
    make_files(tmp_path, "with_contrast/i_T1.nii.gz", "without_contrast/i_T1.nii.gz")
    # before and after surgery
    make_files(tmp_path, "c/post/T1.nii.gz", "c/post/T1c.nii.gz", "c/pre/T1.nii.gz")
    found = find_cases(tmp_path)
    assert {name: set(files) for name, files in taken(found).items()} == {
        "a": {"t1", "t1c", "t2"},
        "b": {"t1c", "t2"},
        "Gad_Ben": {"t1"},
        "NC": {"t1c"},
        "g": {"t1"},
        "f": {"t1", "t1c"},
        "h": {"t1", "t1c", "flair"},
        "i": {"t1", "t1c"},
        "c_post": {"t1", "t1c"},
        "c_pre": {"t1"},
    }
    make_files(tmp_path, "d/post/T1.nii.gz", "d/post/FLAIR.nii.gz", "e/ohne KM/T1c.nii.gz")
    make_files(tmp_path, "j/nach/T1.nii.gz")  # an operation, or an agent
    found = find_cases(tmp_path)
    (case,) = [case for case in found.cases if case.name == "d_post"] or [
        case for case in found.cases if case.name == "d"
    ]
    assert list(case.images) == ["flair"]
    assert "the folder 'post' tells of a contrast agent" in case.warnings[0]
    assert "the folder 'ohne KM' tells of a contrast agent" in str(refusals(found))
    assert "the folder 'nach' tells of a contrast agent" in str(refusals(found))


def test_a_short_word_behind_a_t1_is_the_patients_where_other_sequences_have_it(
    tmp_path: Path,
) -> None:
    make_files(tmp_path, "T1_abc.nii.gz", "FLAIR_abc.nii.gz", "T1_def.nii.gz", "T2_def.nii.gz")
    make_files(tmp_path, "p3/T1_xyz.nii.gz", "p3/FLAIR.nii.gz")
    make_files(tmp_path, "p4/T1_pi.nii.gz", "p4/FLAIR_pi.nii.gz")  # both after an injection
    found = find_cases(tmp_path)
    assert {name: sorted(files) for name, files in taken(found).items()} == {
        "abc": ["flair", "t1"],
        "def": ["t1", "t2"],
        "p3": ["flair"],
        "p4": ["flair"],
    }
    (warning,) = next(case for case in found.cases if case.name == "p3").warnings
    assert "'xyz' may tell of a contrast agent" in warning
    assert "or say by --mapping" in warning


def test_letters_with_accents_are_one_name_however_they_are_stored(tmp_path: Path) -> None:
    folder = tmp_path / "images" / unicodedata.normalize("NFC", "Müller")
    make_files(folder, unicodedata.normalize("NFC", "Müller_FLAIR.nii.gz"))
    make_files(folder, unicodedata.normalize("NFD", "Müller_T1.nii.gz"))
    make_files(tmp_path, unicodedata.normalize("NFD", "labels/Müller.nii.gz"))
    (case,) = find_cases(tmp_path).cases
    assert case.name == unicodedata.normalize("NFC", "Müller")
    assert set(case.images) == {"t1", "flair"}
    assert case.label is not None


@pytest.mark.parametrize(
    ("one", "other"), [("Mu\u0308ller", "M\u00fcller"), ("p 1", "p%201"), ("a/p 1", "a/p%201")]
)
def test_folders_that_a_reader_takes_for_one_are_asked_about(
    tmp_path: Path, one: str, other: str
) -> None:
    """Else the images of two patients would make one mask."""
    make_files(tmp_path, f"{one}/T1.nii.gz", f"{other}/T2.nii.gz", "p3/T1.nii.gz")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["p3"]
    (refused,) = found.refused
    shown = f"{Path(one).name!a} and {Path(other).name!a}"
    assert f"has files in {shown}, folders whose names differ in how" in refused.reason


def test_labels_that_cannot_be_read_do_not_matter_to_prediction(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {**CHANNELS, "labels": {"0": "background", "1": "core"}})
    make_files(tmp_path, "imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz")
    assert [case.name for case in find_cases(tmp_path).cases] == ["p1"]
    with pytest.raises(DataError, match="the form before nnU-Net v2"):
        find_cases(tmp_path, labels_needed=True)


# --- BIDS


def test_a_bids_subject_is_read_by_the_suffixes_of_its_names(tmp_path: Path) -> None:
    for file in (
        "anat/sub-01_T1w", "anat/sub-01_FLAIR", "anat/sub-01_mod-T1w_defacemask",
        "fmap/sub-01_acq-t1_magnitude1", "fmap/sub-01_acq-dwi_dir-AP_epi",
        "func/sub-01_task-rest_acq-T2star_bold", "perf/sub-01_asl", "anat/sub-01_T1map",
    ):  # fmt: skip
        make_files(tmp_path, f"sub-01/{file}.nii.gz")
    make_files(tmp_path, "sub-01/anat/sub-01_desc-bad_T2w.nii.gz")
    (tmp_path / ".bidsignore").write_text("# not ours\n*_desc-bad_T2w.nii.gz\n")
    found = find_cases(tmp_path)
    assert list(taken(found)) == ["sub-01"]
    assert list(taken(found)["sub-01"]) == ["flair", "t1"]
    assert found.refused == ()
    assert {each.path.name.split("_")[-1]: each.why for each in found.aside} == {
        "defacemask.nii.gz": "its name says mask",
        "magnitude1.nii.gz": "its name says field map",
        "epi.nii.gz": "its name says field map",
        "bold.nii.gz": "its name says functional",
        "asl.nii.gz": "its name says perfusion",
        "T1map.nii.gz": "its name says map",
        "T2w.nii.gz": "its name says a file that .bidsignore names",
    }


def test_a_bidsignore_without_end_is_no_list(tmp_path: Path) -> None:
    make_files(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / ".bidsignore").write_text("a*b\n" * 3000)
    with pytest.raises(DataError, match=r"bidsignore: cannot be read as text \(more than 10000 b"):
        find_cases(tmp_path)
    (tmp_path / ".bidsignore").unlink()
    os.mkfifo(tmp_path / ".bidsignore")
    assert list(taken(find_cases(tmp_path))) == ["sub-01"]


def test_the_first_of_several_runs_of_bids_is_taken_with_a_warning(tmp_path: Path) -> None:
    make_files(tmp_path, "sub-01/anat/sub-01_run-1_T1w.nii.gz")
    make_files(tmp_path, "sub-01/anat/sub-01_run-2_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert case.files["t1"].name == "sub-01_run-1_T1w.nii.gz"
    assert "are runs of one sequence; sub-01_run-1_T1w.nii.gz is taken" in case.warnings[0]
    make_files(tmp_path, "sub-01/anat/sub-01_run-2_label-lesion_mask.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert case.files["t1"].name == "sub-01_run-2_T1w.nii.gz"  # on which the label was drawn


def test_segmentations_of_tissue_do_not_compete_with_the_lesion(tmp_path: Path) -> None:
    base = "derivatives/fmriprep/sub-01/anat/sub-01"
    make_files(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", f"{base}_dseg.nii.gz")
    make_files(tmp_path, f"{base}_desc-aparcaseg_dseg.nii.gz", f"{base}_label-GM_probseg.nii.gz")
    make_files(tmp_path, "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    for needed in (True, False):
        (case,) = find_cases(tmp_path, labels_needed=needed).cases
        assert case.label is not None
        assert isinstance(case.label, Path)
        assert case.label.name == "sub-01_label-lesion_mask.nii.gz"


def test_labels_of_two_raters_do_not_matter_to_prediction(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1.nii.gz", "p/seg_rater1.nii.gz", "p/seg_rater2.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert (list(case.images), case.label) == (["t1"], None)
    assert refusals(find_cases(tmp_path, labels_needed=True)) == {
        "p": "2 files for label: p/seg_rater1.nii.gz, p/seg_rater2.nii.gz; keep one of them"
    }


# --- what is told of all else


def test_every_file_and_folder_is_accounted_for(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1.nii.gz", "p/T1.json", "q/T1c.mnc", "q/FLAIR.nii.gz", ".hidden/x")
    make_files(tmp_path, "r/scan.nii.gz", "s/T2.hdr", "s/T2.img", "s/T1.img")
    packed = ("t/more.zip", "t/IM1.dcm.gz", "t/DICOMDIR")
    make_files(tmp_path, *packed)
    (tmp_path / "empty").mkdir()
    (tmp_path / "p" / "T1.json").write_text("{}")
    for name in ("q/T1c.mnc", "s/T2.img", "s/T1.img", *packed):
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "nowhere", tmp_path / "gone.txt")
    found = account(find_cases(tmp_path))
    met = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    records = {each.path.relative_to(tmp_path).as_posix(): each for each in found.records}
    assert met - {".hidden/x"} <= set(records)
    assert records["empty"].why == "an empty folder"
    assert records[".hidden"].why == "hidden: its name begins with a dot"
    assert records["gone.txt"].why == "a link to a file that is not there"
    assert records["p/T1.json"].why == "no image that we know"
    assert records["q/T1c.mnc"].why == "MINC is not read; convert it to NIfTI (.nii.gz)"
    assert records["t/more.zip"].why == "a zip archive is not read; unpack it"
    assert records["t/IM1.dcm.gz"].why == "DICOM packed by gzip is not read; unpack it"
    assert records["t/DICOMDIR"].why == "a list of DICOM files, which are found without it"
    assert records["s/T2.img"].why == "the voxels of T2.hdr"
    assert (records["s/T2.hdr"].case, records["s/T2.hdr"].modality) == ("s", "t2")
    assert (records["p/T1.nii.gz"].case, records["p/T1.nii.gz"].modality) == ("p", "t1")
    assert len(records) == len(found.records)  # each once
    warnings = {case.name: case.warnings for case in found.cases if case.warnings}
    assert warnings == {
        "q": ("q/T1c.mnc: MINC is not read; convert it to NIfTI (.nii.gz)",),
        "s": (
            "s/T1.img: a file of voxels without its header is not read; copy its header (.hdr), "
            "too",
        ),
    }
    table = aside_table(found.aside, tmp_path)
    assert "empty,an empty folder" in table


def test_a_folder_of_other_formats_alone_says_what_to_convert(tmp_path: Path) -> None:
    make_files(tmp_path, "p/T1.mnc")
    with pytest.raises(DataError, match=r"p/T1\.mnc: MINC is not read; convert it to NIfTI"):
        find_cases(tmp_path)


def test_a_single_file_is_a_case(tmp_path: Path) -> None:
    make_files(tmp_path, "p01_FLAIR.nii.gz", "scan.nii.gz", "T1.mnc")
    found = find_cases(tmp_path / "p01_FLAIR.nii.gz")
    assert [(case.name, list(case.images)) for case in found.cases] == [("p01", ["flair"])]
    assert [(record.path.name, record.modality) for record in found.records] == [
        ("p01_FLAIR.nii.gz", "flair")
    ]
    unclear = find_cases(tmp_path / "scan.nii.gz")
    assert "no known modality, only scan.nii.gz; known are adc, " in unclear.refused[0].reason
    assert "Rename it, such as scan_t1.nii.gz, or say by --map" in unclear.refused[0].reason
    (row,) = csv.DictReader(mapping_table((), unclear.folder, unclear.records).splitlines())
    assert (row["case"], row["modality"], row["file"]) == ("scan", "?", "scan.nii.gz")
    mapping = {"scan.nii.gz": MappingEntry("", "t2", "table, line 2", is_file=True)}
    (case,) = find_cases(tmp_path / "scan.nii.gz", mapping=mapping).cases
    assert list(case.images) == ["t2"]
    mapping["scan.nii.gz"] = MappingEntry("", "", "table, line 2", is_file=True)
    aside = find_cases(tmp_path / "scan.nii.gz", mapping=mapping)
    assert (aside.cases, aside.refused) == ((), ())
    assert aside_table(aside.records, aside.folder).splitlines()[1].startswith("scan.nii.gz,")
    with pytest.raises(DataError, match="MINC is not read; convert it"):
        find_cases(tmp_path / "T1.mnc")


# --- the user's table


def test_the_table_of_files_is_written_edited_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make_files(folder, "p/T1_bet.nii.gz", "p/T1_n4.nii.gz", "p/scan.nii.gz", "q_t2.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(mapping_table((), folder, find_cases(folder).records), encoding="utf-8")
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["file"]: row["modality"] for row in rows} == {
        "p/T1_bet.nii.gz": "?",
        "p/T1_n4.nii.gz": "?",
        "p/scan.nii.gz": "?",
        "q_t2.nii.gz": "t2",
    }
    table.write_text(
        "case;modality;file\n;t1;p/T1_n4.nii.gz\nq;FLAIR;p\\scan.nii.gz\n;ignore;p/T1_bet.nii.gz\n"
    )
    found = find_cases(folder, mapping=read_mapping(table, Modalities()))
    assert taken(found) == {
        "p": {"t1": "p/T1_n4.nii.gz"},
        "q": {"flair": "p/scan.nii.gz", "t2": "q_t2.nii.gz"},
    }
    assert {each.path.name: each.why for each in found.records} == {
        "T1_bet.nii.gz": "mapping; else t1 (its name)",
        "T1_n4.nii.gz": "mapping",
        "scan.nii.gz": "mapping; else set aside (its name says no known modality)",
        "q_t2.nii.gz": "its name",
    }


@pytest.mark.parametrize(
    "names",
    [
        ("001_C1/01_t1", "001_C1/02_t2"),  # series' numbers, or patients'
        ("p1/T1_20190101", "p1/FLAIR_20200101"),
        ("p1/T1", "p1/FLAIR", "snapshots/p1_FLAIR"),  # the name of two cases
        ("p1/T1_xyz", "p1/FLAIR"),
        ("p1/T1_bet", "p1/T1_n4", "p1/FLAIR"),
        ("1001_arm_1_t1", "p1/seg"),  # nothing that is known
        ("p1/T1", "p1/seg_a", "p1/seg_b"),
        ("p1/T1", "p1/T1_bet", "p1/scan", "p2/flair"),
    ],
)
def test_a_table_that_nobody_edited_decides_nothing(names: tuple[str, ...], tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    make_files(folder, *(f"{name}.nii.gz" for name in names))
    found = find_cases(folder)
    text = mapping_table((), folder, found.records, found.refused)
    by_spreadsheet = io.StringIO()
    csv.writer(by_spreadsheet, delimiter=";", quoting=csv.QUOTE_ALL).writerows(
        [*row, ""] for row in csv.reader(text.splitlines())
    )
    for written in (text, "\ufeff" + by_spreadsheet.getvalue()):
        table.write_text(written, encoding="utf-8", newline="")
        again = find_cases(folder, mapping=read_mapping(table, Modalities()))
        images = [(case.name, case.images, case.label) for case in again.cases]
        assert images == [(case.name, case.images, case.label) for case in found.cases]
        assert {each.name for each in again.refused} == {each.name for each in found.refused}
        assert [case.warnings for case in again.cases] == [case.warnings for case in found.cases]


def test_a_table_that_a_spreadsheet_wrote_is_of_the_same_cases(tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    make_files(folder, "001/T1.nii.gz", "001/x.nii.gz", "p2/T1.nii.gz")
    table.write_text("Case; Modality ;FILE\n1;flair;001/x.nii.gz\n7;t1;p2/T1.nii.gz\n")
    found = find_cases(folder, mapping=read_mapping(table, Modalities()))
    assert taken(found) == {
        "001": {"t1": "001/T1.nii.gz", "flair": "001/x.nii.gz"},
        "7": {"t1": "p2/T1.nii.gz"},
    }
    table.write_text("case;modality;file\nMüller;flair;001/x.nii.gz\n", encoding="cp1252")
    with pytest.raises(DataError, match="its letters are not in UTF-8; save it as CSV UTF-8"):
        read_mapping(table, Modalities())


def test_an_open_row_says_what_is_asked_and_may_be_given_another_case(tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    make_files(folder, "p1/T1_20190101.nii.gz", "p1/FLAIR_20200101.nii.gz")
    found = find_cases(folder)
    rows = csv.DictReader(mapping_table((), folder, found.records, found.refused).splitlines())
    first = next(rows)
    assert first["modality"] == "?"
    assert first["why"].startswith("flair by its name; ")
    assert first["why"].endswith(found.refused[0].reason)
    table.write_text(
        "case,modality,file\na,?,p1/T1_20190101.nii.gz\nb,?,p1/FLAIR_20200101.nii.gz\n"
    )
    found = find_cases(folder, mapping=read_mapping(table, Modalities()))
    assert taken(found) == {
        "a": {"t1": "p1/T1_20190101.nii.gz"},
        "b": {"flair": "p1/FLAIR_20200101.nii.gz"},
    }


def test_a_case_of_the_table_is_one_however_its_accents_are_stored(tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    make_files(folder, unicodedata.normalize("NFC", "Müller_t1.nii.gz"), "x_flair.nii.gz")
    name = unicodedata.normalize("NFD", "Müller")
    table.write_text(f"case,modality,file\n{name},flair,x_flair.nii.gz\n", encoding="utf-8")
    (case,) = find_cases(folder, mapping=read_mapping(table, Modalities())).cases
    assert set(case.images) == {"flair", "t1"}


@pytest.mark.parametrize(
    ("separator", "begins", "encoding"),
    [
        ("\t", "", "utf-8"),
        ("\t", "", "utf-16"),
        (";", "sep=;\r\n", "utf-8-sig"),
        (",", '"sep=,"\n', "utf-8"),
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(
    separator: str, begins: str, encoding: str, tmp_path: Path
) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    make_files(folder, "Müller/T1.nii.gz")
    lines = ["case,modality,why,file", "Müller,t2,,Müller/T1.nii.gz"]
    text = begins + "\r\n".join(lines).replace(",", separator)
    table.write_bytes(text.encode(encoding))
    (case,) = find_cases(folder, mapping=read_mapping(table, Modalities())).cases
    assert set(case.images) == {"t2"}


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_of_the_table_may_store_accents_in_another_way(
    form: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    path = unicodedata.normalize(form, "Müller/T1.nii.gz")
    make_files(folder, path)
    twin = unicodedata.normalize(other, path)
    table.write_text(f"case,modality,file\n,t2,{twin}\n", encoding="utf-8")
    (case,) = find_cases(folder, mapping=read_mapping(table, Modalities())).cases
    assert set(case.images) == {"t2"}
    table.write_text(f"case,modality,file\n,t2,{twin}\n,t1,{path}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 3: file .* is given before, in .*line 2"):
        find_cases(folder, mapping=read_mapping(table, Modalities()))


def test_a_case_of_the_table_is_called_as_folders_are_read(tmp_path: Path) -> None:
    table = tmp_path / "mapping.csv"
    table.write_text("case,modality,file\np%201,t1,a.nii.gz\n")
    assert read_mapping(table, Modalities())["a.nii.gz"].case == "p 1"


def test_the_table_of_a_folder_with_leftovers_is_read_back_as_it_was_written(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    make_files(folder, "p/T1.nii.gz", "__MACOSX/p/._T1.nii.gz")
    found = account(find_cases(folder))
    table = tmp_path / "table.csv"
    table.write_text(mapping_table((), folder, found.records), encoding="utf-8")
    assert "__MACOSX/p/._T1.nii.gz" in table.read_text(encoding="utf-8")
    again = find_cases(folder, mapping=read_mapping(table, Modalities()))
    assert taken(again) == {"p": {"t1": "p/T1.nii.gz"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",t7,p/T1.nii.gz", r"line 2: 't7' is no known modality \(column modality\)"),
        ("../x,t1,p/T1.nii.gz", r"line 2: a file cannot be named after case '\.\./x' \(column"),
        (",t1,", "line 2: series_uid '' and file '' were found; needed is one of them"),
        (",t1,p/T9.nii.gz", r"line 2: .* holds no image 'p/T9\.nii\.gz'; fix or remove the line"),
        (",t1,p/T1.nii.gz\n,t2,p/T1.nii.gz", r"line 3: file 'p/T1\.nii\.gz' is given before, in"),
    ],
)
def test_a_wrong_line_of_the_table_is_named(tmp_path: Path, line: str, message: str) -> None:
    make_files(tmp_path, "p/T1.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(f"case,modality,file\n{line}\n")
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, mapping=read_mapping(table, Modalities()))


def test_a_line_without_a_modality_is_none_to_guess(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("case,modality,file\np,,p/T1.nii.gz\n")
    with pytest.raises(DataError, match="line 2: '' is no known modality"):
        read_mapping(table, Modalities())


@pytest.mark.parametrize(
    ("name", "content", "doubted"),
    [
        ("FLAIR", {"SeriesDescription": "t1_mprage_sag"}, "which is t1, but by its name it was"),
        ("T2", {"SeriesDescription": "AX", "ProtocolName": "t2_flair_tra"}, "which is flair"),
        ("FLAIR", {"SeriesDescription": "t2_tirm_tra_dark-fluid", "ProtocolName": "t1"}, ""),
        ("T1c", {"SeriesDescription": "t1_mprage_sag"}, ""),  # the agent is often left out
        ("FLAIR", {"SeriesDescription": 7}, ""),
        ("FLAIR", ["t1"], ""),
    ],
)
def test_the_json_file_beside_an_image_may_contradict_its_name(
    name: str, content: Any, doubted: str, tmp_path: Path
) -> None:
    make_files(tmp_path, f"p1/{name}.nii.gz")
    write_json(tmp_path / f"p1/{name}.json", content)
    (case,) = find_cases(tmp_path).cases
    assert list(case.images) == [name.lower()]
    assert [doubted in warning for warning in case.warnings] == [True] * bool(doubted)
    chosen = {f"p1/{name}.nii.gz": MappingEntry("", name.lower(), "table, line 2", is_file=True)}
    assert find_cases(tmp_path, mapping=chosen).cases[0].warnings == ()
