"""In which round a method first has the validation Dice of another."""

from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.rounds import rounds_section, rounds_to


def cost(method: str, *dice: float, runs: tuple[str, ...] = ("all",)) -> Cost:
    by_round = {str(number): value for number, value in enumerate(dice, start=1)}
    return Cost(method, 0, 0.0, 0.0, {}, dict.fromkeys(runs, by_round))


def test_the_first_round_with_the_dice_counts() -> None:
    assert rounds_to({3: 0.5, 1: 0.2, 2: 0.6}, 0.5) == 2
    assert rounds_to({1: 0.2}, 0.5) is None


def test_rounds_are_to_shares_of_the_highest_dice_of_the_reference() -> None:
    costs = [
        cost("mdm", 0.1, 0.5, 0.4),
        cost("started", 0.46, 0.3),
        cost("local", 0.9, runs=("north", "south")),  # a model per site
    ]
    lines = rounds_section({"A0": costs, "B0": costs[1:]}, "mdm").splitlines()
    assert "| training | highest (round) | 80% of mdm's | 90% of mdm's | " in lines[3]
    assert lines[5:7] == [
        "| A0, seed 0: mdm | 50.0 (2) | 2 | 2 | 2 | 2 |",
        "| A0, seed 0: started | 46.0 (1) | 1 | 1 | - | - |",
    ]
    assert not lines[7]  # nothing of B0, where nothing is known of the reference


def test_without_another_method_there_is_no_section() -> None:
    assert rounds_section({"": [cost("mdm", 0.1)]}, "mdm") == ""
