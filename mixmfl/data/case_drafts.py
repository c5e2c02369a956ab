"""A case while its files are gathered, and the choice of those that are used."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from mixmfl.data.accounting import LABEL, FileRecord, by_mapping, inside
from mixmfl.data.body_parts import ANATOMIES, differ, part_in
from mixmfl.data.contrast_agent import agent_in_name
from mixmfl.data.file_names import BY_PROGRAM, EVEN, TILT, FileName
from mixmfl.data.folder_roles import may_be_name
from mixmfl.data.image import are_copies, may_be_labels
from mixmfl.data.image_files import lower_words, shape_of, spaced, stem_of
from mixmfl.data.modalities import PARTS_OF_LESIONS, names_part, words_of
from mixmfl.data.sequence_phrases import without_accents
from mixmfl.data.sequence_vocabulary import ANATOMY, EXTRACTED, HARMLESS, PROCESSING
from mixmfl.data.sequence_words import is_in_phase, shows_water
from mixmfl.data.sidecars import sidecar_doubts, sidecar_of, sidecars_apart
from mixmfl.data.time_points import is_earlier_examination
from mixmfl.data.verdicts import CHANGED, FAULT, STATISTIC

_EXTEND = "if a file is a modality that we do not know by this name, give --alias NAME=ALIAS"
_MPR = (
    "MPR is an MPRAGE, as OASIS and Siemens write it, or a reformatted image of any sequence; for "
    "an MPRAGE, give --alias t1=mpr; "
)
# among several segmentations, these words mark the one to use
_LESION = {
    "lesion", "lesions", "tumor", "tumour", "wmh", "lesionmask", "label-lesion", "consensus", "gtv",
}  # fmt: skip
# what is made of several raters' labels
_AGREED = {"consensus", "majority", "staple"}
# behind the name of an image beside it, these say that an image was made of that one, or is worse
_DERIVED = re.compile(
    r"(?<![^ ])(?:mpr|reform(?:at|atted)?|rfmt|flip(?:ped)?|mirrored|lowres|downsampled|upsampled|"
    r"resampled|\d{1,2}mm|aug\d*|augmented|patch(?:es)?|tiles?|sr|norm|normed|rescaled|padded|"
    r"rotated|nd|dis[23]d|(?<!high )(?<!hi )res|cpp|def|old|alt|archive?|ancien|vieux|backup|kopie|"
    rf"copy|copie|copia|{FAULT}|{STATISTIC}|{CHANGED}|"
    r"iso\d*mm|\dx\dx\d|s\d{1,2}mm|u?int\d{1,2}|float(?:\d\d)?|scaled|compressed|"
    r"anon|gibbs|filt(?:ered)?|delta|change|grad(?:ient)?|edges?|laplacian|threshold(?:ed)?|"
    r"ir|lrt|sigma|binary|otsu|clusters?|cortex|surface|mesh|dist(?:ance)?|curv|sulc|thickness|hist|proc|"
    r"clean(?:ed)?)(?![^ ])"
)
# what file managers write before the name of a file that they copied
_COPIED = {"kopie", "copy", "copie", "copia"}
# of the image that the one without this word was made of: T1_orig beside T1
_ORIGINAL = ("_orig", "_original", "_raw")
_FINAL = {"final", "finale", "definitive", "endgultig", "manual", "manuell", "manuelle", "manuale"}
# of diffusion images, the one that is looked at
_WEIGHTED = {"trace", "tracew", "isotropic", "iso"}
_LOW_B = re.compile(r"b_?=?(?:[1-9]|[1-9]\d|1\d\d|200)")
_RUN = re.compile(r"_run-[^_]+")  # of BIDS
# what programs do to an image so that nobody knows its patient
_ANONYMISED = {
    "defaced", "deface", "pydeface", "quickshear", "refaced", "deid", "anonymized", "anonymised",
}  # fmt: skip
# of an image on even slices, or one that a tilted gantry made uneven, which no program looked at
_BY_CONVERTER = {EVEN, TILT}
# of an image with its skull, where images beside it have none
_UNSTRIPPED = "unstripped"
# what a person does to a label, so that it is no worse for it
_BY_HAND = {"corrected", "corr"}


@dataclass(frozen=True)
class GatheredFile:
    """A file of a case.

    Attributes:
        path: The file.
        reading: The reading of its name, or the entry of the user's table.
        given: Whether ``reading`` comes from the user's table.
        why: The reason to record for what the file was taken for; empty: its name is.
    """

    path: Path
    reading: FileName
    given: bool = False
    why: str = ""

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return stem_of(self.path)

    @property
    def processing(self) -> frozenset[str]:
        """The words, in small letters, that say that it was made from another image."""
        return frozenset(map(str.lower, self.reading.processing))


@dataclass(frozen=True)
class Chosen:
    """The files that a case is made from.

    Attributes:
        images: The file of each modality, sorted by modality.
        label: The segmentation, if there is one.
        records: A record of every file; ``FileRecord.case`` is still empty.
        warnings: Doubts about the choice of images.
        fault: The reason why the case cannot be used; empty where it can.
    """

    images: Mapping[str, Path]
    label: Path | None
    records: tuple[FileRecord, ...]
    warnings: tuple[str, ...] = ()
    fault: str = ""


@dataclass
class Draft:
    """A case while its files are gathered.

    Attributes:
        files: All files: images, labels and others.
        faults: Reasons why the case as a whole cannot be used.
        hint: Advice to the user if no modality is known.
    """

    files: list[GatheredFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    hint: str = _EXTEND

    def add(self, path: Path, reading: FileName) -> None:
        """Add a file."""
        self.files.append(GatheredFile(path, reading))

    def choose(self, folder: Path, labels_needed: bool) -> Chosen:
        """Choose the files that are used.

        Of two files of one modality the less processed one is used: the original before its
        derivatives. Where that does not decide, the user must: for training the case is refused,
        for prediction its other modalities are used.

        Args:
            folder: The folder to which paths in messages are relative.
            labels_needed: Whether the case must have a label, as in training.
        """
        by_modality: dict[str, list[GatheredFile]] = defaultdict(list)
        for file in self.files:
            by_modality[file.reading.modality or ""].append(file)
        records: list[FileRecord] = []
        questions: list[str] = []
        warnings: list[str] = []
        used: dict[str, GatheredFile] = {}
        extracted = _all_extracted([files for each, files in by_modality.items() if each])
        for modality, files in sorted(by_modality.items()):
            if not modality:
                continue
            masks = _masks_among(files)
            why = f"its values are those of a mask, though its name says {modality}"
            records += [FileRecord(file.path, why) for file in masks]
            files = [file for file in files if file not in masks]
            best, warning = self._best(modality, files, extracted, folder)
            warnings += [warning] if warning else []
            taken = best[0] if len(best) == 1 else None
            records += [_record(file, modality, taken, len(files)) for file in files]
            if taken is not None:
                used[modality] = taken
            else:
                several = f"{len(best)} files for {modality}: {listed(best, folder)}"
                questions.append(f"{several}; keep one of them{_or_mapping(labels_needed)}")
        for file in by_modality[""]:
            if file.reading.is_label:
                continue
            is_doubtful = bool(file.reading.doubt)
            records.append(FileRecord(file.path, _why_aside(file), is_open=is_doubtful))
            if is_doubtful:
                what = f"{inside(file.path, folder)}: the name {_name(file)} {file.reading.doubt}"
                questions.append(
                    f"{what}; rename it so that it fits one{_or_mapping(labels_needed)}"
                )
        images = {modality: file.path for modality, file in used.items()}
        label, labels, fault = self._label(folder, labels_needed)
        records += labels
        faults = list(self.faults)
        if not faults and (labels_needed or not images):
            faults = questions
        if not faults and not images:
            faults = [self._nothing_known(folder)]
        if not faults and labels_needed and label is None:
            faults = [fault or f"no label, which training needs{self._by_programs(folder)}"]
        warnings += [f"not used: {question}" for question in questions]
        warnings += self._doubts(used, label, folder)
        has_twins = any(len(by_modality[modality]) > 1 for modality in used)
        warnings += _mixed([*used.values()], folder, has_twins)
        return Chosen(images, label, tuple(records), tuple(warnings), "; ".join(faults))

    def _best(
        self, modality: str, files: Sequence[GatheredFile], extracted: Set[Path], folder: Path
    ) -> tuple[list[GatheredFile], str]:
        """Return the image of a modality, or several that may be it, and a warning or nothing."""
        alike = [file for file in files if file.path in extracted] or list(files)
        best = alike if _show_several_parts(alike) else _least_processed(alike)
        if len(best) > 1 and (drawn_on := self._drawn_on(best)):
            return [drawn_on], (
                f"{listed(files, folder)} are all {modality}; {drawn_on.path.name} is taken, "
                "as a label is called like it"
            )
        if len(best) > 1 and _are_runs(best):
            first, runs = self._first_run(best), listed(best, folder)
            return [first], f"{runs} are runs of one sequence; {first.path.name} is taken"
        return best, ""

    def _doubts(
        self, used: Mapping[str, GatheredFile], label: Path | None, folder: Path
    ) -> list[str]:
        """Return warnings of what names and JSON files beside the chosen files say of them."""
        sidecars = {m: sidecar_of(file.path) for m, file in used.items() if not file.given}
        doubts = sidecar_doubts(sidecars)
        warnings = [f"{inside(used[m].path, folder)}: {doubt}" for m, doubt in doubts.items()]
        warnings += sidecars_apart(sidecars)
        images = [file.path for file in used.values()]
        remarks = {file.path: file.reading.remark for file in self.files}
        for path in (*images, *([label] if label else [])):
            if remarks[path]:
                warnings.append(f"{inside(path, folder)}: {remarks[path]}")
            if other := self._name_of_another(path, images):
                what = "label" if path == label else "image"
                warnings.append(
                    f"{inside(path, folder)}: the {what} is called {other!r}, and the other images "
                    "are not; see that it is of this case"
                )
        return warnings

    def _drawn_on(self, files: Sequence[GatheredFile]) -> GatheredFile | None:
        """Return the one of several images whose whole name a label's begins with, or nothing."""
        labels = [spaced(file.stem) for file in self.files if file.reading.is_label]
        names = [spaced(file.stem) for file in files]
        drawn = [name for name in names if any(label.startswith(name) for label in labels)]
        longest = max(drawn, key=len, default="")
        return files[names.index(longest)] if names.count(longest) == 1 else None

    def _first_run(self, runs: Sequence[GatheredFile]) -> GatheredFile:
        """Return the first of an image's runs, or the one that a label was drawn on by its name."""
        drawn = {_run_of(file) for file in self.files if file.reading.is_label}
        return min(runs, key=lambda file: (_run_of(file) not in drawn, file.path))

    def _label(self, folder: Path, needed: bool) -> tuple[Path | None, list[FileRecord], str]:
        """Return the segmentation, the records of all label files, and why none was chosen."""
        files = [file for file in self.files if file.reading.is_label]
        best = files
        of_parts = any(names_part(file.stem) for file in files)
        for preferred in (_AGREED, _FINAL) if of_parts else (_AGREED, _LESION, _FINAL):
            best = [file for file in best if preferred & _words_of_label(file)] or best
        best = _least_processed(best, _BY_HAND)
        if len(best) != 1:
            why = "one of several labels" if needed else "a label, which prediction does not need"
            records = [FileRecord(file.path, why, is_open=True) for file in files]
            question = f"{len(best)} files for label: {listed(best, folder)}; keep one of them"
            return None, records, question if files and needed else ""
        (taken,) = best
        records = [FileRecord(taken.path, taken.why or "its name", "", LABEL)]
        records += [
            FileRecord(file.path, f"another label; {taken.path.name} is taken")
            for file in files
            if file is not taken
        ]
        return taken.path, records, ""

    def _name_of_another(self, path: Path, images: Sequence[Path]) -> str:
        """Return the name before a file's words if all other images are called otherwise."""
        names = {file.path: spaced(file.reading.head) for file in self.files if not file.given}
        own = names.get(path, "")
        others = [image for image in images if image != path]
        around = {
            word
            for each in (path, *others)
            for part in each.parent.parts
            for word in lower_words(part)
        }
        heads = [names.get(image, "") for image in others]
        is_shared = any(
            head.strip() and (head in own or own in head or shape_of(head) == shape_of(own))
            for head in heads
        )
        known = around | _AGREED | _FINAL | PROCESSING | HARMLESS | {*ANATOMIES}
        known |= ANATOMY | PARTS_OF_LESIONS | {"l", "r"}
        is_told = known.issuperset(own.split())
        if is_told or is_shared or not (heads and may_be_name(re.sub(r"\d", "", own))):
            return ""
        return own.strip()

    def _by_programs(self, folder: Path) -> str:
        """Name the segmentations by programs, which are no labels unless the user says so."""
        made = [file for file in self.files if file.reading.aside.startswith(BY_PROGRAM)]
        if not made:
            return ""
        return (
            f"; {listed(made, folder)} may be by a program, as names say; if a person has checked "
            "it, say by --mapping that it is the label"
        )

    def _nothing_known(self, folder: Path) -> str:
        why = {
            file.path: "a label"
            if file.reading.is_label
            else _why_aside(file)
            if file.reading.aside
            else ""
            for file in self.files
        }
        what = sorted(
            inside(path, folder) + (f" ({each})" if each else "") for path, each in why.items()
        )
        is_mpr = any("mpr" in lower_words(stem_of(path)) for path in why)
        return f"no known modality, only {', '.join(what)}; {_MPR * is_mpr}{self.hint}"


