"""Grouping of DICOM files into examinations of a patient, and these into series.

The standard has identifiers for both, but anonymisers remove them or make them equal. So they must
agree with the other patient fields of a header, with the number and description of a series, and
with the folders of the files.
"""

import hashlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.data.dicom.header import DATE, Instance
from mixmfl.data.dicom.planes import FEWEST_SLICES
from mixmfl.data.sequence_words import read_words

_FEWEST_DATES = 3  # of series that may be one examination all the same

_LENGTH = 8  # characters of a digest in a name

# of a series, by its number or UID: S0001, series_3, 301, 1.2.840.…
_SERIES_FOLDER = re.compile(r"(?i)(?:s|se|ser|sr|series|serie|scan|im|img|mr)?[ _-]*[0-9.]+")
_SILENT = read_words("").why

Patient = tuple[str, ...]
SeriesName = tuple[int, str, str]  # number, description, modality: a series as people know it


def examinations(instances: Sequence[Instance], folder: Path) -> dict[str, list[Instance]]:
    """Group files by examination: by study and patient, and by folder where these are equal.

    Returns:
        The files by a name for the examination: its StudyInstanceUID if that is unique, else with a
        digest behind it.
    """
    by_study: dict[str, dict[Patient, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    undated = _dated_by_series(instances)
    for each in instances:
        # anonymisers give two examinations of a patient one identifier, too
        more = each.visit if each.is_anonymous else each.visit[DATE : DATE + 1]
        if (each.study, each.patient) in undated:
            more = ()
        who = (*each.patient, *more)
        by_study[each.study][who].append(each)
    parts: dict[tuple[str, ...], list[Instance]] = {}
    for study, patients in by_study.items():
        for patient, mine in _one_per_patient(patients).items():
            for place, part in _by_folder(mine, folder).items():
                parts[(study, *patient, place)] = part
    studies = Counter(study for study, *_ in parts)
    return {
        key[0] if key[0] and studies[key[0]] == 1 else f"{key[0]}#{digest(*key)}": part
        for key, part in parts.items()
    }


def series_of(instances: Sequence[Instance], folder: Path) -> dict[str, list[Instance]]:
    """Group the files of one examination by series.

    Returns:
        The files by SeriesInstanceUID, with a digest behind it where several series have it.
    """
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for each in instances:
        by_uid[each.series].append(each)
    _join_single_images(by_uid)
    series = {}
    for uid, mine in by_uid.items():
        parts: dict[tuple[str, ...], list[Instance]] = defaultdict(list)
        for each in mine:
            number, description, modality = _series_name(each)
            place = "" if uid and (number or description) else _below(each.file, folder)
            parts[str(number), description, modality, place].append(each)
        # a header that a flipped bit changed is no series of its own
        largest = max(parts, key=lambda key: len(parts[key]))
        for key in [key for key in parts if len(parts[key]) < FEWEST_SLICES and key[3] == ""]:
            if key != largest and len(parts[largest]) >= FEWEST_SLICES:
                parts[largest] += parts.pop(key)
        for key, part in parts.items():
            series[uid if uid and len(parts) == 1 else f"{uid}#{digest(*key)}"] = part
    return series


def _join_single_images(by_uid: dict[str, list[Instance]]) -> None:
    """Join series of one image each that are one series: some anonymisers rename every image's.

    They have one number, one description, and places of their own.
    """
    singles: dict[tuple[object, ...], list[Instance]] = defaultdict(list)
    for mine in by_uid.values():
        if len(mine) == 1 and any(_series_name(mine[0])[:2]) and len(mine[0].planes) == 1:
            singles[(*_series_name(mine[0]), mine[0].header.image_type)].append(mine[0])
    for mine in singles.values():
        if FEWEST_SLICES <= len(mine) == len({_placed(each) for each in mine}):
            for each in mine[1:]:
                by_uid[mine[0].series] += by_uid.pop(each.series)


def without_copies(
    instances: Sequence[Instance], *, are_one_series: bool = False
) -> list[Instance]:
    """Keep one of the files that hold the same image of the same patient.

    Two files of a series are copies if they have one SOPInstanceUID, or one folder, and the same
    number, place and pixels: archives give a file that is sent twice a new identifier. Files of one
    identifier with other pixels have it from an anonymiser, and stay.

    Args:
        instances: The files.
        are_one_series: Whether the files are known to be of one series, so that a copy may lie in
            any folder. Else two patients of one identifier may have the same empty slice.
    """
    unique: dict[tuple[object, ...], list[Instance]] = defaultdict(list)
    seen: dict[Path, str] = {}
    for each in instances:
        key = each.study, each.series, each.patient, each.number, _placed(each)
        if not any(
            (
                (each.sop and other.sop == each.sop)
                or (_placed(each) and (are_one_series or other.file.parent == each.file.parent))
            )
            and _slot(other) == _slot(each)
            and _pixels(other, seen) == _pixels(each, seen)
            for other in unique[key]
        ):
            unique[key].append(each)
    return sorted((each for part in unique.values() for each in part), key=lambda each: each.file)


def digest(*parts: object) -> str:
    """Return a short digest of the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:_LENGTH]


def _one_per_patient(patients: Mapping[Patient, list[Instance]]) -> dict[Patient, list[Instance]]:
    """Join the files of one patient whose headers lack some of the fields."""
    joined = dict(patients)
    for patient in sorted(patients, key=lambda each: sum(map(bool, each))):
        partners = [other for other in joined if other != patient and _may_be(patient, other)]
        if len(partners) == 1:
            joined[partners[0]] = [*joined[partners[0]], *joined.pop(patient)]
    return joined


def _dated_by_series(instances: Sequence[Instance]) -> set[tuple[str, Patient]]:
    """Return study and patient where every series has a date of its own, as some anonymisers do it.

    They are of a patient who is named, at least three, with different numbers and descriptions, in
    one frame of reference: no other examinations look like that.
    """
    held: dict[tuple[str, Patient], dict[str, set[SeriesName]]] = defaultdict(
        lambda: defaultdict(set)
    )
    frames = defaultdict(set)
    for each in instances:
        if each.is_anonymous:
            continue
        held[each.study, each.patient][each.visit[DATE]].add(_series_name(each))
        frames[each.study, each.patient].add(each.frame_of_reference)
    dated = set()
    for who, dates in held.items():
        series = [name for names in dates.values() for name in names]
        numbers, descriptions, _ = map(set, zip(*series, strict=True))
        is_apart = len(series) == len(dates) == len(numbers) == len(descriptions)
        if is_apart and len(dates) >= _FEWEST_DATES and len(frames[who]) == 1 and all(frames[who]):
            dated.add(who)
    return dated


def _may_be(one: Patient, other: Patient) -> bool:
    pairs = list(zip(one, other, strict=False))  # of an anonymous patient more is compared
    return all(a == b or not (a and b) for a, b in pairs) and any(a and a == b for a, b in pairs)


def _by_folder(instances: Sequence[Instance], folder: Path) -> dict[str, list[Instance]]:
    """Separate files that claim to be one examination and cannot be, by their folders.

    They cannot if two folders hold the same series, each with images of its own: an examination
    has each number once. Files without any identifier are separated, too, and those of anonymous
    patients if a folder beside others holds several series, as a patient's folder does.
    """
    if not (instances[0].study or instances[0].patient[0]):
        tops: dict[str, list[Instance]] = defaultdict(list)
        for each in instances:
            tops[_below(each.file, folder).partition("/")[0]].append(each)
        if len(tops) > 1:
            return tops
    depth = _splitting_depth(instances, folder)
    if depth is None and any(each.is_anonymous for each in instances):
        depth = _depth_of_patients(instances, folder)
    if depth is None:
        return {"": list(instances)}
    parts: dict[str, list[Instance]] = defaultdict(list)
    for each in instances:
        parts["/".join(_below(each.file, folder).split("/")[: depth + 1])].append(each)
    return {
        f"{place}/{inner}" if inner else place: mine
        for place, part in parts.items()
        for inner, mine in _by_folder(part, folder).items()
    }


def _splitting_depth(instances: Sequence[Instance], folder: Path) -> int | None:
    """Return the depth at which folders belong to different patients; None if there is none."""
    by_name: dict[SeriesName, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for each in instances:
        by_name[_series_name(each)][_below(each.file, folder)].append(each)
    depths = {
        depth
        for places in by_name.values()
        for depth in _colliding_depths(places)
        if depth is not None
    }
    for depth in sorted(depths):
        names: dict[tuple[str, ...], set[SeriesName]] = defaultdict(set)
        for name, places in by_name.items():
            for place in places:
                names[tuple(place.split("/")[: depth + 1])].add(name)
        times = Counter(name for series_names in names.values() for name in series_names)
        twice = {
            top
            for top, series_names in names.items()
            if any(times[name] > 1 for name in series_names)
        }
        # one series spread over folders, beside those of other series: one patient's folder
        if len(twice) == len(names) or any(len(names[top]) > 1 for top in twice):
            return depth
    return None


def _depth_of_patients(instances: Sequence[Instance], folder: Path) -> int | None:
    """Return the depth at which folders look like those of patients; None if there is none.

    There one folder holds several series, and no series is spread over two folders; or each holds
    one in a frame of reference of its own, and is not named after that series.
    """
    paths, depth = _parting(instances, folder)
    if depth is None:
        return None
    tops: dict[str, set[tuple[str, SeriesName]]] = defaultdict(set)
    for path, each in zip(paths, instances, strict=True):
        tops[path[depth]].add((each.series, _series_name(each)))
    times = Counter(name for held in tops.values() for name in held)
    several = any(len({name for _, name in held}) > 1 for held in tops.values())
    if max(times.values()) > 1:
        return None
    if several:
        return depth
    frames = {(path[depth], each.frame_of_reference) for path, each in
              zip(paths, instances, strict=True)}  # fmt: skip
    apart = len({frame for _, frame in frames if frame}) == len(frames) == len(tops) > 1
    return depth if apart and not _are_named_by_series(paths, instances, depth) else None


def _parting(instances: Sequence[Instance], folder: Path) -> tuple[list[list[str]], int | None]:
    """Return the folders of each file, and the depth of the first that differ, if all have one."""
    paths = [_below(each.file, folder).split("/") for each in instances]
    levels = enumerate(itertools.zip_longest(*paths))
    depth = next((at for at, names in levels if len(set(names)) > 1), None)
    is_level = depth is not None and all(len(path) > depth for path in paths)
    return paths, depth if is_level else None


def may_be_several(instances: Sequence[Instance], folder: Path) -> bool:
    """Say whether files taken for one examination may be of several patients.

    They may if patients are anonymous, and folders hold one series each and are not named after it:
    nothing says whether they are folders of patients or of series.
    """
    if not any(each.is_anonymous for each in instances):
        return False
    paths, depth = _parting(instances, folder)
    if depth is None:
        return False
    held: dict[str, set[SeriesName]] = defaultdict(set)
    for path, each in zip(paths, instances, strict=True):
        held[path[depth]].add(_series_name(each))
    return max(map(len, held.values())) == 1 and not _are_named_by_series(paths, instances, depth)


def _are_named_by_series(
    paths: Sequence[Sequence[str]], instances: Sequence[Instance], depth: int
) -> bool:
    """Say whether a folder at a depth has a name as series have it: a word for it, or a number."""

    def is_named(name: str, each: Instance) -> bool:
        reading = read_words(name)
        words = set(re.findall(r"[a-z0-9]+", name.lower()))
        text = f"{each.header.description} {each.header.protocol}".lower()
        return bool(
            reading.why != _SILENT
            or _SERIES_FOLDER.fullmatch(name)
            or (words & set(re.findall(r"[a-z0-9]+", text)) - {""})
        )

    return any(is_named(path[depth], each) for path, each in zip(paths, instances, strict=True))


def _colliding_depths(places: Mapping[str, Sequence[Instance]]) -> set[int]:
    """Return the depths at which folders part that have the same series name but different series.

    A folder within another one does not belong to another patient.
    """
    depths = set()
    contents = {
        place: ({each.series for each in mine}, {_slot(each) for each in mine})
        for place, mine in places.items()
    }
    names = sorted(contents)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            (uids, slots), (others, taken) = contents[one], contents[other]
            if uids == others and not slots & taken:
                continue
            a, b = one.split("/"), other.split("/")
            depth = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            if depth is not None and one and other:
                depths.add(depth)
    return depths


def _series_name(instance: Instance) -> SeriesName:
    header = instance.header
    return header.number, header.description or header.protocol, header.modality


def _slot(instance: Instance) -> tuple[object, ...]:
    """Return the values that no two images of one series share."""
    planes = instance.planes
    return (
        instance.number,
        _placed(instance),
        planes[0].variety if planes else (),
        planes[0].moment if planes else (),
    )


def _placed(instance: Instance) -> tuple[float, ...]:
    return instance.planes[0].place if instance.planes else ()


def _below(file: Path, folder: Path) -> str:
    """Return the folder of a file relative to ``folder``; empty for ``folder`` itself."""
    inside = file.relative_to(folder).parent.as_posix()
    return "" if inside == "." else inside


def _pixels(instance: Instance, seen: dict[Path, str]) -> str:
    """Return a digest of the end of a file, where its pixels are."""
    file = instance.file
    if file not in seen:
        bits = int(instance.pixels[0] or 0)
        length = sum(math.prod(plane.shape) for plane in instance.planes) * bits // 8
        with file.open("rb") as opened:
            size = file.stat().st_size
            opened.seek(max(0, size - length))
            seen[file] = hashlib.sha256(opened.read()).hexdigest()
    return seen[file]
