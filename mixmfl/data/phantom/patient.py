"""A phantom: made-up patients, and the images that a made-up hospital's scanner makes of them.

No patient is in it. A patient is the MNI152 average brain, newly warped and folded, with a tumour;
tissues have a proton density, a T1 and a T2, and a scanner turns these into images by the signal
equation of its sequence, so contrasts differ between hospitals for the same reason as in reality.
All shapes are functions of millimetres, not of voxels: a coarser phantom is the same patient.
Arrays are ``(Z, Y, X)``, running to the head, to the back and to the left (LPS).
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mixmfl.data.phantom.scanners import Hospital, Pulses

Array = NDArray[np.float32]

OEDEMA, NECROSIS, ENHANCING = 1, 2, 3
MARGIN_MM = 8.0  # of the field of view around the average brain; patients' brains vary
EPSILON = 1e-4


@dataclass(frozen=True)
class Tissue:
    """The properties of a spin-echo signal: proton density (water = 1), T1 and T2 in ms at 3 T.

    ``texture`` is how much T1 and T2 vary inside the tissue (standard deviation of their log).
    """

    density: float
    t1: float
    t2: float
    texture: float


# in the range of published values; the order is the order of a patient's fractions
TISSUES = {
    "white": Tissue(0.70, 840, 74, 0.030),
    "grey": Tissue(0.82, 1340, 92, 0.035),
    "csf": Tissue(1.00, 4000, 1200, 0.02),
    "oedema": Tissue(0.85, 1420, 145, 0.10),
    "necrosis": Tissue(0.95, 2700, 300, 0.12),
    "enhancing": Tissue(0.84, 1400, 112, 0.12),
}
RELAXIVITY = 4.3e-3  # of a gadolinium agent, per ms and mM


@dataclass(frozen=True)
class Atlas:
    """The average brain at 1 mm.

    Attributes:
        grey: Fraction of grey matter, ``(Z, Y, X)``.
        white: Fraction of white matter, ``(Z, Y, X)``.
        depth: Distance to the surface of the brain in mm, positive inside, ``(Z, Y, X)``.
        origin: Position of the first voxel, ``(z, y, x)`` in mm.
        low, high: Corners of the field of view, ``(z, y, x)`` in mm.
        seats: Where a tumour may start: deep white matter of the cerebrum, ``(N, 3)`` in mm.
    """

    grey: Array
    white: Array
    depth: Array
    origin: Array
    low: Array
    high: Array
    seats: Array


@dataclass(frozen=True)
class Patient:
    """One made-up patient on a grid, before any scanner has seen it.

    Attributes:
        labels: Label values ``(Z, Y, X)``, uint8.
        brain: ``(Z, Y, X)`` bool; the voxels that a skull-stripped image shows.
        fractions: ``(T, Z, Y, X)``; the share of a voxel that each of ``TISSUES`` fills; sums to 1.
        texture: ``(2, Z, Y, X)``; the variation of T1 and T2, of unit variance.
        agent: ``(Z, Y, X)``; the concentration of the contrast agent in mM.
    """

    labels: NDArray[np.uint8]
    brain: NDArray[np.bool_]
    fractions: Array
    texture: Array
    agent: Array


@functools.cache
def load_atlas() -> Atlas:
    """Load the MNI152 tissue maps that nilearn ships; nothing is downloaded."""
    with warnings.catch_warnings():  # nilearn announces changes of its own defaults
        warnings.simplefilter("ignore")
        from nilearn import datasets

        images = (
            datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1),
            datasets.load_mni152_brain_mask(resolution=1),
        )
    affine = images[0].affine  # RAS, 1 mm, axes along the world's: (X, Y, Z) voxels to mm
    grey, white, brain = (
        np.asarray(image.dataobj, dtype=np.float32).T[:, ::-1, ::-1] for image in images
    )
    _, ny, nx = grey.shape
    left, back, bottom = affine[:3, 3]
    origin = np.array([bottom, -(back + ny - 1), -(left + nx - 1)], dtype=np.float32)
    inside = brain > 0
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    occupied = np.argwhere(inside)
    seats = np.argwhere((white > 0.6) & (depth > 11)).astype(np.float32) + origin
    z, y, x = seats.T
    hindbrain = (z < -12) & (y > 28)
    seats = seats[(np.abs(x) > 16) & (z > -22) & ~hindbrain]
    return Atlas(
        grey=np.ascontiguousarray(grey),
        white=np.ascontiguousarray(white),
        depth=depth.astype(np.float32),
        origin=origin,
        low=(occupied.min(axis=0) + origin - MARGIN_MM).astype(np.float32),
        high=(occupied.max(axis=0) + origin + MARGIN_MM).astype(np.float32),
        seats=seats,
    )


class Fields:
    """Smooth random fields over a box, sampled on a grid.

    The random numbers sit on a lattice in mm, so how many are drawn does not depend on the voxels.
    """

    def __init__(self, rng: np.random.Generator, low: Array, high: Array, axes: list[Array]):
        self.rng, self.low, self.high, self.axes = rng, low, high, axes

    def draw(self, scale_mm: float) -> Array:
        """Return a field of about unit variance, ``(Z, Y, X)``, blobs of about ``scale_mm``."""
        counts = [int(n) + 4 for n in (self.high - self.low) // scale_mm]
        field = self.rng.standard_normal(counts, dtype=np.float32)
        for axis, positions in enumerate(self.axes):
            place = (positions - self.low[axis]) / scale_mm
            first = np.floor(place).astype(int)
            t = (place - first).astype(np.float32)
            # cubic B-spline; summed by hand because BLAS may add in another order next time
            weights = (
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            )
            shape = [-1 if a == axis else 1 for a in range(3)]
            field = sum(
                np.take(field, first + tap, axis) * weight.reshape(shape)
                for tap, weight in enumerate(weights)
            )
        return field / np.float32(0.479**1.5)  # a cubic B-spline's mean squared weight per axis


def make_patient(
    atlas: Atlas,
    rng: np.random.Generator,
    spacing: tuple[float, float, float],
    core_mm: tuple[float, float],
    oedema_mm: tuple[float, float],
) -> Patient:
    """Make a patient: warp the average brain, fold its cortex, grow a tumour.

    Args:
        atlas: The average brain.
        rng: The patient's own random numbers.
        spacing: Millimetres between voxels, ``(Z, Y, X)``.
        core_mm: Smallest and largest radius of the tumour core.
        oedema_mm: Smallest and largest reach of the oedema.
    """
    axes = grid_axes(atlas, spacing)
    fields = Fields(rng, atlas.low, atlas.high, axes)
    place = _warp(fields)
    depth = _sample(atlas.depth, atlas, place)
    # stripping keeps a rim of CSF here and none there
    brain = _largest_part(depth > 1.2 + 1.1 * fields.draw(9))

    # tumour core: a noisy ellipsoid; `below` is the distance under its surface in mm
    seat = atlas.seats[rng.integers(len(atlas.seats))]
    radius = rng.uniform(*core_mm)
    reach = rng.uniform(*oedema_mm)
    stretch = np.exp(rng.normal(0, 0.18, 3)).astype(np.float32)
    offset = place - seat[:, None, None, None]
    distance = np.sqrt(((offset * stretch[:, None, None, None]) ** 2).sum(axis=0))
    roughness = 0.20 * fields.draw(16) + 0.13 * fields.draw(8)
    below = radius * (1 + roughness) - distance + 0.35 * fields.draw(4)
    below = np.minimum(below, depth - 1.5)

    # mass effect: what is around the core was pushed there, but the skull does not yield
    push = 0.42 * radius * np.exp(-((distance / (2.1 * radius)) ** 2)) * np.clip(depth / 14, 0, 1)
    place -= offset / (distance + 4) * push
    white, grey, csf = _fold(atlas, fields, place, depth)

    core = _step(below, 0.9)
    rim = rng.uniform(0.16, 0.40) * radius * np.exp(0.55 * fields.draw(8)) + 1.6
    necrosis = core * _step(below - rim, 0.8)
    # oedema follows white matter and spares cortex; smooth white matter keeps its edge soft
    tracts = ndimage.gaussian_filter(white, [1.5 / s for s in spacing])
    spread = reach * np.exp(0.30 * fields.draw(18) + 0.18 * fields.draw(7))
    spread *= 0.4 + 0.6 * _step(place[2] * np.sign(seat[2]) + 3, 8)  # seldom crosses the midline
    wet = _step(below + spread * tracts - 1.0, 2.2) * (1 - csf)
    wet = np.where(_largest_part(wet + core > 0.5), wet, 0) * (1 - core)

    labels = np.zeros(brain.shape, dtype=np.uint8)
    labels[(core + wet > 0.5) & brain] = OEDEMA
    labels[(core > 0.5) & brain] = NECROSIS
    labels[(core > 0.5) & (necrosis < 0.5) & brain] = ENHANCING

    # oedema is water among the tissue, not instead of it
    wet = wet * rng.uniform(0.6, 1.0) * np.clip(0.85 + 0.12 * fields.draw(10), 0.4, 1)
    healthy = 1 - core - wet
    spots = _age_spots(fields, rng, white, depth) * healthy
    healthy = healthy - spots
    fractions = np.stack(
        [white * healthy, grey * healthy, csf * healthy, wet + spots, necrosis, core - necrosis]
    )
    agent = _vessels(fields, place, depth, csf) * (1 - core)
    agent += (core - necrosis) * rng.uniform(0.45, 0.8) * np.exp(0.30 * fields.draw(5))
    agent += necrosis * 0.03 + wet * 0.01
    texture = np.stack(
        [0.6 * fields.draw(3) + 0.5 * fields.draw(7) + 0.6 * fields.draw(22) for _ in range(2)]
    )
    texture[1] = 0.7 * texture[0] + 0.7 * texture[1]  # where there is more water both are longer
    return Patient(labels, brain, fractions.astype(np.float32), texture, agent.astype(np.float32))


def grid_axes(atlas: Atlas, spacing: tuple[float, float, float]) -> list[Array]:
    """Return the positions in mm of the voxels along Z, Y and X."""
    return [
        low + step * np.arange(int((high - low) // step) + 1, dtype=np.float32)
        for low, high, step in zip(atlas.low, atlas.high, spacing, strict=True)
    ]


def _warp(fields: Fields) -> Array:
    """Return where in the average brain each voxel of the patient lies, ``(3, Z, Y, X)`` in mm."""
    rng = fields.rng
    place = np.stack(np.meshgrid(*fields.axes, indexing="ij"))
    middle = ((fields.low + fields.high) / 2)[:, None, None, None]
    tilt = rng.normal(0, 0.04, (3, 3))
    turn = (tilt - tilt.T) / 2 + np.diag(np.clip(rng.normal(1.02, 0.03, 3), 0.97, 1.1))
    shift = rng.normal(0, 1.5, 3)[:, None, None, None]
    offset = place - middle
    # spelled out, not matmul: see Fields.draw
    turned = np.stack([sum(turn[i, j] * offset[j] for j in range(3)) for i in range(3)])
    bend = np.stack([2.2 * fields.draw(42) + 1.0 * fields.draw(17) for _ in range(3)])
    return (turned + middle + shift + bend).astype(np.float32)


def _sample(volume: Array, atlas: Atlas, place: Array) -> Array:
    """Return the atlas volume at positions ``(3, Z, Y, X)`` in mm, nearest edge outside."""
    voxels = place - atlas.origin[:, None, None, None]
    return ndimage.map_coordinates(volume, voxels, order=1, mode="nearest")


def _fold(atlas: Atlas, fields: Fields, place: Array, depth: Array) -> tuple[Array, Array, Array]:
    """Return white matter, grey matter and CSF of this patient, summing to 1.

    An average of many brains has a smeared cortex. Sulci are cut into it along the zeros of a
    random field, which are sheets, and the borders between tissues are sharpened.
    """
    white = _sample(atlas.white, atlas, place)
    grey = _sample(atlas.grey, atlas, place)
    csf = np.clip(1 - white - grey, 0, 1)
    age = fields.rng.normal(0.3, 0.5)  # shrinks the brain: wider sulci and ventricles
    sulcus = np.exp(-((fields.draw(13) / 0.22) ** 2)) + 0.7 * np.exp(-((fields.draw(9) / 0.2) ** 2))
    cortex = np.clip(1 - depth / 22, 0, 1)
    parts = [
        np.log(white + EPSILON) + 0.30 * fields.draw(6),
        np.log(grey + EPSILON) + 0.30 * fields.draw(6),
        np.log(csf + 0.02) + age + 2.9 * sulcus * cortex,
    ]
    sharp = np.exp(1.7 * np.stack(parts))
    sharp /= sharp.sum(axis=0)
    return sharp[0], sharp[1], sharp[2]


def _step(distance: Array, width: float) -> Array:
    """Return a soft step from 0 to 1 where ``distance`` (mm) passes 0, ``width`` mm wide."""
    return 1 / (1 + np.exp(np.clip(-2 * distance / width, -30, 30)))


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of the mask."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _age_spots(fields: Fields, rng: np.random.Generator, white: Array, depth: Array) -> Array:
    """Return bright spots of white matter that are no tumour, as most older patients have."""
    load = rng.uniform(1.9, 3.2)  # of the field's standard deviations: few patients have many
    return 0.6 * _step((fields.draw(7) - load) * 4, 1) * white * np.clip(depth / 25 - 0.4, 0, 1)


def _vessels(fields: Fields, place: Array, depth: Array, csf: Array) -> Array:
    """Return the contrast agent in vessels, in mM.

    Vessels run where two random fields are both zero: these are curves. They are denser in CSF,
    and the sagittal sinus lies between the hemispheres under the skull.
    """
    z, y, x = place
    tubes = np.exp(-((fields.draw(15) ** 2 + fields.draw(15) ** 2) / 0.028))
    sinus = np.exp(-((x / 3.0) ** 2)) * np.clip(1.6 - depth / 4, 0, 1) * ((z > 0) & (y > -55))
    return 1.2 * tubes * np.clip(csf * 1.3 + 0.15, 0, 1) + 1.5 * sinus


def signal(pulses: Pulses, density: float, t1: Array, t2: Array) -> Array:
    """Return the signal of a spin-echo or inversion-recovery sequence; may be negative.

    Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), chapter 14.
    """
    recovered = 1 - np.exp(-pulses.tr / t1)
    if pulses.ti is not None:
        recovered = 1 - 2 * np.exp(-pulses.ti / t1) + np.exp(-pulses.tr / t1)
    return density * recovered * np.exp(-pulses.te / t2)


def render(
    patient: Patient,
    modality: str,
    hospital: Hospital,
    fields: Fields,
    spacing: tuple[float, float, float],
) -> NDArray[np.int16]:
    """Scan the patient: one skull-stripped image, ``(Z, Y, X)``, exactly 0 outside the brain.

    Args:
        patient: The patient.
        modality: The modality to scan.
        hospital: The hospital with the scanner.
        fields: The random fields of this scan.
        spacing: Millimetres between voxels, ``(Z, Y, X)``.
    """
    brain = patient.brain
    pulses = hospital.pulses[modality]
    texture = patient.texture[:, brain]
    agent = patient.agent[brain] if modality == "t1c" else None
    inside = np.zeros(np.count_nonzero(brain), dtype=np.float32)
    for (name, tissue), part in zip(TISSUES.items(), patient.fractions[:, brain], strict=True):
        # Bottomley et al. 1984: T1 of tissue grows with the field, that of free water does not
        growth = 1 if name == "csf" else (hospital.tesla / 3) ** 0.37
        t1 = growth * tissue.t1 * np.exp(tissue.texture * texture[0])
        t2 = tissue.t2 * np.exp(tissue.texture * texture[1])
        if agent is not None:
            t1 = 1 / (1 / t1 + RELAXIVITY * agent)
        inside += part * signal(pulses, tissue.density, t1, t2)
    sigma = [hospital.blur_mm / step for step in spacing]
    image = np.zeros(brain.shape, dtype=np.float32)
    image[brain] = inside
    # the scanner saw tissue beyond the border that stripping cut: no dark rim
    cover = ndimage.gaussian_filter(brain.astype(np.float32), sigma)
    image = ndimage.gaussian_filter(image, sigma) / np.maximum(cover, EPSILON)
    image *= np.exp(hospital.bias * fields.draw(75))
    image /= np.mean(np.abs(image[brain]))
    real, imaginary = (
        hospital.noise * fields.rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2)
    )
    image = np.hypot(image + real, imaginary)  # Rician: the magnitude of a complex signal
    image *= hospital.gain * np.exp(fields.rng.normal(0, 0.12))
    return np.where(brain, np.clip(np.rint(image), 1, 32767), 0).astype(np.int16)
