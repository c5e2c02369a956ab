"""The methods that are compared: each describes how it differs from the plans.

All share plans, cases, budget of gradient steps, augmentation, validation and code; a method names
only its network, which cases are trained on together, how updates are merged, and what it switches
off. A method of someone else is a ``Method`` in a file of theirs; see ``register``.
"""

import importlib
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixmfl.core.errors import DataError
from mixmfl.core.files import sha256
from mixmfl.federated.aggregation import Rule
from mixmfl.networks.prototypes import PrototypeMemory
from mixmfl.planning.plans import Plans, replace_settings
from mixmfl.research.benchmark.fedamm import by_fedamm
from mixmfl.research.benchmark.local_norms import with_local_norms
from mixmfl.research.benchmark.nnunet import by_nnunet
from mixmfl.research.benchmark.trainers import Trainer


@dataclass(frozen=True)
class Method:
    """How a method differs from training as planned.

    Attributes:
        what: Description in one sentence, for tables.
        sites: ``"together"``: federated; ``"alone"``: every site trains its own network, nothing
            is exchanged; ``"pooled"``: one network on all cases at one place.
        network: Settings of the network that the method replaces.
        training: Settings of training that the method replaces.
        edit_memory: Function that an ablation applies to the memory after every round.
        rule: Function that merges the sites' changes of a block, in place of the planned rule.
        init: File of weights that training starts from, as ``--init`` of mixmfl_train_federated;
            ``{seed}`` in it stands for the seed, which is the fold of patients. Empty: random ones.
        trainer: Function that trains the sites, in place of rounds between server and sites; it
            may return a model for each site.
    """

    what: str
    sites: Literal["together", "alone", "pooled"] = "together"
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    edit_memory: Callable[[PrototypeMemory], PrototypeMemory] | None = None
    rule: Rule | None = None
    init: str = ""
    trainer: Trainer | None = None

    @property
    def has_global_model(self) -> bool:
        """Whether there is a federated model that sites can fine-tune."""
        return self.sites == "together" and self.trainer is None

    def describe(self) -> dict[str, Any]:
        """Return what defines the method, as JSON content."""
        edited = self.edit_memory.__name__ if self.edit_memory else ""
        return {
            "sites": self.sites,
            "network": dict(self.network),
            "training": dict(self.training),
            "edit_memory": edited,
            **({"rule": self.rule.__name__} if self.rule else {}),
            **({"init": self.init} if self.init else {}),
            **({"trainer": self.trainer.__name__} if self.trainer else {}),
        }

    def apply(self, plans: Plans) -> Plans:
        """Return the plans with the settings of the method."""
        return replace_settings(plans, self.network, self.training)

    def init_file(self, seed: int) -> Path | None:
        """Return the file of weights that training with a seed starts from; None: there is none."""
        return Path(self.init.replace("{seed}", str(seed))) if self.init else None


@dataclass(frozen=True)
class Outside:
    """Where a method of someone else is from.

    Attributes:
        source: ``"MODULE:NAME"``.
        file: File of the module.
    """

    source: str
    file: Path


_TAILORED = {"shared_width": 0, "compensation_levels": []}
_STACKED = {"form": "stacked", "compensation_levels": []}
BASELINES = {
    "local": Method(
        "each site trains a U-Net alone, a channel per modality and zeros for missing ones",
        sites="alone",
        network=_STACKED,
        training={"modality_dropping": 0},
    ),
    "fedavg": Method(
        "one U-Net by federated averaging, a channel per modality and zeros for missing ones",
        network=_STACKED,
        training={"modality_dropping": 0},
    ),
    "fedprox": Method(
        "`fedavg`, held near the weights of the round's start (mu = 0.01)",
        network=_STACKED,
        training={"modality_dropping": 0, "proximal": 0.01},
    ),
    "union": Method(
        "the network of `fedavg`, with modalities hidden at random in training",
        network=_STACKED,
    ),
    "tailored": Method(
        "an encoder per modality, averaged over those who have it; no shared stream, no memory",
        network=_TAILORED,
    ),
    "mdm": Method("as planned: tailored and shared encoders, and what else the plans switch on"),
    "central": Method("the network of `mdm` on the pooled cases of all sites", sites="pooled"),
}

_OF_NNUNET = {"modality_dropping": 0, "learning_rate": 0.01}
"""What the plans of nnU-Net's trainer say; of the rest it reads nothing."""
PUBLISHED = {
    "fedbn": Method(
        "`fedavg`, but the norms of each site stay there, so that each has a model of its own",
        network=_STACKED,
        training={"modality_dropping": 0},
        trainer=with_local_norms,
    ),
    "fedamm": Method(
        "`tailored`, with FedAMM's distillation from all modalities to each and to centres",
        network=_TAILORED,
        training={"modality_dropping": 0},
        trainer=by_fedamm,
    ),
    "fedmema": Method(
        "`tailored`, whose fused maps attend to class means of all modalities, from all sites",
        network={**_TAILORED, "form": "anchored", "compensation_levels": [-1, -2, -3]},
    ),
    "nnunet": Method(
        "nnU-Net's own trainer on the pooled cases of all sites, zeros for missing modalities",
        sites="pooled",
        network=_STACKED,
        training=_OF_NNUNET,
        trainer=by_nnunet,
    ),
    "nnunet-local": Method(
        "nnU-Net's own trainer at each site alone, zeros for missing modalities",
        sites="alone",
        network=_STACKED,
        training=_OF_NNUNET,
        trainer=by_nnunet,
    ),
}


def _no_values(memory: PrototypeMemory) -> PrototypeMemory:
    """Return the memory with values of zero."""
    return {at: replace(p, values=torch.zeros_like(p.values)) for at, p in memory.items()}


