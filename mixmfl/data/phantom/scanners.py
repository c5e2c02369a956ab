"""The made-up hospitals of the phantom federation: their patients and scanners."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pulses:
    """Repetition, echo and, for inversion recovery, inversion time, in ms."""

    tr: float
    te: float
    ti: float | None = None


@dataclass(frozen=True)
class Hospital:
    """One hospital: its patients, its scanner and how it stores images.

    Attributes:
        name: The name of its folder.
        cases: Number of patients, unless the settings give another number.
        modalities: Its modalities in the mix-modal setting.
        alone: Its only modality in the cross-modal setting.
        pulses: The timing of its scanner for each of the four modalities.
        core_mm: Smallest and largest radius of the tumour core.
        oedema_mm: Smallest and largest reach of oedema into white matter.
        tesla: Field strength; T1 of tissue grows with it.
        noise: Standard deviation of the noise, as a fraction of the mean signal.
        bias: Standard deviation of the log of the receive field.
        blur_mm: Standard deviation of the point spread.
        gain: Mean brain intensity in stored units.
        thickness: Voxel size in ``(Z, Y, X)`` as a multiple of the phantom's spacing.
        axes: The directions of the stored x, y and z axes, such as ``"RAS"``.
    """

    name: str
    cases: int
    modalities: tuple[str, ...]
    alone: str
    pulses: Mapping[str, Pulses]
    core_mm: tuple[float, float]
    oedema_mm: tuple[float, float]
    tesla: float
    noise: float
    bias: float
    blur_mm: float
    gain: float
    thickness: tuple[float, float, float]
    axes: str


MODALITIES = ("t1", "t1c", "t2", "flair")

HOSPITALS = (
    Hospital(
        name="north",
        cases=10,
        modalities=("t1", "t2"),
        alone="t1",
        pulses={
            "t1": Pulses(2000, 3, 950),
            "t1c": Pulses(2000, 3, 950),
            "t2": Pulses(5200, 100),
            "flair": Pulses(9500, 125, 2500),
        },
        core_mm=(10, 19),
        oedema_mm=(8, 18),
        tesla=3.0,
        noise=0.03,
        bias=0.10,
        blur_mm=0.7,
        gain=420,
        thickness=(1, 1, 1),
        axes="RAS",
    ),
    Hospital(
        name="east",
        cases=8,
        modalities=("t1c", "flair"),
        alone="t1c",
        pulses={
            "t1": Pulses(540, 14),
            "t1c": Pulses(560, 12),
            "t2": Pulses(3900, 98),
            "flair": Pulses(9000, 110, 2420),
        },
        core_mm=(14, 25),
        oedema_mm=(10, 26),
        tesla=1.5,
        noise=0.055,
        bias=0.07,
        blur_mm=1.0,
        gain=160,
        thickness=(1.5, 1, 1),
        axes="LPS",
    ),
    Hospital(
        name="south",
        cases=12,
        modalities=("t1", "t1c", "flair"),
        alone="flair",
        pulses={
            "t1": Pulses(620, 10),
            "t1c": Pulses(1900, 3, 900),
            "t2": Pulses(4800, 88),
            "flair": Pulses(8500, 130, 2350),
        },
        core_mm=(9, 23),
        oedema_mm=(6, 22),
        tesla=3.0,
        noise=0.04,
        bias=0.15,
        blur_mm=0.8,
        gain=900,
        thickness=(1, 1, 1),
        axes="LAS",
    ),
    Hospital(
        name="west",
        cases=6,
        modalities=("t2", "flair"),
        alone="t2",
        pulses={
            "t1": Pulses(580, 12),
            "t1c": Pulses(600, 13),
            "t2": Pulses(3600, 84),
            "flair": Pulses(10000, 92, 2500),
        },
        core_mm=(11, 20),
        oedema_mm=(12, 28),
        tesla=1.5,
        noise=0.045,
        bias=0.06,
        blur_mm=1.1,
        gain=260,
        thickness=(1, 1.25, 1),  # coronal slices: thick from front to back
        axes="RSA",
    ),
    Hospital(
        name="unseen",
        cases=4,
        modalities=MODALITIES,
        alone="flair",  # never used: the unseen hospital always has all four
        pulses={
            "t1": Pulses(1900, 3, 900),
            "t1c": Pulses(650, 11),
            "t2": Pulses(4500, 92),
            "flair": Pulses(9000, 120, 2400),
        },
        core_mm=(10, 24),
        oedema_mm=(8, 24),
        tesla=3.0,
        noise=0.04,
        bias=0.11,
        blur_mm=0.9,
        gain=600,
        thickness=(1, 1, 1),
        axes="LPS",
    ),
)
HELD_OUT = ("unseen",)
