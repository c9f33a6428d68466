"""Every setting of ours: its default, its meaning and its range, in one place.

RecBole's own settings (``epochs``, ``learning_rate``, ``eval_args`` ...) keep
RecBole's names and are documented by RecBole; none is repeated here. The fields
below are what ``--help`` prints, what a misspelt key is compared with, and what
the rest of the package reads, typed, instead of asking a dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from recbole_idiomoe.base.backbone_names import BUNDLED, UNTRAINED
from recbole_idiomoe.base.errors import SettingError


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    none: bool = False,
    group: str,
) -> Any:
    """A dataclass field with what is needed to explain and to check it.

    ``low`` and ``high`` are inclusive; ``none`` says that the value may be null.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "none": none}
    metadata["group"] = group
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Our settings, checked. Build it with :meth:`from_mapping`."""

    # Protocol: shared by every model, ours or RecBole's.
    mask_seen: bool = _setting(
        True,
        "mask the items a user has already seen when ranking, for every model (paper: yes; "
        "RecBole's stock evaluation: no)",
        group="protocol",
    )
    cold_start: float = _setting(
        0.0,
        "share of the test items that are taken out of all training, validation and test "
        "histories, to test how new items are found, for every model (paper: 0.05; 0: none)",
        low=0.0,
        high=0.5,
        group="protocol",
    )
    cold_start_epsilon: float = _setting(
        0.1,
        "largest share of such items in a ranked list: at 0.1, one of ten",
        low=0.0,
        high=1.0,
        group="protocol",
    )

    # Measured besides, of every model that has it.
    mix: str | None = _setting(
        None,
        "measure every trained model a second time, mixed with this counter, the counter's weight "
        "chosen on validation; null: no mix",
        choices=("TransitionCounter",),
        none=True,
        group="evaluation",
    )
    language_file: str | None = _setting(
        None,
        "text (UTF-8) whose likelihood under our trained models is compared with that under their "
        "untouched backbones, such as wikitext-2's test part; null: not measured",
        none=True,
        group="evaluation",
    )

    # Text of an item.
    use_text: bool = _setting(
        True, "put item text into the sequence; off: item tokens only", group="text"
    )
    item_text_fields: dict[str, str] | list[str] | None = _setting(
        None,
        "columns of the .item file that make an item's text, as {role: column} or a list of "
        "columns; null: none",
        none=True,
        group="text",
    )
    item_template: str = _setting(
        "title: {title}, category: {category}",
        "item text with roles in braces; a clause whose value is empty is left out",
        group="text",
    )
    instruction: str | None = _setting(
        "The user has interacted with",
        "text at the start of every sequence; null: none",
        none=True,
        group="text",
    )
    query_share: float = _setting(
        0.0,
        "share of training sequences that end in a query that their last item answers, for "
        "recommend(..., query=...)",
        low=0.0,
        high=1.0,
        group="text",
    )
    query_templates: list[str] | None = _setting(
        None,
        "queries to train on, with roles in braces, as ['something like {title}', '{category}']; "
        "null: each text field by itself",
        none=True,
        group="text",
    )
    query_prompt: str | None = _setting(
        "The user asks for", "text in front of a query; null: none", none=True, group="text"
    )
    segment_order: str = _setting(
        "text ID",
        "order inside an item's segment; the paper prints 'ID text'",
        choices=("text ID", "ID text"),
        group="text",
    )
    max_tokens: int = _setting(
        1024, "longest sequence, items and text together, in tokens", low=8, group="text"
    )
    max_item_text_tokens: int = _setting(
        64, "longest text of one item, in tokens", low=1, group="text"
    )

    token_cache: str | None = _setting(
        None,
        "folder in which the items' texts are kept in tokens, found again by tokenizer and texts, "
        "so that later runs need not tokenise; null: they are not kept",
        none=True,
        group="text",
    )

    # Language model.
    backbone: str = _setting(
        BUNDLED,
        f"decoder to start from: {BUNDLED!r} (idiom-mini, small and pretrained), {UNTRAINED!r} "
        "(the same with random weights), a hub name such as Qwen/Qwen2.5-0.5B, or a folder",
        group="model",
    )
    backbone_args: dict[str, Any] | None = _setting(
        None,
        f"sizes in which the {UNTRAINED} decoder differs from the bundled one, as in "
        "transformers.Qwen2Config (hidden_size, num_hidden_layers ...); other backbones bring "
        "their own",
        none=True,
        group="model",
    )
    trust_remote_code: bool = _setting(
        False, "run model code that comes with a hub backbone", group="model"
    )
    expert_width: float = _setting(
        1.0,
        "width of the item expert relative to the text expert (paper: 1, 1/2, 1/4, 1/8)",
        low=0.01,
        high=1.0,
        group="model",
    )
    expert_init: str = _setting(
        "copy",
        "start of the item expert: copy of the text expert (its strongest neurons when "
        "narrower) or random",
        choices=("copy", "random"),
        group="model",
    )
    expert_layers: str | list[int] = _setting(
        "all",
        "layers with an item expert: all, none, first:k, middle:k, last:k, every:n or a list "
        "of indices",
        group="model",
    )
    item_embedding_dim: int | None = _setting(
        None,
        "width of the factorised item table E = W_l W_u; null: one table of full width",
        low=1,
        none=True,
        group="model",
    )
    attention: str = _setting(
        "causal",
        "causal: as in the backbone; intra_inter: layers attend within items and between items "
        "in turn (IAM); own_text: text attends to its own item alone, item tokens to each other",
        choices=("causal", "intra_inter", "own_text"),
        group="model",
    )
    item_scale: float = _setting(
        8.0,
        "how long an item's vector is on entering the decoder, in lengths of a text token's",
        low=0.001,
        group="model",
    )
    item_init: str = _setting(
        "text",
        "start of the item table: vectors of the items' text, or random",
        choices=("text", "random"),
        group="model",
    )
    item_text_added: bool = _setting(
        False,
        "add a projection of an item's text vector to its embedding, for good (Text-Attr LLM)",
        group="model",
    )
    text_encoder: str = _setting(
        "tfidf",
        "where those vectors come from: tfidf, backbone (its own states), a sentence encoder's "
        "folder or hub name, or a .npz file of item_ids and vectors",
        group="model",
    )
    item_tokens: str = _setting(
        "atomic",
        "what stands for an item in a sequence: one token of its own, a short code from its text "
        "(semantic IDs), or its title's own tokens",
        choices=("atomic", "semantic", "title"),
        group="model",
    )
    semantic_levels: int = _setting(
        3,
        "codes of a semantic ID; items that share all of them get one more token",
        low=1,
        high=8,
        group="model",
    )
    semantic_codebook_size: int = _setting(
        256,
        "codes to choose from at each level of a semantic ID; a small catalogue has fewer",
        low=2,
        high=65536,
        group="model",
    )
    block_start: str = _setting(
        "random",
        "start of the blocks of AppendBlocks and PrependBlocks: random weights, or identity (they "
        "add nothing at first)",
        choices=("random", "identity"),
        group="model",
    )
    load_balancing: float = _setting(
        0.01, "weight of SwitchRouting's load-balancing loss", low=0.0, group="model"
    )
    lora_rank: int = _setting(
        16, "rank of the adapters of E4SRec (16) and CoVE (8)", low=1, group="model"
    )
    lora_alpha: int = _setting(
        16, "those adapters count lora_alpha / lora_rank times", low=1, group="model"
    )
    item_hashes: int = _setting(
        4, "CoVE: rows whose mean is an item's vector", low=1, high=16, group="model"
    )
    item_compression: int = _setting(
        2, "CoVE: items for each row of the item table (1: a row for each)", low=1, group="model"
    )
    id_vectors: str | None = _setting(
        None,
        "E4SRec: a .npz file of item_ids and vectors to read items by; null: the vectors of a "
        "SASRecCE that is trained first",
        none=True,
        group="model",
    )
    id_encoder: dict[str, Any] | None = _setting(
        None,
        "E4SRec: settings in which that SASRecCE differs from its own, as {hidden_size: 128}",
        none=True,
        group="model",
    )
    softmax: str = _setting(
        "item",
        "candidates of the item loss: the catalogue, or catalogue and vocabulary together",
        choices=("item", "hybrid"),
        group="model",
    )
    dropout: float = _setting(
        0.0,
        "dropout on embeddings, expert outputs and final states while training",
        low=0.0,
        high=0.99,
        group="model",
    )

    # Training.
    tuned: str | None = _setting(
        None,
        "folder of tuned settings: MODEL_DATASET.yaml in it, for each model its own, holds below "
        "what else is given; where --tune=N puts them, tuned/ if null",
        none=True,
        group="training",
    )
    freeze: str = _setting(
        "none",
        "pretrained weights that stay as they are",
        choices=("none", "backbone", "text_expert", "attention"),
        group="training",
    )
    text_loss_weight: float = _setting(
        0.0,
        "weight of the next-token loss on the sequences' text, the items' and the instruction",
        low=0.0,
        group="training",
    )
    text_smoothing: float = _setting(
        0.0,
        "share of each target's probability that goes to the 20 items that read most like it, by "
        "text_encoder; what is learnt of an item is then learnt of those too",
        low=0.0,
        high=0.99,
        group="training",
    )
    transition_smoothing: float = _setting(
        0.0,
        "share of each target's probability that goes to the items that training histories have "
        "around the item before it, by how often they do, popular ones held back",
        low=0.0,
        high=0.99,
        group="training",
    )
    item_warmup: float = _setting(
        0.2,
        "share of the epochs trained on item tokens alone (paper: 0.2)",
        low=0.0,
        high=1.0,
        group="training",
    )
    text_ramp: float = _setting(
        1.0,
        "share of the epochs by whose end every sequence carries text; it rises linearly from "
        "item_warmup; until then nothing stops early (stopping_step)",
        low=0.0,
        high=1.0,
        group="training",
    )
    backbone_learning_rate: float | None = _setting(
        None,
        "learning rate of the pretrained weights; null: learning_rate",
        low=0.0,
        none=True,
        group="training",
    )
    adam_betas: list[float] = _setting(
        [0.9, 0.999], "AdamW betas (paper: 0.9, 0.9999)", group="training"
    )
    ema_decay: float = _setting(
        0.0,
        "after every optimizer step a running mean of the trained weights moves by 1 - ema_decay "
        "towards them; the mean is what is validated, saved and tested (0: the weights "
        "themselves)",
        low=0.0,
        high=0.99999,
        group="training",
    )
    keep_last: int = _setting(
        0,
        "beside a language model's best epoch, keep the models of its last keep_last epochs, each "
        "in a folder epoch-N of the run's",
        low=0,
        group="training",
    )
    warmup_steps: int = _setting(
        100,
        "optimizer steps of linear learning-rate warm-up (paper: 3000)",
        low=0,
        group="training",
    )
    max_batch_tokens: int = _setting(
        32768,
        "most tokens, padding included, in one forward pass; a batch with more accumulates its "
        "gradient over several, with the same result; lowered where training runs out of memory",
        low=8,
        group="training",
    )
    compile: bool | None = _setting(
        None,
        "on a GPU, compile the decoder's blocks for training and its evaluations, which then run "
        "both experts in fused kernels: half a minute once, then faster, with the same result but "
        "for rounding; null: with a backbone of width 512 or more",
        none=True,
        group="training",
    )
    sharding: str = _setting(
        "ddp",
        "in several processes (torchrun, accelerate launch): ddp, each has the whole model; fsdp2, "
        "each has a part of its weights, gradients and optimizer state, for backbones that do not "
        "fit; the result is the same but for rounding",
        choices=("ddp", "fsdp2"),
        group="training",
    )
    shard_items: bool = _setting(
        False,
        "in several processes, with ddp: each has a part of the item table's rows, their gradient "
        "and their optimizer state, and scores those, for catalogues of millions; the result is "
        "the same but for rounding",
        group="training",
    )
    activation_checkpointing: bool = _setting(
        False,
        "compute every block again in the backward pass: less memory, a third more time",
        group="training",
    )
    attn_implementation: str = _setting(
        "sdpa",
        "attention by PyTorch's fused kernels, or eager: plain products, for odd machines",
        choices=("sdpa", "eager"),
        group="training",
    )
    precision: str = _setting(
        "auto",
        "auto: bf16 on a GPU, fp32 on a CPU",
        choices=("auto", "fp32", "bf16"),
        group="training",
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Pick our keys out of ``values``, which may hold others, and check each.

        Raises:
            SettingError: a value of the wrong type, or outside its range.
        """
        return cls(**{f.name: _checked(f, values[f.name]) for f in fields(cls) if f.name in values})

    def __post_init__(self) -> None:
        if self.text_ramp < self.item_warmup:
            raise SettingError(
                f"text_ramp={self.text_ramp} ends before item_warmup={self.item_warmup}; "
                "give text_ramp a value of at least item_warmup."
            )
        if self.item_tokens != "atomic":
            self._check_codes()
        if not all(isinstance(template, str) for template in self.query_templates or []):
            raise SettingError(
                f"query_templates={self.query_templates}: texts are wanted, as ['like {{title}}']."
            )
        numbers = [b for b in self.adam_betas if isinstance(b, int | float) and 0 <= b < 1]
        if len(numbers) != 2 or len(self.adam_betas) != 2:
            raise SettingError(
                f"adam_betas={self.adam_betas}: two numbers in [0, 1) are wanted, as [0.9, 0.999]."
            )

    def _check_codes(self) -> None:
        """What does not go with items of several tokens."""
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


