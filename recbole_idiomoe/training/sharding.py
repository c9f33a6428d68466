"""A model whose weights, gradients and optimizer state are cut into a part a rank.

All of them by FSDP2: around every block of the decoder its weights are gathered, used and let go
again, forwards and backwards; what is outside of the blocks is gathered around the whole. Or,
beside DDP, the item table's rows alone, which are never gathered. What is written to disk is whole,
as one process writes it, and any number of processes reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.distributed import own_rows, whole_shape
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.backbone import no_progress_bars
from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.item_shard import ItemTableShard, RowExchange
from recbole_idiomoe.models.language.catalog_lm import CatalogLM, computes_in_bf16
from recbole_idiomoe.models.language.options import LanguageModelOptions


def is_sharded(settings: LanguageModelOptions) -> bool:
    """Whether a model with ``settings`` is cut, which in one process none is."""
    return settings.sharding == "fsdp2" and distributed.world_size() > 1


def shard(model: CatalogLM, device: torch.device) -> None:
    """Cut a model that is the same on every rank, in place, and move its parts to ``device``.

    From then on it is for :meth:`CatalogLM.loss` and :meth:`CatalogLM.scores`, which all ranks
    call together, each with what is its own.

    Raises:
        SettingError: a setting that needs the weights whole.
    """
    if model.catalog.untrained:
        raise SettingError("sharding=fsdp2 does not go with cold_start; take sharding=ddp.")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (distributed.world_size(),)),
        # Also of what is outside of the blocks: what an evaluation leaves gathered would not
        # follow when the weights change.
        "reshard_after_forward": True,
    }
    blocks = dict(options)
    if computes_in_bf16(model.settings, device):
        # What autocast makes of them anyway, in half the bytes; the residual stream stays float32.
        blocks["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for layer in decoder_layers(model.lm.backbone):
        fully_shard(layer, **blocks)
    fully_shard(model, **options)
    for method in ("loss", "scores"):
        register_fsdp_forward_method(model, method)
    model.passes_of_all = distributed.largest


def has_cut_items(settings: LanguageModelOptions) -> bool:
    """Whether the item table of a model with ``settings`` is cut, which in one process none is."""
    return settings.shard_items and distributed.world_size() > 1


def placed(model: Any, settings: LanguageModelOptions, device: torch.device) -> Any:
    """A recommender on ``device``, its item table cut before if it is to be.

    What FSDP2 cuts goes there as :func:`shard` cuts it.
    """
    if has_cut_items(settings):
        cut_items(model.catalog_lm)
    return model if is_sharded(settings) else model.to(device)


def cut_items(model: CatalogLM) -> None:
    """Leave a model that is the same on every rank this rank's rows of its item table, in place.

    From then on :meth:`CatalogLM.loss` and :meth:`CatalogLM.scores` are called by all ranks
    together, each with what is its own.

    Raises:
        SettingError: a setting, or a kind of model, that needs the table whole.
    """
    settings, table = model.settings, model.lm.item_table
    needs_whole = {
        "item_text_added": settings.item_text_added,
        # First of what such a model sets by itself.
        "a model with item tables of its own": type(table) is not ItemTable,
        "sharding=fsdp2": settings.sharding != "ddp",
        "cold_start": bool(model.catalog.untrained),
        f"item_tokens={settings.item_tokens}": not model.item_codes.one_token_each,
        "softmax=hybrid": settings.softmax != "item",
        "item_embedding_dim": table.up is not None,
    }
    for what, is_so in needs_whole.items():
        if is_so:
            raise SettingError(f"shard_items does not go with {what}; leave one of them out.")
    model.lm.item_table = ItemTableShard(table, RowExchange())
    model.passes_of_all = distributed.largest


def leave_cut_to_ranks(model: nn.Module) -> bool:
    """Have DDP, which ``model`` is about to be given to, not touch weights that are cut.

    Returns:
        Whether there are others that train: without any, it takes no model.
    """
    names = [name for name, weight in model.named_parameters() if own_rows(weight)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return any(w.requires_grad and not own_rows(w) for w in model.parameters())


def clip_gradients(
    weights: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
) -> torch.Tensor:
    """torch's ``clip_grad_norm_`` beside DDP: every gradient counts once, cut ones in their parts.

    Returns:
        The norm before.
    """
    weights = list(weights)
    learnt = [(weight.grad, own_rows(weight)) for weight in weights if weight.grad is not None]
    parts = distributed.stacked(get_total_norm([g for g, rows in learnt if rows], norm_type))
    uncut = get_total_norm([g for g, rows in learnt if not rows], norm_type)
    norm = torch.linalg.vector_norm(torch.cat((uncut.reshape(1).to(parts), parts)), norm_type)
    clip_grads_with_norm_(weights, max_norm, norm)
    return norm


def whole(value: Any, like: Any = None) -> Any:
    """``value``, tensors in dictionaries and lists, with every cut one put together, on the CPU.

    All ranks call it together; the others than rank 0 get nothing for a cut tensor.

    Args:
        like: the weight that a tensor is of, or belongs to; of a list, as long a one.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if distributed.is_main() else None
    if (rows := own_rows(like)) and getattr(value, "shape", None) == like.shape:
        parts = distributed.gathered_on_main(value)
        return torch.cat(parts)[: rows.item_num] if parts else None
    if isinstance(value, dict):
        return {key: whole(part, like) for key, part in value.items()}
    if isinstance(value, list):
        weights = like if isinstance(like, list) else [None] * len(value)
        return [whole(part, weight) for part, weight in zip(value, weights, strict=True)]
    return value


def whole_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """``module.state_dict()`` with :func:`whole` tensors; tied ones stay one tensor."""
    own = module.state_dict(keep_vars=True)
    made = {id(tensor): tensor for tensor in own.values()}
    made = {key: whole(tensor.detach(), tensor) for key, tensor in made.items()}
    return {name: made[id(tensor)] for name, tensor in own.items()}


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """``optimizer.state_dict()`` with :func:`whole` tensors."""
    state = optimizer.state_dict()
    by_number = dict(enumerate(optimized(optimizer)))
    return {**state, "state": {n: whole(part, by_number[n]) for n, part in state["state"].items()}}


def optimized(optimizer: Any) -> list[torch.Tensor]:
    """The weights of an optimizer, in the order of its state's numbers."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def cut(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``full``, which all ranks have, if ``like`` is cut; else all of it."""
    if rows := own_rows(like):
        return rows.of(full)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(
        full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def cut_weights(full: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """A whole state of ``module`` as its ``load_state_dict`` takes it, cut items whole."""
    own = module.state_dict()
    return {n: cut(tensor, own[n]) if n in own else tensor for n, tensor in full.items()}


def cut_optimizer_state(
    full: Mapping[str, Any], parameters: Iterable[torch.Tensor]
) -> dict[str, Any]:
    """A whole state of an optimizer of ``parameters`` as its ``load_state_dict`` takes it."""
    by_number = dict(enumerate(parameters))
    state = {
        number: {
            name: cut(value, by_number[number])
            if getattr(value, "shape", None) == whole_shape(by_number[number])
            else value
            for name, value in values.items()
        }
        for number, values in full["state"].items()
    }
    return {**full, "state": state}


def load_saved(lm: IdiomoeForCausalLM, folder: Path) -> None:
    """Give a cut model the weights in ``folder``, which rank 0 reads and sends to the others."""
    saved: dict[str, Any] = {}
    if distributed.is_main():
        with no_progress_bars():
            saved = IdiomoeForCausalLM.from_pretrained(folder).state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(lm, saved, options=options)
