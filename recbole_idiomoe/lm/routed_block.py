"""Decoder blocks that take the routing of a batch as an argument."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.routing import ALL_TEXT, TokenRouting, current_routing, routed

# A block is compiled separately for training and evaluation, for one sequence and several, and
# with and without items. torch's default limit is 8 compilations; it then runs uncompiled code.
COMPILATIONS = 64


class RoutedBlock(nn.Module):
    """A decoder block whose modules use the routing that the block is called with.

    A decoder of transformers hands keyword arguments on to its blocks, but a block does not hand
    them to its FFN and norms. Checkpointing calls a block again with equal arguments, in whichever
    thread the backward pass runs.
    """

    def __call__(self, *args: Any, keeps_keys: bool = False, **kwargs: Any) -> Any:
        """Run the block, compiled if it is; with a cache of keys it is never compiled.

        Every layer's part of a cache would need a compilation of its own.
        """
        if self._compiled_call_impl is not None:
            if keeps_keys:
                return self._call_impl(*args, **kwargs)
            set_up_compiler()
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, token_routing: TokenRouting = ALL_TEXT, **kwargs: Any) -> Any:
        """Run the backbone's own block; without ``token_routing`` every token is text."""
        block = super().forward  # type: ignore[misc]
        # Set already in a forward pass, but not where the backward pass computes the block again.
        # torch.compile allows no change of the setting inside a checkpoint.
        if current_routing() is token_routing:
            return block(*args, **kwargs)
        with routed(token_routing):
            return block(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made while the program runs, so that pickle cannot find it by its name.
        _, _, *state = tuple(super().__reduce_ex__(protocol))
        return _empty, (_backbones_class(type(self)),), *state


def route_blocks(backbone: PreTrainedModel) -> None:
    """Make the decoder's blocks :class:`RoutedBlock`, in place; weights keep their names."""
    for layer in decoder_layers(backbone):
        if not isinstance(layer, RoutedBlock):
            layer.__class__ = _routed_class(type(layer))  # type: ignore[arg-type]


@cache
def _routed_class(block: type[nn.Module]) -> type[nn.Module]:
    """The class ``block`` as a :class:`RoutedBlock`, under its own name.

    transformers and FSDP2 find blocks by this name.
    """
    names = {"__module__": __name__, "__qualname__": block.__qualname__, "__doc__": block.__doc__}
    return type(block.__name__, (RoutedBlock, block), names)


def _backbones_class(block: type[nn.Module]) -> type[nn.Module]:
    """The class that :func:`_routed_class` made ``block`` from."""
    found = next(base for base in block.__mro__ if not issubclass(base, RoutedBlock))
    assert issubclass(found, nn.Module)
    return found


def _empty(block: type[nn.Module]) -> nn.Module:
    """An object of :func:`_routed_class` before its state is set."""
    made = _routed_class(block)  # type: ignore[arg-type]
    return made.__new__(made)


class _CompilerSettings(threading.local):
    """Sets what compiled blocks need when a thread uses it first; torch keeps it per thread."""

    def __init__(self) -> None:
        from torch._dynamo import config as dynamo
        from torch.fx.experimental import _config as shapes

        # Otherwise a length that equals a head's width is compiled in as that constant.
        shapes.use_duck_shape = False
        # Otherwise blocks are split into parts, to send gradients earlier than at a block's end.
        dynamo.optimize_ddp = False
        dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILATIONS)
        self.done = True


_compiler_settings: _CompilerSettings | None = None


def set_up_compiler() -> None:
    """Set what compiled blocks need, in this thread."""
    global _compiler_settings
    if _compiler_settings is None:  # not at import, which would import the compiler
        _compiler_settings = _CompilerSettings()
    assert _compiler_settings.done
