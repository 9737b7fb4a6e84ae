# SPDX-License-Identifier: GPL-2.0-or-later
"""The skeleton of a report page: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from guestemu.report.charts import STYLE

_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1d2433}
h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:1px solid #ccd}
table{border-collapse:collapse;width:100%}td,th{padding:.15em .6em;text-align:right}
th{border-bottom:1px solid #99a}td:first-child,th:first-child{text-align:left}
tr:nth-child(even){background:#f4f6fa}svg{width:100%;height:auto;display:block;font-size:12px}
.frame{fill:#eef1f6}.was{fill:#2456b3}.now{fill:#c0392b}.bad{color:#b00020}
pre{background:#f4f6fa;padding:.8em;overflow-x:auto;font-size:12px}
.new{fill:#c0392b}
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of `parts`, which are HTML; `title` is text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading with `body`, which is HTML, below it."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
