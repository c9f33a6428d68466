"""IDIOMoE: any decoder, two experts a layer, one vocabulary of text and items (section 3.2)."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.lm.architectures import get_architecture
from recbole_idiomoe.lm.configuration import (
    TWO_EXPERT,
    IdiomoeConfig,
    expert_placement,
    initial_std,
)
from recbole_idiomoe.lm.controls.budget import expert_budget, log_size
from recbole_idiomoe.lm.decoder import EmptyCache, check_head, is_checkpointed, text_rms
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.generation import HybridGeneration
from recbole_idiomoe.lm.item_attention import ItemAttention
from recbole_idiomoe.lm.item_loss import summed_cross_entropy
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.training import freeze, parameter_groups

IGNORED = -100


# transformers looks for its mixin among the direct bases.
class IdiomoeForCausalLM(PreTrainedModel, HybridGeneration, GenerationMixin):
    """A pretrained decoder with item experts, an item table and a hybrid vocabulary.

    On text alone it is its backbone: the same operations on the same tensors, so the
    same logits, loss and generation bit for bit, whatever the item side has learnt. That is
    said of the paper's own architecture; ``config.architecture`` may name one of its controls.

    Args:
        config: sizes and placement.
        backbone: the decoder to build on, changed in place; None: a new one from
            ``config.backbone_config``.
        expert_init: how item experts start, see :func:`make_item_expert`.
        seed: of random item experts.

    Attributes:
        added: modules inside ``backbone`` that it did not bring, such as item experts.

    Raises:
        BackboneError: a backbone that cannot take experts, or alters its logits.
        SettingError: an unknown architecture.
    """

    config_class = IdiomoeConfig
    config: IdiomoeConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Attention is the backbone's; whether it can do these is for it to say.
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
            backbone = AutoModelForCausalLM.from_config(
                config.backbone_config, trust_remote_code=False
            )
        assert backbone is not None
        check_head(backbone)
        self.backbone = backbone
        self.routing = TokenRouting()
        architecture = get_architecture(config.architecture)
        # The item table then starts alike in every architecture.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.added = architecture.install(backbone, config, self.routing, expert_init, seed)
        self.item_attention = (
            None if config.attention == "causal" else ItemAttention(backbone, config.attention)
        )
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
        """Build on a pretrained decoder, which becomes part of the model.

        See :class:`IdiomoeConfig` for the arguments and :func:`expert_placement` for
        ``expert_layers``; ``seed`` decides all that is random, and the global generator
        is left as it was.

        Args:
            item_scale: how long an item's vector is on entering the trunk, at the start, in
                lengths of a text token's (root mean squares). What the layers add to the
                residual stream is many times longer than an embedding, in a pretrained
                decoder above all, and would drown which item it was.
            architecture_args: options in which the architecture differs from its defaults.

        Raises:
            SettingError, BackboneError: as the classes above; a control of IDIOMoE's size
                that cannot come near its parameter count.
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
        with torch.random.fork_rng(devices=[]):
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
        """As in transformers, but a checkpoint that does not fit is an error, not a warning.

        Raises:
            CheckpointError: tensors missing, left over or of another shape; transformers
                would draw the missing ones at random.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True  # or it takes pytorch_model.bin, where that is all
        path = pretrained_model_name_or_path
        load: Any = super().from_pretrained
        model, info = load(path, *model_args, output_loading_info=True, **kwargs)
        for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if names := sorted(map(str, info.get(fault, ()))):
                raise CheckpointError(
                    f"{path}: {fault.replace('_', ' ')} in the checkpoint ({len(names)}, first "
                    f"{names[0]}); save the model again or take another folder."
                )
        return (model, info) if wants_info else model

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of text tokens; items are in ``item_table``."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The head of text tokens; items are in ``item_table``."""
        return self.backbone.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        # The backbone draws its own weights; it is a PreTrainedModel too.
        if isinstance(module, ItemTable):
            module.reset_parameters()

    def embed(self, input_ids: Tensor) -> Tensor:
        """Vectors of hybrid tokens, (B, T) -> (B, T, d), by the types that routing holds."""
        text_embedding = self.get_input_embeddings()
        # Gemma multiplies embeddings, and not the tied head, by sqrt(d).
        scale = getattr(text_embedding, "embed_scale", 1.0) * self.config.item_input_factor

        def item_embedding(tokens: Tensor) -> Tensor:
            vectors = self.item_table(tokens - self.config.item_token_offset) * scale
            return vectors.to(text_embedding.weight.dtype)

        return self.routing.dispatch(input_ids, text_embedding, item_embedding)

    def hidden_states(
        self,
        input_ids: Tensor,
        token_types: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        segments: Tensor | None = None,
        item_count: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the trunk; its final norm is applied.

        Args:
            input_ids: (B, T), hybrid tokens.
            token_types: (B, T), 0 text, 1 item; None: as the tokens say. A token outside
                its type's vocabulary is an IndexError.
            attention_mask: as in transformers. None with padding on the right is exact at
                every real position, and the fastest: attention is then causal, no mask is
                built. With packed sequences leave it None and restart ``position_ids``.
            position_ids, past_key_values, use_cache, kwargs: as in transformers.
            segments: (B, T), 0 for the prompt, else the number of the item that a token belongs
                to: what tells items apart where ``config.attention`` is not causal.
            item_count: item tokens in the batch; None: counted on its device, for which a GPU's
                host has to wait.

        Returns:
            ``last_hidden_state`` (B, T, d), and the cache if asked for.

        Raises:
            SettingError: attention between items without ``segments``, or with a mask or a cache.
        """
        if token_types is None:
            token_types = input_ids >= self.config.item_token_offset
        self.routing.set(token_types, item_count)
        self._attend(segments, token_types, attention_mask, past_key_values)
        plain = attention_mask is None and position_ids is None and past_key_values is None
        if plain and not use_cache and not is_checkpointed(self.backbone):
            past_key_values = EmptyCache()
        outputs = self.backbone.base_model(
            inputs_embeds=self._dropout(self.embed(input_ids)),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if isinstance(past_key_values, EmptyCache):
            outputs.past_key_values = None  # some families hand it back
        outputs.last_hidden_state = self._dropout(outputs.last_hidden_state)
        return outputs

    def text_logits(self, hidden_states: Tensor) -> Tensor:
        """The backbone's own scores of text tokens: (..., d) -> (..., item_token_offset)."""
        return self.get_output_embeddings()(hidden_states)

    def item_logits(self, hidden_states: Tensor) -> Tensor:
        """Scores of the catalogue: (..., d) -> (..., item_num), float32, padding -inf."""
        return self.item_table.logits(hidden_states)

    def item_loss(
        self, hidden_states: Tensor, items: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy of items, nats.

        Args:
            hidden_states: (N, d), at the positions that predict.
            items: (N,), ids from 1; N = 0 gives 0.
            excluded: (M,), ids that are no candidates, none of them in ``items``: items that
                nobody has had yet would only be pushed down.

        The candidates are the catalogue or, with ``config.softmax="hybrid"``, text and
        catalogue together. Memory does not grow with N times their number, see
        :func:`summed_cross_entropy`.
        """
        return self._summed_item_loss(hidden_states, items, excluded) / max(1, len(items))

    def text_loss(self, hidden_states: Tensor, token_ids: Tensor) -> Tensor:
        """Mean cross entropy, nats, of text tokens (N,) over the text vocabulary, from (N, d)."""
        return _cross_entropy(self.text_logits(hidden_states).float(), token_ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The transformers interface; see :meth:`hidden_states` for the inputs.

        Args:
            labels: (B, T), hybrid tokens, shifted here, -100 ignored. Text targets are
                scored over the text vocabulary, item targets as ``config.softmax`` says.
            logits_to_keep: how many last positions get logits; 0: all.
            num_items_in_batch: targets of a whole optimizer step, by which the summed
                loss is then divided; the name is transformers'.

        Returns:
            ``logits`` (B, T, vocab_size), text then items, and ``loss``, nats a target.
        """
        kwargs.pop("return_dict", None)
        outputs = self.hidden_states(
            input_ids,
            token_types,
            attention_mask,
            position_ids,
            past_key_values,
            bool(use_cache),
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        assert hidden is not None
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        text_logits = self.text_logits(hidden)
        loss = None
        if labels is not None:
            loss = self._loss(hidden, text_logits, labels, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=torch.cat((text_logits, self.item_logits(hidden)), dim=-1),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def language_model(self) -> PreTrainedModel:
        """The backbone, set to text: for tools that expect the text vocabulary alone.

        It holds until this model's next forward pass, which sets the routing anew.
        """
        self.routing.clear()
        if self.item_attention is not None:
            self.item_attention.clear()
        return self.backbone

    def auxiliary_loss(self, token_types: Tensor, counted: Tensor) -> Tensor | None:
        """What the architecture adds to the loss of the last forward pass in training.

        :meth:`forward` leaves it to its caller, who knows what is padding.

        Args:
            token_types: (B, T) of that pass, 0 text, 1 item.
            counted: (B, T), False for padding.

        Returns:
            A scalar, or None from an architecture that adds nothing, as IDIOMoE.
        """
        loss = get_architecture(self.config.architecture).loss
        return loss(self.backbone, self.config, token_types, counted)

    def training_report(self) -> dict[str, list[float]]:
        """What the architecture tells of its training since the last report; mostly nothing.

        Returns:
            By name, one number a layer.
        """
        return get_architecture(self.config.architecture).report(self.backbone)

    def freeze(self, policy: str) -> None:
        """See :func:`recbole_idiomoe.lm.training.freeze`."""
        freeze(self, policy)

    def parameter_groups(
        self,
        weight_decay: float,
        learning_rate: float,
        backbone_learning_rate: float | None = None,
    ) -> list[dict[str, Any]]:
        """See :func:`recbole_idiomoe.lm.training.parameter_groups`."""
        return parameter_groups(self, weight_decay, learning_rate, backbone_learning_rate)

    def _attend(
        self, segments: Tensor | None, token_types: Tensor, mask: Tensor | None, cache: Any
    ) -> None:
        if self.item_attention is None:
            return
        self.item_attention.clear()
        if not self.routing.sizes[1]:  # text alone: every pattern is causal
            return
        if segments is None or mask is not None or cache is not None:
            raise SettingError(
                f"attention={self.config.attention!r} among item tokens needs segments, and takes "
                "neither an attention_mask nor past_key_values; pad on the right."
            )
        self.item_attention.set(segments, token_types, self.dtype)

    def _dropout(self, states: Tensor) -> Tensor:
        p = self.config.dropout
        return F.dropout(states, p, self.training) if p else states

    def _summed_item_loss(
        self, hidden: Tensor, items: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        config = self.config
        candidate_num = config.item_num if config.softmax == "item" else config.vocab_size
        score = partial(self._item_scores, excluded=excluded)
        return summed_cross_entropy(score, hidden, items, candidate_num)

    def _item_scores(
        self, hidden: Tensor, items: Tensor, excluded: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Candidates' scores (N, C) and the targets' columns (N,)."""
        scores = self.item_logits(hidden)
        if excluded is not None and len(excluded):  # the fill copies all scores
            scores = scores.index_fill(-1, excluded, -torch.inf)
        if self.config.softmax == "item":
            return scores, items
        text_scores = self.text_logits(hidden).float()
        return torch.cat((text_scores, scores), dim=-1), items + text_scores.shape[-1]

    def _loss(
        self, hidden: Tensor, text_logits: Tensor, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        offset = self.config.item_token_offset
        if not (labels >= offset).any():
            return self.backbone.loss_function(
                logits=text_logits, labels=labels, vocab_size=offset, num_items_in_batch=count
            )
        targets = F.pad(labels[..., 1:], (0, 1), value=IGNORED)
        is_item = targets >= offset
        total = self._summed_item_loss(hidden[is_item], targets[is_item] - offset)
        text_targets = targets.masked_fill(is_item, IGNORED).flatten()
        text_scores = text_logits.float().flatten(0, 1)
        total = total + F.cross_entropy(
            text_scores, text_targets, ignore_index=IGNORED, reduction="sum"
        )
        return total / ((targets != IGNORED).sum() if count is None else count)


def _cross_entropy(scores: Tensor, columns: Tensor) -> Tensor:
    # A mean over nothing would be nan; a batch may hold no target of one kind.
    return F.cross_entropy(scores, columns) if len(columns) else scores.sum() * 0.0
