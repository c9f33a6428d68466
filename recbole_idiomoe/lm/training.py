"""Which weights train, and how: freezing policies and optimizer groups (sections B.4 and B.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.decoder import attention_of, backbone_ffns, decoder_layers
from recbole_idiomoe.lm.embedding import ItemTable


def freeze(backbone: PreTrainedModel, new_modules: Sequence[nn.Module], policy: str) -> None:
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

    Args:
        backbone: the decoder.
        new_modules: modules that are not the backbone's own, such as the item table and the item
            experts. They may be inside ``backbone``, and always train.
        policy: ``none``, ``backbone``, ``text_expert`` or ``attention``.

    Raises:
        SettingError: the policy is unknown.
        BackboneError: the policy is ``attention``, and the attention has an unknown name.
    """
    if policy not in ("none", "backbone", "text_expert", "attention"):
        raise SettingError(
            f"freeze={policy!r} is not one of 'none', 'backbone', 'text_expert', 'attention'."
        )
    backbone.requires_grad_(policy != "backbone")
    if policy == "text_expert":
        backbone.get_input_embeddings().requires_grad_(False)
        backbone.get_output_embeddings().requires_grad_(False)
        for ffn in backbone_ffns(backbone):
            ffn.requires_grad_(False)
    elif policy == "attention":
        for layer in decoder_layers(backbone):
            attention_of(layer).requires_grad_(False)
    # Last, because new modules may be inside of modules that were just frozen.
    for module in new_modules:
        module.requires_grad_(True)


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
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    Checkpointed.__name__ = block.__name__  # by which transformers and FSDP2 find blocks
    return Checkpointed


def parameter_groups(
    model: nn.Module,
    new_modules: Sequence[nn.Module],
    weight_decay: float,
    learning_rate: float,
    backbone_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW that hold each trained weight once (section B.4).

    Matrices get weight decay. Norms, biases and embeddings get none. Text and position embeddings,
    a head tied to them and the rows of the item table all count as embeddings, because decay would
    shrink items that a batch does not contain. W_u of a factorised item table is a matrix.

    Args:
        model: the whole model.
        new_modules: modules that are not the backbone's own, as in :func:`freeze`.
        weight_decay: weight decay of the matrices.
        learning_rate: learning rate of the new modules, and of all other weights too if
            ``backbone_learning_rate`` is None.
        backbone_learning_rate: learning rate of the weights that are not in the new modules.

    Returns:
        Non-empty groups, dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``:
        ``new`` or ``pretrained``, then ``decayed`` or ``plain``, such as ``"new/decayed"``.
    """
    new = {id(p) for module in new_modules for p in module.parameters()}
    embeddings = {
        id(p)
        for module in model.modules()
        for p in module.parameters(recurse=False)
        if isinstance(module, nn.Embedding) or (isinstance(module, ItemTable) and p is module.rows)
    }
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        origin = "new" if id(parameter) in new else "pretrained"
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        name = f"{origin}/{'decayed' if decays else 'plain'}"
        own_rate = origin == "pretrained" and backbone_learning_rate is not None
        group = groups.setdefault(
            name,
            {
                "params": [],
                "lr": backbone_learning_rate if own_rate else learning_rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": name,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
