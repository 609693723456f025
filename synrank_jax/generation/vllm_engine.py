"""vLLM in this process, without a server (`vllm.LLM`).

vLLM batches continuously within a call and waits for the last text of it, so that a large
`backend.concurrency` (some thousands) keeps the GPUs busy. A server does not have to wait.
"""

from collections.abc import Sequence
from typing import Any

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError


class VllmEngine:
    """See `Engine`."""

    def __init__(self, config: BackendConfig) -> None:
        """Imports nothing yet."""
        self._config = config

    def load(self) -> bool:
        """See `Engine.load`. All GPUs of the machine share the model."""
        import torch
        from vllm import LLM

        try:
            self._llm = LLM(
                model=self._config.model,
                tensor_parallel_size=max(torch.cuda.device_count(), 1),
                trust_remote_code=False,
                enable_prefix_caching=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"backend.model {self._config.model!r}: vLLM cannot load it "
                f"({' '.join(str(error).split())[:300]})"
            ) from error
        self._context = self._llm.llm_engine.model_config.max_model_len
        self._tokenizer = self._llm.get_tokenizer()
        return True

    def generate(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """See `Engine.generate`."""
        answers: list[Answer | RequestError] = []
        fitting = []
        for place, request in enumerate(requests):
            # vLLM raises for the whole call if one prompt does not fit.
            length = len(
                self._tokenizer.apply_chat_template(
                    list(request.messages), add_generation_prompt=True, return_dict=False
                )
            )
            answers.append(
                RequestError(
                    Failure.CONTEXT_TOO_LONG,
                    f"{length} tokens of prompt and backend.max_tokens {self._config.max_tokens} "
                    f"exceed the model's context of {self._context}",
                )
            )
            if length + self._config.max_tokens <= self._context:
                fitting.append(place)
        if not fitting:
            return answers
        outputs = self._llm.chat(
            [list(requests[place].messages) for place in fitting],
            [self._sampling(requests[place]) for place in fitting],
            use_tqdm=False,
        )
        for place, output in zip(fitting, outputs, strict=True):
            (written,) = output.outputs
            answers[place] = Answer(
                written.text,
                written.finish_reason == "length",
                False,
                len(output.prompt_token_ids or ()),
                len(written.token_ids),
            )
        return answers

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        structured = StructuredOutputsParams(json=request.schema) if request.schema else None
        return SamplingParams(
            seed=request.seed,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            max_tokens=self._config.max_tokens,
            structured_outputs=structured,
        )
