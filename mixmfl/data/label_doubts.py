"""Signs that a label is not of the images that it lies on, though headers fit each other.

A label that a tool turned has the right grid and the wrong voxels. What people label stands out
from its surroundings in at least one image; its mirror image seldom does.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from mixmfl.core.text import plural

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# The label's contrast to its surroundings, in standard deviations of the head. Mirrored, none of 73
# labels of patients stood out so much more, on any of 215 images alone; of those that were mirrored
# on purpose along one of three axes, three of four did.
CLEARLY_BETTER, LEAST_BETTER = 1.5, 0.5
FEWEST_VOXELS = 50  # fewer are not conclusive
RING = 3  # voxels of surroundings
MOST_OUTSIDE = 0.05  # of a label may lie on background; of 84 labels at most 0.0001 did
MOST_MARKED = 0.9  # of the voxels may be of a single label
BRAIN = 0.99  # Dice from which a single label is the mask of a head


def doubts_about(indices: npt.NDArray[np.int16], images: Mapping[str, Array]) -> list[str]:
    """Return warnings about a label; empty without any.

    Args:
        indices: Class indices ``(Z, Y, X)``.
        images: The images on its grid, 0 outside the head, by modality.
    """
    from scipy import ndimage  # a prediction reads no label, and should not wait for it

    if indices.min() > 0:
        return ["its label marks every voxel, and none as background; look at it"]
    drawn = indices > 0
    count = int(np.count_nonzero(drawn))
    if count < FEWEST_VOXELS:
        return []
    doubts = []
    if indices.max() == 1:
        if count > MOST_MARKED * drawn.size:
            doubts.append(
                f"its label marks {count / drawn.size:.0%} of all voxels; are label and background "
                "exchanged?"
            )
        doubts += [
            f"its label marks all that {name} shows; is it a mask of the head?"
            for name, image in images.items()
            if _dice(drawn, image != 0) > BRAIN and not image.all()
        ][:1]
    outside = int(np.count_nonzero(drawn & ~np.any([i != 0 for i in images.values()], axis=0)))
    if outside > MOST_OUTSIDE * count:
        doubts.append(
            f"{outside / count:.0%} of its label ({plural(outside, 'voxel')}) lies where all "
            "images are background; look at it on them"
        )
    box = ndimage.find_objects(ndimage.maximum_filter(drawn, 2 * RING + 1).astype(np.uint8))[0]
    inside = drawn[box]
    around = ndimage.binary_dilation(inside, iterations=RING) & ~inside
    spread = {name: float(image[image != 0].std()) for name, image in images.items()}

    def contrast(turn: tuple[int, ...], swap: bool) -> float:
        """Return the highest contrast of the images once they are turned like this."""
        best = 0.0
        for name, image in images.items():
            turned = np.flip(image.swapaxes(1, 2) if swap else image, turn)[box]
            values, others = turned[inside & (turned != 0)], turned[around & (turned != 0)]
            if min(len(values), len(others)) >= FEWEST_VOXELS and spread[name] > 0:
                apart = abs(float(values.mean()) - float(others.mean()))
                best = max(best, apart / spread[name])
        return best

    own = contrast((), False)
    turns = {words: contrast(turn, swap) for words, turn, swap in _turns(drawn.shape)}
    words = max(turns, key=lambda each: turns[each])
    if turns[words] > CLEARLY_BETTER * own + LEAST_BETTER:
        doubts.append(
            f"its label stands out more {words} than as it is (contrast {turns[words]:.2f} against "
            f"{own:.2f}); it may have been turned without its header. Look at it on the images"
        )
    return doubts


def _turns(shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield what tools do to arrays: its words, the axes that are turned, whether X and Y swap."""
    yield "mirrored left to right", (2,), False
    yield "mirrored front to back", (1,), False
    yield "upside down", (0,), False
    yield "turned by half a turn", (1, 2), False
    if shape[1] == shape[2]:
        yield "with X and Y exchanged", (), True
        yield "turned by a quarter", (1,), True
        yield "turned by a quarter the other way", (2,), True


def _dice(one: Mask, other: Mask) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
