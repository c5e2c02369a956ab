"""The package as installed, and the shape of its code: who may import what."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGE = ROOT / "mixmfl"
MODULES = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): PACKAGE / name
    for name in sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))
}
"""Files by what follows ``mixmfl.``; ``__init__`` is mixmfl itself, ``flare`` a package."""
COMMANDS = sorted(
    found.name
    for found in entry_points(group="console_scripts")
    if found.value.startswith("mixmfl.")
)
HEAVY = ("torch", "nnunetv2", "SimpleITK", "nibabel", "nilearn", "monai", "matplotlib", "scipy")

# The modules that may import a large dependency: its doors. A package stands for all in it.
DOORS = {
    "SimpleITK": {"data.itk"},
    "nibabel": {"data.freesurfer", "data.grid", "data.image", "data.nifti"},
    "isal": {"core.pipeline", "data.nifti"},
    "nnunetv2": {
        "planning.nnunet_labels",
        "planning.nnunet_planner",
        "planning.nnunet_preprocessing",
        "planning.preprocessed_case",
        "planning.resampling",
        "training.nnunet_training",
        "inference.sliding_window",
        "research.benchmark.nnunet",
    },
    "batchgenerators": set(),  # nobody: version 2 is what we use
    "batchgeneratorsv2": {"training.nnunet_training"},
    "acvl_utils": {
        "inference.sliding_window",
        "training.batches",
        "research.membership_inference",
    },
    "dynamic_network_architectures": {
        "planning.nnunet_planner",
        "networks.base",
        "networks.layers",
        "networks.mdmnet",
        "networks.unet",
        "inference.cpu_network",
    },
    "nilearn": {"data.phantom.patient"},
    "pydicom": {
        "data.dicom.codes",
        "data.dicom.series",
        "data.dicom.files",
        "data.dicom.pixels",
    },
    "highdicom": {"inference.dicom_seg"},
    "monai": {"evaluation.metrics"},
    "jinja2": {"evaluation.html"},
    "sklearn": {"research.privacy_attacks"},
    "blosc2": {"planning.preprocessed_case"},
    "msgspec": {"core.declarations", "core.records"},
    "safetensors": {"core.tensor_store"},
    "nvflare": {"federated.flare"},
    "cryptography": {
        "federated.flare.kits",
        "federated.flare.provisioning",
        "federated.flare.requests",
        "federated.secure_aggregation.crypto",
        "federated.secure_aggregation.identities",
        "federated.secure_aggregation.signatures",
    },
    "dp_accounting": {"training.privacy_budget"},
    "psutil": {"federated.flare.processes", "training.hardware", "core.process_memory"},
    "argcomplete": {"__main__"},
}


def run_statements(block: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements in a block, and in blocks in it, but those for type checking alone."""
    for node in ast.iter_child_nodes(block):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.stmt) and not for_types:
            yield node
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case) and not for_types:
            yield from run_statements(node)


@cache  # a file is asked for again for every library
def imports(file: Path) -> tuple[str, ...]:
    """Return what a file imports when it is imported or run, as ``package.module``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: list[str] = []
    for node in run_statements(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert file.parent.name == "entrypoints", f"{file}: relative import"
                continue
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def run_python(code: str) -> str:
    """Run code in a Python of its own, so that what this one has imported does not count."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    shown = run_python(f"import mixmfl, sys; print(sorted(set({HEAVY}) & set(sys.modules)))")
    assert shown == "[]\n"


def test_the_process_that_reads_cases_for_a_prediction_imports_nothing_heavy() -> None:
    shown = run_python(
        "import mixmfl.core.pipeline, mixmfl.inference.case_reader, sys\n"
        "print({'torch', 'nnunetv2', 'pandas', 'jinja2', 'scipy.ndimage'} & set(sys.modules))"
    )
    assert shown == "set()\n"


def test_prediction_does_not_wait_for_what_only_planning_and_training_need() -> None:
    shown = run_python(
        "import mixmfl.inference.predict_folder, sys\n"
        "print({'SimpleITK', 'pandas', 'skimage', 'sklearn'} & set(sys.modules))"
    )
    assert shown == "set()\n"


