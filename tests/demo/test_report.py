"""The report writer: one file, nothing outside it, every text escaped."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from cellsmith.demo._report import (
    Cell,
    Code,
    Figure,
    Heading,
    Report,
    Section,
    Table,
    Terms,
    Tiles,
    render,
    write,
)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Collects what the tests ask about, and that every element is closed in order."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "poster", "srcset"}:
                self.links.append(value)
            if name == "id":
                self.anchors.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report():
    blocks = [
        "Plain text with **bold**, `code` and <b>no markup</b> & more.",
        Tiles([("0.5", "a number")]),
        Heading("A question?"),
        Figure(PNG, title='A "picture"', how_to_read="Left to right.", finding="It rises."),
        Table("Numbers", ["name", "value"], [["a", "1"], ["b", Cell("2", "bad")]], note="Two rows."),
        Heading("Code & words"),
        Code("x < y  # a comment"),
        Terms([("cell", "a living thing")]),
    ]
    return Report("The title", "The lead.", [Section("First part", "first", blocks)], {"Seed": "0", "numpy": "2"})


def test_page_is_whole_and_self_contained(report):
    page = Reader(render(report))
    assert {"h1", "nav", "main", "figure", "figcaption", "table", "pre", "footer"} <= set(page.tags)
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "@import" not in render(report)
    assert "url(" not in render(report)


def test_contents_lead_somewhere(report):
    page = Reader(render(report))
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert inside == ["first", "first-a-question", "first-code-words"]
    assert set(inside) <= set(page.anchors)
    assert len(page.anchors) == len(set(page.anchors))


def test_text_is_escaped_and_light_markup_works(report):
    page = render(report)
    assert "<b>bold</b>" in page
    assert "<code>code</code>" in page
    assert "&lt;b&gt;no markup&lt;/b&gt; &amp; more" in page
    assert "x &lt; y" in page
    assert 'alt="A &quot;picture&quot;"' in page
    assert "How to read this picture" in page


def test_both_colour_schemes_and_narrow_screens(report):
    page = render(report)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_a_row_of_the_wrong_length_is_an_error():
    bad = Section("s", "s", [Table("T", ["a", "b"], [["only one"]])])
    with pytest.raises(ValueError, match="row of 1 cells in 'T'; expected 2"):
        render(Report("t", "l", [bad]))


def test_write(report, tmp_path):
    path = write(report, tmp_path / "r.html")
    assert path.read_text(encoding="utf-8") == render(report)
