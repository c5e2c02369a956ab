"""Mix-modal federated MRI segmentation on top of nnU-Net.

Hospitals that cannot share images and do not have the same sequences train one model; a clinic
segments folders in which every case may lack other sequences.

>>> import mixmfl
>>> model = mixmfl.load_model("model.safetensors")  # doctest: +SKIP
>>> mask = model.predict({"t1": "p01_T1.nii.gz", "flair": "p01_FLAIR.nii.gz"})  # doctest: +SKIP

These names are public; docs/architecture.md says where the rest is. They are imported when they are
asked for, so that importing mixmfl loads no large library.
"""

from typing import TYPE_CHECKING, Any

from mixmfl.core.version import __version__

if TYPE_CHECKING:
    from mixmfl.data.cases import find_cases
    from mixmfl.inference.model import Model, load_model

__all__ = ["Model", "__version__", "find_cases", "load_model"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load_model"):
        from mixmfl.inference import model

        return model.Model if name == "Model" else model.load_model
    if name == "find_cases":
        from mixmfl.data.cases import find_cases

        return find_cases
    raise AttributeError(f"module 'mixmfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
