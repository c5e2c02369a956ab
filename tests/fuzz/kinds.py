"""All that is attacked, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from images import Dicom, FileNames, Nifti, OtherImages, Segmentations
from messages import Replies, Tasks
from models import CaseOnDisk, InitialWeights, ModelFile, RunFolder
from records import JSON_FILES, TABLES, AuditFile

KINDS: Mapping[str, Callable[[Path], Any]] = {
    "model file": ModelFile,
    "checkpoint for --init": InitialWeights,
    "run folder": RunFolder,
    "preprocessed case": CaseOnDisk,
    "NIfTI": Nifti,
    "NRRD, MetaImage, MGZ": OtherImages,
    "DICOM series": Dicom,
    "DICOM segmentation": Segmentations,
    "names of files": FileNames,
    "tasks to a hospital": Tasks,
    "replies to the coordinator": Replies,
    "audit.jsonl": AuditFile,
    **JSON_FILES,
    **TABLES,
}
