"""An optimized HLO module: its computations, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here trip counts are read from the program.
"""

import itertools
import math
import re
from typing import NamedTuple

# Loop variables pass through these unchanged.
SAME_VALUE = {"bitcast", "convert", "copy", "copy-done", "copy-start", "reshape"}

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)

Arrays = list[tuple[int, bool]]
"""Bytes of each array of a type, and whether it is in main memory, not on chip."""


class Instruction(NamedTuple):
    """One line `name = shape opcode(inside)tail`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    tail: str

    def called(self) -> list[str]:
        """Names of the computations it runs."""
        parts = CALLED.findall(self.tail)
        return [name for part in parts for name in re.findall(r"[\w.\-]+", part)]


class Computation(NamedTuple):
    """Instructions by name; the value is that of `root`."""

    instructions: dict[str, Instruction]
    root: str

    def origin(self, name: str) -> Instruction:
        """The instruction whose value this one passes on."""
        instruction = self.instructions[name]
        while instruction.opcode in SAME_VALUE:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


class Program:
    """One device's program, from `compiled.as_text()`.

    Attributes:
        computations: by name.
        times: name -> how often it runs, of those that are not part of an instruction (a fusion).
        unknown_loops: loops whose length the text does not say; their bodies count once.
        devices: that run it.
    """

    def __init__(self, text: str) -> None:
        """Parse the text."""
        header, _, _ = text.partition("\n")
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
        self.devices = math.prod(map(int, counts))
        self.computations: dict[str, Computation] = {}
        entry = name = root = ""
        instructions: dict[str, Instruction] = {}
        for line in text.splitlines():
            if begins := HEADER.match(line):
                name, instructions = begins[2], {}
                entry = name if begins[1] else entry
            elif line.startswith("}"):
                self.computations[name] = Computation(instructions, root)
            elif found := INSTRUCTION.match(line):
                instruction = _instruction(found)
                instructions[instruction.name] = instruction
                root = instruction.name if found[1] else root
        self.unknown_loops = 0
        self.times: dict[str, int] = {}
        self._count(entry, 1)

    def _count(self, name: str, runs: int) -> None:
        self.times[name] = self.times.get(name, 0) + runs
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode in ("call", "conditional"):  # of a conditional, every branch
                for called in instruction.called():
                    self._count(called, runs)
            elif instruction.opcode == "while":
                trips = self._trip_count(instruction, computation)
                self.unknown_loops += trips is None
                (body,) = instruction.called()
                self._count(body, runs * (1 if trips is None else trips))

    def _trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """Runs of a loop's body: as XLA notes it, or of a counter compared with a constant."""
        if noted := re.search(r'"?known_trip_count"?[:=]\{"n":"(\d+)"\}', loop.tail):
            return int(noted[1])
        names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.tail))
        condition, body = self.computations[names["condition"]], self.computations[names["body"]]
        test = condition.instructions[condition.root]
        begins = computation.instructions[loop.operands[0]]
        if test.opcode != "compare" or "direction=LT" not in test.tail or begins.opcode != "tuple":
            return None
        counter, limit = map(condition.origin, test.operands)
        place = re.search(r"index=(\d+)", counter.tail)
        if counter.opcode != "get-tuple-element" or place is None:
            return None
        start = computation.origin(begins.operands[int(place[1])])
        step = body.origin(body.instructions[body.root].operands[int(place[1])])
        added = [part for part in map(body.origin, step.operands) if part.opcode == "constant"]
        constants = [limit, start, *added]
        if step.opcode != "add" or [part.opcode for part in constants] != ["constant"] * 3:
            return None
        stop, first, stride = (int(part.inside) for part in constants)
        return max(math.ceil((stop - first) / stride), 0)


def arrays(shape: str) -> Arrays:
    """The arrays of a type, tuples flattened."""
    return [
        (
            math.ceil(_bits(kind) * math.prod(int(n) for n in lengths.split(",") if n) / 8),
            not re.search(r"S\([1-9]", layout),
        )
        for kind, lengths, layout in ARRAY.findall(shape)
    ]


def size(shape: str) -> int:
    """Bytes of a type."""
    return sum(of_array for of_array, _ in arrays(shape))


def _instruction(found: re.Match[str]) -> Instruction:
    depth = itertools.accumulate((letter == "(") - (letter == ")") for letter in found[5])
    end = next(place for place, level in enumerate(depth) if level < 0)
    inside, tail = found[5][:end], found[5][end + 1 :]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], found[3], found[4], operands, inside, tail)


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    width = re.search(r"\d+", kind)
    return int(width[0]) if width else 0  # a token has no size
