"""Options of the language models: the backbone, the experts, the item table, the training.

Sections are those of the IDIOMoE paper. Options of a single control or baseline are in its folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from recbole_idiomoe.base.backbones import BUNDLED
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import (
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    PositiveInt,
    Range,
    Share,
)
from recbole_idiomoe.data.options import TextOptions


@dataclass(frozen=True)
class BackboneOptions(Options):
    """The pretrained decoder, and how it computes attention."""

    group = "model"

    backbone: str = BUNDLED
    """Decoder to start from: 'bundled' (idiom-mini, small and pretrained), 'untrained' (the same
    with random weights), a hub name such as Qwen/Qwen2.5-0.5B, or a folder."""
    backbone_args: dict[str, Any] | None = None
    """Sizes in which the untrained decoder differs from the bundled one, as in
    transformers.Qwen2Config (hidden_size, num_hidden_layers ...); other backbones bring their
    own."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub backbone."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    """Kind of attention: PyTorch's fused kernels (sdpa), or plain matrix products (eager) for
    machines where these fail."""


@dataclass(frozen=True)
class DecoderOptions(Options):
    """How the decoder is extended by items: experts, attention, item table, item loss."""

    group = "model"

    expert_width: Annotated[float, Range(0.01, 1.0)] = 1.0
    """Width of the item expert relative to the text expert (paper: 1, 1/2, 1/4, 1/8)
    [section 4.2.2]."""
    expert_init: Literal["copy", "random"] = "copy"
    """Start of the item expert: a copy of the text expert (its strongest neurons if it is narrower)
    or random."""
    expert_layers: str | list[int] = "all"
    """Layers with an item expert: all, none, first:k, middle:k, last:k, every:n or a list of
    indices [section 4.2.3]."""
    item_embedding_dim: PositiveInt | None = None
    """Width of the factorised item table E = W_l W_u; null: one table of full width
    [section B.5, item 7]."""
    attention: Literal["causal", "intra_inter", "own_text"] = "causal"
    """Kind of attention mask. causal: as in the backbone; intra_inter: layers attend within items
    and between items in turn (IAM); own_text: text attends to its own item alone, item tokens to
    each other."""
    item_scale: Annotated[float, Range(low=0.001)] = 8.0
    """Length of an item's vector when it enters the decoder, relative to a text token's vector."""
    item_init: Literal["text", "random"] = "text"
    """Start of the item table: vectors of the items' text, or random."""
    item_text_added: bool = False
    """Add a projection of an item's text vector to its embedding, also after training
    (Text-Attr LLM) [section B.1]."""
    softmax: Literal["item", "hybrid"] = "item"
    """Candidates of the item loss: the catalogue, or catalogue and vocabulary together
    [section 3.2.1]."""
    dropout: Annotated[float, Range(0.0, 0.99)] = 0.0
    """Dropout on embeddings, expert outputs and final states while training."""


@dataclass(frozen=True)
class TrainingOptions(Options):
    """How a language model is trained."""

    group = "training"

    freeze: Literal["none", "backbone", "text_expert", "attention"] = "none"
    """Pretrained weights that are not trained [section B.5, item 6]."""
    text_loss_weight: NonNegativeFloat = 0.0
    """Weight of the next-token loss on the text of the sequences, of items and instruction."""
    text_smoothing: Annotated[float, Range(0.0, 0.99)] = 0.0
    """Share of each target's probability that goes to the 20 items with the most similar text, by
    text_encoder, so that these learn from it too."""
    transition_smoothing: Annotated[float, Range(0.0, 0.99)] = 0.0
    """Share of each target's probability that goes to the items around the item before it in
    training histories, by damped counts that hold back popular items."""
    item_warmup: Share = 0.2
    """Share of the epochs trained on item tokens alone (paper: 0.2) [section B.5, item 8]."""
    text_ramp: Share = 1.0
    """Share of the epochs after which every sequence has text; the share of sequences with text
    rises linearly from item_warmup on, and training does not stop early (stopping_step) before
    [section B.5, item 8]."""
    backbone_learning_rate: NonNegativeFloat | None = None
    """Learning rate of the pretrained weights; null: learning_rate."""
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Betas of AdamW (paper: 0.9, 0.9999) [section B.4]."""
    ema_decay: Annotated[float, Range(0.0, 0.99999)] = 0.0
    """Decay of a running mean of the weights, which moves by 1 - ema_decay towards them in every
    optimizer step and is validated, saved and tested in their place (0: no mean)."""
    keep_last: NonNegativeInt = 0
    """Number of last epochs whose models are kept in addition to the best epoch's, each in a folder
    epoch-N of the run."""
    warmup_steps: NonNegativeInt = 100
    """Optimizer steps of linear learning-rate warm-up (paper: 3000) [section B.4]."""
    max_batch_tokens: Annotated[int, Range(low=8)] = 32768
    """Most tokens, padding included, in one forward pass; a batch with more accumulates its
    gradient over several, with the same result; lowered where training runs out of memory."""
    compile: bool | None = None
    """On a GPU, compile the decoder's blocks for training and its evaluations, which then run both
    experts in fused kernels: half a minute once, then faster, with the same result but for
    rounding; null: with a backbone of width 512 or more."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """In several processes (torchrun, accelerate launch): ddp, each has the whole model; fsdp2,
    each has a part of its weights, gradients and optimizer state, for backbones that do not fit;
    the result is the same but for rounding."""
    shard_items: bool = False
    """In several processes, with ddp: each has a part of the item table's rows, their gradient and
    their optimizer state, and scores those, for catalogues of millions; the result is the same but
    for rounding."""
    activation_checkpointing: bool = False
    """Compute every block again in the backward pass, with less memory and a third more time."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the decoder; auto: bf16 on a GPU, fp32 on a CPU [section B.4]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_ramp < self.item_warmup:
            raise SettingError(
                f"text_ramp={self.text_ramp} ends before item_warmup={self.item_warmup}; "
                "give text_ramp a value of at least item_warmup."
            )
        numbers = [b for b in self.adam_betas if isinstance(b, int | float) and 0 <= b < 1]
        if len(numbers) != 2 or len(self.adam_betas) != 2:
            raise SettingError(
                f"adam_betas={self.adam_betas}: two numbers in [0, 1) are wanted, as [0.9, 0.999]."
            )


