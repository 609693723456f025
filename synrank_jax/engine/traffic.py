"""What a program moves per run: bytes of memory, and bytes between devices.

Every instruction counts as often as the loops around it run. All sizes are per device.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from synrank_jax.engine.hlo import Arrays, Computation, Instruction, Program, arrays, size

KINDS = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# They move nothing: names for what is there, and control flow, whose bodies are counted.
FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
FREE_CUSTOM_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
SLICES = ("dynamic-slice", "gather", "slice")


class Collective(NamedTuple):
    """One collective.

    payload_bytes: What the device puts in (an all-gather: its own part).
    sent_bytes: What crosses its links in a ring over `group` devices.
    times: Runs.
    """

    kind: str
    payload_bytes: int
    sent_bytes: float
    group: int
    times: int


class Traffic(NamedTuple):
    """Bytes that instructions read and write.

    once_bytes counts the body of a loop once, as XLA's cost analysis does; total_bytes as often as
    it runs; main_bytes of these only arrays in main memory, not those the compiler keeps on chip.
    """

    once_bytes: int
    total_bytes: int
    main_bytes: int


def traffic(program: Program) -> Traffic:
    """Bytes read and written; of what is only sliced or updated in place, the slices."""
    once = total = main = 0
    for name, times in program.times.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            touched = _touched(program, computation, instruction)
            of_one = sum(of_array for of_array, _ in touched)
            once += of_one
            total += times * of_one
            main += times * sum(of_array for of_array, in_main in touched if in_main)
    return Traffic(once, total, main)


def _touched(program: Program, computation: Computation, instruction: Instruction) -> Arrays:
    opcode = instruction.opcode.removesuffix("-start")
    named = any(f'custom_call_target="{name}"' in instruction.tail for name in FREE_CUSTOM_CALLS)
    if named or opcode in FREE or opcode.endswith(("-done", "-update")):
        return []
    operands = [arrays(computation.instructions[name].shape) for name in instruction.operands]
    results = arrays(instruction.shape)
    if opcode != instruction.opcode:
        # (operands, result, what the device notes); but a copy has its result first.
        results = results[:1] if opcode == "copy" else results[sum(map(len, operands)) :][:1]
    if opcode == "fusion":
        (called,) = instruction.called()
        read = (_read(program, called, place, parts) for place, parts in enumerate(operands))
        return [*_written(program.computations[called], results), *itertools.chain(*read)]
    if opcode in SLICES:
        operands[0] = [(results[0][0], operands[0][0][1])]
    elif opcode == "dynamic-update-slice":
        operands[0], results = [], [(operands[1][0][0], results[0][1])]
    return [*results, *itertools.chain(*operands)]


def _read(program: Program, fusion: str, place: int, operand: Arrays) -> Arrays:
    """What a fusion reads of an operand."""
    if len(operand) != 1:
        return operand
    inner = program.computations[fusion].instructions.values()
    names = {p.name for p in inner if p.opcode == "parameter" and p.inside == str(place)}
    ((whole, in_main),) = operand
    total = 0
    for user in inner:
        for number, name in enumerate(user.operands):
            if name not in names:
                continue
            if user.opcode == "bitcast":
                names.add(user.name)
            elif user.opcode in SLICES and number == 0:
                total += size(user.shape)
            elif user.opcode == "fusion":
                (called,) = user.called()
                total += _read(program, called, number, operand)[0][0]
            elif user.opcode != "dynamic-update-slice" or number != 0:
                total += whole
    return [(min(total, whole), in_main)]


def _written(fusion: Computation, results: Arrays) -> Arrays:
    """What a fusion writes."""
    inner, root = fusion.instructions, fusion.instructions[fusion.root]
    parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(results):
        return results
    written = []
    for part, (whole, in_main) in zip(parts, results, strict=True):
        while part.opcode == "bitcast":
            part = inner[part.operands[0]]
        updates = part.opcode == "dynamic-update-slice"
        written.append((size(inner[part.operands[1]].shape) if updates else whole, in_main))
    return written


def collectives(program: Program) -> list[Collective]:
    """All collectives; one that is split into start and done, or fused, appears once."""
    return [
        _collective(program, place, instruction, times)
        for name, times in program.times.items()
        for place, instruction in _distinct(program, name)
    ]


def _distinct(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    """The collectives that a computation runs, and the computations (fusions) they stand in.

    XLA may write an asynchronous one several times: where it starts, where it overlaps with other
    work, where it ends.
    """
    seen = set()
    waiting = [name]
    while waiting:
        place = waiting.pop()
        for instruction in program.computations[place].instructions.values():
            if instruction.opcode.removesuffix("-start") in KINDS:
                labels = re.findall(r"(?:channel_id=|chain_id=\")\d+", instruction.tail)
                copies = (instruction.opcode, instruction.shape, *labels)
                key = instruction.name if place == name or not labels else copies
                if key not in seen:
                    seen.add(key)
                    yield place, instruction
            elif instruction.opcode not in FREE:
                waiting += instruction.called()


def _collective(program: Program, place: str, instruction: Instruction, times: int) -> Collective:
    # On TPUs a reduce-scatter is a fusion of an all-reduce, of which each device keeps a part.
    scattered = place.startswith("all-reduce-scatter")
    kind = "reduce-scatter" if scattered else instruction.opcode.removesuffix("-start")
    inner = program.computations[place].instructions
    payload = sum(size(inner[operand].shape) for operand in instruction.operands)
    group = _group_size(instruction.tail, program.devices)
    rest = (group - 1) / group
    share = {"all-gather": group - 1, "all-reduce": 2 * rest}.get(kind, rest)
    sent = payload * (1.0 if kind.startswith("collective-") else share)
    return Collective(kind, payload, sent, group, times)


def _group_size(tail: str, devices: int) -> int:
    """Devices that take part in a collective together."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", tail):
        lengths = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(lengths[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", tail):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", tail):
        return len(listed[1].split(","))
    return devices
