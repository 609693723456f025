"""A small causal language model through transformers, on the CPU or a GPU.

JSON schemas are enforced by llguidance: of the kept grammar libraries it is the one without
dependencies (xgrammar brings triton) and with masks that need no compiler.

Sampling is by the Gumbel-max trick: argmax(logits / temperature + g), with g from a generator that
is seeded by the request, draws exactly from softmax(logits / temperature). So a request has the
same answer whichever others are in its batch, up to the rounding of padded matmuls.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from synrank_jax.config_generation import BackendConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Answer, Failure, Request, RequestError
from synrank_jax.hub import causal_model_folder


class TransformersEngine:
    """See `Engine`."""

    def __init__(self, config: BackendConfig) -> None:
        """Imports nothing yet."""
        self._config = config

    def load(self) -> bool:
        """See `Engine.load`. Weights come from safetensors only."""
        import torch
        from llguidance.hf import from_tokenizer
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = causal_model_folder(self._config.model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"backend.model {self._config.model!r}: not a causal language model with "
                f"safetensors and a tokenizer ({' '.join(str(error).split())[:300]})"
            ) from error
        if self._tokenizer.eos_token_id is None:
            raise UserError(
                f"backend.model {self._config.model!r}: its tokenizer has no end-of-sequence token"
            )
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        try:
            self._grammar_tokenizer = from_tokenizer(
                self._tokenizer, n_vocab=self._model.get_output_embeddings().weight.shape[0]
            )
        except ValueError:  # only fast tokenizers
            return False
        return True

    def generate(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """See `Engine.generate`."""
        prompts = [self._prompt(request) for request in requests]
        longest = self._model.config.max_position_embeddings - self._config.max_tokens
        answers: list[Answer | RequestError] = []
        fitting = []
        for place, prompt in enumerate(prompts):
            answers.append(
                RequestError(
                    Failure.CONTEXT_TOO_LONG,
                    f"{len(prompt)} tokens of prompt and backend.max_tokens "
                    f"{self._config.max_tokens} exceed the model's context of "
                    f"{self._model.config.max_position_embeddings}",
                )
            )
            if len(prompt) <= longest:
                fitting.append(place)
        if fitting:
            written = self._write(
                [prompts[place] for place in fitting], [requests[place] for place in fitting]
            )
            for place, answer in zip(fitting, written, strict=True):
                answers[place] = answer
        return answers

    def _prompt(self, request: Request) -> list[int]:
        messages = list(request.messages)
        if self._tokenizer.chat_template:
            ids = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
            ids = self._tokenizer(text)["input_ids"]
        return list(ids)

    def _write(self, prompts: Sequence[list[int]], requests: Sequence[Request]) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        padded = self._tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        end, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._config.max_tokens,
            eos_token_id=end,
            pad_token_id=pad,
        )
        sampler = _Sampler(
            [self._matcher(request) for request in requests],
            [request.seed for request in requests],
            self._config,
            end,
        )
        with torch.inference_mode():
            output = self._model.generate(
                **padded.to(self._model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([sampler]),
            )
        start = padded["input_ids"].shape[1]
        answers = []
        for prompt, row in zip(prompts, output[:, start:].tolist(), strict=True):
            ended = end in row
            tokens = row[: row.index(end)] if ended else row
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            answers.append(Answer(text, not ended, False, len(prompt), len(tokens) + ended))
        return answers

    def _matcher(self, request: Request) -> Any:
        if request.schema is None:
            return None
        from llguidance import LLMatcher

        # Free white space is an invitation to small models to write nothing else.
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(request.schema), overrides={"whitespace_flexible": False}
        )
        matcher = LLMatcher(self._grammar_tokenizer, grammar)
        if matcher.is_error():
            raise RuntimeError(f"llguidance refuses the schema: {matcher.get_error()}")
        return matcher


class _Sampler:
    """A logits processor of `generate`, with a grammar and a generator for each row."""

    def __init__(
        self, matchers: Sequence[Any], seeds: Sequence[int], config: BackendConfig, end: int
    ) -> None:
        import torch

        self._matchers, self._end = matchers, end
        self._temperature, self._top_p = config.temperature, config.top_p
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._started = False

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores whose argmax is the next token: [rows, V] as given, -inf where not allowed."""
        import torch

        scores = scores.float()
        for row, matcher in enumerate(self._matchers):
            if matcher is not None:
                scores[row] = self._allowed(matcher, input_ids[row, -1].item(), scores[row])
        self._started = True
        if self._temperature == 0:
            return scores
        scores = _nucleus(scores / self._temperature, self._top_p)
        noise = [torch.rand(scores.shape[1], generator=generator) for generator in self._generators]
        uniform = torch.stack(noise).to(scores.device)
        return scores - torch.log(-torch.log(uniform.clamp_min(1e-30)))

    def _allowed(self, matcher: Any, last: int, scores: Any) -> Any:
        import torch

        if self._started and not matcher.is_stopped():
            matcher.consume_token(last)
        if matcher.is_stopped():
            mask = torch.zeros_like(scores, dtype=torch.bool)
            mask[self._end] = True
        else:
            bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8).copy()
            mask = torch.from_numpy(bias != 0).to(scores.device)
        return torch.where(mask, scores, -torch.inf)


def _nucleus(scores: Any, top_p: float) -> Any:
    """Keep the most probable tokens that together reach `top_p`."""
    import torch

    if top_p == 1:
        return scores
    ordered, places = scores.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    ordered = torch.where(before < top_p, ordered, -torch.inf)
    return torch.empty_like(scores).scatter(-1, places, ordered)
