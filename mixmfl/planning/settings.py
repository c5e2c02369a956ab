"""The settings of a run: of the planner, the network and training.

A setting is declared here and nowhere else: its type, bounds, unit, reason and default. The
defaults are those of the preset ``default``; another preset holds what it changes of them.
docs/plans.md has the tables, which ``make tables`` writes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from mixmfl.core.declarations import entries, setting, within
from mixmfl.planning.bounds import (
    CHANNELS,
    CONVOLUTIONS,
    MOST_LEARNING_RATE,
    MOST_LOCAL_STEPS,
    MOST_ROUNDS,
    MOST_STAGES,
    SPACING,
)

_Millimetres = Annotated[float, within(SPACING.least, SPACING.greatest)]
_Channels = Annotated[int, within(CHANNELS.least, CHANNELS.greatest)]


Aggregation = Literal["mean", "clipped", "median", "trimmed"]


@dataclass(frozen=True)
class PlannerSettings:
    """Settings of nnU-Net's planner."""

    memory_gb: Annotated[
        float,
        within(0, 1024, above=True),
        setting(
            "GB",
            "target GPU memory for patch and batch size; nnU-Net's default is 8. Feature maps are "
            "counted, as below; weights and optimizer are not",
        ),
    ] = 8.0
    base_features: Annotated[
        int,
        within(1, 512),
        setting("channels", "of the first stage, doubled at every stage; 32 is nnU-Net's"),
    ] = 32
    max_features_2d: Annotated[
        _Channels, setting("channels", "at most, in 2-D; 512 is nnU-Net's")
    ] = 512
    max_features_3d: Annotated[
        _Channels, setting("channels", "at most, in 3-D; 320 is nnU-Net's")
    ] = 320
    target_spacing: Annotated[
        tuple[_Millimetres, _Millimetres, _Millimetres] | None,
        setting(
            "mm, (Z, Y, X), or of [stacks](data.md#orientation) the slices' axis and the two "
            "others",
            "null: nnU-Net's choice, in most cases the median over all cases",
        ),
    ] = None
    normalization: Annotated[
        Literal["z-score", "head"],
        setting(
            "word",
            "`z-score` is nnU-Net's; `head` takes median and quartiles of what is no air instead "
            "of mean and standard deviation of everything, for heads that keep their skulls, where "
            "it gains less than `--brain-only` ([experiments.md](experiments.md#whole-heads))",
        ),
    ] = "z-score"
    encoder: Annotated[
        Literal["plain", "residual"],
        setting(
            "word",
            "blocks of every encoder: `plain` convolutions, or `residual` ones, as nnU-Net's "
            "planners ResEncM and ResEncL lay them out, with their memory",
        ),
    ] = "plain"


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of the network, beyond the stages that the planner lays out."""

    form: Annotated[
        Literal["decoupled", "stacked", "anchored"],
        setting(
            "word",
            "`decoupled` has an encoder per modality; `stacked` is a plain U-Net with a channel "
            "per modality, zeros for missing ones, used as a baseline; the other fields then have "
            "no effect; `anchored`, another baseline, is `decoupled` with fused maps that attend "
            "to the memory at `compensation_levels`",
        ),
    ] = "decoupled"
    tailored_width: Annotated[
        float,
        within(0, 4),
        setting("share of the planned channels", "width of each tailored encoder; 0: none"),
    ] = 0.5
    shared_width: Annotated[
        float,
        within(0, 4),
        setting("share of the planned channels", "width of the shared encoder; 0: none"),
    ] = 0.5
    compensation_levels: Annotated[
        tuple[Annotated[int, within(-MOST_STAGES, MOST_STAGES - 1)], ...],
        entries(0, MOST_STAGES),
        setting(
            "encoder levels",
            "levels at which the memory replaces a missing modality, in prediction, too; 0 is full "
            "resolution, -1 the deepest. At other levels missing modalities are left out. Empty, "
            "because no gain was shown",
        ),
    ] = ()
    temperature: Annotated[
        float,
        within(1e-4, 1000),
        setting(
            "none",
            "divides the cosine similarities to the prototypes before softmax, where the memory is "
            "read",
        ),
    ] = 0.1
    decoder_convs: Annotated[
        int,
        within(CONVOLUTIONS.least, CONVOLUTIONS.greatest),
        setting(
            "convolutions per resolution",
            "in the decoder; 2 is nnU-Net's. One is faster, especially with few modalities, and "
            "lowers Dice after as many steps "
            "([on the phantom](experiments-phantom.md#a-cheaper-network))",
        ),
    ] = 1
    decoder_skips: Annotated[
        Literal["concatenated", "added"],
        setting(
            "word",
            "how a fused map joins the decoder's map from the level below; nnU-Net's are "
            "`concatenated`; `added` halves the input of the next convolution, with the same "
            "effect on time and Dice",
        ),
    ] = "added"


@dataclass(frozen=True)
class TrainingSettings:
    """How sites train."""

    rounds: Annotated[
        int, within(1, MOST_ROUNDS), setting("rounds", "exchanges with the server")
    ] = 200
    local_steps: Annotated[
        int,
        within(1, MOST_LOCAL_STEPS),
        setting(
            "gradient steps", "per site and round; equal for all, so that sites finish together"
        ),
    ] = 100
    learning_rate: Annotated[
        float,
        within(0, MOST_LEARNING_RATE, above=True),
        setting(
            "none",
            "AdamW's in the first round; in round r of R, counted from 0, it is this times "
            "(1 - r/R)^0.9, as nnU-Net's schedule",
        ),
    ] = 1e-3
    weight_decay: Annotated[float, within(0, 10), setting("none", "AdamW's")] = 1e-4
    proximal: Annotated[
        float,
        within(0, 10**3),
        setting(
            "none",
            "FedProx's mu: mu/2 times the squared distance to the weights that the round began "
            "with is added to the loss (Li et al. 2020, Federated Optimization in Heterogeneous "
            "Networks). 0: nothing is",
        ),
    ] = 0.0
    gradient_norm: Annotated[
        float,
        within(0, 10**6, above=True),
        setting("none", "gradients are clipped to this norm; nnU-Net's"),
    ] = 12.0
    foreground_share: Annotated[
        float,
        within(0, 1),
        setting("share of a batch", "patches centred on a foreground voxel; nnU-Net's"),
    ] = 0.33
    modality_dropping: Annotated[
        float,
        within(0, 1),
        setting(
            "probability",
            "probability that the modality-dropout view of a case hides some of its modalities; "
            "every non-empty proper subset is equally likely. 0: no such view",
        ),
    ] = 1.0
    memory_decay: Annotated[
        float,
        within(0, 1),
        setting(
            "share per batch",
            "weight that a modality's earlier batches of a round keep in its prototypes, per later "
            "batch that shows it: features drift while encoders learn",
        ),
    ] = 0.98
    validate_every: Annotated[
        int,
        within(1, 10**6),
        setting("rounds", "distance between validations; the last round is always validated"),
    ] = 10
    keep_every: Annotated[
        int,
        within(1, 10**6),
        setting(
            "rounds",
            "distance between checkpoints that are kept in addition to the last and the best",
        ),
    ] = 50
    personal_rounds: Annotated[
        int,
        within(1, 10**4),
        setting(
            "rounds",
            "rounds of `local_steps` in which a site fine-tunes its personalised model "
            "(`--personalize`)",
        ),
    ] = 6
    personal_learning_rate: Annotated[
        float,
        within(0, MOST_LEARNING_RATE, above=True),
        setting("none", "AdamW's in the first of these; falls like that of a run"),
    ] = 5e-4
    personal_share: Annotated[
        float,
        within(0, 1),
        setting("share", "position between the global model (0) and the fine-tuned weights (1)"),
    ] = 0.5
    aggregation: Annotated[
        Aggregation,
        setting(
            "word",
            "rule that merges the sites' changes of a block: "
            "[privacy.md](privacy.md#rules-of-aggregation)",
        ),
    ] = "mean"
    trimming: Annotated[
        float,
        within(0, 0.5),
        setting("share", "share of holders that `trimmed` leaves out at each end; at least one"),
    ] = 0.2
