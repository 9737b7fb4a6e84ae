# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page becomes when it is sent as private or as shared: C3b, C15, C15b.

A guest of our own code runs on the emulated CPU; its RAM, and that of a second one, is memory of
two platforms of the firmware model. A private send is SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA, a
plain one moves the bytes of DRAM; for C15 a migration handler is tried in the firmware's place.
Facts A54, E30, E31, F15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE
from guestemu.abi.errors import GuestemuError
from guestemu.abi.regions import Region
from guestemu.abi.sev_firmware import Status
from guestemu.migration.model.rules import Rules
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.runner.testbed import Testbed, build_testbed
from guestemu.study.claims import cells
from guestemu.study.claims.claim import Claim, Lab
from guestemu.study.claims.handler_path import GUEST as HANDLER
from guestemu.study.claims.handler_path import exported_shared_page, send_by_handler
from guestemu.study.claims.page_views import KeptBytes, both_views, compare_views
from guestemu.study.claims.platforms import GUEST_BASE, Transfer
from guestemu.study.claims.result import ClaimResult, Evidence, decide
from guestemu.study.claims.witness_text import program_witness

GUEST: Final = "snippet:6.1"
_VALUE: Final = 0x5A
_DEFAULT: Final = Rules()


class _Pair:
    """Source and target testbeds whose RAM belongs to the two platforms of a transfer."""

    def __init__(self) -> None:
        self.transfer = Transfer()
        self.source, self.target = _testbed(), _testbed()
        transfer = self.transfer
        for bed, memory, key in (
            (
                self.source,
                transfer.source_memory,
                transfer.source.memory_key(transfer.source_handle),
            ),
            (
                self.target,
                transfer.target_memory,
                transfer.target.memory_key(transfer.target_handle),
            ),
        ):
            memory.attach(GUEST_BASE, bed.guest.machine.ram, key)

    def run(self, *ops: Op) -> None:
        """Runs `ops` on the source from its first state."""
        outcome = self.source.run(ops)
        if not outcome.is_ok:
            raise GuestemuError(f"{GUEST}: {outcome.violations[0].message}")

    def send(self, page: int, as_private: bool) -> KeptBytes:
        """Sends page D[`page`] and compares what the views show on both sides."""
        gpa = self.source.guest.gpa(Region.D, page)
        before = both_views(self.source.guest.machine.ram, gpa)
        if as_private:
            status = self.transfer.receive(self.transfer.send(GUEST_BASE + gpa), GUEST_BASE + gpa)
            if status is not Status.SUCCESS:
                raise GuestemuError(f"firmware model: RECEIVE_UPDATE_DATA: {status.name}")
        else:
            data = self.transfer.source.memory.read(GUEST_BASE + gpa, PAGE_SIZE)
            self.transfer.target.memory.write(GUEST_BASE + gpa, data)
        return compare_views(before, both_views(self.target.guest.machine.ram, gpa))

    def write_at_target(self, page: int) -> bool:
        """The guest, now at the target, writes the page through C=0; whether that is what it then
        reads there."""
        ram = self.target.guest.machine.ram
        gpa = self.target.guest.gpa(Region.D, page)
        wanted = bytes([_VALUE ^ 0xFF]) * PAGE_SIZE
        ram.write(gpa, wanted, private=False)
        return ram.read(gpa, PAGE_SIZE, private=False) == wanted


def _testbed() -> Testbed:
    return build_testbed(Header(guest=GUEST))


_PRIVATE_PAGE: Final = (Op(OpKind.WRITE, (_VALUE, 0, PAGE_SIZE), page=0, has_page=True),)
_SHARED_PAGE: Final = (
    Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=1, has_page=True),
    Op(OpKind.WRITE, (_VALUE, 0, PAGE_SIZE), page=1, has_page=True),
)
_UNTOUCHED_PAGE: Final = (
    Op(OpKind.WRITE, (_VALUE, 0, PAGE_SIZE), page=2, has_page=True),
    Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=2, has_page=True),
)