@dataclass(frozen=True)
class LanguageModelOptions(TrainingOptions, DecoderOptions, BackboneOptions, TextOptions):
    """Options of every language model with a catalogue."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.item_tokens == "atomic":
            return
        # Some options need a single token for each item.
        if self.attention != "causal":
            raise SettingError(
                f"item_tokens={self.item_tokens!r} does not go with attention={self.attention!r}; "
                "leave one of them out, or take a model without."
            )
        for name in ("text_smoothing", "transition_smoothing"):
            if share := getattr(self, name):
                raise SettingError(
                    f"item_tokens={self.item_tokens!r} does not go with {name}={share}, which is "
                    "of items that are one token each; set it to 0."
                )
        if self.item_text_added:
            raise SettingError(
                f"item_tokens={self.item_tokens!r} does not go with item_text_added=True; leave "
                "one of them out, or take another model than TextAttrLLM."
            )
        if self.item_tokens == "title" and self.use_text:
            raise SettingError(
                "item_tokens='title' has the titles in the sequence already; set use_text to False."
            )
        if self.item_tokens == "semantic" and self.use_text and self.segment_order == "text ID":
            raise SettingError(
                "item_tokens='semantic': with segment_order='text ID' the next item's text would "
                "stand before the rest of its code; set segment_order to 'ID text', or use_text to "
                "False."
            )


@dataclass(frozen=True)
class AdapterOptions(LanguageModelOptions):
    """Low-rank adapters of a frozen decoder, as E4SRec and CoVE train them."""

    lora_rank: PositiveInt = 16
    """Rank of the adapters."""
    lora_alpha: PositiveInt = 16
    """The adapters count lora_alpha / lora_rank times."""

    recipe = {
        "learner": "adamw",
        "weight_decay": 0.0,
        "clip_grad_norm": {"max_norm": 1.0},
        "item_warmup": 0.0,  # text from the first epoch on, if there is any
        "text_ramp": 0.0,
        "eval_batch_size": 1024,
        "stopping_step": 5,
    }


@dataclass(frozen=True)
class IDIOMoEOptions(LanguageModelOptions):
    """IDIOMoE's recipe, which its controls start from too."""

    recipe = {
        "learner": "adamw",
        "learning_rate": 0.001,
        "weight_decay": 0.01,  # section B.4
        "clip_grad_norm": {"max_norm": 1.0},
        "dropout": 0.2,  # chosen with an untrained backbone, which overfits quickly
        "epochs": 20,
        "train_batch_size": 128,  # histories in an optimizer step (section B.4)
        "eval_batch_size": 1024,  # most histories whose scores are in memory at once
        "stopping_step": 5,
    }
    # The controls have the same space, so that none has more to choose from.
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.003, "log": True},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "item_scale": {"low": 1.0, "high": 32.0, "log": True},
        "text_smoothing": {"low": 0.0, "high": 0.3, "step": 0.05},
        "transition_smoothing": {"low": 0.0, "high": 0.5, "step": 0.05},
        "ema_decay": {"choices": [0.0, 0.995, 0.998, 0.999]},
        "epochs": {"low": 4, "high": 24},  # the learning rate falls to 0 by the last
    }
