import pytest

from mixmfl.core.errors import DataError
from mixmfl.data.file_names import read_name
from mixmfl.data.modalities import Modalities


def read(stem: str, modalities: Modalities) -> tuple[str, str | None]:
    file_name = read_name(stem, modalities)
    return file_name.case, file_name.modality


def test_a_user_adds_aliases_and_modalities_without_code() -> None:
    modalities = Modalities().with_aliases(["t1c=Medium7, agent in", "ours = arterial"])
    assert read("p01_medium7", modalities) == ("p01", "t1c")
    assert read("p01_Agent_in", modalities) == ("p01", "t1c")
    assert read("p01_arterial", modalities) == ("p01", "ours")
    assert read("p01_OURS", modalities) == ("p01", "ours")
    assert read("sub-01_medium7", modalities) == ("sub-01", "t1c")
    assert "ours" in modalities.names
    assert "ours" not in Modalities().names
    assert read("p01_medium7", Modalities()) == ("p01_medium7", None)


@pytest.mark.parametrize("option", ["t1c", "=km", "t1c=", "t1c=km,,x", "2d=flat", "t-1=x", "t1=-"])
def test_an_alias_in_another_form_is_refused(option: str) -> None:
    with pytest.raises(DataError, match=r"--alias '.*': needed is NAME=ALIAS\[,ALIAS\]"):
        Modalities().with_aliases([option])


@pytest.mark.parametrize(
    ("option", "kinds"),
    [("t2=flair", "flair and t2"), ("swi=T1-GD", "t1c and swi"), ("t2=seg", "a label and t2")],
)
def test_an_alias_of_two_modalities_is_refused(option: str, kinds: str) -> None:
    with pytest.raises(DataError, match=f"alias '.*' means {kinds}; it can mean one only"):
        Modalities().with_aliases([option])


def test_a_channel_name_is_taken_as_a_whole() -> None:
    modalities = Modalities()
    assert modalities.find("T1") == "t1"
    assert modalities.find("T2-FLAIR") == "flair"
    assert modalities.find("T1 with contrast") == "t1c"
    assert modalities.find("T1 with something") is None
    assert modalities.find("label") is None
    assert modalities.find("") is None
