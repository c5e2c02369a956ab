"""The folder of a phantom federation; the same settings give the same bytes."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json, write_text
from mixmfl.data.grid import Grid, from_canonical
from mixmfl.data.image import write_image, write_labels
from mixmfl.data.partition import SETTINGS, check_setting, tests_folder
from mixmfl.data.phantom.patient import (
    ENHANCING,
    NECROSIS,
    OEDEMA,
    TISSUES,
    Array,
    Fields,
    grid_axes,
    load_atlas,
    make_patient,
    render,
)
from mixmfl.data.phantom.scanners import HELD_OUT, HOSPITALS, MODALITIES, Hospital

VERSION = 3  # increase it whenever the same seed gives other files
FILE_NAMES = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}
DATASET = {
    "name": "phantom federation",
    "description": "Phantom: simulated MRI of simulated brain tumours, no patients",
    "licence": "Apache-2.0; the average brain is copyright Louis Collins, McGill University",
    "anatomy": "brain",
    "disease": "simulated brain tumour",
    "subjects": "simulated",
    "intended_use": "trying and testing software; not for patients",
    "labels": {
        "background": 0,
        "whole_tumour": [OEDEMA, NECROSIS, ENHANCING],
        "tumour_core": [NECROSIS, ENHANCING],
        "enhancing": ENHANCING,
    },
    # painted in this order: the whole tumour, over it the core, over it the enhancing part
    "regions_class_order": [OEDEMA, NECROSIS, ENHANCING],
    "file_ending": ".nii.gz",
}
FIRST_TEST = 10_000  # number of a hospital's first test patient, far from those it trains on


@dataclass(frozen=True)
class Case:
    """One case to be written: its hospital, number and modalities."""

    site: int  # index in HOSPITALS
    number: int  # counts from 0; for test patients from FIRST_TEST
    modalities: tuple[str, ...]

    @property
    def hospital(self) -> Hospital:
        """The hospital of the case."""
        return HOSPITALS[self.site]

    @property
    def name(self) -> str:
        """The name of the case's folder, which is clear wherever the folder is copied."""
        kind, number = ("test", self.number - FIRST_TEST) if self.is_test else ("", self.number)
        return f"{self.hospital.name}_{kind}phantom{number + 1:02d}"

    @property
    def is_test(self) -> bool:
        """Whether the case is for testing its hospital's models, not for training."""
        return self.number >= FIRST_TEST

    @property
    def folder(self) -> str:
        """The folder of the federation that holds the case."""
        return tests_folder(self.hospital.name) if self.is_test else self.hospital.name


