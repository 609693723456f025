"""Contracts that differ in one field."""

from typing import Any

OTHER_VALUES: dict[str, Any] = {
    "pooling": "cls",
    "normalize": False,
    "dimension": 8,
    "similarity": "dot",
    "query_prompt": "ask: ",
    "passage_prompt": "passage:",
    "query_length": 12,
    "passage_length": 24,
    "special_tokens": False,
    "padding_side": "left",
    "tokenizer_sha256": "cd" * 32,
}
"""Every field of the encoding contract, with a value that no contract of the tests has."""
