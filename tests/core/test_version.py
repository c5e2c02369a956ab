"""Versions that may be in one federation."""

import pytest

from mixmfl.core import version


@pytest.mark.parametrize(
    ("here", "there", "works"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1.0", "0.1.12", True),
        ("2.3.4", "2.3.0", True),
        ("0.1.0", "0.2.0", False),
        ("1.0.0", "0.0.0", False),
        ("0.1.0", "0.11.0", False),
        ("0.1.0", "0.1.0rc1", False),
        ("0.1.0", "0.1.0\n", False),
        ("0.1.0", "0.1", False),
        ("0.1.0", "0.1." + "9" * 100_000, False),
        ("0.1.0", None, False),
        ("0.1.0", ["0.1.0"], False),
        ("0+unknown", "0+unknown", True),
        ("0+unknown", "0.1.0", False),
    ],
)
def test_versions_work_together_that_differ_in_the_last_number_alone(
    monkeypatch: pytest.MonkeyPatch, here: str, there: object, works: bool
) -> None:
    monkeypatch.setattr(version, "__version__", here)
    assert version.works_with(there) is works