_SENT_AS_PRIVATE: Final = (
    Op(OpKind.MIGRATE_START, (1, 1), page=1),
    Op(OpKind.HOST_STATUS_COPY),
    *_SHARED_PAGE,
    Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    Op(OpKind.HOST_SEND, (0,)),
    Op(OpKind.MIGRATE_STOP),
    Op(OpKind.READ, (0,), page=1),
)
"""A shared page that is sent by what it was, as if it were encrypted."""

_SENT_AS_PLAIN: Final = (
    _UNTOUCHED_PAGE[0],
    Op(OpKind.MIGRATE_START, (1, 1), page=2),
    _UNTOUCHED_PAGE[1],
    Op(OpKind.HOST_STATUS_COPY),
    Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    Op(OpKind.HOST_SEND, (0,)),
    Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), page=2),
    Op(OpKind.MIGRATE_STOP),
    Op(OpKind.READ, (0,), page=2),
)
"""A page that is sent by what it is, and then flipped back unwritten."""


def _show(what: str, views: KeptBytes) -> tuple[Evidence, ...]:
    how = "4096 bytes compared with the source's"
    return (
        Evidence(f"{what}: read with C=1", _word(views.keeps_private), how=how),
        Evidence(f"{what}: read with C=0", _word(views.keeps_shared), how=how),
    )


def all_as_encrypted(
    _lab: Lab, handler: Callable[[bool], KeptBytes] = send_by_handler
) -> ClaimResult:
    """C15: a page in use with C=1 and one in use with C=0, each sent both ways; and through a
    migration handler, which has only the private way."""
    pair = _Pair()
    pair.run(*_PRIVATE_PAGE, *_SHARED_PAGE)
    sent = {
        (page, as_private): pair.send(page, as_private)
        for page in (0, 1)
        for as_private in (True, False)
    }
    exported = {is_shared: handler(is_shared) for is_shared in (False, True)}
    ways = [*zip((True, False, True, False), sent.values(), strict=True)]
    ways += [(True, views) for views in exported.values()]
    rule_holds = all(
        views.keeps_private == as_private != views.keeps_shared for as_private, views in ways
    )
    survives = {sent[1, True].keeps_shared, exported[True].keeps_shared}
    return ClaimResult(
        verdict=decide(confirmed=survives == {True}, refuted=rule_holds and survives == {False}),
        evidence=(
            *_show("private page, private send", sent[0, True]),
            *_show("private page, plain send", sent[0, False]),
            *_show("shared page, private send", sent[1, True]),
            *_show("shared page, plain send", sent[1, False]),
            *_show("private page, by a migration handler", exported[False]),
            *_show("shared page, by a migration handler", exported[True]),
        ),
        guests=(GUEST, "firmware model", HANDLER),
        witnesses=(
            program_witness(Header(guest=GUEST), _SENT_AS_PRIVATE),
            exported_shared_page(),
        ),
        remark=(
            "A private send keeps what C=1 reads and changes what C=0 reads, a plain send the "
            "other way round. A handler that is asked to export a shared page decrypts plain text "
            "(F15), so it must be asked for private pages only."
        )
        if rule_holds
        else "",
    )


def not_yet_touched(_lab: Lab) -> ClaimResult:
    """C15b: marked shared, not written; sent by the old and by the new status."""
    pair = _Pair()
    pair.run(*_UNTOUCHED_PAGE)
    by_new = pair.send(2, False)
    by_old = pair.send(2, True)
    back_by_old, back_by_new = by_old.keeps_private, by_new.keeps_private
    reader_sees_change = not by_old.keeps_shared
    writes_through = pair.write_at_target(2)
    return ClaimResult(
        verdict=decide(
            confirmed=back_by_old and not reader_sees_change,
            refuted=not back_by_old or not writes_through,
            conditional=back_by_old and reader_sees_change and writes_through,
        ),
        condition=(
            "nothing, neither guest nor device, reads the page with C=0 before the guest writes it"
        ),
        evidence=(
            *_show("sent as private, its old status", by_old),
            *_show("sent as plain, its new status", by_new),
            Evidence(
                "written with C=0 after arrival",
                "reads as written" if writes_through else "lost",
                how="at the target, after the private send",
            ),
            Evidence(
                "flipped back unwritten",
                f"{_word(back_by_old)} by the old status, {_word(back_by_new)} by the new",
                how="whether C=1 reads the old content",
            ),
        ),
        guests=(GUEST, "firmware model"),
        witnesses=(program_witness(Header(guest=GUEST), _SENT_AS_PLAIN),),
        remark=(
            "A page that becomes private again without a write keeps its content only if it is "
            "sent by the old status."
        )
        if back_by_old and not back_by_new
        else "",
    )


