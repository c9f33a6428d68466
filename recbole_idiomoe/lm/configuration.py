"""The configuration of an IDIOMoE model, and the placement of its item experts."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, Qwen2Config

from recbole_idiomoe.base.errors import SettingError

TWO_EXPERT = "two_expert"
"""The name of IDIOMoE's own architecture (section 3.2)."""

OPENED_BY = "import recbole_idiomoe.lm; AutoModelForCausalLM.from_pretrained(FOLDER)"

ATTENTIONS = ("causal", "intra_inter", "own_text")
# Fields that generation and caches of transformers read from a decoder's configuration.
_MIRRORED = (
    "head_dim",
    "hidden_size",
    "initializer_range",
    "layer_types",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "sliding_window",
)


class IdiomoeConfig(PreTrainedConfig):
    """A decoder's configuration and the sizes that IDIOMoE adds to it (section 3.2).

    The vocabulary is the backbone's text tokens followed by the items: item ``i`` is token
    ``item_token_offset + i``. Item 0 is RecBole's padding item; it has a row and a token, so that
    ids need no shift, but it is never a candidate.

    Args:
        backbone_config: configuration of the decoder, or its dictionary.
        item_num: rows of the item table, the padding item included.
        item_embedding_dim: inner width of the factorised table ``E = W_l W_u`` (section B.5, item
            7); None for one table of the model's width.
        item_text_size: width of the text vectors whose projection is added to the item table
            (section 3.1, b); None for none.
        expert_layers: indices of the layers that have an item expert.
        expert_width: neurons of the item expert relative to the text expert, in (0, 1].
        attention: ``causal``, or a key of :data:`~recbole_idiomoe.lm.item_attention.PATTERNS`.
        item_input_factor: factor of E where items are embedded; scores use E itself.
        dropout: dropout probability on embeddings, expert outputs and final states.
        softmax: candidates of an item target: ``item`` for all items, ``hybrid`` for all text
            tokens and items.
        architecture: a name in :data:`~recbole_idiomoe.lm.variants.ARCHITECTURES`. For
            variants without item experts, ``expert_layers`` and ``expert_width`` describe the
            IDIOMoE that the variant is compared with.
        architecture_args: options and computed sizes of the architecture.
        opened_by: tells a reader of config.json how to open the folder; without the import,
            transformers only says that it does not know the model type.

    Raises:
        SettingError: a layer, a width or a size does not fit the backbone.
    """

    model_type: ClassVar[str] = "idiomoe"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    item_num: int = 1
    item_embedding_dim: int | None = None
    item_text_size: int | None = None
    expert_layers: list[int] = field(default_factory=list)
    expert_width: float = 1.0
    attention: str = "causal"
    item_input_factor: float = 1.0
    dropout: float = 0.0
    softmax: str = "item"
    architecture: str = TWO_EXPERT
    architecture_args: dict[str, Any] = field(default_factory=dict)
    opened_by: str = OPENED_BY

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers builds a configuration without arguments to read the defaults.
        if self.backbone_config is None:
            self.backbone_config = Qwen2Config()
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        # The base class passes its own attention down, also None, which would change the
        # backbone's attention from sdpa to eager.
        kwargs.setdefault("attn_implementation", self.backbone_config._attn_implementation)
        super().__post_init__(**kwargs)
        self.expert_layers = expert_placement(self.expert_layers, self.num_hidden_layers)
        if self.item_num < 1:
            raise SettingError(
                f"item_num={self.item_num} must be at least 1, for the padding item."
            )
        if not 0 < self.expert_width <= 1:
            raise SettingError(f"expert_width={self.expert_width} must be above 0 and at most 1.")
        if self.attention not in ATTENTIONS:
            known = ", ".join(map(repr, ATTENTIONS))
            raise SettingError(f"attention={self.attention!r} is not one of {known}.")
        if not self.item_input_factor > 0:
            raise SettingError(f"item_input_factor={self.item_input_factor} must be above 0.")
        if self.softmax not in ("item", "hybrid"):
            raise SettingError(f"softmax={self.softmax!r} is neither 'item' nor 'hybrid'.")
        inner = self.item_embedding_dim
        if inner is not None and not 1 <= inner <= self.hidden_size:
            raise SettingError(
                f"item_embedding_dim={inner} must be between 1 and the backbone's "
                f"hidden_size={self.hidden_size}; null gives one table of that width."
            )

    def __getattr__(self, name: str) -> Any:
        if name in _MIRRORED:
            return getattr(self.__dict__["backbone_config"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def item_token_offset(self) -> int:
        """Token id of item 0: the backbone's vocabulary size."""
        return self.__dict__["backbone_config"].vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of text tokens and items together."""
        return self.item_token_offset + self.item_num


def initial_std(config: PreTrainedConfig) -> float:
    """The standard deviation of a decoder's initial weights."""
    return getattr(config, "initializer_range", 0.02)


def expert_placement(spec: str | list[int], num_layers: int) -> list[int]:
    """Return the layers that get an item expert, ascending (section 4.2.3).

    Args:
        spec: ``all``; ``none``; ``first:k``, ``middle:k`` or ``last:k`` for k neighbouring layers,
            where an odd rest leaves one more layer after the middle; ``every:n`` for layers
            0, n, 2n ...; or a list of indices.
        num_layers: number of layers of the backbone.

    Raises:
        SettingError: the spec has another form, or the backbone lacks one of the layers.
    """
    if not isinstance(spec, str):
        for layer in spec:
            if type(layer) is not int or not 0 <= layer < num_layers:
                raise SettingError(
                    f"expert_layers={list(spec)}: {layer!r} is not a layer of a backbone with "
                    f"layers 0 to {num_layers - 1}."
                )
        return sorted(set(spec))
    if spec in ("all", "none"):
        return list(range(num_layers)) if spec == "all" else []
    kind, _, number = spec.partition(":")
    count = int(number) if number.isdecimal() else 0
    if kind not in ("first", "middle", "last", "every") or count < 1:
        raise SettingError(
            f"expert_layers={spec!r} is not all, none, first:k, middle:k, last:k, every:n or a "
            "list of layer indices."
        )
    if count > num_layers:
        raise SettingError(
            f"expert_layers={spec!r}: the backbone has {num_layers} layers, fewer than {count}."
        )
    if kind == "every":
        return list(range(0, num_layers, count))
    start = {"first": 0, "middle": (num_layers - count) // 2, "last": num_layers - count}[kind]
    return list(range(start, start + count))