def test_help_does_not_wait_for_heavy_libraries() -> None:
    shown = run_python(
        "import sys\n"
        "from mixmfl.core.commands import commands\n"
        "for name, command in commands().items():\n"
        "    try:\n"
        "        command.load()(['--help'])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0, name\n"
        f"    print('heavy:', name, sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    assert re.findall(r"^usage: (\w+) ", shown, re.MULTILINE) == list(COMMANDS)
    for name in COMMANDS:
        assert f"heavy: {name} []\n" in shown


def test_every_module_of_entrypoints_is_a_command() -> None:
    modules = {file.stem for file in (ROOT / "entrypoints").glob("*.py")}
    shared = {name for name in modules if name.startswith("_")}  # what commands share
    training = {"_command", "_training", "_folds", "_progress"}  # of the longest command
    assert shared == {"__init__", "_local_network", "_options", "_paths", "_runner"} | training
    assert {f"mixmfl_{name}" for name in modules - shared} == set(COMMANDS)
    for name in modules - shared:  # python -m mixmfl.entrypoints.demo runs it, too
        code = (ROOT / "entrypoints" / f"{name}.py").read_text(encoding="utf-8")
        assert code.endswith('\n\nif __name__ == "__main__":\n    sys.exit(main())\n'), name


def test_types_templates_presets_and_licence_come_along() -> None:
    assert files("mixmfl").joinpath("py.typed").is_file()
    templates = {file.name for file in files("mixmfl.evaluation").joinpath("templates").iterdir()}
    assert {"page.html", "parts.html", "style.css"} <= templates
    presets = {file.name for file in files("mixmfl.plans").iterdir()}
    assert {"default.json", "demo.json"} <= presets
    assert metadata("mixmfl")["License-Expression"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").split()[:2] == ["Apache", "License"]


def test_every_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel itself is looked into by ``.ci/run``."""
    given: dict[str, list[str]] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    folders = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("*.py")}
    assert len(folders) > 10
    wanted = {".".join(folder.parts) for folder in folders}
    assert set(given["packages"]) == wanted | {"mixmfl.entrypoints", "mixmfl.plans"}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_the_changelog_and_the_citation_have_the_version_of_the_package() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[(\d.+?)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)[:1]
    planned = re.findall(r"^To become (\d+\.\d+\.\d+)\b", changes, re.MULTILINE)
    assert version in [*newest, *planned]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation


def test_no_module_of_the_package_imports_a_command() -> None:
    for file in (*MODULES.values(), *(ROOT / "entrypoints").glob("*.py")):
        assert not [name for name in imports(file) if name.startswith("mixmfl.entrypoints")], file


def test_an_import_that_runs_up_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mixmfl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lint_command = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"

    def lint() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", lint_command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    kept = lint()
    assert kept.returncode == 0, kept.stdout
    with (tmp_path / "mixmfl" / "inference" / "model.py").open("a", encoding="utf-8") as module:
        module.write("\nif TYPE_CHECKING:\n    from mixmfl.federated.server import merge\n")
    broken = lint()
    assert broken.returncode == 1
    assert "mixmfl.inference is not allowed to import mixmfl.federated" in broken.stdout


@pytest.mark.parametrize("library", DOORS)
def test_a_large_library_is_imported_by_its_door_only(library: str) -> None:
    users = {
        next((door for door in DOORS[library] if f"{module}.".startswith(f"{door}.")), module)
        for module, file in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(file))
    }
    assert users == DOORS[library]


STUB = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") echo "pip: $*" ;;
*) exit 1 ;;
esac
"""
"""A Python that reaches no index and holds no torch."""


def make_develop(folder: Path, *named: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the installation of the Makefile with ``STUB`` in place of Python."""
    stub = folder / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    asked = ["make", "-C", str(ROOT), f"PYTHON={stub}", f"VENV={folder / 'venv'}", *named]
    ours = {n: value for n, value in os.environ.items() if n not in ("MAKEFLAGS", "MFLAGS")}
    return subprocess.run(
        [*asked, "develop"], capture_output=True, text=True,
        timeout=300, env=ours, **how,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="make on Linux")
def test_a_change_of_any_file_that_is_installed_is_installed_by_make() -> None:
    shown = ["make", "-C", str(ROOT), "--eval", "sources:; @echo $(SOURCES)", "-s", "sources"]
    ours = {n: value for n, value in os.environ.items() if n not in ("MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(shown, capture_output=True, text=True, timeout=60, env=ours, check=True)
    known = set(done.stdout.split())
    installed = {
        file.relative_to(ROOT).as_posix()
        for folder in ("mixmfl", "entrypoints", "plans")
        for file in (ROOT / folder).rglob("*.*")
        if file.suffix in (".py", ".pyi", ".c", ".json", ".css", ".html", ".js", ".typed")
    }
    assert {"mixmfl/networks/_norms.c", "mixmfl/evaluation/templates/viewer.js"} <= installed
    assert installed <= known


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="make on Linux")
def test_make_says_and_asks_before_torch_for_gpus_is_taken_for_want_of_that_for_cpus(
    tmp_path: Path,
) -> None:
    index = "TORCH_INDEX=http://127.0.0.1:9/cpu"
    message = "http://127.0.0.1:9/cpu, which has torch for CPUs, cannot be reached from here."
    done = make_develop(tmp_path, index, stdin=subprocess.DEVNULL)  # nobody to ask, as in .ci/run
    assert message in done.stderr
    assert done.returncode == 0
    assert "pip: -m pip install" in done.stdout
    assert "--extra-index-url" not in done.stdout
    for answer, code in (("n", 2), ("y", 0)):
        (tmp_path / "venv" / ".developed").unlink(missing_ok=True)
        ours, theirs = os.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = make_develop(tmp_path, index, stdin=theirs)
        os.close(ours)
        os.close(theirs)
        assert "Take what pip finds? [y/N]" in done.stderr
        assert (done.returncode, "pip: -m pip" in done.stdout) == (code, not code)
    (tmp_path / "venv" / ".developed").unlink()
    assert "reached" not in make_develop(tmp_path, "TORCH_INDEX=").stderr  # it was chosen