def _word(kept: bool) -> str:
    return "kept" if kept else "lost"


def _dirtied_by_flip() -> tuple[int, bool]:
    """Page-table pages that a conversion of one page writes, and whether it writes the page."""
    bed = _testbed()
    guest = bed.guest
    gva, gpa = guest.gva(Region.D, 3), guest.gpa(Region.D, 3)
    guest.memset(gva, _VALUE, PAGE_SIZE)
    guest.machine.checkpoint()
    outcome = guest.set_memory_decrypted(gva, 1)
    if outcome.value != 0:
        raise GuestemuError(f"{GUEST}: set_memory_decrypted failed: {outcome}")
    ram = guest.machine.ram
    dirty = ram.dirty_frames()
    tables = [gfn for gfn in dirty if ram.is_table(ram.frames + gfn)]
    return len(tables), gpa >> PAGE_SHIFT in dirty


def singhs_flow(_lab: Lab, rules: Rules = _DEFAULT) -> ClaimResult:
    """C3b: step (c) on the machine, steps (d) and (e) on the order model."""
    tables, data_is_dirty = _dirtied_by_flip()
    unchanged = cells.count(1, "S3", rules)
    log_first = cells.count(1, "S1", rules), cells.count(1, "S2", rules)
    status_first = cells.count(2, "S1", rules), cells.count(2, "S2", rules)
    holds_in_order = not any(cell.lost for cell in log_first)
    needs_order = any(cell.lost for cell in status_first)
    needs_rule = unchanged.lost > 0 and not unchanged.lost_defined
    return ClaimResult(
        verdict=decide(
            confirmed=tables > 0 and holds_in_order and not needs_order and not unchanged.lost,
            refuted=not tables or not holds_in_order,
            conditional=(
                tables > 0 and not data_is_dirty and holds_in_order and needs_order and needs_rule
            ),
        ),
        condition=(
            "the log is fetched before the status (e), and content that was not written since the "
            "flip counts as lost (d); what (c) sends again is the page table, not the page"
        ),
        evidence=(
            Evidence("(c) page-table pages written by a flip", tables, "pages", "dirty frames"),
            Evidence("(c) the flipped page itself", "written" if data_is_dirty else "not written"),
            cells.evidence(unchanged, "(d) content unchanged"),
            cells.evidence(unchanged, "(d) the same", by_defined=True),
            *(cells.evidence(cell, "(e) log first") for cell in log_first),
            *(cells.evidence(cell, "(e) status first") for cell in status_first),
        ),
        guests=(GUEST, cells.MODEL),
        witnesses=cells.witness(status_first[0]) + cells.witness(unchanged),
    )


CLAIMS: Final = (
    Claim(
        "C3b",
        "A change of status dirties page-table memory, which makes for a new sync; a page whose "
        "content did not change need not be sent again, one whose content did is sent by the new "
        "status.",
        "Brijesh Singh, July 2019, steps (a) to (e) of his mail",
        singhs_flow,
    ),
    Claim(
        "C15",
        "All pages could be sent as if they were encrypted, as long as the bitmap is right at the "
        "end.",
        "David Gilbert's question, July 2019",
        all_as_encrypted,
    ),
    Claim(
        "C15b",
        "A page that is marked shared but was not touched yet still holds encrypted data, so "
        "sending it as encrypted is fine.",
        "Brijesh Singh, July 2019",
        not_yet_touched,
    ),
)
