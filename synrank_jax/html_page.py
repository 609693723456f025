"""A report as one HTML file: nothing is loaded from elsewhere, and no text in it is markup.

Queries and passages come from models and from strangers. They are escaped, characters that do not
print or that turn the direction of writing are shown by their code, and the page's own policy
forbids scripts.
"""

import base64
import html
import unicodedata
from collections.abc import Iterable, Sequence

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #d9e2ec; --pale: #f5f7fa; --mark: #b44d12; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft { color: var(--soft); } .mark { color: var(--mark); font-weight: 600; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; background: var(--pale);
  padding: .05em .3em; border-radius: 3px; overflow-wrap: anywhere; }
.kind { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .93em; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { width: 46rem; max-width: 100%; height: auto; margin: .6rem 0; display: block; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { margin: .3rem 0; overflow-wrap: anywhere; }
article { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .9rem; margin: .9rem 0; }
article p { margin: .2rem 0; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--pale);
  padding: .45rem .7rem; border-radius: 4px; font-size: .9em; }
.label { color: var(--soft); font-size: .82em; margin-top: .5rem; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  h2, h3, h2 + p, .label { break-after: avoid; } article, tr, img { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def safe(text: object) -> str:
    """A text as HTML shows it: escaped, unprintable and direction-changing characters as U+code."""
    return html.escape("".join(map(_visible, str(text))))


def _visible(character: str) -> str:
    # Cc: control characters; Cf: among others those that reverse what is read, but also the joiners
    # that Persian and Indic scripts are written with.
    if character in "\n\t\u200c\u200d":
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
        return f"[U+{ord(character):04X}]"
    return character


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole file.

    Args:
        title: plain text.
        parts: HTML.
        style: more CSS.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    """Cells are HTML; columns of `numbers` are set to the right."""
    right = set(numbers)

    def row(tag: str, cells: Sequence[str]) -> str:
        marks = [' class="number"' if at in right else "" for at in range(len(cells))]
        return "".join(
            f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=True)
        )

    lines = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return (
        f"<table>\n<thead><tr>{row('th', header)}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>"
    )


def image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{safe(alt)}" src="data:image/png;base64,{data}">'
