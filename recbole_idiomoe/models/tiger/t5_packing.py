"""A T5 encoder that reads several short rows as one sequence, with little padding.

T5 knows distances between positions but no absolute positions, so a row may begin anywhere. Its
states do not change as long as it does not attend to other rows. A pass over packed rows launches
as many kernels as one over padded rows; a pass for each length would launch more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration


def encode(t5: T5ForConditionalGeneration, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The encoder's states of every row, (B, T, d); without meaning where ``mask`` is false.

    Args:
        input_ids: (B, T), padded on the right.
        mask: (B, T), bool, false at padding. There may be gaps, which count as distance.
    """
    rows, width = mask.shape
    places = torch.arange(width, device=mask.device)
    starts, sequences = pack(row_lengths(mask).tolist(), width)
    at = torch.tensor(starts, device=mask.device).unsqueeze(1) + places
    end = sequences * width
    # Padding is written after the end, and cut off.
    target = at.masked_fill(~mask, end).flatten()
    tokens = input_ids.new_zeros(end + 1).scatter_(0, target, input_ids.flatten())
    numbers = torch.arange(1, rows + 1, device=mask.device).repeat_interleave(width)
    row = numbers.new_zeros(end + 1).scatter_(0, target, numbers)[:-1].view(sequences, width)
    # Padding attends to padding, because a softmax over nothing would be NaN.
    seen = row.unsqueeze(1) == row.unsqueeze(2)
    states = t5.encoder(
        input_ids=tokens[:-1].view(sequences, width),
        attention_mask=additive(seen.unsqueeze(1), t5.dtype),
    ).last_hidden_state
    return states.flatten(0, 1)[at.clamp(max=end - 1)]


def row_lengths(mask: Tensor) -> Tensor:
    """Lengths (B,) of the rows of ``mask`` (B, T) up to the last true value, with gaps."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)


def pack(lengths: Sequence[int], width: int) -> tuple[list[int], int]:
    """Starts of rows in consecutive sequences of ``width``, and the number of sequences.

    Longest first, each row goes where it leaves the least room. No row crosses into the next
    sequence.

    Args:
        lengths: lengths of the rows, at most ``width``.
    """
    starts = [0] * len(lengths)
    count = 0
    ends: list[list[int]] = [
        [] for _ in range(width + 1)
    ]  # ends of the rows in open sequences, by free room
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        room = next((room for room in range(length, width) if ends[room]), width)
        if room < width:
            starts[row] = ends[room].pop()
        else:
            starts[row] = count * width
            count += 1
        ends[room - length].append(starts[row] + length)
    return starts, count


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask ``seen`` as a tensor that is added to attention scores, for every kind of attention.

    It has the type of the scores, so that its lowest number stays finite: ``dtype``, the model's,
    or that of autocast.
    """
    device = seen.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )
