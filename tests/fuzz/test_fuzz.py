"""A share of ``make fuzz``: the first mutations of every kind, in this process."""

import random
from pathlib import Path

import pytest
from kinds import KINDS
from mutations import mutated_json
from run import FAULTS, attack_once
from targets import HARMLESS, REFUSED, SAME, Target, WrongError

# that of segmentations takes seconds to import what writes them
KINDS_HERE = sorted(set(KINDS) - {"DICOM segmentation"})


@pytest.mark.filterwarnings("default", "ignore::UserWarning:pydicom")  # about what was spoilt
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_what_is_spoilt_is_refused_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    target: Target = KINDS[kind](tmp_path)
    outcomes = {}
    for number in range(12):
        outcome, detail = attack_once(target, kind, 0, number)
        assert outcome in (REFUSED, SAME, HARMLESS), f"mutation {number}: {outcome}: {detail}"
        outcomes[outcome] = number
    assert REFUSED in outcomes  # else nothing was spoilt


class _Faulty:
    """A target with one fault of each sort, by the number of the mutation."""

    def __init__(self, folder: Path) -> None:
        self._number = -1

    def attack(self, draw: random.Random) -> str:
        self._number += 1
        if self._number == 1:
            raise KeyError("a")
        if self._number == 2:
            raise WrongError("b")
        return HARMLESS


def test_faults_are_counted(tmp_path: Path) -> None:
    target = _Faulty(tmp_path)
    outcomes = [attack_once(target, "faulty", 0, n)[0] for n in range(3)]
    assert outcomes == [HARMLESS, "crash", "wrong"]
    assert {"crash", "wrong", "hang", "memory", "died"} == set(FAULTS)


def test_a_mutation_itself_takes_little_memory() -> None:
    # two texts that were each made 2,000 times as long, and more than once
    draw = random.Random("peers 0 1757")
    assert len(mutated_json({"north": "ab" * 32, "south": "0" * 64}, draw)) < 2**25
