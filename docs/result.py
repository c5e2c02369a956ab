"""Draw docs/pictures/result.png from a folder in which the tutorial was done.

::

    mixmfl_predict -i federation/unseen -o masks-t1c --modalities t1c
    python docs/result.py FOLDER
"""

import io
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from mixmfl.data.cases import find_cases
from mixmfl.data.grid import to_canonical
from mixmfl.data.image import read_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import load_case
from mixmfl.evaluation.overlay import PALETTE, lesion_planes, overlay

OUT = Path(__file__).parent / "pictures" / "result.png"
ROWS = {"masks-flair": "FLAIR", "masks-t1c": "T1c", "masks": "T1, T1c, T2 and FLAIR"}
DRAWN_ON = {"masks-flair": "flair", "masks-t1c": "t1c", "masks": "t1c"}


def draw(folder: Path) -> None:
    """Draw one case as it was segmented from several subsets of its modalities."""
    labels = Labels.load(folder / "federation" / "dataset.json")
    regions = labels.consecutive().foreground
    case = find_cases(folder / "federation" / "unseen", labels_needed=True).cases[0]
    loaded = load_case(case, labels)
    assert loaded.labels is not None
    figure, rows = plt.subplots(len(ROWS), figsize=(8, 9.6), facecolor="black")
    for axes, (masks, given) in zip(rows, ROWS.items(), strict=True):
        values, grid = read_labels(folder / masks / f"{case.name}.nii.gz")
        prediction, _ = to_canonical(labels.to_indices(values), grid)
        png = overlay(
            loaded.images[DRAWN_ON[masks]],
            loaded.labels,
            prediction,
            loaded.canonical.spacing,
            regions,
            planes=lesion_planes(loaded.labels > 1),  # of the core,
        )
        axes.imshow(plt.imread(io.BytesIO(png)))
        axes.set_title(f"from {given}", color="white", fontsize=11)
        axes.set_axis_off()
    words = [*regions, "dashed: truth"]
    for number, (word, colour) in enumerate(
        zip(words, [*PALETTE[: len(regions)], "w"], strict=True)
    ):
        name = word.replace("_", " ")
        figure.text(0.14 + 0.22 * number, 0.012, name, color=colour, fontsize=11)
    figure.tight_layout(rect=(0, 0.03, 1, 1), pad=0.4)
    figure.savefig(OUT, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    matplotlib.use("agg")
    draw(Path(sys.argv[1]))
