from html.parser import HTMLParser

import pytest

from synrank_jax.html_page import POLICY, image, page, safe, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert('x')</script>", "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"),
        ('" onload="x', "&quot; onload=&quot;x"),
        ("a\u202egnp.exe", "a[U+202E]gnp.exe"),
        ("nul\x00 bell\x07 \ufeff", "nul[U+0000] bell[U+0007] [U+FEFF]"),
        ("two\nlines\tand `ticks`", "two\nlines\tand `ticks`"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (3, "3"),
    ],
    ids=["markup", "attribute", "right-to-left", "unprintable", "plain", "joiner", "number"],
)
def test_texts_are_shown_and_never_markup(text: object, shown: str) -> None:
    assert safe(text) == shown


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_has_a_policy_without_scripts_and_loads_nothing() -> None:
    text = page("a < b", ["<p>x</p>", image(b"\x89PNG", 'an "image"')], "p { color: red; }")
    tags = Tags(text).found
    policy = {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert ("meta", policy) in tags
    assert "default-src 'none'" in POLICY
    assert "script-src" not in POLICY
    assert "<title>a &lt; b</title>" in text
    assert "p { color: red; }" in text
    (picture,) = [attributes for tag, attributes in tags if tag == "img"]
    assert picture == {"alt": 'an "image"', "src": "data:image/png;base64,iVBORw=="}
    assert not [attributes for _, attributes in tags if "href" in attributes]


def test_table_sets_numbers_to_the_right() -> None:
    text = table(("name", "count"), [("a", "1"), ("b", "2")], (1,))
    assert text.count('<td class="number">') == 2
    assert '<th class="number">count</th>' in text
    assert "<td>a</td>" in text
