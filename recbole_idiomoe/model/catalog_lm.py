"""A language model together with the catalogue that it speaks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.loader import token_groups
from recbole_idiomoe.data.sequence import SequenceBatch, SequenceBuilder, collate
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.files import folder_written_aside
from recbole_idiomoe.lm import (
    ARCHITECTURES,
    TWO_EXPERT,
    IdiomoeForCausalLM,
    add_item_tokens,
    encode_text,
    load_backbone,
    with_random_weights,
)
from recbole_idiomoe.lm.progress import no_progress_bars
from recbole_idiomoe.lm.text_attributes import TextAttributeTable
from recbole_idiomoe.settings import Settings

logger = logging.getLogger(__name__)

# All but cuDNN's, which plans anew for every shape, and here every batch has its own length.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class CatalogLM(nn.Module):
    """Histories of item rows in, a loss or scores of the whole catalogue out.

    Args:
        lm: the language model.
        tokenizer: its tokenizer, item tokens included.
        catalog: the items, in the order of the model's item table.
        settings: how a history becomes a sequence.
    """

    untrained: torch.Tensor

    def __init__(
        self, lm: IdiomoeForCausalLM, tokenizer: Any, catalog: Catalog, settings: Settings
    ) -> None:
        super().__init__()
        if lm.config.item_num != catalog.item_num:
            raise CheckpointError(
                f"the model knows {lm.config.item_num - 1} items, the catalogue has "
                f"{catalog.item_num - 1}; they do not belong together."
            )
        self.lm = lm
        self.tokenizer = tokenizer
        self.settings = settings
        self.pad_token_id = tokenizer.pad_token_id or 0
        self.set_catalog(catalog)

    def set_catalog(self, catalog: Catalog) -> None:
        """Speak of ``catalog``, whose items the language model and the tokenizer know."""
        self.catalog = catalog
        self.builder = self._sequence_builder()
        untrained = torch.tensor(catalog.untrained, dtype=torch.int64, device=self.lm.device)
        self.register_buffer("untrained", untrained, persistent=False)

    @classmethod
    def build(
        cls,
        catalog: Catalog,
        settings: Settings,
        *,
        seed: int,
        device: torch.device,
        architecture: str = TWO_EXPERT,
        pretrained: bool = True,
    ) -> CatalogLM:
        """A new model for ``catalog``: a backbone, item experts, item tokens, an item table.

        Args:
            architecture: what takes the place of the item experts, a name in
                :data:`~recbole_idiomoe.lm.architectures.ARCHITECTURES`.
            pretrained: keep the backbone's weights, or only its sizes.
        """
        backbone, tokenizer = load_backbone(
            settings.backbone,
            backbone_args=settings.backbone_args,
            seed=seed,
            trust_remote_code=settings.trust_remote_code,
        )
        if not pretrained:
            backbone = with_random_weights(backbone, seed)
        vectors = None
        described = any(catalog.texts)
        if settings.item_text_added and not described:
            raise DataError(
                "item_text_added: no item has text; name its columns in item_text_fields, or set "
                "item_text_added to False."
            )
        if described and (settings.item_init == "text" or settings.item_text_added):
            vectors = item_vectors(
                catalog,
                settings.text_encoder,
                dim=settings.item_embedding_dim or backbone.config.hidden_size,
                backbone=(backbone, tokenizer),
                device=device,
                seed=seed,
            )
            vectors[catalog.untrained] = 0  # nor does training know what they say
        text_size = vectors.shape[1] if vectors is not None and settings.item_text_added else None
        lm = IdiomoeForCausalLM.from_backbone(
            backbone,
            catalog.item_num,
            item_embedding_dim=settings.item_embedding_dim,
            item_text_size=text_size,
            expert_layers=settings.expert_layers,
            expert_width=settings.expert_width,
            expert_init=settings.expert_init,
            attention=settings.attention,
            item_scale=settings.item_scale,
            dropout=settings.dropout,
            softmax=settings.softmax,
            seed=seed,
            architecture=architecture,
            architecture_args={
                name: getattr(settings, name) for name in ARCHITECTURES[architecture].options
            },
        )
        if vectors is not None and settings.item_init == "text":
            lm.item_table.load_vectors(vectors, seed=seed)
        if vectors is not None and isinstance(lm.item_table, TextAttributeTable):
            lm.item_table.load_text(vectors)
        lm.freeze(settings.freeze)
        add_item_tokens(tokenizer, catalog.item_ids, lm.config.item_token_offset)
        return cls(lm, tokenizer, catalog, settings)

    def loss(self, batch: SequenceBatch) -> torch.Tensor:
        """This batch's share of its step's mean loss: the shares of a step add up to the mean.

        Cross entropy over the catalogue at the item queries, plus ``text_loss_weight`` times
        that over the vocabulary at the text queries, plus what the architecture adds.
        """
        with self._autocast():
            hidden_states = self._hidden_states(batch)
            share = len(batch.targets) / batch.item_count
            loss = share * self.lm.item_loss(
                hidden_states[batch.queries], batch.targets, excluded=self.untrained
            )
            if self.settings.text_loss_weight and len(batch.text_queries):
                next_tokens = batch.input_ids.flatten()[batch.text_queries + 1]
                text_loss = self.lm.text_loss(hidden_states[batch.text_queries], next_tokens)
                share = len(next_tokens) / batch.text_count
                loss = loss + self.settings.text_loss_weight * share * text_loss
            real = batch.input_ids != self.pad_token_id
            auxiliary_loss = self.lm.auxiliary_loss(batch.token_types, real)
            if auxiliary_loss is not None:
                loss = loss + len(batch.targets) / batch.item_count * auxiliary_loss
        return loss

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Scores of every item as the next one, shape ``(len(histories), item_num)``, float32.

        Args:
            histories: item rows, oldest first, each of shape ``(n,)`` with ``n >= 1``. The most
                recent ones that fit are read.

        Raises:
            DataError: a history is empty.
        """
        if any(len(history) == 0 for history in histories):
            raise DataError("a history is empty; at least one item is needed to go on from.")
        sequences = [self.builder.build(h, self.settings.use_text) for h in histories]
        device = self.lm.device
        scores = torch.empty(len(sequences), self.catalog.item_num, device=device)
        lengths = [len(s.input_ids) for s in sequences]
        for group in token_groups(lengths, self.settings.max_batch_tokens):
            batch = collate([sequences[i] for i in group], self.pad_token_id).to(device)
            with self._autocast():
                hidden_states = self._hidden_states(batch)[batch.queries]
            scores[torch.tensor(group, device=device)] = self.lm.item_logits(hidden_states)
        return scores

    def save(self, folder: Path) -> None:
        """Write a folder that ``AutoModelForCausalLM`` opens, with tokenizer and catalogue.

        Each file is written aside and renamed; from one save to the next only the weights
        change, so that an earlier model stays whole until a later one replaces it.
        """
        with folder_written_aside(folder) as aside:
            with no_progress_bars():
                self.lm.save_pretrained(aside)
            if not (folder / "tokenizer.json").exists():  # large as the catalogue, never changing
                self.tokenizer.save_pretrained(aside)
                self.catalog.save(folder)

    @classmethod
    def load(cls, folder: Path, settings: Settings, device: torch.device | str) -> CatalogLM:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the folder is incomplete or its parts do not belong together.
            MissingLibraryError: its model needs one that is not installed.
        """
        catalog = Catalog.load(folder)
        try:
            # Without it transformers would start from its defaults: a model of 7B.
            (folder / CONFIG_NAME).read_bytes()
            with no_progress_bars():
                lm = IdiomoeForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (CheckpointError, MissingLibraryError):
            raise
        except Exception as error:  # of a broken file, each library raises its own
            raise CheckpointError(
                f"{folder} holds no complete model ({type(error).__name__}); give a folder that "
                "a finished run wrote."
            ) from error
        return cls(lm.to(device).eval(), tokenizer, catalog, settings)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights that :meth:`save` wrote for this very model."""
        with no_progress_bars():
            saved = IdiomoeForCausalLM.from_pretrained(folder)
        self.lm.load_state_dict(saved.state_dict())

    def _hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        """Final hidden states of all positions, flattened to ``(B * T, d)``."""
        with sdpa_kernel(ATTENTION_KERNELS):
            output = self.lm.hidden_states(
                batch.input_ids, token_types=batch.token_types, segments=batch.segments
            )
        hidden_states = output.last_hidden_state
        assert hidden_states is not None
        return hidden_states.flatten(0, 1)

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether text alone says where an item belongs, so that one without history can rank."""
        from_text = self.settings.item_init == "text" or self.settings.item_text_added
        return from_text and any(self.catalog.texts)

    @property
    def uses_bf16(self) -> bool:
        """Whether the decoder computes in bfloat16; item scores never do."""
        precision = self.settings.precision
        return precision == "bf16" or (precision == "auto" and self.lm.device.type == "cuda")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.lm.device.type, dtype=torch.bfloat16, enabled=self.uses_bf16)

    def _sequence_builder(self) -> SequenceBuilder:
        settings, config = self.settings, self.lm.config.backbone_config
        max_tokens = settings.max_tokens
        context = getattr(config, "max_position_embeddings", None) or max_tokens
        if context < max_tokens:
            logger.warning(
                "max_tokens=%d is longer than the backbone's context; %d is used",
                max_tokens,
                context,
            )
            max_tokens = context
        instruction, *texts = encode_text(
            self.tokenizer, [settings.instruction or "", *self.catalog.texts]
        )
        return SequenceBuilder(
            [text[: settings.max_item_text_tokens] for text in texts],
            self.lm.config.item_token_offset,
            instruction=instruction,
            item_first=settings.segment_order == "ID text",
            max_tokens=max_tokens,
        )
