"""The methods that are compared: each a small description of what it does unlike the plans.

All share plans, cases, budget of gradient steps, augmentation, validation and code; a method says
only which network it trains, what it trains on together, and what it switches off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mixmfl.errors import DataError
from mixmfl.memory import Memory
from mixmfl.plan import Plans, replace_settings


@dataclass(frozen=True)
class Method:
    """How a method differs from training as planned.

    Attributes:
        what: In a sentence, for tables.
        sites: ``"together"``: federated; ``"alone"``: every site trains its own network, nothing
            is exchanged; ``"pooled"``: one network on all cases at one place.
        network: Settings of the network that it replaces.
        training: Settings of training that it replaces.
        edit_memory: What an ablation makes of the memory after every round.
    """

    what: str
    sites: Literal["together", "alone", "pooled"] = "together"
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    edit_memory: Callable[[Memory], Memory] | None = None

    def apply(self, plans: Plans) -> Plans:
        """Return the plans as the method has them."""
        return replace_settings(plans, self.network, self.training)


BASELINES = {
    "local": Method(
        "each site trains a U-Net alone, a channel per modality and zeros for absent ones",
        sites="alone",
        network={"form": "stacked", "compensation_levels": []},
        training={"modality_dropping": 0},
    ),
    "fedavg": Method(
        "that U-Net by federated averaging",
        network={"form": "stacked", "compensation_levels": []},
        training={"modality_dropping": 0},
    ),
    "union": Method(
        "the same, with modalities hidden at random in training",
        network={"form": "stacked", "compensation_levels": []},
    ),
    "tailored": Method(
        "an encoder per modality, averaged over those who have it; no shared stream, no memory",
        network={"shared_width": 0, "compensation_levels": []},
    ),
    "mdm": Method("as planned: tailored and shared encoders, and the memory as far as it helps"),
    "central": Method("the network of `mdm` on the pooled cases of all sites", sites="pooled"),
}
ABLATIONS: dict[str, Method] = {}
ALL = {**BASELINES, **ABLATIONS}
GROUPS = {"baselines": tuple(BASELINES), "ablation": tuple(ABLATIONS)}
SITE = "+site"
"""Behind a method's name: the same after each site fine-tuned its own copy."""


def find_method(name: str) -> Method:
    """Return a method by its name without ``+site``."""
    return ALL[name]


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """Return the methods that names and groups stand for, each once.

    Raises:
        DataError: There is no such method, or it has no model that sites could fine-tune.
    """
    chosen = [method for name in names for method in GROUPS.get(name, (name,))]
    for name in chosen:
        base = name.removesuffix(SITE)
        if base not in ALL:
            raise DataError(f"method {name!r}: there are {', '.join((*GROUPS, *ALL))}")
        if base != name and ALL[base].sites != "together":
            raise DataError(f"method {name!r}: {base} has no federated model to fine-tune")
    return tuple(dict.fromkeys(chosen))
