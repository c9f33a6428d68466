"""Which weights train, and how: freezing policies and optimizer groups (sections B.4 and B.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.decoder import (
    ATTENTION_KERNELS,
    attention_of,
    backbone_ffns,
    decoder_layers,
)
from recbole_idiomoe.lm.embedding import ItemTable


@torch.no_grad()
def halve_frozen(model: PreTrainedModel) -> None:
    """Store frozen projections in bfloat16, in place, if their values do not change by it.

    This is for training under bfloat16 autocast, which would copy the float32 weights to bfloat16
    in every forward pass. Most pretrained weights have bfloat16 values anyway. Results stay equal
    bit for bit. Embeddings, the head and norms stay as they are, because their precision is the
    precision of the residual stream.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        for weight in module.parameters(recurse=False):
            half = weight.to(torch.bfloat16)
            if not weight.requires_grad and torch.equal(half.to(weight.dtype), weight):
                weight.data = half


def checkpoint_blocks(backbone: PreTrainedModel) -> None:
    """Turn activation checkpointing on for every block: backward recomputes it from its input.

    transformers' own checkpointing is not used, because some releases of it run the hooks of
    FSDP2 again in the recomputation, and a compiled block is then compiled a second time.
    """
    for layer in decoder_layers(backbone):
        layer.__class__ = _with_checkpoint(type(layer))  # type: ignore[arg-type]


@cache
def _with_checkpoint(block: type[nn.Module]) -> type[nn.Module]:
    """The class ``block`` with activation checkpointing, as a subclass."""

    class Checkpointed(block):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().forward(*args, **kwargs)
            return checkpoint(self._attending, *args, use_reentrant=False, **kwargs)

        def _attending(self, *args: Any, **kwargs: Any) -> Any:
            # Backward runs outside the caller's choice of kernels, and must take the same ones.
            with sdpa_kernel(ATTENTION_KERNELS):
                return super().forward(*args, **kwargs)

    Checkpointed.__name__ = block.__name__  # by which transformers and FSDP2 find blocks
    return Checkpointed


class PartlyTrained(nn.Module):
    """A model on a pretrained backbone, of which a policy may freeze parts."""

    backbone: PreTrainedModel
    item_table: ItemTable
    added: list[nn.Module]
    """Modules inside ``backbone`` that are not its own, such as the item experts."""

    @property
    def new_modules(self) -> list[nn.Module]:
        """The modules that are not the backbone's own: the item table, then :attr:`added`."""
        return [self.item_table, *self.added]

    def freeze(self, policy: str) -> None:
        """Set which weights train (section B.5, item 6); an earlier policy is undone.

        =========================  ====  ========  ===========  =========
        trains under the policy    none  backbone  text_expert  attention
        =========================  ====  ========  ===========  =========
        new modules                yes   yes       yes          yes
        attention, norms in it     yes   no        yes          no
        other norms, GPT-2's wpe   yes   no        yes          yes
        text experts [1]_          yes   no        no           yes
        text embedding, head       yes   no        no           yes
        =========================  ====  ========  ===========  =========

        .. [1] the backbone's own FFNs.

        Raises:
            SettingError: the policy is unknown.
            BackboneError: the policy is ``attention``, and the attention has an unknown name.
        """
        if policy not in ("none", "backbone", "text_expert", "attention"):
            raise SettingError(
                f"freeze={policy!r} is not one of 'none', 'backbone', 'text_expert', 'attention'."
            )
        backbone = self.backbone
        backbone.requires_grad_(policy != "backbone")
        frozen: Sequence[nn.Module] = ()
        if policy == "text_expert":
            embeddings = backbone.get_input_embeddings(), backbone.get_output_embeddings()
            frozen = (*embeddings, *backbone_ffns(backbone))
        elif policy == "attention":
            frozen = [attention_of(layer) for layer in decoder_layers(backbone)]
        for module in frozen:
            module.requires_grad_(False)
        # Last, because new modules may be inside of modules that were just frozen.
        for module in self.new_modules:
            module.requires_grad_(True)

    def parameter_groups(
        self, weight_decay: float, learning_rate: float, backbone_learning_rate: float | None = None
    ) -> list[dict[str, Any]]:
        """Parameter groups for AdamW that hold each trained weight once (section B.4).

        Matrices get weight decay. Norms, biases and embeddings get none. Text and position
        embeddings, a head tied to them and the rows of the item table all count as embeddings,
        because decay would shrink items that a batch does not contain. W_u of a factorised item
        table is a matrix.

        Args:
            weight_decay: weight decay of the matrices.
            learning_rate: learning rate of :attr:`new_modules`.
            backbone_learning_rate: learning rate of all other weights; None: ``learning_rate``.

        Returns:
            Non-empty groups, dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``:
            ``new`` or ``pretrained``, then ``decayed`` or ``plain``, such as ``"new/decayed"``.
        """
        if backbone_learning_rate is None:
            backbone_learning_rate = learning_rate
        new = {p for module in self.new_modules for p in module.parameters()}
        embeddings = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        embedded = {self.item_table.rows, *(module.weight for module in embeddings)}
        groups: dict[str, dict[str, Any]] = {}
        for parameter in filter(lambda p: p.requires_grad, self.parameters()):
            is_new = parameter in new
            decays = parameter.ndim >= 2 and parameter not in embedded
            name = f"{'new' if is_new else 'pretrained'}/{'decayed' if decays else 'plain'}"
            empty_group = {
                "params": [],
                "lr": learning_rate if is_new else backbone_learning_rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": name,
            }
            groups.setdefault(name, empty_group)["params"].append(parameter)
        return list(groups.values())
