"""Triton kernels of the two-expert FFN. Import this module only if Triton is installed.

Each kernel is a matrix product. A block of rows holds tokens of one type, text tokens first, and
uses the weights of that type's expert, in the layout of ``nn.Linear``, (out, in). All arrays are
contiguous and in half precision; sums are in float32. Arguments in capitals are compile-time
constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor


def _config(rows: int, columns: int, stages: int, warps: int) -> triton.Config:
    blocks = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}
    return triton.Config(blocks, num_stages=stages, num_warps=warps)


# The fastest on an H100 for many rows, then for few. Triton skips the first on GPUs with too little
# shared memory; the second needs the 99 KB that every supported GPU has.
GATE_UP_BLOCKS = [_config(128, 128, stages=4, warps=8), _config(64, 128, stages=3, warps=4)]
DOWN_BLOCKS = [_config(128, 128, stages=4, warps=4), _config(64, 128, stages=4, warps=4)]
# Blocks are tuned for each power of two of rows in this range; outside of it, the choice is stable.
TUNED_ROWS = (512, 2048)
# Number of row blocks that run one after another, so that weights and rows stay in the L2 cache.
GROUP = tl.constexpr(8)


def two_expert_ffn(
    inputs: Tensor, order: Tensor, text_rows: int, text: Sequence[Tensor], item: Sequence[Tensor]
) -> Tensor:
    """Compute ``down(silu(gate(x)) * up(x))`` with the expert of each row's type.

    Args:
        inputs: (N, d).
        order: (N,), int64, indices of the text rows, then of the item rows.
        text_rows: number of text rows.
        text: the text expert's weights: gate and up (neurons, d), and down (d, neurons).
        item: the item expert's weights, in the same form.

    Returns:
        (N, d), in the order of ``inputs``.
    """
    rows, width = inputs.shape
    text_neurons, item_neurons = len(text[0]), len(item[0])
    activations = inputs.new_empty(rows, max(text_neurons, item_neurons))
    outputs = torch.empty_like(inputs)
    fewest, most = TUNED_ROWS
    sizes = {
        "text_rows": text_rows,
        "rows": rows,
        "tuned_for": min(max(triton.next_power_of_2(rows), fewest), most),
        "WIDTH": width,
        "TEXT_NEURONS": text_neurons,
        "ITEM_NEURONS": item_neurons,
    }

    def grid(text_columns: int, item_columns: int, blocks: dict[str, int]) -> tuple[int]:
        tall, wide = blocks["BLOCK_ROWS"], blocks["BLOCK_COLUMNS"]
        of_text = triton.cdiv(text_rows, tall) * triton.cdiv(text_columns, wide)
        of_items = triton.cdiv(rows - text_rows, tall) * triton.cdiv(item_columns, wide)
        return (of_text + of_items,)

    with torch.cuda.device_of(inputs):  # Triton launches on the current device
        weights = text[0], text[1], item[0], item[1]
        gate_up, down = partial(grid, text_neurons, item_neurons), partial(grid, width, width)
        _gate_up[gate_up](inputs, order, *weights, activations, **sizes)
        _down[down](activations, order, text[2], item[2], outputs, **sizes)
    return outputs


@triton.jit
def _block(
    text_rows,
    rows,
    TEXT_COLUMNS: tl.constexpr,
    ITEM_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """The type, the first row, the end of the type's rows and the first column of this program."""
    text_blocks = tl.cdiv(text_rows, BLOCK_ROWS)
    text_programs = text_blocks * tl.cdiv(TEXT_COLUMNS, BLOCK_COLUMNS)
    program = tl.program_id(0)
    is_text = program < text_programs
    program = tl.where(is_text, program, program - text_programs)
    row_blocks = tl.where(is_text, text_blocks, tl.cdiv(rows - text_rows, BLOCK_ROWS))
    columns = tl.where(is_text, TEXT_COLUMNS, ITEM_COLUMNS)
    start = tl.where(is_text, 0, text_rows)
    end = tl.where(is_text, text_rows, rows)

    in_group = GROUP * tl.cdiv(columns, BLOCK_COLUMNS)
    first_block = program // in_group * GROUP
    group_rows = tl.minimum(row_blocks - first_block, GROUP)
    row = start + (first_block + program % in_group % group_rows) * BLOCK_ROWS
    column = program % in_group // group_rows * BLOCK_COLUMNS
    return is_text, row, end, column


@triton.jit
def _load(pointers, inside, WHOLE: tl.constexpr):
    """Load from ``pointers``, zero where not ``inside``; ``WHOLE`` means that all are inside."""
    return tl.load(pointers) if WHOLE else tl.load(pointers, mask=inside, other=0.0)


