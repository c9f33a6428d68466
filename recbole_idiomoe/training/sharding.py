"""A model whose weights, gradients and optimizer state are sharded: each rank holds a part.

With ``sharding=fsdp2``, FSDP2 shards all weights. It gathers the weights of a decoder block around
each pass through the block, and all other weights around the whole model. With ``shard_items``,
only the rows of the item table are sharded, beside DDP, and never gathered. Files always hold whole
tensors, as one process would write them, so that any number of processes can read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
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
    """Whether FSDP2 shards a model with ``settings``; never in a run of one process."""
    return settings.sharding == "fsdp2" and distributed.world_size() > 1


def has_cut_items(settings: LanguageModelOptions) -> bool:
    """Whether the item table of a model with ``settings`` is sharded; never in one process."""
    return settings.shard_items and distributed.world_size() > 1


def placed(model: Any, settings: LanguageModelOptions, device: torch.device) -> Any:
    """Shard the item table of a recommender, if ``settings`` say so, and move it to ``device``.

    A model that FSDP2 will shard is not moved; :func:`shard` moves its parts.

    Raises:
        SettingError: a setting, or this kind of model, needs the whole item table.
    """
    if has_cut_items(settings):
        cut_items(model.catalog_lm)
    return model if is_sharded(settings) else model.to(device)


def shard(model: CatalogLM, device: torch.device) -> None:
    """Shard a model that is the same on every rank in place by FSDP2, on ``device``.

    All ranks must then call :meth:`CatalogLM.loss` and :meth:`CatalogLM.scores` together, each
    with its own batch.

    Raises:
        SettingError: the run is a cold start, which needs the whole weights.
    """
    if model.catalog.untrained:
        raise SettingError("sharding=fsdp2 does not go with cold_start; take sharding=ddp.")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (distributed.world_size(),)),
        # Also for weights outside the blocks: if an evaluation left them gathered, they would not
        # follow when the weights change.
        "reshard_after_forward": True,
    }
    blocks = dict(options)
    if computes_in_bf16(model.settings, device):
        # Autocast would cast the weights too, but gather twice the bytes. The residual stream
        # stays float32.
        blocks["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for layer in decoder_layers(model.lm.backbone):
        fully_shard(layer, **blocks)
    fully_shard(model, **options)
    for method in ("loss", "scores"):
        register_fsdp_forward_method(model, method)
    model.passes_of_all = distributed.largest


def cut_items(model: CatalogLM) -> None:
    """Replace the item table of a model that is the same on every rank by this rank's rows.

    All ranks must then call :meth:`CatalogLM.loss` and :meth:`CatalogLM.scores` together, each
    with its own batch.

    Raises:
        SettingError: a setting, or this kind of model, needs the whole item table.
    """
    settings, table = model.settings, model.lm.item_table
    needs_whole = {
        "item_text_added": settings.item_text_added,
        # Before the settings that such a model sets itself, so that the message names the model.
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
    """Make DDP ignore the sharded weights of ``model``, before it wraps the model.

    Returns:
        Whether other weights train; without any, DDP refuses the model.
    """
    names = [name for name, weight in model.named_parameters() if own_rows(weight)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return any(w.requires_grad and not own_rows(w) for w in model.parameters())


def clip_gradients(
    weights: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
) -> torch.Tensor:
    """torch's ``clip_grad_norm_`` for a model with sharded rows beside DDP.

    Args:
        weights: the weights whose gradients are clipped.
        max_norm: largest norm of all gradients, with the parts of all ranks counted once.
        norm_type: the p of the p-norm.

    Returns:
        The norm before clipping, a scalar.
    """
    weights = list(weights)
    learnt = [(weight.grad, own_rows(weight)) for weight in weights if weight.grad is not None]
    parts = distributed.stacked(get_total_norm([g for g, rows in learnt if rows], norm_type))
    uncut = get_total_norm([g for g, rows in learnt if not rows], norm_type)
    norm = torch.linalg.vector_norm(torch.cat((uncut.reshape(1).to(parts), parts)), norm_type)
    clip_grads_with_norm_(weights, max_norm, norm)
    return norm


def whole(value: Any, like: Any = None) -> Any:
    """``value`` with every sharded tensor replaced by the whole tensor, on the CPU.

    All ranks call this together. Only rank 0 gets the whole tensors; the others get None instead.

    Args:
        value: a tensor, or dictionaries and lists of tensors.
        like: the weight that the tensors in ``value`` belong to, such as its optimizer state; for
            a list of tensors, a list of as many weights.
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
    """``module.state_dict()`` with :func:`whole` tensors; tied weights stay one tensor."""
    own = module.state_dict(keep_vars=True)
    made = {id(tensor): tensor for tensor in own.values()}
    made = {key: whole(tensor.detach(), tensor) for key, tensor in made.items()}
    return {name: made[id(tensor)] for name, tensor in own.items()}


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """``optimizer.state_dict()`` with :func:`whole` tensors."""
    state, weights = optimizer.state_dict(), _weights_of(optimizer)
    return {**state, "state": {n: whole(part, weights[n]) for n, part in state["state"].items()}}


def cut(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of the whole tensor ``full``, sharded as the weight ``like`` is sharded."""
    if rows := own_rows(like):
        return rows.of(full)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(
        full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def cut_weights(full: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """This rank's parts of the whole weights ``full``, for ``module.load_state_dict``."""
    own = module.state_dict()
    return {n: cut(tensor, own[n]) if n in own else tensor for n, tensor in full.items()}


def cut_optimizer_state(full: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """This rank's parts of the whole state ``full``, for ``optimizer.load_state_dict``."""
    weights = _weights_of(optimizer)
    state = {
        number: {
            name: cut(value, weights[number])
            if getattr(value, "shape", None) == whole_shape(weights[number])
            else value
            for name, value in values.items()
        }
        for number, values in full["state"].items()
    }
    return {**full, "state": state}


def _weights_of(optimizer: Any) -> dict[int, torch.Tensor]:
    """The weights of an optimizer by their numbers in its state."""
    return dict(enumerate(w for group in optimizer.param_groups for w in group["params"]))


def load_saved(lm: IdiomoeForCausalLM, folder: Path) -> None:
    """Load the weights in ``folder`` into a model sharded by FSDP2; only rank 0 reads the file."""
    saved: dict[str, Any] = {}
    if distributed.is_main():
        with no_progress_bars():
            saved = IdiomoeForCausalLM.from_pretrained(folder).state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(lm, saved, options=options)
