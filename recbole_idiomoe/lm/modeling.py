"""The IDIOMoE model: a decoder with two experts per FFN and a hybrid vocabulary (section 3.2)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.base.locks import loading
from recbole_idiomoe.lm.architecture import Setup
from recbole_idiomoe.lm.configuration import (
    TWO_EXPERT,
    IdiomoeConfig,
    expert_placement,
    initial_std,
)
from recbole_idiomoe.lm.decoder import EmptyCache, check_head, is_checkpointed, text_rms
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.hybrid_embedding import HasHybridEmbedding, HybridEmbedding
from recbole_idiomoe.lm.hybrid_head import HybridHead
from recbole_idiomoe.lm.item_attention import ItemAttention
from recbole_idiomoe.lm.routed_block import route_blocks
from recbole_idiomoe.lm.routing import TokenRouting, routed
from recbole_idiomoe.lm.training import PartlyTrained
from recbole_idiomoe.lm.variants import get_architecture
from recbole_idiomoe.lm.variants.budget import expert_budget, log_size


# transformers requires its GenerationMixin among the direct bases.
class IdiomoeForCausalLM(
    HasHybridEmbedding, PreTrainedModel, PartlyTrained, HybridHead, GenerationMixin
):
    """A pretrained decoder with item experts, an item table and a hybrid vocabulary (section 3.2).

    On text alone the paper's architecture equals its backbone: it runs the same operations on the
    same tensors, so that logits, loss and generation are equal bit for bit, also after training
    the item side. ``config.architecture`` may name a variant for which this does not hold.

    Args:
        config: sizes and placement of the experts.
        backbone: the decoder to build on, which is changed in place; None builds a new one from
            ``config.backbone_config``.
        expert_init: ``copy`` or ``random``, see :func:`make_item_expert`.
        seed: seed of random item experts.

    Raises:
        BackboneError: the backbone cannot take experts, or transforms its logits.
        SettingError: the architecture is unknown.
    """

    config_class = IdiomoeConfig
    config: IdiomoeConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The backbone computes the attention and checks itself which of these it supports.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: IdiomoeConfig,
        backbone: PreTrainedModel | None = None,
        expert_init: str = "copy",
        seed: int = 0,
    ) -> None:
        super().__init__(config)
        if backbone is None:
            build: Any = AutoModelForCausalLM.from_config
            backbone = build(config.backbone_config, trust_remote_code=False)
        assert backbone is not None
        check_head(backbone)
        self.backbone = backbone
        architecture = get_architecture(config.architecture)
        # Forked, so that the item table starts with the same values in every architecture.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            setup = Setup(backbone, config, expert_init, seed)
            self.added = architecture.install(setup)
        route_blocks(backbone)
        self.embedding = HybridEmbedding(self)
        self.item_attention: ItemAttention | None = None
        if config.attention != "causal":
            self.item_attention = ItemAttention(backbone, config.attention)
        self.item_table = architecture.item_table(config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        item_num: int,
        *,
        item_embedding_dim: int | None = None,
        item_text_size: int | None = None,
        expert_layers: str | list[int] = "all",
        expert_width: float = 1.0,
        expert_init: str = "copy",
        attention: str = "causal",
        item_scale: float = 1.0,
        dropout: float = 0.0,
        softmax: str = "item",
        seed: int = 0,
        architecture: str = TWO_EXPERT,
        architecture_args: dict[str, Any] | None = None,
    ) -> IdiomoeForCausalLM:
        """Build a model on a pretrained decoder, which becomes part of the model.

        See :class:`IdiomoeConfig`, :func:`expert_placement` and :func:`make_item_expert` for the
        other arguments.

        Args:
            item_scale: root mean square of embedded items at the start, relative to that of text
                embeddings. Layers of a pretrained decoder add much larger vectors to the residual
                stream than an embedding, so that a value above 1 keeps items distinguishable.
            seed: seed of all random weights; the global generator is not advanced.
            architecture_args: options that differ from the architecture's defaults.

        Raises:
            SettingError: an argument is out of range, or a capacity control cannot match IDIOMoE's
                parameter count.
            BackboneError: the backbone cannot take experts, or transforms its logits.
        """
        chosen = get_architecture(architecture)
        config = IdiomoeConfig(
            backbone_config=backbone.config,
            item_num=item_num,
            item_embedding_dim=item_embedding_dim,
            item_text_size=item_text_size,
            expert_layers=expert_placement(expert_layers, backbone.config.num_hidden_layers),
            expert_width=expert_width,
            attention=attention,
            item_input_factor=item_scale * text_rms(backbone) / initial_std(backbone.config),
            dropout=dropout,
            softmax=softmax,
            dtype=backbone.dtype,
            architecture=architecture,
            architecture_args={**chosen.options, **(architecture_args or {})},
        )
        config.architecture_args.update(chosen.plan(backbone, config))
        budget = None if architecture == TWO_EXPERT else expert_budget(backbone, config)
        with loading(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config, backbone, expert_init, seed)
        model.item_table.to(device=backbone.device, dtype=backbone.dtype)
        model.generation_config = copy.deepcopy(backbone.generation_config)
        if budget is not None:
            log_size(architecture, budget, backbone)
        return model.train(backbone.training)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a saved model as in transformers, but refuse a checkpoint that does not fit.

        Threads that load at the same time wait for each other.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape. transformers only
                warns of it, and draws missing tensors at random.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True  # transformers would fall back to pytorch_model.bin
        path = pretrained_model_name_or_path
        load: Any = super().from_pretrained
        with loading():
            model, info = load(path, *model_args, output_loading_info=True, **kwargs)
        for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if names := sorted(map(str, info.get(fault, ()))):
                raise CheckpointError(
                    f"{path}: {fault.replace('_', ' ')} in the checkpoint ({len(names)}, first "
                    f"{names[0]}); save the model again or take another folder."
                )
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        # The backbone is a PreTrainedModel too and initialises its own weights.
        if isinstance(module, ItemTable):
            module.reset_parameters()

    def hidden_states(
        self,
        input_ids: Tensor | None,
        token_types: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        segments: Tensor | None = None,
        item_count: int | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder without its head.

        Nothing of the batch is kept on the model, so several threads may call it at once.

        Args:
            input_ids: (B, T), hybrid tokens; None if ``inputs_embeds`` are given.
            token_types: (B, T), 0 text, 1 item; None derives them from ``input_ids``.
            attention_mask: as in transformers. None is exact at every real position if padding is
                on the right, and is the fastest: attention is causal and no mask is built. For
                packed sequences leave it None and restart ``position_ids``.
            position_ids, past_key_values, use_cache, kwargs: as in transformers.
            segments: (B, T), 0 for the prompt, else the number from 1 of the item that a token
                belongs to. Needed if ``config.attention`` is not causal.
            item_count: number of item tokens in the batch; None counts them on the device, and a
                GPU's host waits for the result.
            inputs_embeds: (B, T, d), given in place of ``input_ids``, with ``token_types``.

        Returns:
            ``last_hidden_state`` (B, T, d) after the final norm, and the cache if asked for.

        Raises:
            SettingError: both or none of ``input_ids`` and ``inputs_embeds`` are given, or
                ``inputs_embeds`` without ``token_types``; the types have another shape; or
                ``config.attention`` is not causal, and ``segments`` is missing or there is a mask
                or a cache.
            IndexError: a token is outside the vocabulary of its type.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise SettingError("give either input_ids or inputs_embeds, and not both.")
        if token_types is None:
            if input_ids is None:
                raise SettingError(
                    "inputs_embeds do not say which positions are items; give token_types (B, T) "
                    "too, 0 text, 1 item."
                )
            token_types = input_ids >= self.config.item_token_offset
        masks = self._item_masks(segments, token_types, item_count, attention_mask, past_key_values)
        routing = TokenRouting(token_types, item_count, masks)
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids, routing)
        routing.check(inputs_embeds)
        keeps_keys = past_key_values is not None or use_cache
        plain = attention_mask is None and position_ids is None and not keeps_keys
        if plain and not is_checkpointed(self.backbone):
            past_key_values = EmptyCache()
        with routed(routing):
            outputs = self.backbone.base_model(
                inputs_embeds=F.dropout(inputs_embeds, self.config.dropout, self.training),
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                token_routing=routing,
                keeps_keys=keeps_keys,
                **kwargs,
            )
        if isinstance(past_key_values, EmptyCache):
            outputs.past_key_values = None  # some families return it
        states = outputs.last_hidden_state
        outputs.last_hidden_state = F.dropout(states, self.config.dropout, self.training)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model through the interface of transformers.

        The other inputs are described in :meth:`hidden_states`.

        Args:
            labels: (B, T), hybrid tokens, shifted here; -100 is ignored. Text targets are
                predicted among text tokens, item targets among ``config.softmax``'s candidates.
            logits_to_keep: number of last positions that get logits, 0 for all; or an index.
            num_items_in_batch: number of targets of the whole optimizer step, text and items, by
                which the summed loss is divided; None takes the mean over this batch.

        Returns:
            ``logits`` (B, T, vocab_size), text tokens first, and ``loss`` in nats per target.
        """
        outputs = self.hidden_states(
            input_ids,
            token_types,
            attention_mask,
            position_ids,
            past_key_values,
            bool(use_cache),
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        assert hidden is not None
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        text_logits = self.text_logits(hidden)
        count = num_items_in_batch
        return CausalLMOutputWithPast(
            loss=None if labels is None else self.hybrid_loss(hidden, text_logits, labels, count),
            logits=torch.cat((text_logits, self.item_logits(hidden)), dim=-1),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def language_model(self) -> PreTrainedModel:
        """Return the backbone, for tools that know text only: it routes every token as text."""
        return self.backbone

    def auxiliary_loss(self, token_types: Tensor, counted: Tensor) -> Tensor | None:
        """The architecture's auxiliary loss for the last forward pass in training, a scalar.

        :meth:`forward` does not add it, because only the caller knows which tokens are padding.
        It is None if the architecture has none, as IDIOMoE.

        Args:
            token_types: (B, T), the types of that pass, 0 text, 1 item.
            counted: (B, T), False for padding.
        """
        loss = get_architecture(self.config.architecture).loss
        return loss(self.backbone, self.config, token_types, counted)

    def training_report(self) -> dict[str, list[float]]:
        """Statistics of the training steps since the last report: by name, one number per layer.

        Most architectures, IDIOMoE among them, have none.
        """
        return get_architecture(self.config.architecture).report(self.backbone)

    def _item_masks(
        self,
        segments: Tensor | None,
        token_types: Tensor,
        item_count: int | None,
        mask: Tensor | None,
        cache: Any,
    ) -> dict[str, Tensor] | None:
        """The masks of :class:`ItemAttention`; None if attention is causal, as with text alone."""
        if self.item_attention is None or item_count == 0:
            return None
        if item_count is None and not token_types.any():
            return None
        if segments is None or mask is not None or cache is not None:
            raise SettingError(
                f"attention={self.config.attention!r} among item tokens needs segments, and takes "
                "neither an attention_mask nor past_key_values; pad on the right."
            )
        return self.item_attention.masks(segments, token_types, self.dtype)
