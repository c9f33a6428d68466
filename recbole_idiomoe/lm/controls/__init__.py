"""The other architectures, of the paper and of its baselines: what they change in a decoder.

An installer changes a backbone in place and returns the modules that the backbone did not
bring, which are what trains under ``freeze=backbone``. All are listed in
:data:`recbole_idiomoe.lm.architectures.ARCHITECTURES`.
"""
