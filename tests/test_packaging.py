"""The package as installed, and the shape of its code: who may import what."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import entry_points, metadata
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
    "SimpleITK": {"image", "grids"},
    "nibabel": {"image", "nifti"},
    "isal": {"nifti"},
    "nnunetv2": {"nnunet"},
    "batchgenerators": set(),  # nobody: version 2 is what we use
    "batchgeneratorsv2": {"nnunet"},
    "acvl_utils": {"nnunet"},
    "dynamic_network_architectures": {"nnunet", "network", "quick"},
    "nilearn": {"phantom", "viewer"},
    "pydicom": {"dicom", "dicom_files", "dicom_pixels"},
    "highdicom": {"dicom_seg"},
    "monai": {"evaluate"},
    "blosc2": {"dataset"},
    "safetensors": {"tensors"},
    "nvflare": {"flare"},
    "rich": {"cli"},
    "cryptography": {"flare.kits", "masks"},
    "dp_accounting": {"privacy"},
    "psutil": {"flare.processes", "machine", "usage"},
    "argcomplete": {"cli", "__main__"},
}

# From the ground up; a module imports from its own layer and from those before it.
LAYERS = (
    ("__init__ errors wording undefined strict told spreadsheet files labels sequence_vocabulary "
     "sequence_words modalities nifti image grids accounting file_names drafts grouping cases "
     "overlooked loading dicom_files dicom_header dicom_planes dicom_pixels dicom_identity dicom "
     "recognise series_choice dicom_cases dicom_masks training_cases mapping jobs slices "
     "fingerprint bounds architecture planned label_sets plan resample nnunet dicom_seg dataset "
     "registry tensors expected records overlap usage"),
    ("aggregate memory network imagine loss supervision sampling sliding_window quick every_subset "
     "privacy masks"),
    ("wire outgoing exchange door train rounds personal measure masked masked_site masked_server "
     "tasks segment model runs export coordinate preprocess predict reading evaluate page picture "
     "viewer report subsets progress phantom_hospitals phantom phantom_federation partition "
     "comparison comparison_rows comparison_page comparison_plots trainings patients methods "
     "recall_quality"),
    "embedded cli arguments",
    "attack benchmark trainings_page hospital local_network machine remote __main__",
    "flare.kits flare.parcels",
    "flare.processes",
    "flare.job",
    "flare.driver flare.coordinator flare.site_executor",
    "flare",
)  # fmt: skip


@cache  # a file is asked for again for every library
def imports(file: Path) -> tuple[str, ...]:
    """Return what a file imports when it is imported or run, as ``package.module``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def own_imports(file: Path) -> set[str]:
    """Return the modules of ours that a file imports."""
    ours = [name.split(".")[1:] for name in imports(file) if name.split(".")[0] == "mixmfl"]
    return {
        next((name for name in (".".join(parts[:2]), *parts[:1]) if name in MODULES), "__init__")
        for parts in ours
    }


def run_python(code: str) -> str:
    """Run code in a Python of its own, so that what this one has imported does not count."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    shown = run_python(f"import mixmfl, sys; print(sorted(set({HEAVY}) & set(sys.modules)))")
    assert shown == "[]\n"


def test_the_process_that_reads_cases_for_a_prediction_has_no_torch() -> None:
    shown = run_python(
        "import mixmfl.overlap, mixmfl.reading, sys\n"
        "print({'torch', 'nnunetv2', 'pandas'} & set(sys.modules))"
    )
    assert shown == "set()\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_heavy_libraries(name: str) -> None:
    shown = run_python(
        "import sys\n"
        "from importlib.metadata import entry_points\n"
        f"(found,) = entry_points(group='console_scripts', name={name!r})\n"
        "try:\n"
        "    found.load()(['--help'])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        f"print('heavy:', sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    assert shown.startswith(f"usage: {name} ")
    assert shown.endswith("heavy: []\n")


def test_every_module_of_entrypoints_is_a_command() -> None:
    files_there = {f"mixmfl_{file.stem}" for file in (ROOT / "entrypoints").glob("*.py")}
    assert files_there - {"mixmfl___init__"} == set(COMMANDS)


def test_types_presets_and_licence_come_along() -> None:
    assert files("mixmfl").joinpath("py.typed").is_file()
    presets = {file.name for file in files("mixmfl.plans").iterdir()}
    assert {"default.json", "demo.json"} <= presets
    assert metadata("mixmfl")["License-Expression"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").split()[:2] == ["Apache", "License"]


def test_every_package_is_installed() -> None:
    (told,) = re.findall(r"^packages = (\[.+\])$", PROJECT, re.MULTILINE)
    there = {f"mixmfl.{file.parent.name}" for file in PACKAGE.glob("*/__init__.py")}
    assert set(json.loads(told)) == {"mixmfl", "mixmfl.entrypoints", "mixmfl.plans"} | there


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


def test_imports_point_down_only() -> None:
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    assert layer_of.keys() == MODULES.keys(), "a module is in no layer"
    graph = {name: own_imports(file) for name, file in MODULES.items()}
    assert sum(map(len, graph.values())) > 50  # that imports were found at all
    for name, imported in graph.items():
        above = sorted(other for other in imported if layer_of[other] > layer_of[name])
        assert not above, f"{name} imports {above}, which are above it"
    graphlib.TopologicalSorter(graph).prepare()  # raises where modules import in a circle


@pytest.mark.parametrize("library", DOORS)
def test_a_large_library_is_imported_by_its_door_only(library: str) -> None:
    users = {
        next((door for door in DOORS[library] if f"{module}.".startswith(f"{door}.")), module)
        for module, file in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(file))
    }
    assert users == DOORS[library]
