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
    except ImportError as error:
        extra = {"openai": "generate", "transformers": "local", "vllm": "vllm"}[config.kind]
        raise UserError(
            f"backend.kind {config.kind}: a package is missing ({error}); install the extra: "
            f"pip install 'synrank-jax[{extra}]'"
        ) from error
    raise UserError(f"backend.kind {config.kind}: not there yet")