def corrected(file: GatheredFile, modality: str) -> GatheredFile:
    """Return a file as the user's table has it: with a modality, as the label or set aside."""
    own = LABEL if file.reading.is_label else file.reading.modality or ""
    why = by_mapping(modality, own, "its name" if own else _why_aside(file))
    is_label = modality == LABEL
    reading = FileName(file.reading.case, None if is_label else modality or None, is_label)
    return GatheredFile(file.path, reading, given=True, why=why)


def _mixed(used: Sequence[GatheredFile], folder: Path, has_twins: bool) -> list[str]:
    """Return warnings if some of a case's images alone have their skull, or were processed.

    ``has_twins`` says whether an image was chosen among several of a modality.
    """
    processed = [file for file in used if file.processing - _BY_CONVERTER - {_UNSTRIPPED}]
    with_skull = [file for file in used if _UNSTRIPPED in file.processing]
    warnings = []
    if 0 < len(with_skull) < len(used):
        warnings.append(
            f"by its name {listed(with_skull, folder)} shows the skull, and names of the other "
            "images do not say so; see that all are alike"
        )
    if (has_twins or any(map(_is_extracted, processed))) and 0 < len(processed) < len(used):
        warnings.append(
            f"by its name {listed(processed, folder)} was processed, such as stripped of the "
            "skull, and the other images were not; see that all are alike"
        )
    return warnings


