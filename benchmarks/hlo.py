"""What a compiled program is made of, read from its optimised HLO."""

import re
from collections import Counter
from typing import NamedTuple

# `%name = shape opcode(operands)`; the shape of a tuple holds blanks
INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\((?P<operands>[^)]*)\)"
)


class Fusion(NamedTuple):
    """A fusion: a loop over its result that reads its operands."""

    name: str
    shape: str
    operands: int
    instructions: int  # of the fused computation


def fusions(text: str) -> list[Fusion]:
    """The fusions of a program, those with the most operands first: these may compute again what others compute."""
    sizes: dict[str, int] = {}
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = header[1]
        elif " = " in line:
            sizes[computation] = sizes.get(computation, 0) + 1
    found = []
    for line in text.splitlines():
        match = INSTRUCTION.match(line)
        if match and match["opcode"] == "fusion":
            called = re.search(r"calls=%?([\w.\-]+)", line)
            size = sizes.get(called[1], 0) if called else 0
            found.append(Fusion(match["name"], match["shape"], match["operands"].count("%"), size))
    return sorted(found, key=lambda fusion: (-fusion.operands, -fusion.instructions, fusion.name))


def opcodes(text: str) -> Counter[str]:
    """How many instructions of each opcode a program has, those inside of fusions, reductions and sorts left out."""
    inlined = set(re.findall(r" (?!call\()[\w\-]+\(.*?(?:calls|to_apply)=%?([\w.\-]+)", text))
    counts: Counter[str] = Counter()
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = header[1]
        elif computation not in inlined and (match := INSTRUCTION.match(line)):
            counts[match["opcode"]] += 1
    return counts
