"""Transformers' T5 in fewer and larger kernels: the same weights by the same names."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5LayerNorm


def fuse(t5: T5ForConditionalGeneration) -> None:
    """Replace layers of ``t5`` by torch's own that compute the same, but for rounding.

    A norm is one kernel instead of five. What a feed-forward layer holds inside stays as autocast
    has it, where T5's own makes float32 of it that autocast then casts back.
    """
    for parent in list(t5.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, T5LayerNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
            elif isinstance(child, T5DenseActDense):
                steps = {step: getattr(child, step) for step in ("wi", "act", "dropout", "wo")}
                setattr(parent, name, nn.Sequential(OrderedDict(steps)))
