"""What may be asked of the prediction of a folder: how masks are made, and what is written."""

from dataclasses import dataclass, field

from mixmfl.data.dataset_card import UNKNOWN
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.inference.segmentation import Options
from mixmfl.planning.brains import BrainExtraction

LIMIT_SECONDS = 3600.0
"""Time limit for a case that is read, and for one that is written; far beyond the slowest case."""


@dataclass(frozen=True)
class PredictionOptions:
    """How masks are made, and of which cases.

    Attributes:
        only: Modalities to use where a case has them; empty: all.
        alignment: What to do with images on different grids.
        brains: How brains are extracted at this place; the models say whether they are.
        networks: How the networks are run.
        least_dice: Cases from whose modalities less is expected are refused; 0: none.
        subjects: What the cases are, as ``dataset_card.subjects_of`` says.
        force: Whether to predict cases that a model was surely not made for, and images far from
            those that it was planned for, with a warning.
    """

    only: tuple[str, ...] = ()
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    brains: BrainExtraction = field(default_factory=BrainExtraction)
    networks: Options = field(default_factory=Options)
    least_dice: float = 0.0
    subjects: str = UNKNOWN
    force: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """What is written beside masks and tables, and when.

    Attributes:
        report: Whether to write ``report.html`` and its files.
        dicom_seg: Whether to write the masks of DICOM cases as ``<case>.dcm``.
        dicom_sr: Whether to write these and their volumes, as ``<case>.sr.dcm``.
        dicom_seg_fractional: Whether to write these and their probabilities, as
            ``<case>.fractional.dcm``.
        uncertainty: Whether to write maps of probability and entropy; see ``uncertainty``.
        show_patient: Whether tables and page name the patient, where the files do.
        overwrite: Whether masks and tables that are not ours are replaced.
        set_aside: Content of ``set_aside.csv``, made by ``accounting.aside_table``.
        limit_seconds: Time limit for reading a case, and for writing it.
    """

    report: bool = False
    dicom_seg: bool = False
    dicom_sr: bool = False
    dicom_seg_fractional: bool = False
    uncertainty: bool = False
    show_patient: bool = False
    overwrite: bool = False
    set_aside: str = ""
    limit_seconds: float = LIMIT_SECONDS

    @property
    def as_dicom(self) -> bool:
        """Whether anything is written as DICOM, which goes with a segmentation."""
        return self.dicom_seg or self.dicom_sr or self.dicom_seg_fractional

    @property
    def dicom_kinds(self) -> list[str]:
        """What is written as DICOM beside maps, in words."""
        report = ["Structured Report"] if self.dicom_sr else []
        fractional = ["fractional DICOM segmentation"] if self.dicom_seg_fractional else []
        return ["DICOM segmentation", *report, *fractional]
