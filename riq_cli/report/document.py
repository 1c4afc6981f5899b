"""What HTML pages have in common: the document around their sections, boxes of figures, tables, keys of pictures.

A page's policy forbids all scripts but the one that is written here, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files

from riq_cli.text import html_text


def document(title: str, heading: str, sections: Iterable[str]) -> str:
    """A page of sections of HTML; its title and its heading are untrusted text."""
    folder = files("riq_cli.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{html_text(heading)}</h1>
{"".join(sections)}
</main>
<script>{script}</script>
</body>
</html>
"""


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Figures in boxes, each as a term, a value and a note in HTML."""
    boxes = (
        f"<div><dt>{term}</dt><dd>{value} <small>{note.replace(' %', '&nbsp;%')}</small></dd></div>"
        for term, value, note in items
    )
    return f'<dl class="totals">{"".join(boxes)}</dl>\n'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table of cells in HTML; the first `left` columns to the left, numbers in the others to the right."""
    kinds = [""] * left + [' class="number"'] * (len(header) - left)
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for kind, text in zip(kinds, header, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def key_of(items: Iterable[tuple[str, str]]) -> str:
    """What the marks and lines of a picture mean, each as SVG and a text in HTML."""
    marks = (f'<li><svg viewBox="0 0 22 16" aria-hidden="true">{mark}</svg>{text}</li>' for mark, text in items)
    return f'<ul class="key">{"".join(marks)}</ul>'
