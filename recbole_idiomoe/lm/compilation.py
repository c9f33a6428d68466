"""Compilation of a decoder's blocks, once for all layers and all shapes."""

from __future__ import annotations

from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.experts import TwoExpertFFN
from recbole_idiomoe.lm.fused_ffn import has_kernels

# A block is compiled separately for training and evaluation, for one sequence and several, and
# with and without items. torch's default limit is 8 compilations; it then runs uncompiled code.
COMPILATIONS = 64


def compile_blocks(backbone: PreTrainedModel) -> None:
    """Compile the decoder's blocks with ``torch.compile``, in place; weights keep their names.

    All blocks share one compilation, so that 24 blocks take as long as one, at the first forward
    pass. Another sequence length needs no further compilation. On GPUs that support it, this also
    turns on the fused kernels that run both experts in inference.
    """
    # Otherwise a length that equals a head's width is compiled in as that constant.
    shapes.use_duck_shape = False
    # Otherwise blocks are split into parts, to send gradients earlier than at a block's end.
    dynamo.optimize_ddp = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILATIONS)
    for layer in decoder_layers(backbone):
        layer.compile(dynamic=True)
    fused = has_kernels(backbone.device)
    for module in backbone.modules():
        if isinstance(module, TwoExpertFFN):
            module.fused = fused
