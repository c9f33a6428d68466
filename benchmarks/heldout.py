"""Bits per byte of each held-out text, and its overlap with the training text.

    python benchmarks/heldout.py --model=FOLDER --text=english.txt.xz

Splits the text as ``python -m recbole_idiomoe.pretrain`` does. A held-out book whose other edition
is in the training text says nothing about new text.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recbole_idiomoe.lm.likelihood import likelihood
from recbole_idiomoe.pretrain.corpus import hold_out, read_texts

RUN = 13  # words


def runs(text: str) -> Iterator[int]:
    """Hashes of all sequences of ``RUN`` words, without case and punctuation."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return (hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--holdout", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=2020)
    given = parser.parse_args()
    kept, held = hold_out(read_texts(given.text), given.holdout, given.seed)
    wanted = [set(runs(text)) for text in held]
    all_wanted = set().union(*wanted)
    found = set()
    for text in kept:
        found |= all_wanted.intersection(runs(text))

    model = AutoModelForCausalLM.from_pretrained(given.model, dtype="float32").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(given.model)
    context = model.config.max_position_embeddings
    bits, byte_num = 0.0, 0
    print("| begins with | bytes | bits per byte | runs of 13 words also trained on |")
    print("|---|---|---|---|")
    for text, own in zip(held, wanted, strict=True):
        measured = likelihood(model, tokenizer, [text], context)
        share = len(own & found) / max(1, len(own))
        head = " ".join(text.split())[:60].replace("|", " ")
        print(f"| {head} | {measured.byte_num:,} | {measured.bits_per_byte:.3f} | {share:.1%} |")
        if share < 0.01:
            bits += measured.bits_per_byte * measured.byte_num
            byte_num += measured.byte_num
    if byte_num:
        print(f"\nThose with less than 1%, together: {bits / byte_num:.3f} bits per byte.")


if __name__ == "__main__":
    main()
