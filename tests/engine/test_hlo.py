"""What a program does per run, read from a small optimized HLO module written by hand."""

from pathlib import Path

import pytest

from synrank_jax.engine.hlo import Program
from synrank_jax.engine.traffic import Collective, Traffic, collectives, traffic

# A loop of 5 runs in a loop of 3, in the spellings of the CPU (noted trip count) and of the TPU
# (compared with a constant); async pairs, and a collective that XLA wrote in three fusions.
TEXT = (Path(__file__).parent / "nested_loops.hlo").read_text()
MATRIX = 4 * 8 * 8  # bytes of f32[8,8]
TOKENS = 2 * 4 * 16  # of bf16[4,16]


def test_collectives_run_as_often_as_the_loops_around_them_and_pairs_count_once():
    assert sorted(collectives(Program(TEXT))) == [
        # Its own part goes to the 7 others.
        Collective("all-gather", TOKENS, 7 * TOKENS, 8, 1),
        # In groups of two twice half the array, in 5 x 3 runs; then over all twice 7/8 of it.
        Collective("all-reduce", MATRIX, MATRIX, 2, 15),
        Collective("all-reduce", MATRIX, MATRIX * 7 / 4, 8, 1),
        Collective("collective-permute", MATRIX, MATRIX, 8, 3),
        Collective("reduce-scatter", MATRIX, MATRIX * 7 / 8, 8, 1),
    ]


def test_bytes_are_those_of_what_is_touched_in_every_run():
    number = 4
    # One layer is read where all are at hand, and one written; the copy of a number reads and
    # writes one. What is marked S(1) or S(6) is not in main memory.
    layer = MATRIX + number + MATRIX
    store = MATRIX + number + MATRIX
    inner = 2 * number + 3 * number + layer + store + 2 * MATRIX
    inner_main = inner - 2 * number - 2 * MATRIX
    outer = 3 * number + 2 * number + 2 * MATRIX
    outer_main = outer - number
    fusions = (TOKENS + TOKENS + 8 * TOKENS + number) + (TOKENS + 8 * TOKENS)
    main = fusions + 2 * MATRIX + MATRIX + MATRIX // 8
    assert traffic(Program(TEXT)) == Traffic(
        once_bytes=main + outer + inner,
        total_bytes=main + 3 * outer + 15 * inner,
        main_bytes=main - number + 3 * outer_main + 15 * inner_main,
    )


@pytest.mark.parametrize(
    "known", ["direction=LT", "constant(10)", "tuple(%first, "], ids=["test", "limit", "start"]
)
def test_a_loop_of_unknown_length_counts_once_and_is_reported(known: str):
    other = {
        "direction=LT": "direction=NE",
        "constant(10)": "negate(%number)",
        "tuple(%first, ": "tuple(%number, ",
    }
    program = Program(TEXT.replace(known, other[known]))
    assert program.unknown_loops == 1
    counts = [one.times for one in sorted(collectives(program))]
    assert counts == [1, 3, 1, 3, 1]
