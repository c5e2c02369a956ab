"""Mix-modal federated MRI segmentation on top of nnU-Net.

Hospitals that cannot share images and do not have the same sequences train one model; a clinic
segments folders in which every case may lack other sequences.

>>> import mixmfl
>>> model = mixmfl.load_model("model.safetensors")
>>> mask = model.predict({"t1": "p01/T1.nii.gz", "flair": "p01/FLAIR.nii.gz"})

``find_cases`` lists the cases of a folder; ``plan_federation`` and ``simulate_federation`` train.
These names are public; docs/architecture.md says where the rest is. They are imported when they are
asked for, so that importing mixmfl loads no large library.
"""

from typing import TYPE_CHECKING, Any

from mixmfl.core.version import __version__

if TYPE_CHECKING:
    from mixmfl.data.cases import find_cases
    from mixmfl.inference.model import Model
    from mixmfl.inference.model_file import load_model
    from mixmfl.research.federation import plan_federation, simulate_federation

__all__ = [
    "Model",
    "__version__",
    "find_cases",
    "load_model",
    "plan_federation",
    "simulate_federation",
]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from mixmfl.inference.model import Model

        return Model
    if name == "load_model":
        from mixmfl.inference.model_file import load_model

        return load_model
    if name == "find_cases":
        from mixmfl.data.cases import find_cases

        return find_cases
    if name in ("plan_federation", "simulate_federation"):
        from mixmfl.research import federation

        named = federation.plan_federation, federation.simulate_federation
        return named[name == "simulate_federation"]
    raise AttributeError(f"module 'mixmfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
