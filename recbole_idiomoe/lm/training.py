"""What trains and how: freezing policies and optimizer groups (sections B.4 and B.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.decoder import attention_of, backbone_ffns, decoder_layers
from recbole_idiomoe.lm.embedding import ItemTable

if TYPE_CHECKING:
    from recbole_idiomoe.lm.modeling import IdiomoeForCausalLM


def freeze(model: IdiomoeForCausalLM, policy: str) -> None:
    """Choose which weights train (section B.5, 6); an earlier choice is undone.

    =========================  ====  ========  ===========  =========
    trains under the policy    none  backbone  text_expert  attention
    =========================  ====  ========  ===========  =========
    item table, what is new    yes   yes       yes          yes
    attention, norms in it     yes   no        yes          no
    other norms, GPT-2's wpe   yes   no        yes          yes
    text experts [1]_          yes   no        no           yes
    text embedding, head       yes   no        no           yes
    =========================  ====  ========  ===========  =========

    .. [1] the FFNs that the backbone brought.

    New are the item experts; in another architecture, the modules that it adds.

    Raises:
        SettingError: an unknown policy.
        BackboneError: ``attention`` on a backbone whose attention has an unknown name.
    """
    if policy not in ("none", "backbone", "text_expert", "attention"):
        raise SettingError(
            f"freeze={policy!r} is not one of 'none', 'backbone', 'text_expert', 'attention'."
        )
    model.requires_grad_(True)
    if policy == "backbone":
        model.backbone.requires_grad_(False)
    elif policy == "text_expert":
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
        for ffn in backbone_ffns(model.backbone):
            ffn.requires_grad_(False)
    elif policy == "attention":
        for layer in decoder_layers(model.backbone):
            attention_of(layer).requires_grad_(False)
    # What is new may sit inside what was just frozen.
    for module in _new_modules(model):
        module.requires_grad_(True)


@torch.no_grad()
def halve_frozen(model: IdiomoeForCausalLM) -> None:
    """Hold projections that do not train in bfloat16, in place, where that loses nothing.

    For training in bfloat16 over weights of float32: autocast would make the same copy of them
    in every forward pass, and pretrained weights mostly were of that precision to begin with.
    What is computed stays the same bit for bit. Embeddings, a head tied to one and norms are left
    alone: the residual stream has their precision.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        for weight in module.parameters(recurse=False):
            half = weight.to(torch.bfloat16)
            if not weight.requires_grad and torch.equal(half.to(weight.dtype), weight):
                weight.data = half


def checkpoint_blocks(model: IdiomoeForCausalLM) -> None:
    """Let every block keep its input alone for the backward pass, and compute the rest again then.

    Transformers has the same, but not in all of its releases beneath the hooks of FSDP2: those
    would run again as well, upon which a compiled block is compiled anew, into something else.
    """
    for layer in decoder_layers(model.backbone):
        layer.forward = _computed_again(layer.forward)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return checkpointed


def parameter_groups(
    model: IdiomoeForCausalLM,
    weight_decay: float,
    learning_rate: float,
    backbone_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """AdamW groups of the weights that train, each weight once, empty groups left out.

    Matrices decay. Norms, biases and embeddings do not: text and position embeddings, a
    head tied to them, and the item table's rows, since an item that no batch mentions
    would shrink all the same. W_u is a matrix like any other.

    Args:
        weight_decay: of the matrices.
        learning_rate: of what is new, as in :func:`freeze`, and of the rest
            unless ``backbone_learning_rate`` is given.

    Returns:
        Dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``: new or
        pretrained, decayed or not, as in ``"new/decayed"``.
    """
    new = {id(p) for module in _new_modules(model) for p in module.parameters()}
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


def _new_modules(model: IdiomoeForCausalLM) -> list[nn.Module]:
    """What the backbone did not bring."""
    return [model.item_table, *model.added]
