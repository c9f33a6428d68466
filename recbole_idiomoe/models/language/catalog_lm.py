"""A language model together with the catalogue that it speaks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from recbole_idiomoe.base.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.base.files import folder_written_aside
from recbole_idiomoe.data.batch import SequenceBatch, collate
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.item_codes import ItemCodes, load_item_codes, make_item_codes
from recbole_idiomoe.data.loader import token_groups
from recbole_idiomoe.data.sequence import NOTHING, SequenceBuilder, TokenSequence
from recbole_idiomoe.data.text_encoder import item_vectors
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
from recbole_idiomoe.lm.item_shard import ItemTableShard
from recbole_idiomoe.lm.prefix_tree import PIECE_SIZE, PrefixTree, rank_leaves
from recbole_idiomoe.lm.progress import no_progress_bars
from recbole_idiomoe.lm.text_attributes import TextAttributeTable
from recbole_idiomoe.models.language.options import BackboneOptions, LanguageModelOptions
from recbole_idiomoe.models.language.soft_targets import Followers, SoftTargets, make_soft_targets

logger = logging.getLogger(__name__)

MAX_QUERY_TOKENS = 64

# Fewer tokens in a pass do not make it shorter: a GPU waits for the host to launch its kernels.
BUSY_TOKENS = {"cpu": 1024, "cuda": 8192}

# All but cuDNN's, which plans anew for every shape, and here every batch has its own length.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class CatalogLM(nn.Module):
    """Histories of item rows in, a loss or scores of the whole catalogue out.

    Args:
        lm: the language model.
        tokenizer: its tokenizer, item tokens included.
        catalog: the items.
        item_codes: the tokens that they are spelt in.
        settings: how a history becomes a sequence.

    Raises:
        CheckpointError: the model has not as many item tokens as the catalogue needs.
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
        """Of training, where its targets are soft; not saved."""
        self.passes_of_all: Callable[[int], int] | None = None
        """From this process's forward passes to those of all, where all must do as many."""
        self.pad_token_id = tokenizer.pad_token_id or 0
        self.set_catalog(catalog, item_codes)

    def set_catalog(self, catalog: Catalog, item_codes: ItemCodes) -> None:
        """Speak of ``catalog``, whose tokens the language model and the tokenizer know.

        Raises:
            SettingError: ``max_tokens`` has no room for two items; nothing is changed then.
        """
        self.builder = self._sequence_builder(catalog, item_codes)
        self.catalog = catalog
        self.item_codes = item_codes
        self._tree: PrefixTree | None = None
        self._described: set[Path] = set()  # folders that have been given tokenizer and items
        # Tokens that items share are trained on, whichever item they are held out with.
        rows = catalog.untrained if self.settings.item_tokens == "atomic" else []
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
        """A new model for ``catalog``: a backbone, item experts, item tokens, an item table.

        Args:
            architecture: what takes the place of the item experts, a name in
                :data:`~recbole_idiomoe.lm.architectures.ARCHITECTURES`.
            pretrained: keep the backbone's weights, or only its sizes.
            followers: for ``transition_smoothing``, of the training split.
        """
        backbone, tokenizer = untouched_backbone(settings, seed)
        vectors = None
        if _wants_vectors(catalog, settings):
            vectors = item_vectors(
                catalog,
                settings.text_encoder,
                dim=settings.item_embedding_dim or backbone.config.hidden_size,
                backbone=(backbone, tokenizer),
                device=device,
                seed=seed,
            )
        if not pretrained:  # now: what its states say of a text is asked for new items, too
            backbone = with_random_weights(backbone, seed)
        item_codes = make_item_codes(
            catalog, settings, tokenizer, backbone.config.vocab_size, vectors, seed
        )
        if item_codes.semantic_ids is not None:
            vectors = item_codes.semantic_ids.token_vectors()
        elif vectors is not None:
            vectors[catalog.untrained] = 0  # nor does training know what they say
        text_size = vectors.shape[1] if vectors is not None and settings.item_text_added else None
        lm = IdiomoeForCausalLM.from_backbone(
            backbone,
            len(item_codes.names),
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
        add_item_tokens(tokenizer, item_codes.names, lm.config.item_token_offset)
        model = cls(lm, tokenizer, catalog, item_codes, settings)
        if settings.text_smoothing or settings.transition_smoothing:
            model.soft_targets = make_soft_targets(
                settings, catalog.item_num, vectors, followers, device
            )
        return model

    def loss(self, batch: SequenceBatch) -> torch.Tensor:
        """This batch's share of its step's mean loss: the shares of a step add up to the mean.

        Cross entropy of the items' tokens over all item tokens (over the text vocabulary where
        items are their titles), their targets soft where the settings say so, plus
        ``text_loss_weight`` times that of the text between them, plus what the architecture adds.
        """
        with self.autocast():
            hidden_states = self._hidden_states(batch)
            share = len(batch.targets) / batch.item_count
            loss = share * self._item_loss(hidden_states[batch.predict_at], batch)
            if self.settings.text_loss_weight and len(batch.predict_text_at):
                next_tokens = batch.input_ids.flatten()[batch.predict_text_at + 1]
                text_loss = self.lm.text_loss(hidden_states[batch.predict_text_at], next_tokens)
                share = len(next_tokens) / batch.text_count
                loss = loss + self.settings.text_loss_weight * share * text_loss
            auxiliary_loss = self.lm.auxiliary_loss(batch.token_types, batch.is_real)
            if auxiliary_loss is not None:
                loss = loss + len(batch.targets) / batch.item_count * auxiliary_loss
        return loss

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray], query: str | None = None) -> torch.Tensor:
        """Scores of every item as the next one, shape ``(len(histories), item_num)``, float32.

        Args:
            histories: item rows, oldest first, each of shape ``(n,)``. The most recent ones that
                fit are read.
            query: what the user asks for, in words; it stands behind the history.

        Raises:
            DataError: a history is empty and nothing is asked for.
        """
        sequences = self.sequences(histories, query)
        atomic = self.settings.item_tokens == "atomic"
        # A piece of the tree stands behind each history.
        lengths = [len(s.input_ids) + (0 if atomic else PIECE_SIZE) for s in sequences]
        busy_tokens = BUSY_TOKENS["cpu" if self.lm.device.type == "cpu" else "cuda"]
        groups = token_groups(lengths, self.settings.max_batch_tokens, busy_tokens)
        compute = self._last_states if atomic else self._leaf_scores
        passes = self.passes_of_all(len(groups)) if self.passes_of_all else len(groups)
        found = []
        for group in groups + groups[-1:] * (passes - len(groups)):
            batch = collate([sequences[i] for i in group], self.pad_token_id)
            found.append(compute(batch.to(self.lm.device)))
        computed = torch.cat(found[: len(groups)])
        as_given = torch.from_numpy(np.argsort(np.concatenate(groups)))
        computed = computed.index_select(0, as_given.to(computed.device, non_blocking=True))
        # One product with the catalogue: its scores are then held once.
        return self.lm.item_logits(computed) if atomic else computed

    def sequences(
        self, histories: Sequence[np.ndarray], query: str | None = None
    ) -> list[TokenSequence]:
        """The tokens that :meth:`scores` reads of its arguments; raises as it does."""
        if query is None and any(len(history) == 0 for history in histories):
            raise DataError("a history is empty; at least one item is needed to go on from.")
        asked = NOTHING if query is None else self.encode_query(query)
        with_text = np.full(len(histories), self.settings.use_text)
        return self.builder.build_all(histories, with_text, [asked] * len(histories))

    def encode_query(self, query: str) -> np.ndarray:
        """Token ids of a query behind its prompt, at most 64 of its own."""
        prompt, words = encode_text(
            self.tokenizer, [self.settings.query_prompt or "", f" {query.strip()}"]
        )
        if len(words) > MAX_QUERY_TOKENS:
            logger.warning("a query is read to its %dth token alone", MAX_QUERY_TOKENS)
        return np.array([*prompt, *words[:MAX_QUERY_TOKENS]], dtype=np.int64)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a folder that ``AutoModelForCausalLM`` opens, with tokenizer and catalogue.

        Each file is written aside and renamed; from one save to the next only the weights
        change, so that an earlier model stays whole until a later one replaces it.

        Args:
            weights: the language model's, where its own are cut into parts.
        """
        with folder_written_aside(folder) as aside:
            with no_progress_bars():
                self.lm.save_pretrained(aside, state_dict=weights)
            if folder not in self._described:  # large as the catalogue, never changing
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
            MissingLibraryError: its model needs one that is not installed.
        """
        catalog = Catalog.load(folder)
        try:
            # Without it transformers would start from its defaults: a model of 7B.
            (folder / CONFIG_NAME).read_bytes()
            with no_progress_bars():
                lm = IdiomoeForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (CheckpointError, MissingLibraryError):
            raise
        except Exception as error:  # of a broken file, each library raises its own
            raise CheckpointError(
                f"{folder} holds no complete model ({type(error).__name__}); give a folder that "
                "a finished run wrote."
            ) from error
        offset = lm.config.item_token_offset
        item_codes = load_item_codes(folder, catalog, settings, tokenizer, offset)
        return cls(lm.to(device).eval(), tokenizer, catalog, item_codes, settings)

    def load_item_codes(self, folder: Path) -> None:
        """Take over the codes of a run's folder.

        Raises:
            CheckpointError: they are missing, broken, of another catalogue, or of more or fewer
                tokens than the model has.
        """
        offset = self.lm.config.item_token_offset
        codes = load_item_codes(folder, self.catalog, self.settings, self.tokenizer, offset)
        if len(codes.names) != self.lm.config.item_num:
            raise CheckpointError(
                f"{folder} was trained with semantic IDs that are no longer made from the items' "
                "text here; restore its text_encoder, or the versions that its run.json names."
            )
        self.set_catalog(self.catalog, codes)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights that :meth:`save` wrote for this very model."""
        with no_progress_bars():
            saved = IdiomoeForCausalLM.from_pretrained(folder)
        self.lm.load_state_dict(saved.state_dict())

    def _item_loss(self, hidden_states: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        """Mean cross entropy of the batch's targets, from the states (N, d) that predict them."""
        if self._in_text:
            return self.lm.text_loss(hidden_states, batch.targets)
        rows = batch.targets - self.lm.config.item_token_offset
        if isinstance(self.lm.item_table, ItemTableShard):
            items, weights = rows.unsqueeze(1), torch.ones(len(rows), 1, device=rows.device)
            if self.soft_targets is not None:
                items, weights = self.soft_targets(rows, batch.previous)
                weights[:, 0] += 1  # what the target gains, or loses, becomes what it has
            return self.lm.item_table.cross_entropy(hidden_states, items, weights).mean()
        loss = self.lm.item_loss(hidden_states, rows, excluded=self.untrained)
        if self.soft_targets is not None:
            loss = loss + self._softening(self.soft_targets, hidden_states, batch) / len(rows)
        return loss

    def _softening(
        self, soft_targets: SoftTargets, hidden_states: torch.Tensor, batch: SequenceBatch
    ) -> torch.Tensor:
        """What soft targets add to the summed cross entropy of the batch's targets."""
        rows = batch.targets - self.lm.config.item_token_offset
        items, gained = soft_targets(rows, batch.previous)
        return -self.lm.item_table.mixed_logits(hidden_states, items, gained).sum()

    def _last_states(self, batch: SequenceBatch) -> torch.Tensor:
        """What the next item is predicted from after each sequence, ``(B, d)``."""
        with self.autocast():
            return self._hidden_states(batch)[batch.predict_at]

    def _leaf_scores(self, batch: SequenceBatch) -> torch.Tensor:
        """Scores of every item after each sequence, ``(B, item_num)``, by its whole code."""
        device = batch.input_ids.device
        if self._tree is None or self._tree.tokens.device != device:
            self._tree = PrefixTree(self.item_codes.codes[1:], device)
        history = batch.input_ids, batch.token_types, batch.lengths
        with self.autocast(), sdpa_kernel(ATTENTION_KERNELS):
            if self._in_text:
                scores = rank_leaves(self.lm, self._tree, *history, self.lm.text_logits)
            else:
                offset = self.lm.config.item_token_offset
                scores = rank_leaves(self.lm, self._tree, *history, self.lm.item_logits, offset)
        return F.pad(scores, (1, 0), value=-torch.inf)

    @property
    def _in_text(self) -> bool:
        """Whether items are spelt in text tokens."""
        return self.settings.item_tokens == "title"

    def _hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        """Final hidden states of all positions, flattened to ``(B * T, d)``."""
        with sdpa_kernel(ATTENTION_KERNELS):
            output = self.lm.hidden_states(
                batch.input_ids,
                token_types=batch.token_types,
                segments=batch.segments,
                item_count=batch.item_tokens,
            )
        hidden_states = output.last_hidden_state
        assert hidden_states is not None
        return hidden_states.flatten(0, 1)

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether text alone says where an item belongs, so that one without history can rank."""
        settings = self.settings
        from_text = (
            settings.item_init == "text"
            or settings.item_text_added
            or settings.item_tokens != "atomic"
        )
        return from_text and any(self.catalog.texts)

    @property
    def uses_bf16(self) -> bool:
        """Whether the decoder computes in bfloat16; item scores never do."""
        return computes_in_bf16(self.settings, self.lm.device)

    def autocast(self) -> torch.autocast:
        """Where the decoder is to compute in the precision that ``settings`` say."""
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
        (instruction,) = encode_text(self.tokenizer, [settings.instruction or ""])
        most = settings.max_item_text_tokens
        return SequenceBuilder(
            text_tokens(self.tokenizer, catalog.texts, most, settings.token_cache),
            item_codes.codes,
            self.lm.config.item_token_offset,
            instruction=instruction,
            item_first=settings.segment_order == "ID text",
            max_tokens=max_tokens,
        )


def computes_in_bf16(settings: LanguageModelOptions, device: torch.device) -> bool:
    """Whether a decoder with ``settings`` computes in bfloat16 on ``device``."""
    return settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")


def untouched_backbone(settings: BackboneOptions, seed: int) -> tuple[Any, Any]:
    """The decoder that ``settings`` names, as it was before any training here, and its tokenizer.

    Args:
        seed: of an untrained one's weights.

    Raises:
        BackboneError: it cannot be loaded.
    """
    return load_backbone(
        settings.backbone,
        backbone_args=settings.backbone_args,
        seed=seed,
        trust_remote_code=settings.trust_remote_code,
    )


def _wants_vectors(catalog: Catalog, settings: LanguageModelOptions) -> bool:
    """Whether the items' text vectors are of use.

    Raises:
        DataError: they are what the model is made of, and no item has text.
    """
    needed_by = {
        "item_text_added": settings.item_text_added,
        "item_tokens='semantic'": settings.item_tokens == "semantic",
        "text_smoothing": settings.text_smoothing > 0,
    }
    described = any(catalog.texts)
    for name, needed in needed_by.items():
        if needed and not described:
            raise DataError(
                f"{name}: no item has text; name its columns in item_text_fields, or leave it out."
            )
    from_text = settings.item_init == "text" and settings.item_tokens != "title"
    return described and (from_text or any(needed_by.values()))
