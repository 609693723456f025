"""FLOPs of the matmuls in an optimized program of a TPU, to hold the closed form of the plan to."""

import re
from typing import NamedTuple

from synrank_jax.engine.hlo import ARRAY, Computation, Instruction, Program

CONTROL_FLOW = ("call", "conditional", "while")  # `Program.times` has what they run


class MatmulFlops(NamedTuple):
    encoder: int
    scores: int


def matmul_flops(program: Program) -> MatmulFlops:
    """Of the encoder in bfloat16, and of the scores, which ask for the highest precision."""
    found = {True: 0, False: 0}
    for name, times in program.times.items():
        waiting = [name]
        while waiting:
            computation = program.computations[waiting.pop()]
            for one in computation.instructions.values():
                assert one.opcode != "dot", "the TPU compiler makes convolutions of them"
                if one.opcode == "convolution":
                    found["highest" in one.tail] += times * _flops(computation, one)
                elif one.opcode not in CONTROL_FLOW:
                    waiting += one.called()
    return MatmulFlops(encoder=found[False], scores=found[True])


def _flops(computation: Computation, one: Instruction) -> int:
    """Of a convolution, as which also a batch of matmuls is written.

    The batch is then a spatial dimension, spread out so that each window meets one element of it.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.tail)
    window = re.search(r"window={([^}]*)}", one.tail)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    assert options.keys() <= {"size", "stride", "lhs_dilate"}, "one more option to count"
    shapes = [*(computation.instructions[name].shape for name in one.operands), one.shape]
    left, right, result = (
        dict(zip(names, _lengths(shape), strict=True))
        for names, shape in zip(labels.groups(), shapes, strict=True)
    )
    flops = 2 * left["b"] * right["i"] * right["o"]
    for place in range(len(left) - 2):
        spread, stride = (
            int(options[name].split("x")[place]) if name in options else 1
            for name in ("lhs_dilate", "stride")
        )
        name = str(place)
        starts = range(0, stride * result[name], stride)
        reached = (start + offset for start in starts for offset in range(right[name]))
        flops *= sum(at % spread == 0 and at // spread < left[name] for at in reached)
    return flops


def _lengths(shape: str) -> list[int]:
    ((_, lengths, _),) = ARRAY.findall(shape)
    return [int(length) for length in lengths.split(",")]
