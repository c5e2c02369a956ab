"""The confidence of a mask, against values worked out by hand."""

import math

import numpy as np
import torch

from mixmfl.data.labels import Labels
from mixmfl.inference.confidence import confidences


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_confidence_is_the_mean_probability_of_the_winning_class() -> None:
    labels = Labels({"background": 0, "oedema": 4, "core": 2})  # heads are in order of values
    shares = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]]
    logits = torch.tensor(shares).T.log().reshape(3, 1, 2, 2)
    found = confidences(logits, labels)
    assert list(found) == ["oedema", "core"]
    assert math.isclose(found["core"], (0.8 + 0.6) / 2, rel_tol=1e-6)
    assert math.isclose(found["oedema"], 0.6, rel_tol=1e-6)
    head = np.array([[[True, True], [False, False]]])
    inside = confidences(logits, labels, head)
    assert math.isclose(inside["core"], 0.8, rel_tol=1e-6)
    assert math.isnan(inside["oedema"])


def test_confidence_of_regions_that_overlap() -> None:
    labels = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2))
    logits = torch.tensor([[logit(0.9), logit(0.7)], [logit(0.8), logit(0.4)]])
    found = confidences(logits.reshape(2, 1, 1, 2), labels)
    assert math.isclose(found["whole"], 0.8, rel_tol=1e-6)
    assert math.isclose(found["core"], 0.8, rel_tol=1e-6)


def test_volume_is_read_in_parts_without_a_seam() -> None:
    logits = torch.randn(2, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    probability = logits.softmax(dim=0)[1]
    expected = probability[probability > 0.5].double().mean()
    found = confidences(logits, Labels({"background": 0, "lesion": 1}))
    assert math.isclose(found["lesion"], float(expected), rel_tol=1e-6)
