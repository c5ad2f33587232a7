"""One self-contained HTML page from sections of text, pictures and tables.

The page needs no network, no script and no file beside it: the style is inline and the pictures are embedded. It
follows the reader's light or dark setting and the width of the window.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellsmith.demo._style import STYLE

__all__ = [
    "Block",
    "Cell",
    "Code",
    "Figure",
    "Heading",
    "Report",
    "Section",
    "Table",
    "Terms",
    "Tiles",
    "render",
    "write",
]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines of code, shown as they are."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture with the words that explain it.

    Parameters
    ----------
    png
        The encoded picture.
    title
        What it shows, in a few words; also the text for readers who cannot see it.
    how_to_read
        Plain sentences: what the axes and colours are, and what a good result looks like.
    finding
        What this run shows.
    """

    png: bytes
    title: str
    how_to_read: str
    finding: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell with a tone: ``"good"``, ``"bad"``, ``"quiet"`` or none."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column names; the first column names the row.

    Parameters
    ----------
    title
        What the table shows.
    columns
        Names, shape ``(n_columns,)``.
    rows
        Strings or cells, each row of length ``n_columns``.
    note
        One or two sentences on how to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A few headline numbers: ``(number, what it is)``."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Terms:
    """Words and their meaning: ``(word, explanation)``."""

    items: Sequence[tuple[str, str]]


Block = str | Heading | Code | Figure | Table | Tiles | Terms


@dataclass(frozen=True)
class Section:
    """One chapter of the report.

    Parameters
    ----------
    title
        Shown in the table of contents.
    slug
        Anchor of the section, unique in the report.
    blocks
        Paragraphs (plain strings; ``**bold**`` and backquotes work), headings, pictures, tables, in reading order.
    summary
        A short table that the command line prints, or None.
    """

    title: str
    slug: str
    blocks: Sequence[Block]
    summary: Table | None = None


@dataclass(frozen=True)
class Report:
    """The whole page: title, opening sentence, sections, and the facts of its footer."""

    title: str
    lead: str
    sections: Sequence[Section]
    provenance: Mapping[str, str] = field(default_factory=dict)


def write(report: Report, path: str | Path) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    report
        What to show.
    path
        File to write; its folder must exist.

    Returns
    -------
    The path that was written.
    """
    path = Path(path)
    path.write_text(render(report), encoding="utf-8")
    return path


def render(report: Report) -> str:
    """Turn a report into one HTML document.

    Parameters
    ----------
    report
        What to show.

    Returns
    -------
    The document as text; it refers to nothing outside itself.
    """
    sections = "\n".join(_section(section) for section in report.sections)
    facts = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in report.provenance.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{_text(report.title)}</h1><p class="lead">{_text(report.lead)}</p></header>\n'
        f'<div class="page">\n<nav aria-label="Contents">{_contents(report.sections)}</nav>\n'
        f"<main>\n{sections}\n</main>\n</div>\n"
        f"<footer><h2>How this page was made</h2><dl>{facts}</dl></footer>\n</body>\n</html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    lines = []
    for section in sections:
        inner = "".join(
            f'<li><a href="#{_anchor(section, block)}">{_text(block.text)}</a></li>'
            for block in section.blocks
            if isinstance(block, Heading)
        )
        lines.append(
            f'<li><a href="#{section.slug}">{_text(section.title)}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>'
        )
    return f"<strong>Contents</strong><ul>{''.join(lines)}</ul>"


def _anchor(section: Section, heading: Heading) -> str:
    return f"{section.slug}-{re.sub(r'[^a-z0-9]+', '-', heading.text.lower()).strip('-')}"


def _section(section: Section) -> str:
    parts = []
    for block in section.blocks:
        if isinstance(block, Heading):
            parts.append(f'<h3 id="{_anchor(section, block)}">{_text(block.text)}</h3>')
        else:
            parts.append(_block(block))
    return f'<section id="{section.slug}"><h2>{_text(section.title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def _block(block: Block) -> str:
    if isinstance(block, Figure):
        return _figure(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    if isinstance(block, Tiles):
        tiles = "".join(f"<div><b>{_text(number)}</b><span>{_text(what)}</span></div>" for number, what in block.items)
        return f'<div class="tiles">{tiles}</div>'
    if isinstance(block, Terms):
        return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in block.items) + "</dl>"
    return f"<p>{_text(str(block))}</p>"


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    finding = f"<p>{_text(figure.finding)}</p>" if figure.finding else ""
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(figure.title)}">'
        f"<figcaption><p><b>{_text(figure.title)}</b></p><p><i>How to read this picture.</i> "
        f"{_text(figure.how_to_read)}</p>{finding}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    rows = []
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"Found a row of {len(row)} cells in {table.title!r}; expected {len(table.columns)}.")
        first, *rest = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        cells = "".join(f'<td class="{html.escape(cell.tone)}">{_text(cell.text)}</td>' for cell in rest)
        rows.append(f'<tr><th scope="row">{_text(first.text)}</th>{cells}</tr>')
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="table"><table><caption>{_text(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _text(text: str) -> str:
    """Escape, then allow ``**bold**`` and backquoted code."""
    safe = html.escape(text, quote=False)
    safe = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", safe)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", safe)
