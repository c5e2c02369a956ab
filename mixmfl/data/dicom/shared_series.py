"""DICOM series of several cases that show the same image, as of one patient under two names."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from mixmfl.data.dicom.pixels import read_planes
from mixmfl.data.dicom.series import Series
from mixmfl.data.shared_images import pattern_of


def shared_series(
    images_of: Mapping[str, Iterable[Series]],
) -> list[tuple[tuple[str, Series], ...]]:
    """Return groups of series with the same middle slice in several cases, each with its case.

    Identifiers do not tell: an anonymiser gives new ones each time. Slices of a few values do not
    count.

    Args:
        images_of: The series of each case, by its name.
    """
    alike: dict[str, list[tuple[str, Series]]] = defaultdict(list)
    for name, images in images_of.items():
        for series in images:
            if digest := _middle(series):
                alike[digest].append((name, series))
    return [tuple(mine) for mine in alike.values() if len({name for name, _ in mine}) > 1]


def _middle(series: Series) -> str:
    """Return a digest of a volume's middle slice and of its shape; empty if there is none."""
    if series.grid is None or not series.order:
        return ""
    file, frame = series.order[len(series.order) // 2]
    try:
        plane = read_planes(series.files[file])[frame or 0]
    except Exception:  # of a damaged file, which reading it will tell
        return ""
    return pattern_of(plane.astype(float), series.grid.shape)
