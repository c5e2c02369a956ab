from mixmfl.core.text import plural, shorten


def test_one_thing_has_no_s() -> None:
    assert [plural(count, "case") for count in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


def test_a_long_list_is_cut_and_its_length_told() -> None:
    assert shorten([]) == "none"
    assert shorten(range(5)) == "0, 1, 2, 3, 4"
    assert shorten(range(6)) == "0, 1, 2, 3, 4, … (6 in all)"
    assert shorten(["p1", "p2"], most=1) == "p1, … (2 in all)"
