# SPDX-License-Identifier: GPL-2.0-or-later
"""The skeleton of a report page: one file that fetches nothing, in light and dark, on any width.

The page's one script sorts tables and copies commands; a page without it loses nothing else. A
content security policy names the script by its hash, so no text of others can become one, even if
an escape were forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Final

import msgspec

from guestemu.report.charts import STYLE
from guestemu.report.heat import HEAT_STYLE
from guestemu.report.race import RACE_STYLE
from guestemu.report.strip import STRIP_STYLE

LIGHT: Final = (
    "--page:#fff;--ink:#1a2130;--dim:#5b6474;--line:#cdd3de;--grid:#8b94a5;--panel:#f4f6fa;"
    "--link:#1f4fb0;--private:#2456b3;--shared:#f3d27a;--sharedline:#8a6510;--bad:#b3261e;"
    "--badpanel:#fdeceb;--good:#1b7a3d;--goodpanel:#e6f5ea;--warnpanel:#fff4d6;--area:#b9cdf0;"
    "--yes:#1b7a3d;--no:#b3261e;"
)
DARK: Final = (
    "--page:#12161e;--ink:#e8ecf3;--dim:#a6b0c1;--line:#3a4354;--grid:#77829a;--panel:#1b212c;"
    "--link:#8db4ff;--private:#3f6fd0;--shared:#d9b04a;--sharedline:#f3d27a;--bad:#ff8a80;"
    "--badpanel:#3a1a1a;--good:#6fd08c;--goodpanel:#14301d;--warnpanel:#3a3014;--area:#2c4677;"
)
"""The colours of pages and pictures, as variables of a style sheet."""

_COLOURS: Final = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"
)
_STYLE: Final = """
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:1em 1em 4em;
color:var(--ink);background:var(--page)}
h1{font-size:1.5em;line-height:1.25;overflow-wrap:anywhere}
h2{font-size:1.2em;margin:2em 0 .5em;border-bottom:1px solid var(--line)}
h3{font-size:1.05em;margin:0 0 .4em;overflow-wrap:anywhere}
section>h3{margin-top:1.4em}
a{color:var(--link)}
.skip{position:absolute;left:-999em}.skip:focus{left:1em;top:.5em;background:var(--page);padding:.3em}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
td,th{padding:.25em .6em;text-align:right;vertical-align:top}
th{border-bottom:1px solid var(--grid)}td:first-child,th:first-child{text-align:left}
table.pairs{width:auto;min-width:min(30em,100%)}
td.text,th.text,.words td,.words th{text-align:left}
tbody tr:nth-child(even){background:var(--panel)}
th button{all:unset;cursor:pointer;text-decoration:underline dotted}
th button:focus-visible{outline:3px solid var(--link)}
svg{width:100%;height:auto;display:block}
svg.plot{min-width:620px}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.frame{fill:var(--panel);stroke:var(--line)}.was{fill:var(--private)}.now{fill:var(--bad)}
.bad{color:var(--bad)}.good{color:var(--good)}.dim{color:var(--dim)}
pre{background:var(--panel);padding:.8em;overflow-x:auto;font-size:13px;margin:.4em 0}
.new{fill:var(--bad)}
.item>p{margin:.3em 0}.item>div{margin-left:1.5em}
.card{border:1px solid var(--line);border-left:5px solid var(--bad);border-radius:6px;
padding:1em;margin:1.2em 0;background:var(--page)}
.card.gone{border-left-color:var(--good)}
.card .lead{font-size:1.1em;font-weight:600;margin:.2em 0;overflow-wrap:anywhere}
.tag{display:inline-block;background:var(--panel);border:1px solid var(--line);border-radius:1em;
padding:0 .7em;font-size:13px;margin:0 .4em .3em 0;color:var(--ink)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(280px,100%),1fr));gap:1em}
.two>div{min-width:0}.two>.whole{grid-column:1/-1}.tag{max-width:100%;overflow-wrap:anywhere}
.two h4,.card h4{margin:.6em 0 .2em;font-size:.95em}
.command{display:flex;gap:.5em;align-items:start}.command pre{flex:1;min-width:0;margin:0}
button.copy{font:inherit;padding:.35em .8em;border:1px solid var(--grid);border-radius:4px;
background:var(--panel);color:var(--ink);cursor:pointer}
summary{cursor:pointer;padding:.3em 0}
.legend{font-size:13px;color:var(--dim)}table.legend{width:auto;margin-bottom:.6em}
table.legend td{text-align:left;color:var(--ink)}
:target{outline:3px solid var(--link)}
td.v-bad{background:var(--badpanel)}td.v-good{background:var(--goodpanel)}
td.v-warn{background:var(--warnpanel)}
@media(max-width:500px){body{padding:.5em .6em 3em;font-size:14px}.card{padding:.7em}
.command{flex-direction:column}.command pre{width:100%}}
@media(max-width:700px){svg.plot text{font-size:15px}}
@media print{button.copy{display:none}}
"""
_SCRIPT: Final = """
for(const b of document.querySelectorAll("button.copy"))b.onclick=async()=>{
const t=b.parentNode.querySelector("pre").textContent;
try{await navigator.clipboard.writeText(t)}catch(e){
const r=document.createRange();r.selectNodeContents(b.parentNode.querySelector("pre"));
const s=getSelection();s.removeAllRanges();s.addRange(r);document.execCommand("copy")}
b.textContent="Copied"};
for(const b of document.querySelectorAll("th button"))b.onclick=()=>{
const th=b.parentNode,i=th.cellIndex,body=th.closest("table").tBodies[0];
const up=th.getAttribute("aria-sort")!=="ascending";
const key=r=>{const c=r.cells[i],t=c.dataset.sort||c.textContent,
n=parseFloat(t.replace(/,/g,""));return isNaN(n)?t:n};
const rows=[...body.rows].sort((x,y)=>{const a=key(x),c=key(y);
const d=typeof a==="number"&&typeof c==="number"?a-c:String(a).localeCompare(String(c));
return up?d:-d});
for(const o of th.parentNode.cells)o.removeAttribute("aria-sort");
th.setAttribute("aria-sort",up?"ascending":"descending");body.append(...rows)};
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'"
)


