"""One file for each variant of the decoder: the paper's controls and the LLM baselines.

Each variant is an :class:`~recbole_idiomoe.lm.variants.architecture.Architecture`. All of them are
registered by name in :data:`recbole_idiomoe.lm.architectures.ARCHITECTURES`.
"""