@dataclass(frozen=True)
class Settings:
    """Settings that decide every byte of a phantom federation.

    Attributes:
        seed: Seed of all random numbers.
        spacing_mm: Voxel size; a hospital with thick slices stores a multiple of it.
        cases: Number of cases at every hospital; None gives each its own number.
        setting: ``"mix-modal"``: hospitals hold different modalities, and in every third case one
            of these is missing; ``"multi-modal"``: all hold all; ``"cross-modal"``: each holds one.
        tests: Number of test cases of every training hospital, by its scanner, with all
            modalities.

    Raises:
        DataError: A value is out of range.
    """

    seed: int = 0
    spacing_mm: float = 2.0
    cases: int | None = None
    setting: str = SETTINGS[0]
    tests: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}; it must be 0 or more")
        if not 0.5 <= self.spacing_mm <= 8:  # NaN is refused, too
            raise DataError(f"spacing is {self.spacing_mm} mm; it must be between 0.5 and 8 mm")
        if self.cases is not None and self.cases < 1:
            raise DataError(f"cases is {self.cases}; every hospital needs at least 1")
        check_setting(self.setting)
        if self.tests < 0:
            raise DataError(f"tests is {self.tests}; it must be 0 or more")

    def modalities_of(self, hospital: Hospital) -> tuple[str, ...]:
        """Return the modalities that a hospital holds."""
        if hospital.name in HELD_OUT or self.setting == "multi-modal":
            return MODALITIES
        return (hospital.alone,) if self.setting == "cross-modal" else hospital.modalities

    def list_cases(self) -> list[Case]:
        """Return all cases, a hospital's test cases behind its training cases."""
        listed = []
        for site, hospital in enumerate(HOSPITALS):
            for number in range(self.cases or hospital.cases):
                has = self.modalities_of(hospital)
                mixed = self.setting == "mix-modal" and hospital.name not in HELD_OUT
                if mixed and number % 3 == 2:
                    missing = has[number // 3 % len(has)]
                    has = tuple(modality for modality in has if modality != missing)
                listed.append(Case(site, number, has))
            if hospital.name not in HELD_OUT:
                numbers = range(FIRST_TEST, FIRST_TEST + self.tests)
                listed += [Case(site, number, MODALITIES) for number in numbers]
        return listed

    def federation(self) -> dict[str, Any]:
        """Return the content of ``federation.json``."""
        if not self.tests:
            return {"held_out": list(HELD_OUT)}
        training = [hospital.name for hospital in HOSPITALS if hospital.name not in HELD_OUT]
        return {
            "held_out": list(HELD_OUT),
            "tests": {name: tests_folder(name) for name in training},
        }

    def describe(self) -> dict[str, Any]:
        """Return the content of ``phantom.json``: settings, scanners and tissues."""
        return {
            "what": "a phantom: simulated MRI of simulated brain tumours, no patients",
            "version": VERSION,
            "seed": self.seed,
            "spacing_mm": self.spacing_mm,
            "setting": self.setting,
            "tests": self.tests,
            "hospitals": [
                asdict(hospital) | {"cases": self.cases or hospital.cases} for hospital in HOSPITALS
            ],
            "tissues": {name: asdict(tissue) for name, tissue in TISSUES.items()},
        }


def write_federation(
    folder: Path, settings: Settings, watch: Callable[[Sequence[Case]], Iterable[Case]] = iter
) -> list[Case]:
    """Write a phantom federation, or the missing part of one that was begun.

    Args:
        folder: A folder that is empty or holds a phantom federation of the same settings.
        settings: Seed, voxel size and numbers of cases.
        watch: A function that is given the cases and yields them, such as a progress bar.

    Returns:
        The cases that were written now; empty if the federation was complete.

    Raises:
        DataError: The folder holds something else; nothing is written then.
    """
    _claim(folder, settings)
    cases = settings.list_cases()
    for name, content in (("dataset.json", DATASET), ("federation.json", settings.federation())):
        if not (folder / name).exists():
            write_json(folder / name, content)
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", _readme(settings, cases))
    return [case for case in watch(cases) if write_case(folder, case, settings)]


def write_case(folder: Path, case: Case, settings: Settings) -> bool:
    """Write the missing files of one case; return False if none was missing.

    Files appear whole or not at all, so an existing file is complete. The patient and each scan
    have random numbers of their own, which do not depend on what else is written.
    """
    hospital = case.hospital
    place = folder / case.folder / case.name
    labels = place / "seg.nii.gz"
    images = {modality: place / f"{FILE_NAMES[modality]}.nii.gz" for modality in case.modalities}
    missing = [path for path in (labels, *images.values()) if not path.exists()]
    if not missing:
        return False

    atlas = load_atlas()
    seed = (settings.seed, case.site, case.number)
    spacing = cast(
        tuple[float, float, float],
        tuple(settings.spacing_mm * multiple for multiple in hospital.thickness),
    )
    patient = make_patient(
        atlas, np.random.default_rng((*seed, 0)), spacing, hospital.core_mm, hospital.oedema_mm
    )
    axes = grid_axes(atlas, spacing)
    grid = stored_grid(axes, spacing, hospital.axes)
    for modality, path in images.items():
        if path in missing:
            rng = np.random.default_rng((*seed, 1 + list(FILE_NAMES).index(modality)))
            fields = Fields(rng, atlas.low, atlas.high, axes)
            image = render(patient, modality, hospital, fields, spacing)
            write_image(path, from_canonical(image, grid), grid)
    if labels in missing:
        write_labels(labels, from_canonical(patient.labels, grid), grid)
    return True


def stored_grid(axes: Sequence[Array], spacing: Sequence[float], code: str) -> Grid:
    """Return the grid on which a hospital stores images.

    Args:
        axes: Positions in mm along Z, Y and X, each growing (``grid_axes``).
        spacing: Millimetres between voxels, ``(Z, Y, X)``.
        code: The directions of the stored x, y and z axes, such as ``"RAS"``.
    """
    direction = np.zeros((3, 3))
    origin = [0.0, 0.0, 0.0]
    shape, steps = [0, 0, 0], [0.0, 0.0, 0.0]
    for axis, letter in enumerate(code):
        world = next(w for w, pair in enumerate(("LR", "PA", "SI")) if letter in pair)
        along = letter in "LPS"
        positions = axes[2 - world]
        direction[world, axis] = 1 if along else -1
        origin[world] = float(positions[0] if along else positions[-1])
        shape[2 - axis], steps[2 - axis] = len(positions), float(spacing[2 - world])
    return Grid(
        cast(tuple[int, int, int], tuple(shape)),
        cast(tuple[float, float, float], tuple(steps)),
        cast(tuple[float, float, float], tuple(origin)),
        cast(Any, tuple(direction.ravel().tolist())),
    )


def _claim(folder: Path, settings: Settings) -> None:
    """Claim a new folder for these settings, or check that it has them already."""
    record = folder / "phantom.json"
    expected = json.loads(json.dumps(settings.describe()))
    if not record.exists():
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file; give a new folder for the phantom federation")
        names = sorted(p.name for p in folder.glob("*") if not p.name.startswith("."))
        if names:
            raise DataError(
                f"{folder}: holds {', '.join(names[:3])}{', …' if names[3:] else ''} and no "
                "phantom.json, so it is no phantom federation; nothing is overwritten. "
                "Give a new or empty folder"
            )
        write_json(record, expected)
        return
    existing = read_json(record)
    for key, value in expected.items():
        if existing.get(key) != value:
            raise DataError(
                f"{folder}: holds a phantom federation made with other settings "
                f"({_unlike(key, existing.get(key), value)}); nothing is overwritten. "
                "Give a new folder, or the settings in its phantom.json"
            )


def _unlike(key: str, existing: Any, expected: Any) -> str:
    """Say in a few words how an entry of ``phantom.json`` differs from the settings."""
    if key != "hospitals" or not isinstance(existing, list):
        plain = isinstance(expected, int | float | str)
        return f"{key} {existing}, asked for {expected}" if plain else f"other {key}"
    counts = [
        ", ".join(f"{site.get('name')} {site.get('cases')}" for site in sites)
        for sites in (existing, expected)
    ]
    return "cases " + ", asked for ".join(counts) if counts[0] != counts[1] else "other scanners"


def _readme(settings: Settings, cases: Sequence[Case]) -> str:
    """Return the README of the federation's folder."""
    rows = []
    for site, hospital in enumerate(HOSPITALS):
        own = [case for case in cases if case.site == site and not case.is_test]
        has = settings.modalities_of(hospital)
        incomplete = sum(len(case.modalities) < len(has) for case in own)
        names = ", ".join(FILE_NAMES[modality] for modality in has)
        use = "testing" if hospital.name in HELD_OUT else "training"
        rows.append(
            f"| {hospital.name} | {use} | {len(own)} | {incomplete} | {names} "
            f"| {hospital.tesla:g} T | {hospital.axes} |"
        )
    return README.format(
        table="\n".join(rows),
        tests=TESTS.format(tests=settings.tests) if settings.tests else "",
        setting=settings.setting,
        seed=settings.seed,
        spacing=settings.spacing_mm,
        version=VERSION,
    )


TESTS = """
Every hospital that trains also has {tests} cases for testing, in a folder of their own
(`federation.json` says which), taken by its scanner and with all four modalities.
"""

README = """# A phantom federation

**These are no patients.** Every image here is computed; nothing in it says how well a method works
on real MRI. It is for trying and testing software.

| hospital | for | cases | of these lacking a modality | modalities | field | stored axes |
| --- | --- | --- | --- | --- | --- | --- |
{table}
{tests}
Setting {setting}, seed {seed}, voxels of {spacing:g} mm (some hospitals have thicker slices),
phantom version {version}. `phantom.json` holds all settings. The same settings give the same files.

Labels (`seg.nii.gz`, `dataset.json`): 1 oedema, 2 necrosis, 3 enhancing tumour. Regions: the
whole tumour (1, 2, 3), its core (2, 3) and the enhancing part (3).

How a case is made:

1. The MNI152 average brain (tissue maps as nilearn ships them) is turned, scaled and bent at
   random, sulci are cut into its smeared cortex, and ventricles and sulci widen with age.
2. A tumour grows in the white matter: a rough core with a necrotic middle and an enhancing rim,
   which pushes its surroundings aside, and oedema that follows the white matter. Some patients
   also have small bright spots of age, which are no tumour.
3. Each tissue has a proton density, T1 and T2, varying from place to place; the contrast agent
   of T1c shortens T1 in the enhancing rim and in vessels. The hospital's own repetition, echo and
   inversion times and field strength give the signal.
4. The scanner blurs, shades and adds Rician noise; the image is stored as 16-bit integers on the
   hospital's own scale and axes. As in BraTS the skull is stripped: outside the brain all is 0.

The average brain is the nonlinear ICBM 2009a template, copyright Louis Collins, McConnell Brain
Imaging Centre, Montreal Neurological Institute, McGill University; V. Fonov et al., "Unbiased
average age-appropriate brain templates from birth to adulthood", NeuroImage 47, S102 (2009).
"""