def listed(files: Sequence[GatheredFile], folder: Path) -> str:
    """Return the files' relative paths for a message, sorted."""
    return ", ".join(sorted(inside(file.path, folder) for file in files))


def _show_several_parts(files: Sequence[GatheredFile]) -> bool:
    """Say whether names of images say other parts of the body: T2_neck beside T2_pelvis."""
    parts = [part_in(file.stem) for file in files]
    return not any(file.given for file in files) and differ(parts)


def _is_extracted(file: GatheredFile) -> bool:
    """Say whether an image's name, or its folder's, says that it shows the brain alone."""
    return not EXTRACTED.isdisjoint(lower_words(" ".join(file.reading.processing)))


def _all_extracted(kinds: Sequence[Sequence[GatheredFile]]) -> set[Path]:
    """Return the images without a skull if all modalities have one, and some have no other.

    Beside ``T1_unstripped`` they need not say so: T1 and T1GD.
    """
    is_told = any(
        {_UNSTRIPPED in file.processing for file in files if not _is_extracted(file)}
        == {True, False}
        for files in kinds
    )
    brains = [
        [
            file.path
            for file in files
            if _is_extracted(file) or (is_told and _UNSTRIPPED not in file.processing)
        ]
        for files in kinds
    ]
    alone = [len(own) == len(files) for own, files in zip(brains, kinds, strict=True)]
    is_given = any(file.given for files in kinds for file in files)
    is_needed = any(alone) and all(brains) and not is_given
    return {path for own in brains for path in own} if is_needed else set()


