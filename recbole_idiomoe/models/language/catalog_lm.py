"""A language model with the catalogue of the items that it predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from recbole_idiomoe.base.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.base.files import atomic_folder_update
from recbole_idiomoe.data.batch import SequenceBatch, collate
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.loader import token_groups
from recbole_idiomoe.data.sequence import NOTHING, TokenSequence
from recbole_idiomoe.data.sequence_builder import SequenceBuilder
from recbole_idiomoe.data.text_tokens import text_tokens
from recbole_idiomoe.lm import (
    ARCHITECTURES,
    TWO_EXPERT,
    IdiomoeForCausalLM,
    add_item_tokens,
    encode_text,
    load_backbone,
    with_random_weights,
)
from recbole_idiomoe.lm.backbone import no_progress_bars
from recbole_idiomoe.lm.embedding import TextAttributeTable
from recbole_idiomoe.lm.item_shard import ItemTableShard
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.language.item_codes.base import CodeContext, ItemCodes
from recbole_idiomoe.models.language.item_codes.factory import ITEM_CODES, starting_vectors
from recbole_idiomoe.models.language.options import BackboneOptions, LanguageModelOptions
from recbole_idiomoe.models.language.soft_targets import Followers, SoftTargets, make_soft_targets

logger = logging.getLogger(__name__)

MAX_QUERY_TOKENS = 64

# A forward pass over fewer tokens is not faster: a GPU waits for the host to launch its kernels.
BUSY_TOKENS = {"cpu": 1024, "cuda": 8192}

_DECODER_SETTINGS = ["item_embedding_dim", "expert_layers", "expert_width", "expert_init"]
_DECODER_SETTINGS += ["attention", "item_scale", "dropout", "softmax"]


class CatalogLM(nn.Module):
    """Computes a loss, or scores of the whole catalogue, from histories of item rows.

    Args:
        tokenizer: the tokenizer of ``lm``, item tokens included.
        item_codes: the tokens of each item of ``catalog``.

    Raises:
        CheckpointError: the model does not have as many item tokens as the catalogue needs.
    """

    untrained: torch.Tensor

    def __init__(
        self,
        lm: IdiomoeForCausalLM,
        tokenizer: Any,
        catalog: Catalog,
        item_codes: ItemCodes,
        settings: LanguageModelOptions,
    ) -> None:
        super().__init__()
        lm.backbone.set_attn_implementation(settings.attn_implementation)
        if lm.config.item_num != len(item_codes.names):
            raise CheckpointError(
                f"the model knows {lm.config.item_num - 1} items, the catalogue has "
                f"{len(item_codes.names) - 1}; they do not belong together."
            )
        self.lm = lm
        self.tokenizer = tokenizer
        self.settings = settings
        self.soft_targets: SoftTargets | None = None
        """Softens the targets in training; not saved."""
        self.passes_of_all: Callable[[int], int] = lambda passes: passes
        """Maps this process's number of forward passes to the largest number of any process. To be
        set if all processes must do equally many."""
        self.pad_token_id = tokenizer.pad_token_id or 0
        self.set_catalog(catalog, item_codes)

    def set_catalog(self, catalog: Catalog, item_codes: ItemCodes) -> None:
        """Use ``catalog``, whose item tokens the language model and the tokenizer already have.

        Raises:
            SettingError: ``max_tokens`` has no room for two items. Nothing has changed then.
        """
        self.builder = self._sequence_builder(catalog, item_codes)
        self.catalog = catalog
        self.item_codes = item_codes
        self._described: set[Path] = set()  # folders that already hold tokenizer and items
        rows = item_codes.untrained_rows(catalog)
        untrained = torch.tensor(rows, dtype=torch.int64, device=self.lm.device)
        self.register_buffer("untrained", untrained, persistent=False)

    @classmethod
    def build(
        cls,
        catalog: Catalog,
        settings: LanguageModelOptions,
        *,
        seed: int,
        device: torch.device,
        architecture: str = TWO_EXPERT,
        pretrained: bool = True,
        followers: Followers | None = None,
    ) -> CatalogLM:
        """A new model for ``catalog``, on the CPU: a backbone with item experts and an item table.

        Args:
            device: where item texts are encoded.
            architecture: name in :data:`~recbole_idiomoe.lm.variants.ARCHITECTURES`.
            pretrained: keep the backbone's weights; otherwise only its sizes.
            followers: the items around each item in the training split, for
                ``transition_smoothing``.

        Raises:
            BackboneError: the backbone cannot be loaded.
            DataError: the settings need texts or titles, and no item has any.
        """
        backbone, tokenizer = untouched_backbone(settings, seed)
        vectors = starting_vectors(catalog, settings, (backbone, tokenizer), device, seed)
        if not pretrained:  # not earlier: texts are always encoded with the pretrained weights
            backbone = with_random_weights(backbone, seed)
        context = CodeContext(catalog, tokenizer, backbone.config.vocab_size, settings)
        item_codes = ITEM_CODES[settings.item_tokens].make(context, vectors, seed)
        vectors = item_codes.token_vectors(vectors, catalog)
        text_size = vectors.shape[1] if vectors is not None and settings.item_text_added else None
        lm = IdiomoeForCausalLM.from_backbone(
            backbone,
            len(item_codes.names),
            item_text_size=text_size,
            **{name: getattr(settings, name) for name in _DECODER_SETTINGS},
            seed=seed,
            architecture=architecture,
            architecture_args={
                name: getattr(settings, name) for name in ARCHITECTURES[architecture].options
            },
        )
        if vectors is not None:
            if settings.item_init == "text":
                lm.item_table.load_vectors(vectors, seed=seed)
            if isinstance(lm.item_table, TextAttributeTable):
                lm.item_table.load_text(vectors)
        lm.freeze(settings.freeze)
        add_item_tokens(tokenizer, item_codes.names, lm.config.item_token_offset)
        model = cls(lm, tokenizer, catalog, item_codes, settings)
        if settings.text_smoothing or settings.transition_smoothing:
            model.soft_targets = make_soft_targets(
                settings, catalog.item_num, vectors, followers, device
            )
        return model

    def loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The batch's part of the mean loss of its step, a scalar; the parts of a step add up.

        The loss is the cross entropy of the items' tokens over all item tokens (over the text
        vocabulary if items are written as titles), with soft targets if the settings ask for them,
        plus ``text_loss_weight`` times the cross entropy of the text between the items, plus the
        architecture's auxiliary loss.
        """
        with self.autocast():
            states = hidden_states(self.lm, batch)
            item_share = len(batch.targets) / batch.item_count
            loss = item_share * self._item_loss(states[batch.predict_at], batch)
            if self.settings.text_loss_weight and len(batch.predict_text_at):
                next_tokens = batch.input_ids.flatten()[batch.predict_text_at + 1]
                text_loss = self.lm.text_loss(states[batch.predict_text_at], next_tokens)
                text_share = len(next_tokens) / batch.text_count
                loss = loss + self.settings.text_loss_weight * text_share * text_loss
            auxiliary_loss = self.lm.auxiliary_loss(batch.token_types, batch.is_real)
            if auxiliary_loss is not None:
                loss = loss + item_share * auxiliary_loss
        return loss

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray], query: str | None = None) -> torch.Tensor:
        """Scores of every item as the next one, shape ``(len(histories), item_num)``, float32.

        Args:
            histories: item rows, oldest first, each of shape ``(n,)``. The model reads the most
                recent items that fit.
            query: what the user asks for, in words. The model reads it after the history.

        Raises:
            DataError: a history is empty and there is no query.
        """
        sequences = self.sequences(histories, query)
        lengths = [len(s.input_ids) + self.item_codes.ranking_tokens for s in sequences]
        busy_tokens = BUSY_TOKENS["cpu" if self.lm.device.type == "cpu" else "cuda"]
        groups = token_groups(lengths, self.settings.max_batch_tokens, busy_tokens)
        spare_passes = self.passes_of_all(len(groups)) - len(groups)
        found = []
        for group in groups + groups[-1:] * spare_passes:
            batch = collate([sequences[i] for i in group], self.pad_token_id)
            with self.autocast():
                found.append(self.item_codes.batch_outputs(self.lm, batch.to(self.lm.device)))
        outputs = torch.cat(found[: len(groups)])
        as_given = torch.from_numpy(np.argsort(np.concatenate(groups)))
        outputs = outputs.index_select(0, as_given.to(outputs.device, non_blocking=True))
        return self.item_codes.scores(self.lm, outputs)

    def sequences(
        self, histories: Sequence[np.ndarray], query: str | None = None
    ) -> list[TokenSequence]:
        """The token sequences that :meth:`scores` reads, one per history.

        Raises:
            DataError: a history is empty and there is no query.
        """
        if query is None and any(len(history) == 0 for history in histories):
            raise DataError("a history is empty; at least one item is needed to go on from.")
        asked = NOTHING if query is None else self.encode_query(query)
        with_text = np.full(len(histories), self.settings.use_text)
        return self.builder.build(histories, with_text, [asked] * len(histories))

    def encode_query(self, query: str) -> np.ndarray:
        """Token ids of the query prompt and the first ``MAX_QUERY_TOKENS`` tokens of a query."""
        prompt, words = encode_text(
            self.tokenizer, [self.settings.query_prompt or "", f" {query.strip()}"]
        )
        if len(words) > MAX_QUERY_TOKENS:
            logger.warning("only the first %d tokens of a query are read", MAX_QUERY_TOKENS)
        return np.array([*prompt, *words[:MAX_QUERY_TOKENS]], dtype=np.int64)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a folder that ``AutoModelForCausalLM`` opens, with tokenizer and catalogue.

        Each file is written under another name and then renamed. Only the weights change between
        two saves, so an earlier model stays complete until a later one replaces it.

        Args:
            weights: written in place of the model's own if these are distributed over processes.
        """
        with atomic_folder_update(folder) as aside:
            with no_progress_bars():
                self.lm.save_pretrained(aside, state_dict=weights)
            if folder not in self._described:  # these files are large, and do not change
                self.tokenizer.save_pretrained(aside)
                self.catalog.save(folder)
                self.item_codes.save(folder)
        self._described.add(folder)

    @classmethod
    def load(
        cls, folder: Path, settings: LanguageModelOptions, device: torch.device | str
    ) -> CatalogLM:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the folder is incomplete or its parts do not belong together.
            MissingLibraryError: the model needs a library that is not installed.
        """
        catalog = Catalog.load(folder)
        try:
            # Without this file transformers would build its default model of 7B parameters.
            (folder / CONFIG_NAME).read_bytes()
            with no_progress_bars():
                lm = IdiomoeForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (CheckpointError, MissingLibraryError):
            raise
        except Exception as error:  # each library raises errors of its own
            raise CheckpointError(
                f"{folder} holds no complete model ({type(error).__name__}); give a folder that "
                "a finished run wrote."
            ) from error
        context = CodeContext(catalog, tokenizer, lm.config.item_token_offset, settings)
        item_codes = ITEM_CODES[settings.item_tokens].load(context, folder)
        return cls(lm.to(device).eval(), tokenizer, catalog, item_codes, settings)

    def code_context(self, catalog: Catalog) -> CodeContext:
        """The input of the item codes of ``catalog``."""
        return CodeContext(catalog, self.tokenizer, self.lm.config.item_token_offset, self.settings)

    def load_item_codes(self, folder: Path) -> None:
        """Replace the item codes by the ones in a run's folder.

        Raises:
            CheckpointError: the codes are missing, broken, of another catalogue, or have another
                number of tokens than the model.
        """
        codes = self.item_codes.load(self.code_context(self.catalog), folder)
        if len(codes.names) != self.lm.config.item_num:
            raise CheckpointError(
                f"{folder} was trained with semantic IDs that are no longer made from the items' "
                "text here; restore its text_encoder, or the versions that its run.json names."
            )
        self.set_catalog(self.catalog, codes)

    def load_weights(self, folder: Path) -> None:
        """Load the weights that :meth:`save` wrote for this model."""
        with no_progress_bars():
            saved = IdiomoeForCausalLM.from_pretrained(folder)
        self.lm.load_state_dict(saved.state_dict())

    def _item_loss(self, states: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        """Mean cross entropy of the batch's targets, which ``states`` (N, d) predict."""
        if isinstance(self.lm.item_table, ItemTableShard):
            rows = batch.targets - self.lm.config.item_token_offset
            items, weights = rows.unsqueeze(1), torch.ones(len(rows), 1, device=rows.device)
            if self.soft_targets is not None:
                items, weights = self.soft_targets(rows, batch.previous)
                weights[:, 0] += 1  # makes probabilities of changes of probability
            return self.lm.item_table.cross_entropy(states, items, weights).mean()
        loss = self.item_codes.loss(self.lm, states, batch.targets, self.untrained)
        if self.soft_targets is not None:
            softening = self._softening(self.soft_targets, states, batch)
            loss = loss + softening / len(batch.targets)
        return loss

    def _softening(
        self, soft_targets: SoftTargets, states: torch.Tensor, batch: SequenceBatch
    ) -> torch.Tensor:
        """The part that soft targets add to the batch's summed cross entropy, a scalar."""
        rows = batch.targets - self.lm.config.item_token_offset
        items, gained = soft_targets(rows, batch.previous)
        return -self.lm.item_table.mixed_logits(states, items, gained).sum()

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether items that were not trained on can be ranked, by their text alone."""
        return self.item_codes.ranks_untrained(self.settings) and any(self.catalog.texts)

    @property
    def uses_bf16(self) -> bool:
        """Whether the decoder computes in bfloat16. Item scores are always in float32."""
        return computes_in_bf16(self.settings, self.lm.device)

    def autocast(self) -> torch.autocast:
        """A context in which the decoder computes in the precision that ``settings`` give."""
        return torch.autocast(self.lm.device.type, dtype=torch.bfloat16, enabled=self.uses_bf16)

    def _sequence_builder(self, catalog: Catalog, item_codes: ItemCodes) -> SequenceBuilder:
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
        most = settings.max_item_text_tokens
        return SequenceBuilder(
            text_tokens(self.tokenizer, catalog.texts, most, settings.token_cache),
            item_codes.codes,
            self.lm.config.item_token_offset,
            instruction=encode_text(self.tokenizer, [settings.instruction or ""])[0],
            item_first=settings.segment_order == "ID text",
            max_tokens=max_tokens,
        )


def computes_in_bf16(settings: LanguageModelOptions, device: torch.device) -> bool:
    """Whether a decoder with ``settings`` computes in bfloat16 on ``device``."""
    return settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")


def untouched_backbone(settings: BackboneOptions, seed: int) -> tuple[Any, Any]:
    """The decoder that the setting ``backbone`` names, as it was loaded, and its tokenizer.

    Args:
        seed: seed of the weights if the backbone is untrained.

    Raises:
        BackboneError: the backbone cannot be loaded.
    """
    return load_backbone(
        settings.backbone,
        backbone_args=settings.backbone_args,
        seed=seed,
        trust_remote_code=settings.trust_remote_code,
    )
