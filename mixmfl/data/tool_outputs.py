"""What programs for neuroimaging wrote beside the images that they read."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixmfl.data.file_names import BY_PROGRAM, MADE_IN_BIDS, SHORT_MAKERS, FileName, maker_in
from mixmfl.data.image_files import ImageFile, Parts, shape_of, spaced
from mixmfl.data.patients import names_site
from mixmfl.data.sequence_phrases import without_accents
from mixmfl.data.sequence_vocabulary import EXTRACTED

# what SPM and CAT12 write before the name of an image that they made something of
_SPM = re.compile(r"(?:s\d{0,2}|r|w|m|c[1-6]|p[0-7]|i?y_|u_|ples_l[gp]a_)+")

_LONGEST_PREFIX = 16
_Stems = Mapping[Path, Mapping[str, ImageFile]]
# of a side, or of a version of an atlas: lh.hippoAmygLabels-T1.v21, ThalamicNuclei.v13.T1
_OF_FREESURFER = re.compile(r"[lr]h\..+|.+\.v\d{1,2}(?:\..+)?")
_TISSUE = re.compile(r"_label-(?:gm|wm|csf)_probseg$")
# folders and names of brains that stand for all patients
_TEMPLATES = re.compile(r"templates?|fsaverage\d?(?:_sym)?|canonical|tpl-.+")
_TEMPLATE = re.compile(
    r"(?:mni[ _-]?)?icbm[ _-]?152.*|mni152.*|sri24|colin27|single[ _]subj|tpl-.*|fsaverage"
)


def without_derivatives(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Set aside images of BIDS in a folder of derivatives that has another name.

    In it all images have ``space-`` or ``desc-`` in their names, and all subjects have raw images
    in one other folder, as those in ``caps/subjects`` have in ``bids``, and its name is not that of
    a site. A label there is of the raw images.
    """
    raw: dict[Parts, set[str]] = defaultdict(set)
    made: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if (place := _root_in_bids(file)) is not None and file.reading.modality:
            is_made = any(each.startswith(("space-", "desc-")) for each in file.reading.processing)
            (made if is_made else raw)[place].add(file.reading.case.split("_")[0])
    root_of = {
        place: root
        for place, subjects in made.items()
        for root in list(raw)
        if place not in raw and subjects <= raw[root] and not any(map(names_site, place))
    }
    left = []
    for file in files:
        root = root_of.get(place) if (place := _root_in_bids(file)) is not None else None
        if root is not None:
            aside = "" if file.reading.is_label else file.reading.aside or MADE_IN_BIDS
            reading = file.reading.set_aside(aside) if aside else file.reading
            file = replace(file, reading=reading, parents=root)
        left.append(file)
    return left


def _root_in_bids(file: ImageFile) -> Parts | None:
    """Return the folders around that of a subject in BIDS; None where there is none."""
    at = next((at for at, part in enumerate(file.parents) if part.startswith("sub-")), None)
    return file.parents[:at] if file.reading.is_bids and at is not None else None