def _run_of(file: GatheredFile) -> str:
    return "".join(_RUN.findall(file.stem))


def _are_runs(files: Sequence[GatheredFile]) -> bool:
    """Say whether images are repetitions of one sequence in BIDS: alike in all but the run."""
    names = {_RUN.sub("", file.stem) for file in files}
    return len(names) == 1 and all(file.reading.is_bids for file in files)


def _least_processed(
    files: Sequence[GatheredFile], no_processing: Set[str] = frozenset()
) -> list[GatheredFile]:
    """Return the files that are least processed, or that the user chose: one, or a question.

    Copies of a file, packed or not, count once.

    dcm2niix writes an image of uneven slices, or of a tilted gantry, as it is, with a wrong place
    for most of its slices, and once more on even ones: that is the one to use.
    """
    files = [file for file in files if file.given] or list(files)
    if len(files) < 2:
        return files
    files = [file for file in files if not _is_on_template(file)] or list(files)
    files = _without_derived(files)
    files = [file for file in files if _is_weighted(file)] or list(files)
    files = [file for file in files if not _is_hardly_weighted(file)] or list(files)
    for made in (EVEN, TILT):
        files = [file for file in files if made in file.processing] or files
    if any(shows_water(_without_number(file.stem)) for file in files):
        files = [f for f in files if not is_in_phase(_without_number(f.stem))] or files
    files = [file for file in files if file.stem.lower().endswith(_ORIGINAL)] or files
    files = _surely_native(files)
    steps = [_steps(file, no_processing) for file in files]
    best = [file for file, count in zip(files, steps, strict=True) if count == min(steps)]
    if len({file.path.with_name(file.stem) for file in best}) == 1:  # T1.nii and T1.mgz
        in_nifti = [file for file in best if file.path.name.lower().endswith((".nii", ".nii.gz"))]
        best = in_nifti or best
    return best[:1] if len(best) > 1 and are_copies([file.path for file in best]) else best


