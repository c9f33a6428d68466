"""A model whose weights, gradients and optimizer state are cut into a part a rank (FSDP2).

Around every block of the decoder its weights are gathered, used and let go again, forwards and
backwards; what is outside of the blocks is gathered around the whole. What is written to disk is
whole, as one process writes it, and any number of processes reads it.
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

from recbole_idiomoe import distributed
from recbole_idiomoe.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.progress import no_progress_bars
from recbole_idiomoe.model.catalog_lm import CatalogLM, computes_in_bf16
from recbole_idiomoe.settings import Settings


def is_sharded(settings: Settings) -> bool:
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


def whole(value: Any) -> Any:
    """``value``, tensors in dictionaries and lists, with every cut one put together, on the CPU.

    All ranks call it together; the others than rank 0 get nothing for a cut tensor.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if distributed.is_main() else None
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [whole(part) for part in value]
    return value


def whole_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """``module.state_dict()`` with :func:`whole` tensors; tied ones stay one tensor."""
    own = module.state_dict(keep_vars=True)
    made = {id(tensor): tensor for tensor in own.values()}
    made = {key: whole(tensor.detach()) for key, tensor in made.items()}
    return {name: made[id(tensor)] for name, tensor in own.items()}


def cut(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``full``, which all ranks have, if ``like`` is cut; else all of it."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(
        full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def cut_weights(full: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """A whole state of ``module`` as its ``load_state_dict`` takes it."""
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
            if getattr(value, "shape", None) == by_number[number].shape
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