def defaults() -> dict[str, Any]:
    """Our settings and their defaults, by name."""
    settings = Settings()
    return {f.name: getattr(settings, f.name) for f in fields(Settings)}


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list, tuple),
    "dict": (dict,),
}


def _checked(f: Field[Any], value: Any) -> Any:
    """``value`` if setting ``f`` can take it, else a one-line :class:`SettingError`."""
    meta = f.metadata
    if value is None and meta["none"]:
        return None
    declared = [part.strip().split("[")[0] for part in str(f.type).split("|")]
    wanted = [name for name in declared if name in _TYPES]
    accepted = tuple(t for name in wanted for t in _TYPES[name])
    if not isinstance(value, accepted) or (isinstance(value, bool) and "bool" not in wanted):
        raise SettingError(
            f"{f.name}={value!r} is of the wrong type; {' or '.join(wanted)} is wanted: "
            f"{meta['help']}."
        )
    if meta["choices"] and value not in meta["choices"]:
        raise SettingError(
            f"{f.name}={value!r} is not one of {', '.join(map(repr, meta['choices']))}."
        )
    low, high = meta["low"], meta["high"]
    too_low, too_high = low is not None and value < low, high is not None and value > high
    if too_low or too_high or (isinstance(value, float) and not math.isfinite(value)):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise SettingError(f"{f.name}={value} is out of range; it must be {span}.")
    return value
