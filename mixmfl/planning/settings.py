"""The settings of a run: of the planner, the network and training."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannerSettings:
    """Settings of nnU-Net's planner.

    Attributes:
        memory_gb: GPU memory that patch and batch size aim at. nnU-Net's own default is 8.
        base_features: Channels of the first stage; doubled at every stage.
        max_features_2d: Channels at most, 2-D.
        max_features_3d: Channels at most, 3-D.
        target_spacing: mm, (Z, Y, X); None: nnU-Net's choice (the median of the cases).
        normalization: ``"z-score"``, nnU-Net's; or ``"head"``, the middle and the spread of what
            is no air, for heads that keep their skulls.
    """

    memory_gb: float
    base_features: int
    max_features_2d: int
    max_features_3d: int
    target_spacing: tuple[float, ...] | None
    normalization: str


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of the network, beyond the stages that the planner lays out.

    Attributes:
        form: ``"decoupled"``: MDM's encoders per modality; ``"stacked"``: one plain U-Net with a
            channel per modality, zero where it is missing. The rest is of the decoupled form.
        tailored_width: Channels of a tailored encoder, as a share of the planned channels; 0:
            there is none.
        shared_width: Channels of the shared encoder, as such a share; 0: there is none.
        fusion: How slots become one: ``"concatenated"``, or a ``"gated"`` mean.
        compensation_levels: Encoder levels at which the memory stands in for missing modalities;
            0 is full resolution, -1 the deepest. At the others missing modalities are left out.
        temperature: What cosine similarities are divided by in the attention over prototypes.
        decoder_convs: Convolutions at each resolution of the decoder; nnU-Net plans two.
        decoder_skips: How a fused map joins what the decoder brings from below:
            ``"concatenated"``, as in nnU-Net, or ``"added"``.
    """

    form: str
    tailored_width: float
    shared_width: float
    fusion: str
    compensation_levels: tuple[int, ...]
    temperature: float
    decoder_convs: int
    decoder_skips: str


@dataclass(frozen=True)
class TrainingSettings:
    """How sites train.

    Attributes:
        rounds: Exchanges with the server.
        local_steps: Gradient steps of each site in a round.
        learning_rate: AdamW's, in the first round; falls polynomially (power 0.9) to the last.
        weight_decay: Weight decay of AdamW.
        gradient_norm: Gradients are clipped to this norm (nnU-Net: 12).
        foreground_share: Share of a batch whose patch is centred on foreground (nnU-Net: 1/3).
        modality_dropping: Probability that the second view of a case has some of its modalities
            hidden, every non-empty proper subset being equally likely; 0: there is no second view.
        imagining: Probability that a missing modality of a case, which the memory knows, is imputed
            in one more view of the case, see ``imputation``; 0: there is no such view, and no
            memory but at the compensation levels.
        losses: Weights, by name, of losses on the deepest features of both streams, see
            ``feature_losses.LOSSES``; a loss that is not named is not used.
        memory_decay: What a modality's earlier batches of a round still count for in the site's
            prototypes, per later batch that shows it: features drift while the encoders learn.
        validate_every: Rounds between two validations; the last round is always validated.
        keep_every: Rounds between two checkpoints that are never removed, beside last and best.
        personal_rounds: Rounds, of the run's local steps, in which a site fine-tunes its model.
        personal_learning_rate: AdamW's, in the first of these; falls as that of a run does.
        personal_share: How far it goes from the global model to the fine-tuned weights.
        aggregation: Rule that merges the sites' changes of a block; see ``aggregation.RULES``.
        trimming: Share of the holders that ``"trimmed"`` leaves out at each end.
    """

    rounds: int
    local_steps: int
    learning_rate: float
    weight_decay: float
    gradient_norm: float
    foreground_share: float
    modality_dropping: float
    imagining: float
    losses: Mapping[str, float]
    memory_decay: float
    validate_every: int
    keep_every: int
    personal_rounds: int
    personal_learning_rate: float
    personal_share: float
    aggregation: str
    trimming: float
