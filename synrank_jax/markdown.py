"""Texts from outside in Markdown, where they must not act as markup."""

import html
import re
from collections.abc import Sequence


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: character references never act as markup.

    For use inside a line; it does not escape what has a meaning only where a line begins.
    """
    one_line = html.escape(" ".join(text.split()))
    return re.sub(r"[\\`*_{}\[\]|~!]", lambda match: f"&#{ord(match[0])};", one_line)


def fenced(text: str, language: str) -> str:
    """A code block that no run of backticks inside can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header."""
    lines = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)
