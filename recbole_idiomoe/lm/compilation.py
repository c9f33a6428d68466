"""Compilation of a decoder's blocks, once for all layers and all shapes."""

from __future__ import annotations

from transformers import PreTrainedModel

from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.experts import TwoExpertFFN
from recbole_idiomoe.lm.fused_ffn import has_kernels
from recbole_idiomoe.lm.routed_block import set_up_compiler


def compile_blocks(backbone: PreTrainedModel) -> None:
    """Compile the decoder's blocks with ``torch.compile``, in place; weights keep their names.

    All blocks share one compilation, so that 24 blocks take as long as one, at the first forward
    pass. Another sequence length needs no further compilation. On GPUs that support it, this also
    turns on the fused kernels that run both experts in inference.
    """
    set_up_compiler()
    for layer in decoder_layers(backbone):
        layer.compile(dynamic=True)
    fused = has_kernels(backbone.device)
    for module in backbone.modules():
        if isinstance(module, TwoExpertFFN):
            module.fused = fused