def without_products_of_tools(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Set aside what programs made of an image beside it or in the folder above."""
    by_stem: dict[Path, dict[str, ImageFile]] = defaultdict(dict)
    for file in files:
        by_stem[file.path.parent][file.stem] = file
    changed = (
        _by_spm_or_dcm2nii(files, by_stem) | _by_freesurfer(files) | _by_fsl_or_ge(files, by_stem)
    )
    return [changed.get(file.path, file) for file in files]


def _by_fsl_or_ge(files: Sequence[ImageFile], by_stem: _Stems) -> dict[Path, ImageFile]:
    """Return what fsl_anat made, and GE's images before a filter, beside those behind it.

    fsl_anat writes a folder ``T1.anat`` beside ``T1``, or one in which ``T1`` alone is left of the
    image that it read.
    """
    changed = {}
    for file in files:
        made = next((each for each in file.path.parents if each.suffix == ".anat"), None)
        beside = by_stem.get(made.parent, {}).get(made.stem) if made else None
        original = beside or (by_stem.get(made, {}).get(made.stem) if made else None)
        if original and original is not file:
            changed[file.path] = _made_of(file, original, "fsl_anat")
        elif file.stem.removeprefix("ORIG_") in by_stem[file.path.parent].keys() - {file.stem}:
            why = "an image before the filter of GE's scanner"
            changed[file.path] = replace(file, reading=file.reading.set_aside(why))
    return changed


def _by_freesurfer(files: Sequence[ImageFile]) -> dict[Path, ImageFile]:
    """Return images in FreeSurfer's folder ``mri``, of a subject who has others, or by its names.

    Parts of a T1 lie beside no image of their name.
    """
    image_of: dict[str, ImageFile] = {}
    modalities_of: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if file.reading.modality and not _subject_of_freesurfer(file.path):
            for name in (*file.parents, file.reading.case):
                image_of.setdefault(name, file)
                modalities_of[name].add(file.reading.modality)
    image_of.pop("", None)
    shapes = {shape_of(name) for name in image_of}

    def owner_of(subject: str) -> str:
        if not subject or subject in image_of:
            return subject
        begun = [
            name
            for name in image_of
            if re.search(r"\d", name) and spaced(subject).startswith(spaced(name))
        ]  # sub-04_recon
        return max(begun, key=len, default="")

    subjects = {_subject_of_freesurfer(file.path) for file in files}
    # of several times FreeSurfer makes a template, and each of them once more on it
    joined = {name for name in subjects if ".long." in name}
    joined |= {name.split(".long.")[1] for name in joined}
    changed = {}
    for file in files:
        reading, subject = file.reading, _subject_of_freesurfer(file.path)
        is_part = file.path.suffix.lower() == ".mgz" and _OF_FREESURFER.fullmatch(file.stem.lower())
        if owner := owner_of(subject):
            is_new = reading.modality not in (None, *modalities_of[owner])
            if is_new and subject not in joined:
                changed[file.path] = _only_by_freesurfer(file, image_of[owner])
            else:
                changed[file.path] = _made_of(file, image_of[owner], "FreeSurfer")
            continue
        if subject in joined:
            why = "an image that FreeSurfer made of several examinations"
            reading = replace(reading.set_aside(why), is_nobodys=True)
        elif is_part:
            reading = reading.set_aside("a part of an image that FreeSurfer made")
        elif subject and image_of and shape_of(subject) not in shapes and reading.modality:
            doubt = f"is FreeSurfer's of {subject!r}, who may be one of the others by another name"
            reading = replace(reading, modality=None, doubt=doubt)
        else:
            continue
        changed[file.path] = replace(file, reading=reading)
    return changed


def _by_spm_or_dcm2nii(files: Sequence[ImageFile], by_stem: _Stems) -> dict[Path, ImageFile]:
    """Return images whose names are those of others behind what a program writes before it.

    SPM writes ``c1T1`` and ``wmT1``; dcm2nii ``o`` before the name of the image that it turned
    upright, and ``co`` before that of the one that it cropped, too.
    """

    def is_of_dcm2nii(prefix: str, original: ImageFile) -> bool:
        name, beside = original.stem, by_stem[original.path.parent]
        both = f"o{name}" in beside and f"co{name}" in beside
        return prefix in ("o", "co") and (both or bool(re.match(r"\d{8}", name)))

    def original_of(file: ImageFile) -> tuple[str, ImageFile | None]:
        stem, folder = file.stem, file.path.parent
        for at in reversed(range(1, min(len(stem), _LONGEST_PREFIX))):
            name, prefix = stem[at:], stem[:at]
            original = by_stem[folder].get(name) or by_stem.get(folder.parent, {}).get(name)
            if original and (_SPM.fullmatch(prefix) or is_of_dcm2nii(prefix, original)):
                return prefix, original
        return "", None

    found = {file.path: (file, *original_of(file)) for file in files}
    # letters alone may begin a patient's name, as in sam_T1 beside am_T1
    sure = {
        original.path.parent
        for _, prefix, original in found.values()
        if original and re.search(r"[\d_]", prefix)
    }
    changed = {}
    for path, (file, prefix, original) in found.items():
        if original:
            turned = is_of_dcm2nii(prefix, original)
            clear = re.search(r"[\d_]", prefix) or (
                not original.reading.case or original.path.parent in sure
            )
            is_patient = len(prefix) == 1 and original.stem[0].isdecimal()  # s01_T1 beside 01_T1
            if turned or (clear and not is_patient):
                changed[path] = _made_of(file, original, "dcm2nii" if turned else "SPM")
    return changed


def _subject_of_freesurfer(path: Path) -> str:
    """Return the name of the subject in whose folder of FreeSurfer's an image lies, or nothing.

    Of p1/freesurfer/mri/T1.mgz it is p1.
    """
    folders = path.parents if path.suffix.lower() == ".mgz" else ()
    subject = next((each.parent for each in folders if each.name == "mri"), Path())
    is_program = subject.name.lower() == "fs" or maker_in(subject.name)
    return subject.parent.name if is_program else subject.name


def _made_of(file: ImageFile, original: ImageFile, program: str) -> ImageFile:
    aside = f"an image that {program} made of {original.stem}"
    reading = FileName(original.reading.case, head=original.reading.head, aside=aside)
    return replace(file, reading=reading, place=original.place, home=original.home)


def _only_by_freesurfer(file: ImageFile, other: ImageFile) -> ImageFile:
    """Return an image by FreeSurfer of a modality that its subject has no other image of."""
    remark = "is by FreeSurfer, and the image that it was made of is not here; see that it lies on "
    reading = replace(
        file.reading, case=other.reading.case, head=other.reading.head, remark=f"{remark}the others"
    )
    return replace(file, reading=reading, place=other.place, home=other.home)


def without_segmentations_of_tools(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Set aside labels that the files beside them show to be by a program.

    sMRIPrep writes ``dseg``, of tissue, beside ``label-GM_probseg``, FAST ``T1_seg`` beside
    ``T1_pve_0``, brain extraction ``T1_mask`` beside ``T1_bet`` or in a folder ``bet``, HD-GLIO
    ``segmentation`` beside ``T1_r2s_bet``, UK Biobank ``final_mask`` beside ``bianca_mask``,
    FreeSurfer ``mask.mgz`` in its folder ``mri``; ``lst_lesions`` is LST's where no image is of a
    patient called LST.
    """
    patients = {
        name.lower()
        for file in files
        for name in (file.reading.head, file.reading.case, *file.parents)
        if file.reading.modality
    }
    beside: dict[Path, set[str]] = defaultdict(set)
    images: dict[Path, set[str]] = defaultdict(set)
    for file in files:
        beside[file.path.parent].add(file.stem.lower())
        if file.reading.modality:
            images[file.path.parent].add(file.stem.lower())

    def maker(file: ImageFile) -> str:
        stem, others = file.stem.lower(), beside[file.path.parent]
        image = re.sub(r"_seg$", "", stem)
        if image != stem and any(
            other.startswith((f"{image}_pve", f"{image}_mixel")) for other in others
        ):
            return "FAST"
        extracted = {stem.replace("_mask", f"_{word}") for word in EXTRACTED}
        if file.path.parent.name.lower() in EXTRACTED - {"brain"}:
            extracted.add(stem.removesuffix("_mask"))
        if stem.endswith("_mask") and extracted & images[file.path.parent]:
            return "brain extraction"
        if stem == "segmentation" and any("_r2s_bet" in other for other in others):
            return "HD-GLIO"
        if stem == "final_mask" and "bianca_mask" in others:
            return "BIANCA"
        if stem.endswith("_dseg") and any(_TISSUE.search(other) for other in others):
            return "sMRIPrep"
        head = file.reading.head
        if head.lower() not in patients and (made := maker_in(head, SHORT_MAKERS)):
            return made
        is_freesurfer = file.path.parent.name == "mri" and file.path.suffix.lower() == ".mgz"
        return "FreeSurfer" if is_freesurfer else ""

    return [
        replace(file, reading=replace(file.reading, is_label=False, aside=f"{BY_PROGRAM} ({made})"))
        if file.reading.is_label and (made := maker(file))
        else file
        for file in files
    ]


def without_templates(files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
    """Set aside brains that stand for all patients, such as ``MNI152_T1_1mm`` and ``fsaverage``.

    Templates are T1, T2 and PD; with a FLAIR of its name it is a patient's image on a template.
    """
    others = {
        (file.path.parent, file.reading.head)
        for file in files
        if file.reading.modality not in (None, "t1", "t2", "pd")
    }

    def is_template(file: ImageFile) -> bool:
        *folders, _ = map(without_accents, file.path.relative_to(folder).parts)
        head = file.reading.head
        if any(map(_TEMPLATES.fullmatch, folders)) and not re.search(r"\d", head):
            return True
        is_named = bool(_TEMPLATE.fullmatch(without_accents(head)))
        return is_named and (file.path.parent, head) not in others

    return [
        replace(file, reading=replace(file.reading.set_aside("a template"), is_nobodys=True))
        if (file.reading.is_known or file.reading.doubt) and is_template(file)
        else file
        for file in files
    ]