@triton.autotune(GATE_UP_BLOCKS, key=["tuned_for", "WIDTH", "TEXT_NEURONS", "ITEM_NEURONS"])
@triton.jit(do_not_specialize=["text_rows", "rows", "tuned_for"])
def _gate_up(
    inputs,  # (N, d)
    order,  # (N,)
    text_gate,
    text_up,
    item_gate,
    item_up,
    activations,  # (N, max(TEXT_NEURONS, ITEM_NEURONS)), text rows first
    text_rows,
    rows,
    tuned_for,
    WIDTH: tl.constexpr,
    TEXT_NEURONS: tl.constexpr,
    ITEM_NEURONS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr = 64,  # summands per step
):
    is_text, row, end, column = _block(
        text_rows, rows, TEXT_NEURONS, ITEM_NEURONS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    gate_weight = tl.where(is_text, text_gate, item_gate)
    up_weight = tl.where(is_text, text_up, item_up)
    neurons = tl.where(is_text, TEXT_NEURONS, ITEM_NEURONS)

    # Past the edge, the last row or neuron is read again but not stored, so the loop needs no mask.
    row = row + tl.arange(0, BLOCK_ROWS)
    neuron = column + tl.arange(0, BLOCK_COLUMNS)
    inner = tl.arange(0, BLOCK_INNER)
    token = tl.load(order + tl.minimum(row, end - 1))
    x_at = token[:, None] * WIDTH + inner[None, :]
    w_at = tl.minimum(neuron, neurons - 1)[None, :] * WIDTH + inner[:, None]
    WHOLE: tl.constexpr = WIDTH % BLOCK_INNER == 0
    gate = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for k in range(0, WIDTH, BLOCK_INNER):
        x = _load(inputs + x_at + k, inner[None, :] < WIDTH - k, WHOLE)
        gate = tl.dot(x, _load(gate_weight + w_at + k, inner[:, None] < WIDTH - k, WHOLE), gate)
        up = tl.dot(x, _load(up_weight + w_at + k, inner[:, None] < WIDTH - k, WHOLE), up)

    activation = gate * tl.sigmoid(gate) * up
    at = row.to(tl.int64)[:, None] * max(TEXT_NEURONS, ITEM_NEURONS) + neuron[None, :]
    inside = (row < end)[:, None] & (neuron < neurons)[None, :]
    tl.store(activations + at, activation.to(activations.dtype.element_ty), mask=inside)


@triton.autotune(DOWN_BLOCKS, key=["tuned_for", "WIDTH", "TEXT_NEURONS", "ITEM_NEURONS"])
@triton.jit(do_not_specialize=["text_rows", "rows", "tuned_for"])
def _down(
    activations,  # (N, max(TEXT_NEURONS, ITEM_NEURONS)), text rows first
    order,  # (N,)
    text_down,
    item_down,
    outputs,  # (N, d)
    text_rows,
    rows,
    tuned_for,
    WIDTH: tl.constexpr,
    TEXT_NEURONS: tl.constexpr,
    ITEM_NEURONS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr = 64,  # summands per step
):
    is_text, row, end, column = _block(text_rows, rows, WIDTH, WIDTH, BLOCK_ROWS, BLOCK_COLUMNS)
    weight = tl.where(is_text, text_down, item_down)
    neurons = tl.where(is_text, TEXT_NEURONS, ITEM_NEURONS)

    row = row + tl.arange(0, BLOCK_ROWS)
    column = column + tl.arange(0, BLOCK_COLUMNS)
    inner = tl.arange(0, BLOCK_INNER)
    stride = max(TEXT_NEURONS, ITEM_NEURONS)
    x_at = tl.minimum(row, end - 1).to(tl.int64)[:, None] * stride + inner[None, :]
    w_at = tl.minimum(column, WIDTH - 1)[None, :] * neurons + inner[:, None]
    WHOLE: tl.constexpr = TEXT_NEURONS % BLOCK_INNER == 0 and ITEM_NEURONS % BLOCK_INNER == 0
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for k in range(0, neurons, BLOCK_INNER):
        x = _load(activations + x_at + k, inner[None, :] < neurons - k, WHOLE)
        w = _load(weight + w_at + k, inner[:, None] < neurons - k, WHOLE)
        total = tl.dot(x, w, total)

    token = tl.load(order + row, mask=row < end, other=0)
    at = token[:, None] * WIDTH + column[None, :]
    inside = (row < end)[:, None] & (column < WIDTH)[None, :]
    tl.store(outputs + at, total.to(outputs.dtype.element_ty), mask=inside)
