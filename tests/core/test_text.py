from mixmfl.core.text import each_once, is_printable, one_line, plural, printable, shorten


def test_one_thing_has_no_s() -> None:
    assert [plural(count, "case") for count in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


def test_a_long_list_is_cut_and_its_length_told() -> None:
    assert shorten([]) == "none"
    assert shorten(range(5)) == "0, 1, 2, 3, 4"
    assert shorten(range(6)) == "0, 1, 2, 3, 4, … (6 in all)"
    assert shorten(["p1", "p2"], most=1) == "p1, … (2 in all)"


def test_what_is_true_of_several_is_one_line() -> None:
    texts = [("t1", "dark"), ("t1", "thin"), ("t2", "dark"), ("t1", "dark")]
    assert each_once(texts) == ["t1, t2: dark", "t1: thin"]


def test_every_space_is_printable_and_nothing_that_moves_the_cursor() -> None:
    name = "Klinik\u00a0Ulm 東京\u3000病院"
    assert is_printable(name)
    assert one_line(name) == printable(name) == name
    for sign in ("\n", "\t", "\x1b", "\x7f", "\x85", "\u202e", "\u2028", "\udce4"):
        assert not is_printable(f"a{sign}b")
        assert sign not in one_line(f"a{sign}b")
