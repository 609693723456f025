"""Whether an exported folder is the JAX model in every program that serves it."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.contract import EncodingContract, load_tokenizer, tokenizer_sha256
from synrank_jax.engine.encoding import JaxEncoder
from synrank_jax.errors import UserError
from synrank_jax.files import write_text
from synrank_jax.markdown import table
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.runtimes import RUNTIMES, Padding, Runtime, Side

PARITY_FILE = "parity.json"
SIDES: tuple[Side, ...] = ("query", "passage")
VERIFICATION_TEXTS = (
    "wing",
    "",
    "How does heat reach the skin of a fast aircraft?",
    "Füße & naïve <b>cafés</b>, 東京 3.14 × 10⁻⁵ [MASK]\n\ttwo  lines",
    "A boundary layer grows along the plate until it turns turbulent. " * 5,
    "This text is longer than any encoder reads. " * 500,
)


class Bounds(NamedTuple):
    """What a program must reach; None: stated, not held to."""

    cosine: float
    mean_cosine: float
    difference: float | None
    norm_difference: float | None


# Float32 through a BERT leaves about 1e-7 on a unit vector.
FLOAT32 = Bounds(0.9999, 0.9999, 1e-5, 1e-5)
# Eight bits leave .978 at worst and .990 on average of MiniLM, one scale per weight matrix instead
# of one per channel .89 and .93: between the two lies what a quantised model is good for.
INT8 = Bounds(0.95, 0.98, None, None)


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the exported model is from the JAX model over all texts and batches.

    cosine: the smallest. difference: largest absolute difference of a component. norm_difference:
    largest relative difference of lengths. Where an embedding is longer than 1, both count relative
    to its length: float32 carries seven digits, not seven decimals.
    """

    embeddings: int
    cosine: float
    mean_cosine: float
    difference: float
    norm_difference: float

    @classmethod
    def of(cls, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> "Parity":
        """Compare embeddings [B, D] with embeddings [B, D]."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / (norm_a * norm_b)
        return cls(
            embeddings=len(a),
            cosine=float(np.min(cosines)),
            mean_cosine=float(np.mean(cosines)),
            difference=float(np.max(np.abs(a - b).max(axis=1) / np.maximum(norm_a, 1.0))),
            norm_difference=float(np.max(np.abs(norm_a - norm_b) / norm_a)),
        )

    def holds(self, bounds: Bounds = FLOAT32) -> bool:
        """Whether the bounds are met; NaN meets none."""
        reached = self.cosine >= bounds.cosine and self.mean_cosine >= bounds.mean_cosine
        limits = (
            (self.difference, bounds.difference),
            (self.norm_difference, bounds.norm_difference),
        )
        return reached and all(limit is None or value <= limit for value, limit in limits)

    def against(self, bounds: Bounds) -> str:
        """The figures with their bounds, in a line."""

        def limit(value: float | None) -> str:
            return "none" if value is None else f"{value:.0e}"

        return (
            f"{self.embeddings} embeddings compared: cosine >= {self.cosine:.9f} "
            f"(bound {bounds.cosine}), on average {self.mean_cosine:.9f} "
            f"(bound {bounds.mean_cosine}), largest difference {self.difference:.1e} "
            f"(bound {limit(bounds.difference)}), of lengths {self.norm_difference:.1e} "
            f"(bound {limit(bounds.norm_difference)})"
        )


@dataclasses.dataclass(frozen=True)
class Check:
    """One program on one side of padding. parity is None where it could not run; `why` tells."""

    runtime: str
    versions: dict[str, str]
    padding: Padding
    parity: Parity | None
    bounds: Bounds
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.parity is not None and not self.parity.holds(self.bounds)

    def __str__(self) -> str:
        name = f"{self.runtime} (padding {self.padding})"
        if self.parity is None:
            return f"{name}: {self.why}"
        verdict = "differs" if self.failed else "the same"
        return f"{name}: {verdict}, {self.parity.against(self.bounds)}"


@dataclasses.dataclass(frozen=True)
class Verification:
    """All checks of a folder."""

    checks: list[Check]

    def __str__(self) -> str:
        return "\n".join(f"  {check}" for check in self.checks)

    def table(self) -> str:
        """The checks as Markdown."""
        head = ["Program", "Padding", "Embeddings", "Least cosine", "Mean cosine"]
        rows = [[*head, "Largest difference", "Of lengths", "Least cosine asked for"]]
        for check in self.checks:
            versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
            name = f"{check.runtime} ({versions})" if versions else check.runtime
            figures = [check.why, *[""] * 5]
            if (parity := check.parity) is not None:
                figures = [
                    str(parity.embeddings),
                    f"{parity.cosine:.7f}",
                    f"{parity.mean_cosine:.7f}",
                    f"{parity.difference:.1e}",
                    f"{parity.norm_difference:.1e}",
                    str(check.bounds.cosine),
                ]
            rows.append([name, check.padding, *figures])
        return table(rows)

    def write(self, folder: Path) -> None:
        """Store the checks as parity.json in `folder`."""
        checks = [
            dataclasses.asdict(check) | {"bounds": check.bounds._asdict()} for check in self.checks
        ]
        write_text(folder / PARITY_FILE, json.dumps({"checks": checks}, indent=2) + "\n")


def verify_parity(folder: Path, model: DualEncoder, contract: EncodingContract) -> Verification:
    """Compare every program that the folder has files for with the JAX model.

    Both sides, with prompts, on short, long, empty and over-long texts, as one batch and one by
    one, padded on the right and, where the program can be asked to, on the left. A program that is
    not installed is listed as not checked.

    Args:
        folder: the exported folder.
        model: the JAX model, computing in float32.
        contract: how texts are encoded.

    Raises:
        UserError: a program cannot load the folder or gives other embeddings, with the figures of
            all; or none is installed.
    """
    digest = tokenizer_sha256(load_tokenizer(folder))
    if digest != contract.tokenizer_sha256:
        raise UserError(
            f"export: the tokenizer's hash is {contract.tokenizer_sha256} in the encoding "
            f"contract, but {digest} in the exported model; export from the model folder that "
            "training started from"
        )
    texts = list(VERIFICATION_TEXTS)
    encoders = [JaxEncoder(model, contract, folder, size) for size in (len(texts), 1)]
    ours = np.concatenate([encoder.encode(texts, side) for encoder in encoders for side in SIDES])
    checks: list[Check] = []
    for name, runtime in RUNTIMES.items():
        if (folder / runtime.file).is_file():
            checks += _checks(name, runtime, folder, contract, texts, ours)
    verification = Verification(checks)
    if any(check.failed for check in checks):
        raise UserError(f"export: the exported model is not the JAX model:\n{verification}")
    if all(check.parity is None for check in checks):
        raise UserError(f"export: nothing could be verified:\n{verification}")
    return verification


def _checks(
    name: str,
    runtime: Runtime,
    folder: Path,
    contract: EncodingContract,
    texts: list[str],
    ours: NDArray[np.float32],
) -> list[Check]:
    bounds = INT8 if name.endswith("int8") else FLOAT32
    try:
        encode = runtime.load(folder, contract)
    except ImportError as error:
        why = f"not checked: {error.name or error} is not installed"
        return [Check(name, {}, padding, None, bounds, why) for padding in runtime.paddings]
    except UserError:
        raise
    except Exception as error:  # torch, transformers, safetensors, ONNX Runtime: unrelated types
        raise UserError(
            f"export: {name} cannot load the exported folder ({type(error).__name__}: {error})"
        ) from error
    versions = {package: metadata.version(package) for package in runtime.packages}
    checks = []
    for padding in runtime.paddings:
        batches = ([texts], [[text] for text in texts])
        theirs = [
            encode(batch, side, padding) for split in batches for side in SIDES for batch in split
        ]
        parity = Parity.of(ours, np.concatenate(theirs))
        checks.append(Check(name, versions, padding, parity, bounds))
    return checks
