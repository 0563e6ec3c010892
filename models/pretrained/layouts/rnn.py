"""torch.nn.RNN, GRU and LSTM: `weight_ih_l0`, `bias_hh_l1_reverse`, `weight_hr_l0`, and so on.

The rows of a weight are gate by gate, [G*H, I]; ours are [I G H]. Embeddings and heads have no place in these modules.
"""

import re

from errors import UsageError
from models.blocks.recurrent import CELLS
from models.core.types import Fields
from models.families.rnn import Config, directions
from models.pretrained.mapping import Row


def fields_from_shapes(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields from the shapes of a state dict. One gate means an Elman cell, assumed to use tanh."""
    try:
        (rows, inputs), (_, fed_back) = shapes["weight_ih_l0"], shapes["weight_hh_l0"]
        width = shapes["weight_hr_l0"][1] if "weight_hr_l0" in shapes else fed_back
        cell = {CELLS[name].gates: name for name in ("elman", "gru", "lstm")}[rows // width]
    except (KeyError, ValueError, ZeroDivisionError):
        raise UsageError(
            f"no recurrent network of torch: it needs weight_ih_l0 and weight_hh_l0, of 1, 3 or 4 gates; got "
            f"{', '.join(sorted(shapes)[:4]) or 'no tensors'}"
        ) from None
    return {
        "head": "none",
        "cell": cell,
        "inputs": inputs,
        "width": width,
        "depth": 1 + max(int(m[1]) for name in shapes if (m := re.fullmatch(r"weight_ih_l(\d+)", name))),
        "bidirectional": "weight_ih_l0_reverse" in shapes,
        "projection": fed_back if fed_back != width else None,
        "bias": "bias_ih_l0" in shapes,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    G, H, P = CELLS[c.cell].gates, c.width, c.projection or c.width
    first = c.embed if c.vocab else c.inputs
    found = []
    for i in range(c.depth):
        inputs = first if i == 0 else P * len(directions(c))
        for direction in directions(c):
            end = f"l{i}" + ("_reverse" if direction == "backward" else "")
            path = f"cells/{i}/{direction}"
            for ours, theirs, size in (("input", "ih", inputs), ("state", "hh", P)):
                found.append(
                    Row(f"{path}/{ours}/kernel", f"weight_{theirs}_{end}", (G, H, size), (2, 0, 1), (G * H, size))
                )
                if c.bias:
                    found.append(Row(f"{path}/{ours}/bias", f"bias_{theirs}_{end}", (G, H), (0, 1), (G * H,)))
            if c.projection:
                found.append(Row(f"{path}/out/kernel", f"weight_hr_{end}", (P, H), (1, 0), (P, H)))
    return found
