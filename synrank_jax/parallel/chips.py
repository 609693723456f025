"""Published peaks of accelerator chips: what utilisation and the plan's roofline are relative to.

Figures are per chip and dense (without structured sparsity), in the units of their sources: GB is
10^9 bytes, GiB 2^30.
"""

from dataclasses import dataclass

TPU_DOCS = "https://docs.cloud.google.com/tpu/docs"
# NVIDIA states NVLink in both directions together, and Hopper's tensor core rates with sparsity,
# which doubles them: halved below.
H100_PAGE = "https://www.nvidia.com/en-us/data-center/h100/"
H200_PAGE = "https://www.nvidia.com/en-us/data-center/h200/"
A100_PAGE = "https://www.nvidia.com/en-us/data-center/a100/"


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        name: Short name, for TPUs that of the topologies (`v5e` in `v5e:2x4`).
        device_kinds: What `jax.Device.device_kind` can be. A chip is one JAX device, except that
            topology descriptions show a v4 chip as two (its cores); on TPU VMs it is one.
        bf16_flops: Peak bfloat16 matmul FLOP/s with float32 accumulation.
        float32_flops: Peak FLOP/s of true float32 (no TF32); None where none is published: TPUs
            make float32 of several bfloat16 passes.
        hbm_bytes: Memory. Of a TPU what its compiler gives to a program, a little less than the 32,
            16, 96 and 32 GiB of v4, v5e, v5p and v6e.
        hbm_bandwidth: Bytes/s of that memory.
        link_bandwidth: Bytes/s out of the chip over all its ICI or NVLink links together, one
            direction.
        source: Where the figures are published.
    """

    name: str
    device_kinds: tuple[str, ...]
    bf16_flops: float
    float32_flops: float | None
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    source: str

    def peak(self, compute_dtype: str) -> tuple[float, str]:
        """Published FLOP/s of matmuls of `float32` or `bfloat16`, and of which of the two they are.

        A chip without a float32 peak answers with its bfloat16 peak.
        """
        if compute_dtype == "float32" and self.float32_flops is not None:
            return self.float32_flops, "float32"
        return self.bf16_flops, "bfloat16"


CHIPS = (
    Chip(
        name="v4",
        device_kinds=("TPU v4",),
        bf16_flops=275e12,
        float32_flops=None,
        hbm_bytes=int(30.75 * 2**30),
        hbm_bandwidth=1200e9,
        link_bandwidth=6 * 50e9,
        # The page has no link rate; table 4 of the paper has six links of 50 GB/s.
        source=f"{TPU_DOCS}/v4; links: Jouppi et al. 2023, arXiv 2304.01433",
    ),
    Chip(
        name="v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        bf16_flops=197e12,
        float32_flops=None,
        hbm_bytes=int(15.75 * 2**30),
        hbm_bandwidth=819e9,
        link_bandwidth=400e9 / 2,  # published for both directions
        source=f"{TPU_DOCS}/v5e",
    ),
    Chip(
        name="v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        bf16_flops=459e12,
        float32_flops=None,
        hbm_bytes=int(95.74 * 2**30),
        hbm_bandwidth=2765e9,
        link_bandwidth=1200e9 / 2,  # published for both directions
        source=f"{TPU_DOCS}/v5p",
    ),
    Chip(
        name="v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        bf16_flops=918e12,
        float32_flops=None,
        hbm_bytes=int(31.25 * 2**30),
        hbm_bandwidth=1638e9,
        link_bandwidth=800e9 / 2,  # published for both directions
        source=f"{TPU_DOCS}/v6e",
    ),
    Chip(
        name="A100-40GB",
        device_kinds=("NVIDIA A100-SXM4-40GB",),
        bf16_flops=312e12,
        float32_flops=19.5e12,
        hbm_bytes=40 * 10**9,
        hbm_bandwidth=1555e9,
        link_bandwidth=600e9 / 2,
        source=A100_PAGE,
    ),
    Chip(
        name="A100",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        bf16_flops=312e12,
        float32_flops=19.5e12,
        hbm_bytes=80 * 10**9,
        hbm_bandwidth=2039e9,
        link_bandwidth=600e9 / 2,
        source=A100_PAGE,
    ),
    Chip(
        name="H100",
        device_kinds=("NVIDIA H100 80GB HBM3",),  # SXM; the PCIe card is slower
        bf16_flops=1979e12 / 2,
        float32_flops=67e12,
        hbm_bytes=80 * 10**9,
        hbm_bandwidth=3350e9,
        link_bandwidth=900e9 / 2,
        source=H100_PAGE,
    ),
    Chip(
        name="H200",
        device_kinds=("NVIDIA H200",),
        bf16_flops=1979e12 / 2,
        float32_flops=67e12,
        hbm_bytes=141 * 10**9,
        hbm_bandwidth=4800e9,
        link_bandwidth=900e9 / 2,
        source=H200_PAGE,
    ),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for one whose peaks are not listed here."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)
