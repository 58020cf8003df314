"""What a network is made of and how it is trained. Plain values: importing this loads no TensorFlow."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from features import columns as c

_Share = Field(ge=0.0, lt=1.0)

# Heads for the time ahead, beside those for the next event; what each one answers: model.heads.
HEADS = HORIZON, TOUCHED, WHEN, HOUR, ACTION = "horizon", "touched", "when", "hour", "action"


class NetworkSpec(BaseModel):
    """Architecture of the network. Two equal specs with equal sizes have the same weights by name and shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Literal["lstm", "gru", "rnn", "cnn"]
    units: int = Field(ge=1)
    layers: int = Field(ge=1)
    layer_norm: bool
    cnn_kernel: int = Field(ge=2)
    inputs: Literal["concat", "sum"]
    item_dim: int = Field(ge=1)
    category_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    gap_dim: int = Field(ge=1)
    hour_dim: int = Field(ge=1)
    session_dim: int = Field(ge=0)
    position_dim: int = Field(ge=0)
    session_positions: int = Field(ge=2)
    oov_from_category: bool
    repeat: bool
    embedding_dropout: float = _Share
    hidden_dropout: float = _Share
    query_dropout: float = Field(ge=0.0, le=1.0)
    full_softmax_max_items: int = Field(ge=1)
    sparse_min_items: int = Field(ge=0)
    return_bins_h: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(min_length=2)
    back_hours: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)

    @field_validator("return_bins_h", "back_hours")
    @classmethod
    def _rises(cls, hours: tuple[float, ...]) -> tuple[float, ...]:
        if list(hours) != sorted(set(hours)):
            raise ValueError("hours must rise")
        return hours


class ActionWeights(BaseModel):
    """What a target counts in the loss, by the action of its event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: float = Field(ge=0.0)
    click: float = Field(ge=0.0)
    like: float = Field(ge=0.0)
    cart: float = Field(ge=0.0)
    buy: float = Field(ge=0.0)

    @property
    def are_equal(self) -> bool:
        """Whether every action counts 1."""
        return set(self.by_code[c.FIRST_ID :]) == {1.0}

    @property
    def by_code(self) -> tuple[float, ...]:
        """Weight of each action code; 1 for PAD and for an action that is not known."""
        return (1.0,) * c.FIRST_ID + tuple(getattr(self, action) for action in c.ACTIONS)


class TrainingSpec(BaseModel):
    """How the weights are found; the same on all ranks. `batch_rows` is per stream and backward pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    streams: int = Field(ge=0)
    batch_rows: int = Field(ge=1)
    length_buckets: tuple[Annotated[int, Field(ge=1)], ...]
    backward_passes_per_step: int = Field(ge=1)
    max_epochs: int = Field(ge=1)
    patience_epochs: int = Field(ge=1)
    select_by: Literal["loss", "ndcg"]
    learning_rate: float = Field(gt=0.0)
    lr_scaling: Literal["none", "sqrt", "linear"]
    lr_epoch_decay: float = Field(gt=0.0, le=1.0)
    warmup_steps: int = Field(ge=0)
    adam_epsilon: float = Field(gt=0.0)
    weight_decay: float = Field(ge=0.0)
    l1: float = Field(ge=0.0)
    l2: float = Field(ge=0.0)
    ema_decay: float = _Share
    clip_norm: float = Field(gt=0.0)
    item_weight: float = Field(ge=0.0)
    category_weight: float = Field(ge=0.0)
    horizon_weight: float = Field(ge=0.0)
    touched_weight: float = Field(ge=0.0)
    when_weight: float = Field(ge=0.0)
    hour_weight: float = Field(ge=0.0)
    action_weight: float = Field(ge=0.0)
    action_weights: ActionWeights
    loss: Literal["cross_entropy", "bpr_max"]
    bpr_regularisation: float = Field(ge=0.0)
    label_smoothing: float = _Share
    softmax_precision: Literal["float32", "bfloat16"]
    xla: bool
    negatives: int = Field(ge=1)
    negative_power: float = Field(ge=0.0, le=1.0)
    crop: float = Field(ge=0.0, le=1.0)
    crop_keep: float = Field(gt=0.0, le=1.0)
    item_dropout: float = _Share
    item_mask: float = _Share
    shuffle_ties: bool
    shuffle_rows: int = Field(ge=0)
    checkpoint_steps: int = Field(ge=0)
    checkpoints_kept: int = Field(ge=1)
    commit_steps: int = Field(ge=1)
    compression: Literal["none", "fp16"]
    sparse_as_dense: bool
    fusion_mib: int = Field(ge=0)
    cycle_ms: float = Field(gt=0.0)
    threads: int = Field(ge=0)
    pin_ranks: bool
    seed: int = Field(ge=0, le=2**31 - 1)

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of the loss of each head for the time ahead that is trained at all: those above 0."""
        weights = {head: getattr(self, f"{head}_weight") for head in HEADS}
        return {head: weight for head, weight in weights.items() if weight > 0.0}


class TrackingSpec(BaseModel):
    """Where a training can be watched beside its lines. Nothing of it shapes the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorboard_steps: int = Field(ge=0)
    mlflow_uri: str | None = Field(min_length=1)
    mlflow_experiment: str = Field(min_length=1)

    @field_validator("mlflow_uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "a user or password does not belong here, since every bundle keeps its configuration. Set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


class Sizes(BaseModel):
    """What the data fixes: vocabulary sizes (largest id + 1), sequence length L, the meaning of gap codes, horizons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=3)
    categories: int = Field(ge=3)
    length: int = Field(ge=1)
    gap_codes: int = Field(ge=3)
    new_session_gap: int = Field(ge=3)
    session_gap_s: int = Field(ge=1)
    gap_edges_s: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    horizons_days: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