_CLASSES: Final = {"good": "v-good", "bad": "v-bad", "warn": "v-warn", "text": "text"}


class TableCell(msgspec.Struct, frozen=True):
    """A table's cell: its text, how it is to be taken ("good", "bad", "warn"; "text" for words,
    which stand on the left; or ""), the place on the same page that it leads to (an id, or ""), and
    what a pointer that rests on it shows."""

    text: str
    value: str = ""
    to: str = ""
    note: str = ""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of `parts`, which are HTML; `title` is text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title>"
        f"<style>{_COLOURS}{_STYLE}{STYLE}{STRIP_STYLE}{RACE_STYLE}{HEAT_STYLE}</style></head>"
        f'<body><a class="skip" href="#main">Skip to the content</a><main id="main">'
        f"{''.join(parts)}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def section(title: str, body: str, identity: str = "") -> str:
    """A heading with `body`, which is HTML, below it; `identity` is the heading's id."""
    name = f' id="{escape(identity)}"' if identity else ""
    return f"<section><h2{name}>{escape(title)}</h2>{body}</section>"


def figure(title: str, picture: str) -> str:
    """A wide picture (SVG) that a narrow window scrolls sideways; `title` names it."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">'
        f"{picture}</div>"
    )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    caption: str = "",
    *,
    is_sortable: bool = False,
    row_id: str = "",
    is_words: bool = False,
) -> str:
    """A table of texts and `TableCell`s, with or without headings; `caption` names it for screen
    readers.

    A sortable one has its headings as buttons; one of words has its cells on the left. With
    `row_id` row N has the id "`row_id`-N", so that cells can lead to it.
    """
    name = caption or ", ".join(headings)
    heads = (
        f"<button>{escape(text)}</button>" if is_sortable else escape(text) for text in headings
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    above = f"<thead><tr>{head}</tr></thead>" if headings else ""
    widths = {len(headings)} if headings else {len(row) for row in rows}
    classes = ["words"] * is_words + ["pairs"] * (widths == {2})
    kind = f' class="{" ".join(classes)}"' if classes else ""
    body = "".join(
        f"<tr{f' id={chr(34)}{escape(row_id)}-{number}{chr(34)}' if row_id else ''}>"
        f"{''.join(map(_cell, row))}"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table{kind}>{above}<tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if not isinstance(value, TableCell):
        return f"<td>{escape(str(value))}"
    text = escape(value.text)
    if value.to:
        text = f'<a href="#{escape(value.to)}">{text}</a>'
    kind = f' class="{_CLASSES[value.value]}"' if value.value else ""
    note = f' title="{escape(value.note)}"' if value.note else ""
    return f"<td{kind}{note}>{text}"


def command_line(text: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="command"><pre>{escape(text)}</pre>'
        '<button class="copy" type="button" aria-label="Copy the command">Copy</button></div>'
    )
