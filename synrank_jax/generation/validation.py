"""What makes the passages of an answer a valid part of a list.

Duplicates are judged within a list and against the prompt's examples only, so that the verdict does
not depend on which other lists are done. Across lists it is the audit that looks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from synrank_jax.config_generation import RulesConfig
from synrank_jax.errors import UserError
from synrank_jax.generation.answers import REFUSAL, Slot, UnreadableError, Written
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.ngrams import Hashes, WordHashes, jaccard, shingles, words


class Rules:
    """The checks of a configuration."""

    def __init__(self, config: RulesConfig) -> None:
        """Loads the language model if a language is asked for.

        Raises:
            UserError: it is not installed, or does not know the language.
        """
        self._config, self._hashes = config, WordHashes()
        self._examples: dict[str, Hashes] = {}
        self._identifier = _identifier(config.language_code) if config.language_code else None

    def check(
        self,
        query: str,
        slots: Sequence[Slot],
        passages: Sequence[Written],
        before: Sequence[str],
        examples: Sequence[str],
    ) -> None:
        """Refuse passages that break a rule.

        Args:
            query: Text of the query.
            slots: Grade and number of each passage.
            passages: In the order of `slots`.
            before: Texts of the same list that are already accepted.
            examples: Texts of the examples that the prompt showed.

        Raises:
            UnreadableError: of the first rule broken, with the passage that breaks it.
        """
        texts = [passage.text for passage in passages]
        if sum(bool(REFUSAL.match(text)) for text in texts) * 2 > len(texts):
            raise UnreadableError(Failure.REFUSED, texts[0][:200])
        written = [words(text) for text in texts]
        rules = (
            self._length(slots, written),
            self._copies(query, slots, written, before, examples),
            self._language(slots, texts),
        )
        for broken in rules:
            for failure, message in broken:
                raise UnreadableError(failure, message)

    def _length(
        self, slots: Sequence[Slot], written: Sequence[list[str]]
    ) -> Iterator[tuple[Failure, str]]:
        low, high = self._config.min_words, self._config.max_words
        for slot, text in zip(slots, written, strict=True):
            count = len(text)
            if count < low:
                yield Failure.TOO_SHORT, f"{_said(slot)}: {count} words, rules.min_words {low}"
            if count > high:
                yield Failure.TOO_LONG, f"{_said(slot)}: {count} words, rules.max_words {high}"

    def _copies(
        self,
        query: str,
        slots: Sequence[Slot],
        written: Sequence[list[str]],
        before: Sequence[str],
        examples: Sequence[str],
    ) -> Iterator[tuple[Failure, str]]:
        asked = words(query)
        known = [("a passage of the list", self._shingles(words(text))) for text in before]
        known += [("an example of the prompt", self._example(text)) for text in examples]
        for slot, text in zip(slots, written, strict=True):
            if text == asked:
                yield Failure.DUPLICATE, f"{_said(slot)}: is the query"
            own = self._shingles(text)
            for what, other in known:
                if (share := jaccard(own, other)) >= self._config.near_duplicate:
                    yield Failure.DUPLICATE, f"{_said(slot)}: {share:.0%} the same as {what}"
            known.append((_said(slot), own))

    def _shingles(self, text: list[str]) -> Hashes:
        return shingles(self._hashes.of(text))

    def _example(self, text: str) -> Hashes:
        if text not in self._examples:  # a few, shown again and again
            self._examples[text] = self._shingles(words(text))
        return self._examples[text]

    def _language(
        self, slots: Sequence[Slot], texts: Sequence[str]
    ) -> Iterator[tuple[Failure, str]]:
        if self._identifier is None:
            return
        for slot, text in zip(slots, texts, strict=True):
            code, _ = self._identifier.classify(text)
            if code != self._config.language_code:
                yield (
                    Failure.LANGUAGE,
                    f"{_said(slot)}: recognised as {code}, not {self._config.language_code}",
                )


def _said(slot: Slot) -> str:
    return f"grade {slot.grade}, passage {slot.number}"


def _identifier(code: str) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError(
            f"rules.language_code needs py3langid ({error}); install the extra: "
            "pip install 'synrank-jax[generate]'"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if code not in identifier.labels:
        raise UserError(
            f"rules.language_code {code!r}: not a language that py3langid knows: "
            f"{', '.join(sorted(identifier.labels))}"
        )
    return identifier
