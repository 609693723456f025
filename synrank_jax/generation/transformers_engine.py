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
from synrank_jax.generation.local_backend import TRIAL, context_error
from synrank_jax.hub import causal_model_folder


class TransformersEngine:
    """See `Engine`."""

    def __init__(self, config: BackendConfig) -> None:
        """Imports nothing yet."""
        self._config = config

    def load(self) -> bool:
        """See `Engine.load`. Weights come from safetensors only, and no code with them."""
        import torch
        from jinja2 import TemplateError
        from llguidance.hf import from_tokenizer
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        name = f"backend.model {self._config.model!r}"
        folder = causal_model_folder(self._config.model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype="auto",
                output_loading_info=True,
            )
        except Exception as error:  # three libraries with a dozen unrelated types
            raise UserError(
                f"{name}: not a causal language model with safetensors and a tokenizer "
                f"({' '.join(str(error).split())[:300]})"
            ) from error
        # transformers fills such gaps with random numbers.
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{name}: its weights do not make a causal language model; {missing[0]} is not "
                f"among them ({len(missing)} such weights)"
            )
        own = self._model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self._tokenizer.eos_token_id} - {None}
        if not ends:
            raise UserError(f"{name}: neither it nor its tokenizer has an end-of-sequence token")
        self._ends = sorted(ends)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = self._ends[0]
        self._tokenizer.padding_side = "left"
        try:
            self._tokens(TRIAL)
        except TemplateError as error:
            raise UserError(
                f"{name}: its chat template refuses a system message before the user's ({error}); "
                "take a model that has both"
            ) from error
        # A model may bring penalties of its own, which `generate` would apply unasked.
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._config.max_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        # Recurrent models have no limit.
        text_config = self._model.config.get_text_config()
        self._context: int | None = getattr(text_config, "max_position_embeddings", None)
        try:
            self._grammar_tokenizer = from_tokenizer(
                self._tokenizer,
                n_vocab=self._model.get_output_embeddings().weight.shape[0],
                eos_token=self._ends,
            )
        except ValueError:  # only fast tokenizers
            return False
        return True

    def generate(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """See `Engine.generate`."""
        answers: dict[int, Answer | RequestError] = {}
        prompts: dict[int, list[int]] = {}
        matchers = []
        for place, request in enumerate(requests):
            try:
                prompt = self._prompt(request)
                matchers.append(self._matcher(request))
            except RequestError as error:
                answers[place] = error
            else:
                prompts[place] = prompt
        if prompts:
            seeds = [requests[place].seed for place in prompts]
            sampler = Sampler(matchers, seeds, self._config, self._ends)
            written = self._write(list(prompts.values()), sampler)
            answers |= zip(prompts, written, strict=True)
        return [answers[place] for place in range(len(requests))]

    def _prompt(self, request: Request) -> list[int]:
        tokens = self._tokens(request.messages)
        most = self._config.max_tokens
        if self._context is not None and len(tokens) + most > self._context:
            raise context_error(len(tokens), most, self._context)
        return tokens

    def _tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if self._tokenizer.chat_template:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
            ids = self._tokenizer(text)["input_ids"]
        return list(ids)

    def _write(self, prompts: Sequence[list[int]], sampler: "Sampler") -> list[Answer]:
        import torch
        from transformers import LogitsProcessorList

        padded = self._tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        try:
            with torch.inference_mode():
                output = self._model.generate(
                    **padded.to(self._model.device), logits_processor=LogitsProcessorList([sampler])
                )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with {len(prompts)} texts at once; lower backend.concurrency "
                f"{self._config.concurrency}"
            ) from error
        start = padded["input_ids"].shape[1]
        answers = []
        for prompt, row in zip(prompts, output[:, start:].tolist(), strict=True):
            length = next((at for at, token in enumerate(row) if token in self._ends), None)
            text = self._tokenizer.decode(row[:length], skip_special_tokens=True)
            written = len(row) if length is None else length + 1
            answers.append(Answer(text, length is None, False, len(prompt), written))
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
            raise RequestError(
                Failure.SERVER_ERROR, f"llguidance refuses the schema: {matcher.get_error()}"
            )
        return matcher


class Sampler:
    """A logits processor of `generate`, with a grammar and a generator for each row."""

    def __init__(
        self,
        matchers: Sequence[Any],
        seeds: Sequence[int],
        config: BackendConfig,
        ends: Sequence[int],
    ) -> None:
        import torch

        self._matchers, self._ends = matchers, list(ends)
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
            mask[self._ends] = True
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
