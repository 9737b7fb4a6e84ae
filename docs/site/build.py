#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the documentation site: `make docs` runs it.

Pages are docs/*.md as they are, the pages of docs/site, and a reference made from the code.
Pictures are made here: a line `<!-- strip: PROGRAM -->` or `<!-- race: PROGRAM -->` becomes the
picture of that program's run. The result, build/site, can be read and searched from a file system,
and fetches nothing from elsewhere.

`build.py --stage` writes the sources for MkDocs only.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

HERE = ROOT / "docs" / "site"
BUILD = ROOT / "build"
SOURCES = BUILD / "site-sources"
SITE = BUILD / "site"

NAV: dict[str, dict[str, str]] = {
    "Start": {"Start": "index.md"},
    "How it works": {"How it works": "how-it-works.md", "The house": "architecture.md"},
    "Guides": {
        "Test my kernel": "kernel-test.md",
        "Test my VMM": "test-my-vmm.md",
        "Run a campaign": "campaigns.md",
        "Read a finding": "read-a-finding.md",
        "In CI": "ci.md",
        "DMA": "dma.md",
    },
    "Reference": {},
    "Findings": {"Findings": "findings.md", "Kernels": "kernels.md"},
    "Studies": {
        "In short": "studies.md",
        "Claims": "claims.md",
        "Error ledger": "ledger.md",
        "Planted bugs": "zoo.md",
        "Interleavings": "explore.md",
        "A kernel at every instruction": "kernel-migration.md",
    },
}
"""Pages that have a place; every other page of docs goes below Reference."""

CONFIG = """\
site_name: guestemu
docs_dir: site-sources
site_dir: site
use_directory_urls: false
strict: true
theme:
  name: material
  font: false
  features: [navigation.tabs, navigation.top, content.code.copy, toc.follow]
  palette:
    - media: "(prefers-color-scheme)"
      toggle: {icon: material/theme-light-dark, name: Light}
    - media: "(prefers-color-scheme: light)"
      scheme: default
      toggle: {icon: material/weather-night, name: Dark}
    - media: "(prefers-color-scheme: dark)"
      scheme: slate
      toggle: {icon: material/weather-sunny, name: As the system}
plugins: [search, offline]
extra_css: [pictures.css]
extra: {generator: false, polyfills: [iframe-worker.js]}
markdown_extensions:
  - attr_list
  - md_in_html
  - admonition
  - pymdownx.superfences
  - toc:
      permalink: true
      slugify: !!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}
validation:
  omitted_files: warn
  links: {not_found: warn, anchors: warn, absolute_links: warn, unrecognized_links: warn}
"""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
SESSION = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^<!-- (strip|race|flow)(?:: (\S+))? -->$", re.MULTILINE)


def navigation() -> dict[str, dict[str, str]]:
    """The site's pages by section: title and file."""
    found = {section: dict(pages) for section, pages in NAV.items()}
    placed = {file for pages in NAV.values() for file in pages.values()}
    reference = found["Reference"]
    for title, (file, _) in REFERENCE.items():
        reference[title] = file
    for path in sorted((ROOT / "docs").glob("*.md")):
        if path.name not in placed:
            reference[title_of(path)] = path.name
    for path in sorted((ROOT / "docs" / "facts").glob("*.md")):
        reference[f"Facts: {title_of(path)}"] = f"facts/{path.name}"
    return found


def title_of(path: Path) -> str:
    """A page's first heading, in plain text."""
    match = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return re.sub(r"[`*\[\]]", "", match[1]).split(" (")[0] if match else path.stem


def stage() -> None:
    """Writes the sources: pages, pictures, reference, configuration."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        relative = path.relative_to(ROOT / "docs")
        if not path.is_file() or path.suffix not in {".md", ".svg", ".js"}:
            continue
        if relative.parts[0] == "site":
            relative = Path(*relative.parts[1:])
        target = SOURCES / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copy(path, target)
        else:
            target.write_text(page_of(path), encoding="utf-8")
    for file, make in REFERENCE.values():
        (SOURCES / file).write_text(make(), encoding="utf-8")
    (SOURCES / "pictures.css").write_text(picture_style(), encoding="utf-8")
    nav = [
        {section: [{title: file} for title, file in pages.items()]}
        for section, pages in navigation().items()
    ]
    text = CONFIG + f"nav: {msgspec.json.encode(nav).decode()}\n"
    (BUILD / "mkdocs.yml").write_text(text, encoding="utf-8")


def page_of(path: Path) -> str:
    """A page with its pictures, and its links to files outside the site as their paths."""
    text = PICTURE.sub(_picture, SESSION.sub(_session, path.read_text(encoding="utf-8")))
    fences: list[str] = []

    def put_aside(match: re.Match[str]) -> str:
        fences.append(match[0])
        return f"\0{len(fences) - 1}\0"

    def relink(match: re.Match[str]) -> str:
        mark, label, place, anchor = match.groups()
        if re.match(r"[a-z]+:", place):
            return match[0]
        target = (path.parent / place).resolve()
        docs = ROOT / "docs"
        if target.is_relative_to(docs) and target.suffix in {".md", ".svg"}:
            if path.parent == HERE and not target.is_relative_to(HERE):
                return f"{mark}[{label}]({target.relative_to(docs)}{anchor or ''})"
            if path.parent == docs and target.is_relative_to(HERE):
                return f"{mark}[{label}]({target.relative_to(HERE)}{anchor or ''})"
            return match[0]
        if target.exists():
            return f"{label} (`{target.relative_to(ROOT)}`)"
        return match[0]

    text = LINK.sub(relink, FENCE.sub(put_aside, text))
    return re.sub(r"\0(\d+)\0", lambda match: fences[int(match[1])], text)


def _session(match: re.Match[str]) -> str:
    """A block with commands behind a prompt as a console session: the button beside it copies the
    commands alone."""
    if not re.search(r"^    \$ ", match[0], re.MULTILINE):
        return match[0]
    lines = [line.removeprefix("    ") for line in match[0].splitlines()]
    return "\n".join(["```console", *lines, "```", ""])


def _picture(match: re.Match[str]) -> str:
    from guestemu.program.text import load_program
    from guestemu.report.race import race_figure
    from guestemu.report.strip import strip_legend, strip_svg
    from guestemu.report.trace.races import race_of
    from guestemu.report.trace.run import run_program

    kind, place = match.groups()
    if kind == "flow":
        return f'<div class="picture">{(HERE / "flow.svg").read_text(encoding="utf-8")}</div>'
    program = msgspec.structs.replace(load_program(ROOT / place), expectations=())
    identity = f"{kind}-{re.sub(r'[^a-z0-9]+', '-', place.lower())}"
    if kind == "race":
        picture = race_figure(race_of(program)[0], identity)
    else:
        strip = run_program(program).strip
        if strip is None:
            raise SystemExit(f"{place}: no strip to draw; take a program that converts a page")
        picture = strip_legend(strip) + strip_svg(strip, identity)
    return f'<div class="picture">{picture}</div>'


def picture_style() -> str:
    """The pictures' styles, in the colours of the site's two schemes."""
    from guestemu.report.page import DARK, LIGHT
    from guestemu.report.race import RACE_STYLE
    from guestemu.report.strip import STRIP_STYLE

    return (
        f":root{{{LIGHT}}}[data-md-color-scheme=slate]{{{DARK}}}"
        ".picture{overflow-x:auto}.picture svg{width:100%;height:auto;display:block}"
        ".picture svg text{font-family:inherit}"
        f"{STRIP_STYLE}{RACE_STYLE}"
        ".flow rect{fill:var(--panel);stroke:var(--grid)}.flow text{fill:var(--ink);font-size:13px}"
        ".flow path{stroke:var(--grid);fill:none;stroke-width:1.5}.flow .dim{fill:var(--dim)}"
        ".flow .key{stroke:var(--link);stroke-width:2}"
        "[data-md-color-scheme=slate]{--md-code-hl-number-color:#f08a7e;"
        "--md-code-hl-constant-color:#a698ea;--md-code-hl-keyword-color:#7ba0e6}"
        "[data-md-copying] .gp,[data-md-copying] .go{display:none}"
        ".md-grid{max-width:70rem}.md-typeset table:not([class]){font-size:.7rem}"
    )


# The reference, from the code -------------------------------------------------------------------


def verbs() -> str:
    """Every verb's help."""
    import typer.main

    from guestemu.cli.main import _build, find_verbs

    app, _ = _build(find_verbs())
    lines = ["# Verbs", "", "What `guestemu VERB --help` prints, for every verb.", ""]

    def add(name: str, command: Any, parent: Any, level: int) -> None:
        context = type(parent)(command, info_name=name.split()[-1], parent=parent)
        lines.extend([f"{'#' * level} {name}", "", "```text", command.get_help(context), "```", ""])
        for below, inner in sorted(getattr(command, "commands", {}).items()):
            add(f"{name} {below}", inner, context, min(level + 1, 4))

    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="guestemu", terminal_width=90)
    for verb, command in sorted(root.commands.items()):
        add(f"guestemu {verb}", command, context, 2)
    return "\n".join(lines)


def operations() -> str:
    """Every operation of programs."""
    from guestemu.program.ops import SPECS

    lines = [
        "# Operations",
        "",
        "What a program can say; the text form is described in [Programs](program-format.md).",
        "",
        "| operation | arguments | what it does |",
        "| --- | --- | --- |",
    ]
    for spec in SPECS.values():
        page = "PAGE " if spec.has_page else ""
        arguments = " ".join(f"{one.name}={one.default:#x}" for one in spec.arguments)
        lines.append(f"| `{spec.name}` | {_code(f'{page}{arguments}')} | {_cell(spec.help)} |")
    return "\n".join([*lines, ""])


def hosts() -> str:
    """Every host that answers guests."""
    from guestemu.host.registry import hosts as entries

    lines = [
        "# Hosts",
        "",
        "Names for `--host` and for the header of a program. A host of your own: "
        "[Test my VMM](test-my-vmm.md).",
        "",
        "| host | what it is | defects that can be repaired |",
        "| --- | --- | --- |",
    ]
    for entry in entries():
        switches = ", ".join(f"`{name}`" for name in entry.switches)
        lines.append(f"| `{entry.name}` | {_cell(entry.summary)} | {switches} |")
    return "\n".join([*lines, ""])


def checks() -> str:
    """Every check, with what a violation means."""
    from guestemu.checks.base import Oracle

    importlib.import_module("guestemu.checks")  # registers them

    lines = [
        "# Checks",
        "",
        "What is held against every run; `guestemu explain NAME` prints one.",
        "",
    ]
    found: dict[str, list[type[Oracle]]] = {}
    pending = list(Oracle.__subclasses__())
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if getattr(kind, "name", ""):
            found.setdefault(kind.name, []).append(kind)
    for name in sorted(found):
        lines += [f"## {name}", ""]
        for kind in found[name]:
            lines += [" ".join((kind.__doc__ or "").split("\n\n")[0].split()), ""]
        means = {key: text for kind in found[name] for key, text in kind.explanations.items()}
        lines += [f"- violation `{key}`: {text}" for key, text in means.items()]
        lines.append("")
    return "\n".join(lines)


def targets() -> str:
    """Every target of a campaign."""
    from guestemu.campaign.targets import TARGETS

    lines = [
        "# Targets",
        "",
        "Names for `guestemu fuzz`; how a campaign works is in [Run a campaign](campaigns.md).",
        "",
        "| target | what it is |",
        "| --- | --- |",
    ]
    lines += [f"| `{one.name}` | {_cell(one.summary)} |" for one in TARGETS.values()]
    return "\n".join([*lines, ""])


def fact_index() -> str:
    """Every fact with its first sentence."""
    from guestemu.abi.facts import facts

    lines = ["# Facts", "", "What the models follow; `guestemu explain ID` prints one.", ""]
    section = ""
    for fact in facts().values():
        if fact.sheet != section:
            section = fact.sheet
            lines += ["", f"## {section}", "", "| fact | sentence |", "| --- | --- |"]
        lines.append(f"| [{fact.id}](facts/{fact.sheet}#{fact.id}) | {_cell(fact.sentence)} |")
    return "\n".join([*lines, ""])


def studies() -> str:
    """A summary on top of the studies, from their own pages."""
    rows = re.findall(
        r"^\| \[(C\d+)\]\([^)]*\) \| (.+?) \| (.+?) \| (.*?) \|$",
        (ROOT / "docs" / "claims.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    verdicts: dict[str, int] = {}
    for _, _, verdict, _ in rows:
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
    alone = sum(1 for row in rows if row[3].strip())
    words = ", ".join(f"{count} *{verdict}*" for verdict, count in verdicts.items())
    from guestemu.campaign.planted.catalogue import BUGS

    return "\n".join(
        [
            "# Studies in short",
            "",
            f"**[Claims](claims.md).** {len(rows)} statements of the mailing-list debate about "
            f"live migration of SEV guests, each with an experiment: {words}. {alone} rest on the "
            "project's own models alone, and say what could decide them.",
            "",
            "**[The error ledger](ledger.md).** One failure at a time, injected into every step of "
            "a conversion, under every policy of the guest: who notices, and what is lost.",
            "",
            f"**[Planted bugs](zoo.md).** {len(BUGS)} bugs that existed or could, each planted in "
            "a host or a guest, and the campaign that finds it.",
            "",
            "**[Interleavings](explore.md)** counts every order of a conversion and a migration; "
            "[a kernel at every instruction](kernel-migration.md) does the same to a booted Linux.",
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text.strip()}`" if text.strip() else ""


REFERENCE: dict[str, tuple[str, Callable[[], str]]] = {
    "Verbs": ("reference-verbs.md", verbs),
    "Operations": ("reference-operations.md", operations),
    "List of hosts": ("reference-hosts.md", hosts),
    "Checks": ("reference-checks.md", checks),
    "Targets": ("reference-targets.md", targets),
    "Facts": ("reference-facts.md", fact_index),
}


def fetched(site: Path) -> Iterator[str]:
    """What a page of the site would load from elsewhere."""
    pattern = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="(https?:[^"]+|//[^"]+)"'
        r'|<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(https?:[^"]+|//[^"]+)"'
    )
    for page in sorted(site.rglob("*.html")):
        for match in pattern.finditer(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)}: {unescape(match[1] or match[2])}"


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    stage()
    (SOURCES / "studies.md").write_text(studies(), encoding="utf-8")
    if "--stage" in arguments:
        print(SOURCES)
        return 0
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean"]
    if subprocess.run([*command, "-f", str(BUILD / "mkdocs.yml")], check=False).returncode:
        return 1
    (SITE / "404.html").unlink(missing_ok=True)  # finds its style on the web alone
    found = list(fetched(SITE))
    for line in found:
        print(f"fetched from elsewhere: {line}", file=sys.stderr)
    print(SITE / "index.html")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
