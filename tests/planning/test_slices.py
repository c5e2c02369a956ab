"""Stacks of slices in any direction, from the plan to masks on the grid of the file."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import LABELS, MODALITIES, small_case, small_plans

from mixmfl.core.errors import DataError
from mixmfl.data.cases import Case
from mixmfl.data.grid import Grid, make_grid, to_canonical
from mixmfl.data.image import read_grid, read_labels, write_image
from mixmfl.data.load_case import load_case
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.predict_folder import predict_folder
from mixmfl.planning import nnunet_preprocessing
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.fingerprint import fingerprint_case, merge_fingerprints
from mixmfl.planning.nonzero import head_mask, nonzero_box
from mixmfl.planning.plans import load_preset
from mixmfl.planning.slices import Turn, slice_axis, slices_first, spacings

SHAPE = (9, 20, 18)
SPACING = (12.0, 1.5, 1.5)
# columns: where X, Y and Z of the file run to, LPS; slices seen alike by the same array
DIRECTIONS = {
    "axial": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "sagittal": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "coronal": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
}


def about(axis: int, degrees: float) -> Any:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix[one, one] = matrix[other, other] = c
    matrix[other, one], matrix[one, other] = s, -s
    return matrix


def grid_of(name: str, turned: Any = None) -> Grid:
    direction = np.array(DIRECTIONS[name], dtype=float)
    return make_grid(
        SHAPE, SPACING, (-20, 10, 7), (np.eye(3) if turned is None else turned) @ direction
    )


def stacked_plans(patch: tuple[int, ...] = (4, 16, 16)) -> Any:
    plans = small_plans(patch=patch)
    nested = {**plans.nnunet, "slices_first": True}
    (name,) = plans.configurations
    spacing = [12.0, 1.5, 1.5][-len(patch) :]
    nested["configurations"] = {name: {**plans.configuration(name), "spacing": spacing}}
    return dataclasses.replace(plans, nnunet=nested)


def test_the_slice_axis_is_the_one_with_by_far_the_longest_voxels() -> None:
    assert slice_axis((12, 1, 1)) == 0
    assert slice_axis((1, 2.5, 1.2)) == 1
    assert slice_axis((0.4, 0.4, 3)) == 2
    assert slice_axis((1.9, 1, 1)) is None
    assert slice_axis((3, 3, 1)) is None
    assert slices_first((1, 1, 1)) == slices_first((9, 1, 1)) == Turn()


@pytest.mark.parametrize("spacing", [(9, 1, 1), (1, 9, 1), (1, 1, 9)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_turn_mirrors_nothing_and_leads_back(
    spacing: tuple[float, ...], order: tuple[int, ...]
) -> None:
    turn = slices_first(spacing)
    assert turn.of(spacing) == [9, 1, 1]
    matrix = np.eye(3)[list(turn.order)]
    matrix[list(turn.flipped)] *= -1
    assert np.linalg.det(matrix) == pytest.approx(1)
    volume = np.arange(60).reshape(3, 4, 5)
    both = turn.then(order)
    assert np.array_equal(both(volume), turn(volume).transpose(order))
    assert np.array_equal(both.back(both(volume)), volume)
    assert both.of(spacing) == [turn.of(spacing)[axis] for axis in order]


@pytest.mark.parametrize("degrees", [0, 25, 40, 50, 70])
def test_stacks_on_either_side_of_45_degrees_come_out_alike(degrees: float) -> None:
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    stack, place = to_canonical(array, grid_of("sagittal", about(2, -degrees)))
    assert np.array_equal(slices_first(place.spacing)(stack), array)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("patch", [(16, 16), (4, 16, 16)])
def test_a_stack_is_preprocessed_the_same_whatever_its_direction(
    name: str, patch: tuple[int, ...]
) -> None:
    plans = stacked_plans(patch)
    (configuration,) = plans.configurations
    images, labels = small_case(("t1",), 0, SHAPE)
    images["t1"][:, :3] = 0
    described = plans.nnunet, configuration, plans.labels
    want, want_seg, _ = nnunet_preprocessing.preprocess([images["t1"]], labels, SPACING, *described)
    one, place = to_canonical(images["t1"], grid_of(name))
    drawn, _ = to_canonical(labels, grid_of(name))
    found, seg, properties = nnunet_preprocessing.preprocess(
        [one], drawn, place.spacing, *described
    )
    assert np.array_equal(found, want)
    assert np.array_equal(seg, want_seg)
    assert tuple(spacings(place.spacing, *described[:2])[1]) == SPACING
    logits = torch.from_numpy(np.stack([seg[0] == value for value in range(3)])).float()
    makers = [nnunet_preprocessing.class_indices_of(plans.labels)]
    (mask,) = nnunet_preprocessing.restore(logits, properties, *described[:2], makers)
    assert np.array_equal(mask, np.where(drawn > 0, drawn, 0))
    given, same = nnunet_preprocessing.preprocess_each(
        [lambda: one],
        head_mask([one]),
        place.spacing,
        plans.nnunet,
        configuration,
    )
    assert np.array_equal(
        given, nnunet_preprocessing.preprocess([one], None, place.spacing, *described)[0]
    )
    assert same["spacing"] == list(place.spacing)


def test_stacks_of_all_directions_are_planned_as_stacks() -> None:
    parts = []
    for number, thick in enumerate((12, 12, 12, 15, 18, 23)):
        images, _ = small_case(("t1",), number, (10, 200, 180))
        array, place = to_canonical(
            images["t1"],
            dataclasses.replace(
                grid_of(list(DIRECTIONS)[number % 3]), shape=(10, 200, 180),
                spacing=(float(thick), 0.73, 0.75),
            ),
        )  # fmt: skip
        drawn = np.zeros(array.shape, dtype=int)
        drawn[array > 12] = 1
        parts.append(fingerprint_case({"t1": array}, drawn, place.spacing, nonzero_box([array])))
    plans = make_plans(merge_fingerprints(parts), LABELS, load_preset("demo"))
    assert plans.nnunet["slices_first"] is True
    planned = plans.configuration("3d_fullres")
    assert planned["spacing"][0] >= 12
    assert max(planned["spacing"][1:]) < 0.8
    assert planned["patch_size"][0] < min(planned["patch_size"][1:])
    axial = make_plans(merge_fingerprints(parts[::3]), LABELS, load_preset("demo"))
    assert "slices_first" not in axial.nnunet


@pytest.mark.parametrize("turned", [0, 20], ids=["upright", "oblique"])
def test_masks_of_stacks_are_the_same_and_lie_on_the_grid_of_their_file(
    tmp_path: Path, turned: float
) -> None:
    plans = stacked_plans()
    state = first_state(plans, RunSettings("3d_fullres", 0, 1, 1, 0.01))
    save_model(tmp_path / "m", state, plans, "3d_fullres", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    model = load_model(tmp_path / "m")
    image = small_case(("t1",), 0, SHAPE)[0]["t1"]
    image[:, :2] = 0
    cases = []
    for name in DIRECTIONS:
        file = tmp_path / name / "t1.nii.gz"
        file.parent.mkdir()
        write_image(file, image, grid_of(name, about(1, turned)))
        cases.append(Case(name, {"t1": file}))
    (tmp_path / "masks").mkdir()
    came = list(predict_folder([model], cases, (), tmp_path / "masks"))
    assert {each.status for each in came} == {"done"}
    masks = {}
    for case in cases:
        masks[case.name], grid = read_labels(tmp_path / "masks" / f"{case.name}.nii.gz")
        assert grid == read_grid(case.files["t1"])
    assert masks["axial"].any()
    assert np.array_equal(masks["sagittal"], masks["axial"])
    assert np.array_equal(masks["coronal"], masks["axial"])
    assert load_case(cases[1]).canonical.spacing == (1.5, 1.5, 12.0)  # as ever, for all others


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((8, 24, 20), (90, 9, 9), "become 720 x 216 x 180 voxels of 1 x 1 x 1 mm; .* 7680000 are"),
        ((90, 110, 90), (9, 9, 9), "become 810 x 990 x 810 voxels .* at most 536870912 are made"),
    ],
)
def test_a_case_that_would_become_far_too_large_is_refused_before_it_is_resampled(
    shape: tuple[int, ...], spacing: tuple[float, ...], words: str
) -> None:
    plans = small_plans(patch=(8, 16, 16))
    image = small_case(("t1",), 0, shape)[0]["t1"]
    with pytest.raises(DataError, match=f"{words}.*Check the spacing"):
        nnunet_preprocessing.preprocess(
            [image], None, spacing, plans.nnunet, "3d_fullres", plans.labels
        )