def _random_values(memory: PrototypeMemory) -> PrototypeMemory:
    """Return the memory with random values of the true ones' size, the same in every round."""
    return {at: replace(p, values=_noise_like(p.values, at)) for at, p in memory.items()}


def _noise_like(rows: Tensor, place: tuple[str, int]) -> Tensor:
    """Return noise for a modality and level, each row as long as the true one."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(place).encode()))
    noise = torch.randn(rows.shape, generator=generator)
    return noise * rows.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)


_DEEP = {"compensation_levels": [-1, -2]}
ABLATIONS = {
    "decoder-1": Method(
        "one convolution at each resolution of the decoder, not two", network={"decoder_convs": 1}
    ),
    "narrow": Method("tailored encoders half as wide", network={"tailored_width": 0.5}),
    "decoder-added": Method(
        "one convolution at each resolution of the decoder, and skips added to what it reads",
        network={"decoder_convs": 1, "decoder_skips": "added"},
    ),
    "light": Method(
        "both of these, as in the preset default",
        network={"tailored_width": 0.5, "decoder_convs": 1, "decoder_skips": "added"},
    ),
    "no-tailored": Method(
        "the shared stream alone", network={"tailored_width": 0, "compensation_levels": []}
    ),
    "no-dropping": Method(
        "no second view with modalities hidden", training={"modality_dropping": 0}
    ),
    "memory": Method(
        "memory read at the two deepest levels, by votes of the available modalities", network=_DEEP
    ),
    **{
        f"memory-level{level}": Method(
            f"memory at level {level} alone; -1 is the deepest, 0 full resolution",
            network={"compensation_levels": [level]},
        )
        for level in (-1, -2, -3, 0)
    },
    "memory-zero": Method("its values zero", network=_DEEP, edit_memory=_no_values),
    "memory-random-values": Method(
        "its values random, but still one per class", network=_DEEP, edit_memory=_random_values
    ),
    "memory-slow": Method(
        "earlier batches of a round count in full", network=_DEEP, training={"memory_decay": 1}
    ),
    "memory-fast": Method(
        "earlier batches of a round count for half", network=_DEEP, training={"memory_decay": 0.5}
    ),
}
METHODS = {**BASELINES, **PUBLISHED, **ABLATIONS}
OURS = frozenset(METHODS)
OUTSIDE: dict[str, Outside] = {}
"""Where the methods of others are from, by name; see ``register``."""
GROUPS = {
    "baselines": tuple(BASELINES),
    "published": tuple(PUBLISHED),
    "ablation": tuple(ABLATIONS),
}
SITE = "+site"
"""Suffix of a method's name: the method with the sites' personalised models."""


def base_of(name: str) -> str:
    """Return a method's name without ``+site``: the name of its global model."""
    return name.removesuffix(SITE)


def find_method(name: str) -> Method:
    """Return a method by its name, with or without ``+site``."""
    return METHODS[base_of(name)]


def what_is(name: str) -> str:
    """Return what a method is, in a phrase, with or without ``+site``."""
    more = "; then each site fine-tunes a personalised model" if name.endswith(SITE) else ""
    return find_method(name).what + more


def describe(name: str, seed: int) -> dict[str, Any]:
    """Return what defines a method, as JSON content, with digests of code and weights not ours."""
    method = find_method(name)
    described = method.describe()
    if outside := OUTSIDE.get(base_of(name)):
        described |= {"source": outside.source, "sha256": sha256(outside.file)}
    if init := method.init_file(seed):
        described["init_sha256"] = sha256(init) if init.is_file() else ""
    return described


def register(source: str) -> str:
    """Load a method that is not ours, and return its name, by which it can be found from now on.

    Its module is run: it is code that whoever calls this command has chosen.

    Args:
        source: ``"MODULE:NAME"``: the name of a ``Method`` in a module, or of a class of one that
            is made without arguments. The module is installed, or in the current folder, of which
            nothing else is imported, then or later.

    Raises:
        DataError: There is no such method, it is none, or its name is taken.
    """
    module, _, name = source.partition(":")
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))  # last: images may lie there, and among them a torch.py
    try:
        loaded = importlib.import_module(module)
        member = getattr(loaded, name)
        method = member() if isinstance(member, type) else member
    except Exception as error:  # whatever happens in a file of somebody else
        raise DataError(
            f"method {source!r}: cannot be loaded ({type(error).__name__}: {error}); needed is "
            f"{module}.py here or a module that is installed, and {name or 'a name'} in it"
        ) from None
    finally:
        sys.path[:] = before
    if not isinstance(method, Method):
        raise DataError(
            f"method {source!r}: is a {type(method).__name__}; an instance or a class of "
            "mixmfl.research.benchmark.methods.Method is needed"
        )
    outside = Outside(source, Path(str(loaded.__file__)))
    if name in OURS or OUTSIDE.get(name, outside) != outside:
        raise DataError(f"method {source!r}: there is another method {name}; rename it")
    METHODS[name], OUTSIDE[name] = method, outside
    return name


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """Return the methods that names and groups stand for, each once.

    Args:
        names: Names of methods or groups, and ``"MODULE:NAME"``; see ``register``.

    Raises:
        DataError: There is no such method, or it has no global model to fine-tune.
    """
    known = [
        register(base_of(name)) + (SITE if name.endswith(SITE) else "") if ":" in name else name
        for name in names
    ]
    chosen = [method for name in known for method in GROUPS.get(name, (name,))]
    for name in chosen:
        base = base_of(name)
        if base not in METHODS:
            raise DataError(f"method {name!r}: there are {', '.join((*GROUPS, *METHODS))}")
        if base != name and not METHODS[base].has_global_model:
            raise DataError(f"method {name!r}: {base} has no federated model to fine-tune")
    return tuple(dict.fromkeys(chosen))
