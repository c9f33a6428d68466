"""Compiling a decoder's blocks: one compilation for all layers and all shapes."""

from __future__ import annotations

from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.experts import TwoExpertFFN
from recbole_idiomoe.lm.fused_ffn import has_kernels

# Training and evaluation, one sequence and several, text alone and items among it: each is a
# compilation of its own, of which torch by default makes 8 and then silently makes no more.
COMPILATIONS = 64


def compile_blocks(backbone: PreTrainedModel) -> None:
    """Let ``torch.compile`` fuse what a block does, in place; names of weights stay.

    The blocks of a decoder are alike and share what is compiled, so that it takes as long for 24
    as for one, at their first forward pass. Nothing is compiled again for another length. With
    them come the kernels that run both experts in inference, where there are such.
    """
    # A length that happens to be a head's width would be taken for it, and compiled in.
    shapes.use_duck_shape = False
    # Blocks end where gradients can be sent; parts of blocks would be compiled for that otherwise.
    dynamo.optimize_ddp = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILATIONS)
    for layer in decoder_layers(backbone):
        layer.compile(dynamic=True)
    fused = has_kernels(backbone.device)
    for module in backbone.modules():
        if isinstance(module, TwoExpertFFN):
            module.fused = fused
