# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/claims.md: every claim with its verdict and evidence, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from guestemu.study.claims.claim import Claim
from guestemu.study.claims.debate import Decided
from guestemu.study.claims.report import value_words, verdict_words

PLOTS: Final = "claims"
"""The directory of the plots, beside the page."""

MODELS_ALONE: Final = "This verdict rests on the project's own models alone."

_HEAD: Final = """\
# The claims of the debate

From 2019 to 2021 the people who wrote and reviewed the SEV live migration patches made statements \
about what is safe, what is needed and what happens. Here each one has an experiment. The verdict \
is computed from what the experiment measured; an outcome that fits no verdict is *undecided*.

This page is made by `guestemu claims --markdown --plots docs/claims`. `guestemu claims C2 C13` \
runs two of them, with `--json` for programs. The exit status is 1 if one is undecided, 3 if a \
claim that was asked for needs a kernel image (`guestemu kernel fetch`) and there is none.

*order model*: all interleavings of a conversion with a migration, see `explore.md`. *firmware \
model*: AMD's published firmware, see `firmware.md`. *host model*: KVM's ABI generations under a \
stand-in vCPU, see `hosts.md`. *snippet*: our own guest code on the emulated CPU. *linux*: a real, \
unmodified kernel. PROGRAM is a file with the text above the command. *Models alone*: no guest \
code ran; the section of such a claim names what could decide it.

An *interleaving* is one order of the guest's steps and the host's; it is *losing* if the guest \
does not read at the destination what it wrote last. Guest: PTE- makes the leaf shared, PTE+ \
private; HC- and HC+ say the same to the host; t1! writes value 1. Host: D fetches and clears the \
dirty log, G fetches it, C clears it, E copies the record of shared pages, S sends by that copy; \
STOP stops the guest for the last pass. `explore.md` lists the orders 1 to 6 and the scripts S0 \
to S3."""


def page(decided: Sequence[Decided], skipped: Sequence[Claim]) -> str:
    """The whole page."""
    return "\n".join([_HEAD, "", *_table(decided), "", *_sections(decided), *_missing(skipped)])


def _table(decided: Sequence[Decided]) -> Iterator[str]:
    yield "| claim | statement | verdict | models alone |"
    yield "| --- | --- | --- | --- |"
    for each in decided:
        claim = each.claim
        name = f"[{claim.ident}](#{claim.ident.lower()})"
        alone = "yes" if each.result.is_model_only else ""
        yield f"| {name} | {_cell(claim.text)} | {_cell(each.result.verdict.value)} | {alone} |"


def _sections(decided: Sequence[Decided]) -> Iterator[str]:
    for each in decided:
        yield from section(each)


def section(each: Decided) -> Iterator[str]:
    """The lines about one claim."""
    claim, result = each.claim, each.result
    yield f"## {claim.ident}"
    yield ""
    yield f"> {claim.text}"
    yield ""
    yield f"Said by: {claim.who}."
    yield ""
    yield f"**{_bold(verdict_words(result), result.verdict.value)}."
    yield ""
    yield "| measured | value | how |"
    yield "| --- | --- | --- |"
    for evidence in result.evidence:
        cells = (evidence.name, value_words(evidence), evidence.how or "-")
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
    yield ""
    for plot in result.plots:
        yield f"![{plot.title}]({PLOTS}/{plot.name}.svg)"
        yield ""
        yield f"{plot.title}."
        yield ""
    yield f"Tested on: {', '.join(result.guests)}."
    yield ""
    if result.is_model_only:
        yield f"{MODELS_ALONE} What could decide it: {claim.real_test}."
        yield ""
    for witness in result.witnesses:
        yield "```"
        yield witness.text.rstrip()
        if witness.command:
            yield f"$ {witness.command}"
        yield "```"
        yield ""
    if result.remark:
        yield result.remark
        yield ""


def _bold(words: str, verdict: str) -> str:
    """`words` begin with the verdict, which alone is bold (the opening mark is the caller's)."""
    return f"{verdict}**{words.removeprefix(verdict)}"


def _missing(skipped: Sequence[Claim]) -> Iterator[str]:
    if skipped:
        yield "## Not tested"
        yield ""
        for claim in skipped:
            yield f"- {claim.ident} needs a kernel image: {claim.text}"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
