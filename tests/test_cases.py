import json
import os
from pathlib import Path
from typing import Any

import pytest

from mixmfl.cases import Found, describe, find_cases
from mixmfl.errors import DataError
from mixmfl.labels import Labels
from mixmfl.modalities import Modalities

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


def taken(found: Found) -> dict[str, dict[str, str]]:
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


def refusals(found: Found) -> dict[str, str]:
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
    assert found.ignored == (tmp_path / f"{derived}_space-MNI_T1w.nii.gz",)


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    make_files(tmp_path, "images/p1_t1.nii.gz", "images/p2_t1.nii.gz", "labels/p1.nii.gz")
    make_files(tmp_path, "labels/p2_t1.nii.gz")
    files = taken(find_cases(tmp_path))
    assert files["p1"] == {"t1": "images/p1_t1.nii.gz", "label": "labels/p1.nii.gz"}
    assert files["p2"] == {"t1": "images/p2_t1.nii.gz", "label": "labels/p2_t1.nii.gz"}


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
    assert found.ignored == ()


# --- what is refused and what is ignored


def test_a_folder_without_images_is_refused_and_the_layouts_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such folder. Needed is one of\n.*nnU-Net"):
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
    assert [path.relative_to(tmp_path).as_posix() for path in found.ignored] == [
        "p1/brain_mask.nii.gz",
        "p2_bold.nii.gz",
        "p4/raw/bold.nii.gz",
        "p3/bold.nii.gz",
    ]
    alone = find_cases(tmp_path / "p1")
    assert list(taken(alone)) == ["p1"]
    assert [path.name for path in alone.ignored] == ["brain_mask.nii.gz"]


def test_training_refuses_a_case_without_label(tmp_path: Path) -> None:
    make_files(tmp_path, "p1/T1.nii.gz", "p2/T1.nii.gz", "p2/seg.nii.gz")
    found = find_cases(tmp_path, labels_needed=True)
    assert [case.name for case in found.cases] == ["p2"]
    assert refusals(found) == {"p1": "no label, which training needs"}


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "p\n1/T1.nii.gz")
    assert refusals(find_cases(tmp_path)) == {
        "p\n1": "a file cannot have this name; rename the case"
    }


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


def test_a_long_description_is_cut(tmp_path: Path) -> None:
    make_files(tmp_path, *(f"p{i:02}_t1.nii.gz" for i in range(57)))
    lines = describe(find_cases(tmp_path)).splitlines()
    assert len(lines) == 2 + 20 + 1
    assert lines[-1] == "  … and 37 more"
