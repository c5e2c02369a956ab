"""nnU-Net's raw layout: files named by case and channel number, which ``dataset.json`` explains."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError
from mixmfl.core.files import absolute
from mixmfl.data.case_drafts import Draft
from mixmfl.data.file_names import FileName, maker_in
from mixmfl.data.image_files import images_below, stem_of
from mixmfl.data.labels import read_dataset_json
from mixmfl.data.modalities import Modalities

HOW_TO_DESCRIBE = (
    'names that end in _0000 need a dataset.json whose "channel_names" are modalities that we '
    'know, such as {"0": "T1"}; give others with --alias NAME=ALIAS'
)
"""Advice where channels have no description."""

CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")
"""The name of a channel's file, without its ending: the case and the channel's number."""

_CHANNEL = re.compile("[0-9]{1,4}")
_IMAGES = ("imagesTr", "imagesTs")


def only_data_set(folder: Path, images: Sequence[Path]) -> Path:
    """Return the only data set in nnU-Net's folders, ``nnUNet_raw/Dataset001_X``; else the folder.

    What nnU-Net itself made of it may lie beside it, as in ``nnUNet_preprocessed``.
    """
    sets = {
        place.parent
        for path in images
        for place in path.parents
        if place.name in _IMAGES and folder in place.parents
    }
    if len(sets) != 1:
        return folder
    (only,) = sets
    others = (path.relative_to(folder).parts for path in images if only not in path.parents)
    return only if all(any(map(maker_in, parts)) for parts in others) else folder


def draft_from_channels(folder: Path, modalities: Modalities) -> dict[str, Draft] | None:
    """Gather the cases of nnU-Net's raw layout; None where the folder is not in it."""
    subfolders = (folder / name for name in (*_IMAGES, "images"))
    images = next(filter(Path.is_dir, subfolders), folder)
    files = {path: CHANNEL_FILE.fullmatch(stem_of(path)) for path in images_below(images)}
    if not any(files.values()):
        return None
    for source in (folder, absolute(folder).parent):  # its own description, or its federation's
        content = read_dataset_json(source)
        earlier = content.get("modality")  # nnU-Net v1's key
        written = content.get("channel_names", earlier)
        if written is not None:
            break
    if written is None and images == folder:
        return None
    channels = _read_channels(written, folder, modalities)
    _check_earlier(earlier, channels, folder, modalities)

    drafts: dict[str, Draft] = defaultdict(Draft)
    for path, match in files.items():
        if match is None:
            drafts[stem_of(path)].add(path, FileName(stem_of(path)))
        elif int(match[2]) in channels:
            drafts[match[1]].add(path, FileName(match[1], channels[int(match[2])]))
        else:
            drafts[match[1]].add(path, FileName(match[1]))
            drafts[match[1]].faults.append(
                f"{path.name} is channel {int(match[2])}, but channel_names has {sorted(channels)}"
            )
    whole = absolute(images)
    labels = whole.with_name(whole.name.replace("images", "labels"))
    if labels != whole and labels.is_dir():
        for path in images_below(labels):
            drafts[stem_of(path)].add(path, FileName(stem_of(path), is_label=True))
    return drafts


def _check_earlier(
    earlier: Any, channels: Mapping[int, str | None], folder: Path, modalities: Modalities
) -> None:
    """Check that ``modality``, nnU-Net v1's key, says no other modality of a channel.

    Raises:
        DataError: It does, so that one of the two would exchange images.
    """
    for key, name in earlier.items() if isinstance(earlier, Mapping) else ():
        one, other = modalities.find(str(name)), channels.get(int(key) if key.isdecimal() else -1)
        if one and other and one != other:
            raise DataError(
                f'{folder}: dataset.json says that channel {key} is {other} by "channel_names" and '
                f'{one} by "modality"; remove the wrong one'
            )


def _read_channels(written: Any, folder: Path, modalities: Modalities) -> dict[int, str | None]:
    """Return the modality of each channel number; None where its name is not known.

    Raises:
        DataError: The channels are not described, or two of them are one modality.
    """
    names = written if isinstance(written, Mapping) else {}
    numbers = {int(key) for key in names if _CHANNEL.fullmatch(key)}
    if not numbers or len(numbers) != len(names):
        raise DataError(
            f'{folder}: files named case_0000 need "channel_names" in dataset.json, such as '
            '{"channel_names": {"0": "T1", "1": "FLAIR"}}'
        )
    known = {int(key): modalities.find(str(name)) for key, name in written.items()}
    for modality, count in Counter(filter(None, known.values())).items():
        if count > 1:
            channels = [key for key, each in sorted(known.items()) if each == modality]
            raise DataError(
                f"{folder}: dataset.json says that channels {channels} are all {modality}; "
                "each must be another modality"
            )
    return known
