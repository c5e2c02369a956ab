"""The notebooks of the docs, run cell by cell."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from small import write_preset

import mixmfl

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> list[str]:
    """Return the code of a notebook's cells."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for cell in cells:  # what a kernel wrote is not kept in git
        assert not cell["outputs"]
        assert cell["execution_count"] is None
    return ["".join(cell["source"]) for cell in cells]


def test_there_is_a_notebook_of_twenty_lines_or_so() -> None:
    assert [notebook.name for notebook in NOTEBOOKS] == ["federation.ipynb"]
    lines = [line for code in code_of(NOTEBOOKS[0]) for line in code.splitlines() if line.strip()]
    assert len(lines) <= 25


def test_the_notebook_plans_simulates_two_rules_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    tiny = write_preset(tmp_path / "tiny.json")
    # a smaller network, and the least that a run can do
    smaller = {
        'preset="demo"': f'preset="{tiny}"',
        '"rounds": 2, "local_steps": 2': '"rounds": 1, "local_steps": 1',
    }
    whole = "\n".join(code_of(NOTEBOOKS[0]))
    assert [whole.count(words) for words in smaller] == [1, 1]
    for code in code_of(NOTEBOOKS[0]):  # as a kernel does: it is a file of our docs
        for words, others in smaller.items():
            code = code.replace(words, others)
        exec(code, names)
    runs = names["runs"]
    assert {len(run.registrations) for run in runs.values()} == {4}
    assert [len(run.history) for run in runs.values()] == [1, 1]
    models = [mixmfl.load_model(run.folder / "model.safetensors") for run in runs.values()]
    one, other = (model.weights for model in models)
    assert any(not torch.equal(one[name], other[name]) for name in one)  # the rule was used
    lines = names["plt"].gca().lines
    assert [line.get_label() for line in lines] == ["as planned", "equal voices"]
    assert [len(line.get_xdata()) for line in lines] == [1, 1]
    names["plt"].close("all")
