"""Sections sft, negative, dpo, lora, train, reward and their like: how policies are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from macpo_data.errors import did_you_mean
from macpo_data.recipe.section import KNOB, LATER, Count, Place, Positive, Section, Share

Finetuning = Literal["lora", "full"]  # an adapter is trained, or all weights


class SFT(Section):
    """Supervised fine-tuning: cross-entropy over response tokens."""

    epochs: Positive = 3.0
    """Passes over the data."""
    learning_rate: Positive = 5e-5
    """Peak of the schedule."""
    batch_size: Count = 32
    """Sequences per optimiser step."""
    packing: Annotated[bool, KNOB] = False
    """Lay several sequences end to end, each apart from the others, in place of padding."""


class Confidence(Section):
    """Fine-tuning that trusts the student's own predictions beside its weak labels."""

    weight: Share = 0.5
    """Weight of the student's own predictions, once it is reached; the labels have the rest."""
    ramp: Share = 0.2
    """Share of the steps in which that weight rises from 0."""


class Spin(Section):
    """What only method spin reads."""

    earlier_pairs: bool = False
    """Each round also learns the pairs of the round before, as the paper's own code does."""


class Delta(Section):
    """What only method delta reads: the two teachers who write its pairs."""

    chosen: str
    """The better teacher, whose answers are chosen."""
    rejected: str
    """The other one, whose answers are rejected."""


class Negative(SFT):
    """Fine-tuning on rejected responses, which goes on from the positive policy."""

    epochs: Positive = 1.0
    """Passes over the data."""


class DPO(Section):
    """Direct preference optimisation with an SFT term on the chosen response."""

    epochs: Positive = 1.0
    """Passes over each round's pairs."""
    learning_rate: Positive = 1e-5
    """Peak of each round's schedule."""
    batch_size: Count = 16
    """Pairs per optimiser step."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""
    gamma: Annotated[float, Field(ge=0.0)] = 0.2
    """Weight of the SFT term on the chosen answer; 0: no such term."""
    sft_normalization: Literal["response", "token"] = "response"
    """response: the SFT term is the mean of each answer's per-token mean. token: the mean over all
    tokens, so that long answers weigh more."""
    loss: Literal["sigmoid", "hinge", "ipo", "none"] = "sigmoid"
    """Loss of the preferences. sigmoid: DPO's own. hinge: a pair that is apart by 1 / beta nats is
    not pulled further. ipo: a pair is to be apart by so much and no more. none: the SFT term alone.
    With trl's other losses the published pairs train with trl."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs that are taken to be the wrong way round."""
    reference: Literal["base", "previous", "initial"] = "base"
    """What the policy is held to. base: the bare base model in every round. previous: the policy at
    the start of the round, the common practice. initial: the agent's positive policy of round 0 in
    every round."""

    @field_validator("loss", mode="before")
    @classmethod
    def _is_ours(cls, value: Any) -> Any:
        names = get_args(cls.model_fields["loss"].annotation)
        if value not in names:
            meant = did_you_mean(value, names, 0.7)
            raise ValueError(
                f"{value!r} is none of {', '.join(names)}{meant}; with other losses the published "
                "pairs train with trl: see the card"
            )
        return value


class Lora(Section):
    """The adapter's shape."""

    r: Count = 8
    """Rank."""
    alpha: Count = 16
    """Scale of the adapter is alpha / r."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    targets: list[str] = Field(default=["q_proj", "v_proj"], min_length=1)
    """Names of the matrices that get one; [all-linear]: every one but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead, with which large ranks go on learning."""

    @field_validator("targets", mode="before")
    @classmethod
    def _may_be_one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RewardTraining(Section):
    """How `macpo train --reward` makes a reward model from D1's human pairs."""

    base: Place | None = None
    """What it starts from, as for agents; null takes the student's base, with its chat template."""
    revision: str = "main"
    """Commit, tag or branch of a base that is named above."""
    chat_template: str = "tokenizer"
    """Of a base that is named above, as for agents."""
    finetuning: Annotated[Finetuning | None, LATER] = None
    """lora: an adapter of the shape in `lora` is trained. full: all weights are. null: as
    train.finetuning says."""
    epochs: Positive = 1.0
    """Passes over the pairs."""
    learning_rate: Positive = 1e-4
    """Peak of the schedule."""
    batch_size: Count = 32
    """Pairs per optimiser step."""


class Train(Section):
    """What all training shares."""

    finetuning: Annotated[Finetuning, LATER] = "lora"
    """lora: an adapter of the shape in `lora` is trained. full: all weights are, and each round's
    checkpoint is a whole model."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], LATER] = "adamw"
    """adamw_8bit keeps its states in eight bits; it needs a GPU and bitsandbytes."""
    max_length: Count = 1024
    """Tokens of prompt and response together."""
    truncation: Literal["keep_start", "keep_end", "drop"] = "keep_start"
    """What happens to longer ones. keep_start: the answer's end is cut. keep_end: the prompt's
    beginning is. drop: they are left out."""
    max_truncated: Annotated[Share, KNOB] = 0.05
    """Refuse to train where a larger share of the rows is longer than that."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate over the steps."""
    warmup: Share = 0.0
    """Share of the steps in which the rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Pull of the weights towards zero."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "bfloat16"
    """In which numbers the bases are trained. auto: bfloat16 on a GPU that has it, else float32;
    the default of `macpo train --dataset`."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 keeps the base in four bits while its adapter is trained (QLoRA); it needs a GPU."""
    micro_batch_size: Annotated[Count | None, KNOB] = None
    """Sequences or pairs per forward pass; null takes the whole batch at once. It changes the
    memory alone: the optimiser step stays the same."""
    gradient_checkpointing: Annotated[bool, KNOB] = False
    """Less memory for about a third more time."""
    shared_prompt: Annotated[bool, KNOB] = True
    """Read a prompt once for chosen and rejected; where a model cannot, training says so."""
    save_steps: Annotated[Count | None, KNOB] = None
    """Steps between checkpoints, from which a killed training goes on; null: every half
    minute, or more rarely where writing one takes long (several processes: every 100 steps)."""
    report_to: Annotated[Literal["none", "tensorboard", "trackio", "wandb"], KNOB] = "none"
    """Where the curves go besides the manifest."""
    launcher: Annotated[str | None, KNOB] = None
    """An accelerate config, to train in the processes that it describes; null: in one process."""

    def on(self, *, bfloat16: bool) -> Train:
        """The settings with `dtype: auto` filled in, by whether the device has bfloat16."""
        if self.dtype != "auto":
            return self
        return self.model_copy(update={"dtype": "bfloat16" if bfloat16 else "float32"})
