"""Opens the configured backend; each kind's packages are imported only when it is asked for."""

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Backend


def open_backend(config: BackendConfig) -> Backend:
    """The backend of `config`; nothing is sent or loaded before its `check`.

    Raises:
        UserError: a package that it needs is not installed.
    """
    try:
        match config.kind:
            case "openai":
                from synrank_jax.generation.openai_backend import OpenAIBackend

                return OpenAIBackend(config)
            case "transformers":
                import llguidance  # noqa: F401 (better missing now than after loading the model)
                import torch  # noqa: F401

                from synrank_jax.generation.local_backend import LocalBackend
                from synrank_jax.generation.transformers_engine import TransformersEngine

                return LocalBackend(TransformersEngine(config), config.concurrency)
            case "vllm":
                import vllm  # noqa: F401

                from synrank_jax.generation.local_backend import LocalBackend
                from synrank_jax.generation.vllm_engine import VllmEngine

                return LocalBackend(VllmEngine(config), config.concurrency)
    except ImportError as error:
        extra = {"openai": "generate", "transformers": "local", "vllm": "vllm"}[config.kind]
        raise UserError(
            f"backend.kind {config.kind}: a package is missing ({error}); install the extra: "
            f"pip install 'synrank-jax[{extra}]'"
        ) from error
