"""Images against what is usual of their modality: heads made of two balls, spoilt in ways."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from small import LABELS, of_different_patients, small_plans

from mixmfl.core.errors import PlansError
from mixmfl.data.dataset_card import DatasetCard
from mixmfl.planning.fingerprint import (
    Fingerprint,
    fingerprint_case,
    merge_fingerprints,
    withhold_small_counts,
)
from mixmfl.planning.model_card import make_card
from mixmfl.planning.plans import Plans
from mixmfl.planning.typical import (
    FEWEST_IMAGES,
    NUMBERS,
    Typical,
    describe_image,
    differences,
    merge_typical,
    mistaken,
    unusual,
)

SPACING = (2.0, 1.5, 1.5)


def head(seed: int) -> np.ndarray:
    """Return a ball on a smaller one that lies towards the back, with a texture."""
    generator = np.random.default_rng(seed)
    z, y, x = np.ogrid[:32, :40, :36]
    size = generator.normal(1, 0.03)
    above = ((z - 19) / 11) ** 2 + ((y - 20) / 17) ** 2 + ((x - 18) / 14) ** 2 < size
    below = ((z - 6) / 6) ** 2 + ((y - 28) / 7) ** 2 + ((x - 18) / 7) ** 2 < size
    texture = ndimage.gaussian_filter(generator.normal(0, 1, above.shape), 1.2)
    return np.where(above | below, 100 + 60 * texture, 0).astype(np.float32)


def described(image: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Typical:
    found = describe_image(np.ascontiguousarray(image), spacing)
    assert found is not None
    return found


def usual_of(count: int) -> Typical:
    return merge_typical({"t1": described(head(seed))} for seed in range(count))["t1"]


USUAL = usual_of(12)


def test_numbers_of_a_head_are_its_extent_its_slabs_and_its_greys() -> None:
    block = np.zeros((20, 30, 40), dtype=np.float32)
    block[2:18, 5:29, 4:36] = 100
    block[2:18, 5:29, 4:20] = 110
    numbers = described(block).sums
    assert len(numbers) == NUMBERS
    assert numbers[:3] == tuple(round(1000 * np.log(mm)) for mm in (32, 36, 48))
    assert numbers[3:27] == (125,) * 24
    greys = numbers[27:41]
    assert sum(greys) == 1000
    assert {at: share for at, share in enumerate(greys) if share} == {5: 500, 9: 500}  # -1 and 1
    assert numbers[41:43] == (-13816, -13816)  # nothing changes along Z and Y
    assert numbers[43] == round(1000 * np.log(10 / 31 / 5))  # one step of 10 in 31, spread 5
    assert describe_image(block[:4, :12, :12], SPACING) is None


def test_other_heads_of_the_kind_are_not_unusual() -> None:
    assert [differences(described(head(seed)), USUAL) for seed in range(20, 26)] == [[]] * 6


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda i: i[::-1], "up-down", "fits the usual one better turned round up-down"),
        (lambda i: i[:, ::-1], "front-back", "better turned round front-back"),
        (lambda i: i[16:], "extent", "is part of it missing, or the spacing wrong"),
        (lambda i: i.transpose(0, 2, 1), "shape", "is part of it missing, or is it turned"),
        (lambda i: np.minimum(i, 95), "contrast", "inverted or cut off"),
        (lambda i: np.where(i, ndimage.uniform_filter(i, 3), 0), "detail", "smoother than usual"),
        (
            lambda i: np.where(i, i + np.random.default_rng(0).normal(0, 25, i.shape), 0),
            "detail",
            "noisier than usual",
        ),
    ],
)
def test_a_spoilt_image_is_told_by_what_is_wrong(spoil: Any, kind: str, words: str) -> None:
    found = differences(described(spoil(head(30)).astype(np.float32)), USUAL)
    assert words in next(each.what for each in found if each.kind == kind)


def test_what_is_far_is_marked_so() -> None:
    image = head(31)
    wrong = differences(described(image, (0.2, 0.15, 0.15)), USUAL)
    assert [(each.kind, each.is_far) for each in wrong] == [("extent", True)]
    assert "the head measures 6 x 5 x 4 mm, usually" in wrong[0].what
    little = differences(described(image, (2.4, 1.5, 1.5)), USUAL)
    assert [(each.kind, each.is_far) for each in little] == [("extent", False)]


def test_a_distance_is_in_standard_deviations_of_the_cases() -> None:
    usual = np.array([described(head(seed)).sums for seed in range(12)])[:, :3]
    image = described(head(31), (0.2, 0.15, 0.15))
    wide = np.hypot(usual.std(axis=0, ddof=1), 30)
    scores = (np.array(image.sums[:3]) - usual.mean(axis=0)) / wide
    (found,) = differences(image, USUAL)
    assert f"(distance {np.sqrt(np.mean(scores**2)):.2f}, usual below 3)" in found.what


def test_a_few_images_tell_nothing_of_what_is_usual() -> None:
    upside_down = described(head(30)[::-1])
    assert differences(upside_down, usual_of(FEWEST_IMAGES))
    assert differences(upside_down, usual_of(FEWEST_IMAGES - 1)) == []


def of_cases(count: int) -> Fingerprint:
    labels = np.zeros((32, 40, 36), dtype=int)
    box = slice(0, 32), slice(0, 40), slice(0, 36)
    return merge_fingerprints(
        fingerprint_case({"t1": head(seed)}, labels, SPACING, box) for seed in range(count)
    )


def test_a_fingerprint_has_the_sums_and_withholds_those_of_few() -> None:
    both = merge_fingerprints([of_cases(2), of_cases(3)])
    assert both.typical == merge_typical([of_cases(3).typical, of_cases(2).typical])
    assert both.typical["t1"].images == 5
    read = Fingerprint.from_json(both.to_json(), "file")
    assert read == both
    rare = dataclasses.replace(both, modality_cases={"t1": 5, "t2": 2}, intensities={
        "t1": both.intensities["t1"], "t2": both.intensities["t1"]
    }, typical={**both.typical, "t2": of_cases(2).typical["t1"]})  # fmt: skip
    reported = withhold_small_counts(rare, 3, 0, of_different_patients(rare))
    assert reported is not None
    assert set(reported.typical) == {"t1"}


def test_plans_carry_what_is_usual() -> None:
    fingerprint = of_cases(12)
    card = make_card(fingerprint, DatasetCard(), LABELS)
    plans = dataclasses.replace(small_plans(), card=card)
    read = Plans.from_json(json.loads(json.dumps(plans.to_json())), "plans")
    assert read.card.typical == fingerprint.typical == {"t1": USUAL}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": 6}, "typical: t1: more images than cases"),
        ({"squares": [0] * NUMBERS}, "typical: t1: no images have these sums"),
        ({"squares": [10**15] * NUMBERS}, "squares"),
        ({"sums": [0]}, "sums: has 1 entries"),
    ],
)
def test_sums_that_no_images_have_are_refused(change: dict[str, Any], reason: str) -> None:
    content = of_cases(5).to_json()
    content["typical"]["t1"] |= change
    with pytest.raises(PlansError, match=reason):
        Fingerprint.from_json(content, "north")


PLACES = {"flair": (19, 20), "t1": (24, 12), "t1c": (14, 30)}


def bright_at(seed: int, modality: str) -> np.ndarray:
    """Return a head that is twice as bright in one place, which its modality decides."""
    z, y, x = np.ogrid[:32, :40, :36]
    middle = PLACES[modality]
    ball = ((z - middle[0]) / 5) ** 2 + ((y - middle[1]) / 7) ** 2 + ((x - 18) / 8) ** 2 < 1
    return np.where(ball, 2, 1).astype(np.float32) * head(seed)


NAMED = merge_typical(
    {name: described(bright_at(seed, name)) for name in PLACES} for seed in range(12)
)


def looks_of(**shown: str) -> list[tuple[str, str]]:
    """Return what is said of the names of images, by what they show."""
    images = {name: described(bright_at(30, kind)) for name, kind in shown.items()}
    return [(name, each.what) for name, each in mistaken(images, NAMED)]


def test_images_under_each_others_name_are_told() -> None:
    assert looks_of(flair="flair", t1="t1", t1c="t1c") == []
    found = looks_of(flair="t1c", t1="t1", t1c="flair")
    assert [name for name, _ in found] == ["flair", "t1c"]
    assert found[0][1] == found[1][1]
    assert found[0][1].startswith("they look like each other: are their names exchanged?")
    assert [name for name, _ in looks_of(flair="t1", t1="flair")] == ["flair", "t1"]
    swapped = {name: described(bright_at(30, name)) for name in PLACES}
    swapped["t1"], swapped["flair"] = swapped["flair"], swapped["t1"]
    assert [each.is_far for _, each in mistaken(swapped, NAMED)] == [True, True]
    one = mistaken({"t1c": described(bright_at(30, "flair"))}, NAMED)
    assert [each.is_far for _, each in one] == [False]


def test_an_image_under_the_name_of_another_modality_is_told() -> None:
    ((name, what),) = looks_of(t1c="flair")
    assert (name, what.split(" (")[0]) == ("t1c", "it looks like flair: is its name right?")
    assert looks_of(flair="flair") == []


def test_modalities_of_one_brightness_are_told_by_their_detail() -> None:
    def grainy(seed: int) -> np.ndarray:
        image = head(seed)
        grain = np.where(np.indices(image.shape).sum(axis=0) % 2, 20, -20)
        return np.where(image, image + grain, 0).astype(np.float32)

    usual = merge_typical(
        {"t1": described(head(seed)), "t2": described(grainy(seed))} for seed in range(12)
    )
    assert mistaken({"t1": described(head(30)), "t2": described(grainy(30))}, usual) == []
    ((name, found),) = mistaken({"t1": described(grainy(30))}, usual)
    assert (name, found.what.split(" (")[0]) == ("t1", "it looks like t2: is its name right?")


def test_half_a_head_is_not_said_to_have_a_wrong_name() -> None:
    swapped = {"t1": bright_at(30, "t1c"), "t1c": bright_at(30, "t1")}
    whole = {name: described(image) for name, image in swapped.items()}
    half = {name: described(image[:, :, :20]) for name, image in swapped.items()}
    assert "name" in {each.kind for _, each in unusual(whole, NAMED, names=True)}
    assert "name" not in {each.kind for _, each in unusual(whole, NAMED, names=False)}
    kinds = {each.kind for _, each in unusual(half, NAMED, names=True)}
    assert "shape" in kinds
    assert "name" not in kinds
    assert mistaken(half, NAMED)  # it would be


def test_names_are_not_judged_where_too_little_is_known() -> None:
    swapped = {
        name: described(bright_at(30, shown)) for name, shown in (("t1", "t1c"), ("t1c", "t1"))
    }
    assert mistaken(swapped, NAMED)
    few = {"t1": NAMED["t1"], "t1c": dataclasses.replace(NAMED["t1c"], images=FEWEST_IMAGES - 1)}
    assert mistaken(swapped, few) == []
    # modalities that look alike cannot be told from each other
    assert mistaken(swapped, {"t1": NAMED["t1"], "t1c": NAMED["t1"]}) == []


@pytest.mark.parametrize(
    ("axis", "kind", "words"),
    [(2, "sides", "left and right half differ"), (1, "ends", "front and back, or top and bottom")],
)
def test_a_bias_field_is_told(axis: int, kind: str, words: str) -> None:
    image = head(30)
    shape = [-1 if each == axis else 1 for each in range(3)]
    field = np.exp(np.linspace(-1, 1, image.shape[axis])).reshape(shape)
    found = differences(described((image * field).astype(np.float32)), USUAL)
    assert words in next(each.what for each in found if each.kind == kind)


def test_a_blurred_image_is_told_and_never_refused_for_its_curvature() -> None:
    image = head(30)
    blurred = np.where(image, ndimage.gaussian_filter(image, 1.5), 0).astype(np.float32)
    found = {each.kind: each for each in differences(described(blurred), USUAL)}
    assert "its detail is coarser than usual" in found["curvature"].what
    assert not found["curvature"].is_far