def _steps(file: GatheredFile, no_processing: Set[str]) -> tuple[int, int]:
    """Return how far an image is from the one that a scanner made: steps, those without a face.

    What is called unstripped lies beside the same without the skull.
    """
    words = file.processing - no_processing
    counted = sum(-1 if _UNSTRIPPED in lower_words(word) else 1 for word in words - _ANONYMISED)
    return counted, len(words & _ANONYMISED)


def _surely_native(files: Sequence[GatheredFile]) -> list[GatheredFile]:
    """Return the T1 whose names deny an agent, beside others whose names say nothing of one.

    So is ``t1_pre`` beside ``bravo``, but not ``T1_pre`` beside ``T1``, of which it may be made.
    """
    sure = [
        file
        for file in files
        if file.reading.modality == "t1" and agent_in_name(file.stem) == "without"
    ]
    names = [spaced(file.stem).rstrip() for file in sure]
    others = [spaced(file.stem).rstrip() for file in files if file not in sure]
    is_made = any(name.startswith(other) for name in names for other in others)
    return list(files) if is_made else sure or list(files)


def _words_of_label(file: GatheredFile) -> set[str]:
    names = (file.stem, file.path.parent.name)
    return {word for name in names for word in lower_words(without_accents(name))}


def _without_derived(files: Sequence[GatheredFile]) -> list[GatheredFile]:
    """Leave out what was made of another of the files, or is worse than it, by its name.

    So are ``T1_mpr_tra``, ``bad/T1`` and ``3DT1`` beside ``T1``.
    """
    common = os.path.commonpath([file.path.parent for file in files])
    names = [
        [
            word
            for part in (_without_number(file.stem), *file.path.parent.relative_to(common).parts)
            for word in lower_words(part)
        ]
        for file in files
    ]

    def is_derived(name: list[str]) -> bool:
        if name[0].startswith("3d") and [name[0][2:], *name[1:]] in names:
            return True
        before = [name[: -len(other)] for other in names if name[-len(other) :] == other != name]
        if any(map(_says_made, itertools.chain(*before))):  # reg_T1
            return True
        further = [name[len(other) :] for other in names if name[: len(other)] == other != name]
        behind = [" ".join(words) for words in further]
        return any(_DERIVED.search(text) or is_earlier_examination(text) for text in behind)

    return [file for file, name in zip(files, names, strict=True) if not is_derived(name)]


