# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a witness loses its page, in words: the last send, its mode, and what was there to send."""

from __future__ import annotations

import msgspec

from guestemu.migration.model.order_model import (
    Form,
    Page,
    PageVerdict,
    Scenario,
    State,
    final_pass,
    reads,
)
from guestemu.migration.model.steps import SENDS, HostStep
from guestemu.migration.model.witness import (
    Moment,
    PassStep,
    Stop,
    Witness,
    lost_token,
)


class LastSend(msgspec.Struct, frozen=True):
    """The send whose bytes the destination kept. `number` is its live pass, None for the final
    one; `status_shared` is the host's record at that moment."""

    number: int | None
    as_shared: bool
    status_shared: bool
    source: Page


def last_send(witness: Witness) -> LastSend | None:
    """The last time the page was sent, None if never."""
    found = None
    for moment in witness.moments:
        found = _send_of(witness.scenario, moment) or found
    return found


def _send_of(scenario: Scenario, moment: Moment) -> LastSend | None:
    before, step = moment.before, moment.step
    status = before.status_shared
    if isinstance(step, PassStep) and step.step in SENDS and before.in_snapshot:
        as_shared = status if step.step is HostStep.SEND_LIVE else before.enc_shared
        return LastSend(step.number, as_shared, status, before.source)
    if isinstance(step, Stop):
        _, sent = final_pass(scenario, before)
        if sent is not None:
            return LastSend(None, sent, status, before.source)
    return None


def show_page(page: Page) -> str:
    """Bytes as the model's text has them: E_s(t1), E_d(t1), t1, garbage."""
    shown = {
        Form.PLAIN: f"t{page.token}",
        Form.SOURCE_KEY: f"E_s(t{page.token})",
        Form.DESTINATION_KEY: f"E_d(t{page.token})",
        Form.GARBAGE: "garbage",
    }
    return shown[page.form]


def explain(witness: Witness) -> str:
    """What is lost and why, in one or two sentences."""
    token = lost_token(witness)
    final = witness.moments[-1].after
    verdict: PageVerdict = witness.verdict
    if not verdict.lost_strict:
        return f"nothing is lost: the guest reads t{token}"
    sent = last_send(witness)
    view = "shared" if final.is_shared else "private"
    if witness.scenario.rules.cut_reads_success and final.lost_at_resume:
        return (
            "STOP falls between two chunks of a MapGPA: the guest reads success for the rest, and "
            "no host converts the page."
        )
    if reads(witness.scenario.rules, final, token):
        return f"t{token} reads right at the end, but a rule in force counts the page as lost"
    first = (
        f"t{token} is lost: the destination holds {show_page(final.destination)}, "
        f"read through a {view} PTE."
    )
    return f"{first} {_cause(witness, sent)}{_remark(verdict)}"


def _cause(witness: Witness, sent: LastSend | None) -> str:
    if sent is None:
        return "The page was never sent."
    when = "the final pass" if sent.number is None else f"live pass {sent.number}"
    mode = "plain" if sent.as_shared else "private"
    text = f"{when.capitalize()} sent {show_page(sent.source)} {mode}"
    if sent.status_shared != sent.as_shared:
        now = "shared" if sent.status_shared else "private"
        text += f" by a copied status, when the status was already {now}"
    if sent.number is not None:
        stop = next(m.before for m in witness.moments if isinstance(m.step, Stop))
        is_clean = not (stop.is_dirty or stop.in_snapshot)
        text += ", and nothing marked the page dirty after that, so" if is_clean else ", and"
        text += " it was not sent again"
    return text + "."


def _remark(verdict: PageVerdict) -> str:
    if verdict.lost_defined:
        return ""
    return (
        " A flip came after the last write, so the content counts as undefined: lost by "
        "lost_strict only."
    )


def show_state(state: State, is_stopped: bool) -> tuple[str, ...]:
    """PTE, status, dirty, snapshot, copied status, source bytes, destination bytes as cells of a
    table; what is gone after STOP is `-`."""
    pte = _mode(state.is_shared)
    if is_stopped:
        return (pte, "-", "-", "-", "-", "-", show_page(state.destination))
    return (
        pte,
        _mode(state.status_shared),
        str(int(state.is_dirty)),
        str(int(state.in_snapshot)),
        _mode(state.enc_shared),
        show_page(state.source),
        show_page(state.destination),
    )


def _mode(is_shared: bool) -> str:
    return "shared" if is_shared else "private"
