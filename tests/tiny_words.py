"""The vocabulary of the tiny model and its lists."""

WORDS = [
    f"{first}{second}" for first in "bdfgklmnprst" for second in ("al", "er", "in", "os", "um")
]