def _says_made(word: str) -> bool:
    """Say whether a word before the name of another image says that this one was made of it."""
    return word in PROCESSING | _COPIED or bool(re.fullmatch(STATISTIC, word))


def _without_number(stem: str) -> str:
    """Return a name without a series' time and number, in which 7_T1 and 8_T1_mpr differ."""
    return re.sub(r"^\d+[ _.-]+(?=\D)|(?:[ _.-]+\d{8,14})?[ _.-]+\d{1,4}$", "", stem)


def _masks_among(files: Sequence[GatheredFile]) -> list[GatheredFile]:
    """Return those of several images of a modality that are masks by their values: T1_thalamus.

    Only images whose names have words that we do not know behind the sequence are looked at.
    """
    if len(files) < 2 or any(file.given for file in files):
        return []
    unknown = [
        file
        for file in files
        if re.search(r"[^\W\d_]", file.reading.case[len(file.reading.head) :])
    ]
    masks = [file for file in unknown if may_be_labels(file.path)]
    return masks if len(masks) < len(files) else []


def _is_weighted(file: GatheredFile) -> bool:
    """Say whether a diffusion image is the one that is looked at, and not the raw series."""
    return file.reading.modality == "dwi" and bool(_WEIGHTED & {*lower_words(file.stem)})


def _is_hardly_weighted(file: GatheredFile) -> bool:
    """Say whether the name of a diffusion image has a low b, as DWI_b50 beside DWI_b800."""
    words = lower_words(file.stem)
    return file.reading.modality == "dwi" and any(map(_LOW_B.fullmatch, words))


def _is_on_template(file: GatheredFile) -> bool:
    """Say whether an image was brought onto a template, which takes its place and size from it."""
    words = words_of(" ".join(file.reading.processing).lower())
    return any(word.startswith("mni") or word in ("atlas", "template") for word in words)


def _record(
    file: GatheredFile, modality: str, taken: GatheredFile | None, count: int
) -> FileRecord:
    if file is taken:
        return FileRecord(file.path, file.why or "its name", "", modality)
    if taken is not None:
        return FileRecord(file.path, f"another {modality}; {taken.path.name} is taken")
    return FileRecord(file.path, f"{count} files fit {modality}", is_open=True)


def _why_aside(file: GatheredFile) -> str:
    if file.given:
        return file.why
    if file.reading.doubt:
        return f"undecided: its name {file.reading.doubt}"
    if file.reading.aside:
        return f"its name says {file.reading.aside}"
    return "its name says no known modality"


def _name(file: GatheredFile) -> str:
    return repr(file.path.name.split(".")[0])


def _or_mapping(for_training: bool) -> str:
    return "" if for_training else ", or say by --mapping what is meant"
