"""Peaks of the chips: found by what JAX calls a device, and in plausible relation."""

import pytest

from synrank_jax.parallel.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_a_device_kind_names_its_chip(kind: str, name: str):
    chip = chip_of(kind)
    assert chip is not None
    assert chip.name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v3"])
def test_a_chip_without_listed_peaks_is_none(kind: str):
    assert chip_of(kind) is None


def test_names_and_device_kinds_are_unique():
    names = [chip.name for chip in CHIPS]
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(set(names)) == len(names)
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("chip", CHIPS, ids=[chip.name for chip in CHIPS])
def test_figures_are_of_the_right_order(chip):
    # FLOP/s over bytes/s: what a matmul must reuse of what it reads. A factor of 1,000 (GB for TB,
    # bits for bytes, sparsity counted) leaves this range.
    assert 100 < chip.bf16_flops / chip.hbm_bandwidth < 600
    assert chip.link_bandwidth < chip.hbm_bandwidth / 2
    assert 10e9 < chip.hbm_bytes < 200e9
    assert chip.float32_flops is None or chip.float32_flops < chip.bf16_flops / 10
    assert chip.source.startswith("https://")


def test_published_comparisons_between_generations():
    """v6e: 4.7 x the compute of v5e, twice its memory and links (the page of its announcement)."""
    v5e, v6e = chip_of("TPU v5e"), chip_of("TPU v6e")
    assert v6e.bf16_flops / v5e.bf16_flops == pytest.approx(4.7, abs=0.05)
    assert v6e.hbm_bytes == pytest.approx(2 * v5e.hbm_bytes, rel=0.01)
    assert v6e.hbm_bandwidth == 2 * v5e.hbm_bandwidth
    assert v6e.link_bandwidth == 2 * v5e.link_bandwidth


def test_a_chip_without_a_float32_peak_answers_with_that_of_bfloat16():
    v5e, h100 = chip_of("TPU v5e"), chip_of("NVIDIA H100 80GB HBM3")
    assert v5e.peak("float32") == v5e.peak("bfloat16") == (197e12, "bfloat16")
    assert h100.peak("float32") == (67e12, "float32")
