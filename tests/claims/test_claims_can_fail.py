# SPDX-License-Identifier: GPL-2.0-or-later
"""A verdict follows the experiment: change the modelled world, and it changes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware import commands_receive, packet
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.state import FirmwareGuest
from guestemu.host.qemu.blockers import MigrationBlockers
from guestemu.host.registry import load_host
from guestemu.migration.model.rules import Rules
from guestemu.migration.sweep.recording import ConversionStep, WindowRecording
from guestemu.migration.sweep.scenario import Variant
from guestemu.study.claims import (
    cells,
    failed_lookup,
    failure_policies,
    firmware_promises,
    guest_addresses,
    handler_path,
    host_records,
    instruction_boundaries,
    kexec_reset,
    migration_control,
    notification_failures,
    re_execution,
    rewriting,
    send_by_status,
    sync_orders,
)
from guestemu.study.claims.claim import Lab
from guestemu.study.claims.handler_path import NamedPages
from guestemu.study.claims.host_bench import BenchedHost
from guestemu.study.claims.page_views import KeptBytes
from guestemu.study.claims.result import ClaimResult, ClaimVerdict
from guestemu.study.explore_confirm import Confirmation
from guestemu.study.mirror.table import Fate, NamingCell

C, R, IF = ClaimVerdict.CONFIRMED, ClaimVerdict.REFUTED, ClaimVerdict.CONDITIONAL
UNDECIDED = ClaimVerdict.UNDECIDED

NO_FINAL_PASS = Rules(final_pass_is_missing=True)
RESENDS = Rules(final_resends_changed=True)
ANY_KEY_READS = Rules(source_key_is_readable=True, plain_survives_private_send=True)


@pytest.mark.parametrize(
    ("experiment", "rules", "verdict"),
    [
        (sync_orders.final_sync, NO_FINAL_PASS, R),
        (sync_orders.final_sync, RESENDS, UNDECIDED),
        (sync_orders.status_first, RESENDS, UNDECIDED),
        (sync_orders.either_order, RESENDS, C),
        (sync_orders.log_before_status, RESENDS, C),
        (sync_orders.log_before_status, NO_FINAL_PASS, R),
        (sync_orders.notify_after_flip, NO_FINAL_PASS, UNDECIDED),
        (rewriting.no_dirty_mark, NO_FINAL_PASS, R),
        (rewriting.no_dirty_mark, ANY_KEY_READS, C),
        (rewriting.resend_changed, NO_FINAL_PASS, R),
        (rewriting.lost_at_notification, ANY_KEY_READS, R),
        (send_by_status.singhs_flow, RESENDS, UNDECIDED),
        (send_by_status.singhs_flow, NO_FINAL_PASS, R),
    ],
)
def test_other_rules_of_the_order_model(
    experiment: Callable[[Lab, Rules], ClaimResult], rules: Rules, verdict: ClaimVerdict
) -> None:
    assert experiment(Lab(), rules).verdict is verdict


@pytest.mark.parametrize(
    "experiment",
    [
        sync_orders.final_sync,
        sync_orders.status_first,
        sync_orders.either_order,
        sync_orders.log_before_status,
        sync_orders.notify_after_flip,
        rewriting.no_dirty_mark,
        rewriting.lost_at_notification,
    ],
)
def test_a_machine_that_contradicts_the_model_decides_nothing(
    experiment: Callable[[Lab], ClaimResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def contradict(*_arguments: object, **_options: object) -> Confirmation:
        return Confirmation(59, 1, 30, 30, 30, "firmware", 0.0)

    monkeypatch.setattr(cells, "confirm", contradict)
    assert experiment(Lab()).verdict is UNDECIDED


def test_half_a_machine_check_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> Confirmation:
        return Confirmation(3, 0, 3, 3, 0, "firmware", 0.0, is_interrupted=True)

    monkeypatch.setattr(cells, "confirm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync_orders.status_first(Lab())


def test_a_firmware_that_activates_a_sent_guest_refutes_c14() -> None:
    result = firmware_promises.cloning(Lab(), lambda *_: Status.SUCCESS)
    assert result.verdict is R


def test_a_finish_that_deactivates_confirms_c14(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_active(guest: FirmwareGuest) -> bool:
        return guest.asid != 0 and not guest.is_pending and guest.state != 6

    monkeypatch.setattr(FirmwareGuest, "is_active", property(is_active))
    assert firmware_promises.cloning(Lab()).verdict is C


def test_a_copy_without_keys_confirms_c30(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Platform, _guest: FirmwareGuest, address: int, size: int) -> bytes:
        return self.read(address, size)

    def write(self: Platform, _guest: FirmwareGuest, address: int, data: bytes) -> None:
        self.write(address, data)

    monkeypatch.setattr(Platform, "read_guest", read)
    monkeypatch.setattr(Platform, "write_guest", write)
    assert firmware_promises.moving_pages(Lab()).verdict is C


def test_a_receiver_without_mac_refutes_c31(monkeypatch: pytest.MonkeyPatch) -> None:
    def unseal(tek: bytes, _tik: bytes, header: packet.PacketHeader, data: bytes) -> bytes:
        return packet.counter_cipher(tek, header.iv, data)

    monkeypatch.setattr(commands_receive, "unseal", unseal)
    assert firmware_promises.tampering(Lab()).verdict is R


def test_a_private_send_that_moves_bytes_changes_c15_and_c15b(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = send_by_status._Pair.send
    monkeypatch.setattr(send_by_status._Pair, "send", lambda pair, page, _: send(pair, page, False))
    moved = KeptBytes(0, PAGE_SIZE)
    assert send_by_status.all_as_encrypted(Lab(), lambda _is_shared: moved).verdict is C
    assert send_by_status.not_yet_touched(Lab()).verdict is R


def test_an_msr_that_all_hosts_keep_for_the_vm_confirms_c17() -> None:
    result = migration_control.vm_wide(
        Lab(), lambda: {name: load_host("map-gpa-range") for name in ("one", "other")}
    )
    assert result.verdict is C
    result = migration_control.vm_wide(Lab(), lambda: {"none": load_host("bitmap-v1")})
    assert result.verdict is R


def test_a_list_whose_answer_does_not_count_confirms_c22() -> None:
    repaired = BenchedHost("shared-list-v10", ("list", "result"))
    assert re_execution.re_execution(Lab(), (), repaired).verdict is C
    posted = BenchedHost("shared-list-v10")
    assert re_execution.re_execution(Lab(), (posted,), posted).verdict is R


def test_a_bitmap_that_grows_confirms_c23() -> None:
    assert host_records.ram_size(Lab(), BenchedHost("bitmap-v6")).verdict is C
    repaired = BenchedHost("bitmap-v8", ("silent-range",))
    assert host_records.ram_size(Lab(), repaired).verdict is UNDECIDED


def test_repaired_growth_refutes_c24() -> None:
    growing = tuple(BenchedHost(host.name, ("growth",)) for host in host_records.GROWING)
    assert host_records.unlimited_memory(Lab(), growing).verdict is R
    assert host_records.unlimited_memory(Lab(), growing[:1], host_records.GROWING).verdict is (
        UNDECIDED
    )


def test_a_host_that_refuses_reserved_bits_confirms_c27(tmp_path: Path) -> None:
    source = """
    from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

    class Strict(MapGpaRangeHost):
        def hypercall(self, call):
            return 2**64 - 22 if call.a2 >> 5 else super().hypercall(call)
    """
    path = tmp_path / "strict.py"
    path.write_text(textwrap.dedent(source))
    strict = BenchedHost(f"{path}:Strict", plugin=str(path))
    assert host_records.reserved_bits(Lab(), (strict,)).verdict is C
    both = (strict, BenchedHost("map-gpa-range"))
    assert host_records.reserved_bits(Lab(), both).verdict is UNDECIDED


def test_a_new_kernel_beside_running_cpus_refutes_c26() -> None:
    assert kexec_reset.reset_at_boot(Lab(), stops_others=False).verdict is R


def test_a_kernel_that_does_not_notify_leaves_c28_undecided() -> None:
    result = notification_failures.size_hint(Lab(), ("snippet:5.10",))
    assert result.verdict is UNDECIDED


def test_a_kernel_that_does_not_notify_is_no_part_of_c8(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.10 changes the entry and makes no hypercall: there is nothing between them."""
    closed = []

    class Silent:
        recording = WindowRecording(9, (), (ConversionStep(3, "pte", 1),), ())

        def __init__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(instruction_boundaries, "Experiment", Silent)
    monkeypatch.setattr(instruction_boundaries, "image", Path)
    assert instruction_boundaries.sweep_kernel("linux:5.10", Variant()) is None
    assert len(closed) == 1


def test_blockers_that_can_be_added_at_any_time_leave_c18_undecided() -> None:
    class Patient(MigrationBlockers):
        def add(self, reason: str) -> int:
            self.reasons = (*self.reasons, reason)
            return 0

    result = failure_policies.blocker_while_running(Lab(), Patient)
    assert result.verdict is UNDECIDED


def test_without_failures_a_warn_is_enough() -> None:
    assert failure_policies.warn_is_not_enough(Lab(), 0, lambda _kernels: ()).verdict is R


@cache
def lookups() -> tuple[failed_lookup.FailedLookup, ...]:
    return failed_lookup.failed_lookups(())


@pytest.mark.parametrize(
    ("guest", "changes"),
    [
        ("snippet:6.12", {"lost": 0}),
        ("snippet:6.1", {"is_logged": False}),
        ("snippet:5.17", {"migration": "aborted"}),
        ("msr-zero", {"lost": 1}),
        ("msr-zero", {"migration": "completed"}),
    ],
)
def test_failed_lookups_that_go_otherwise_leave_c19_undecided(
    guest: str, changes: dict[str, object]
) -> None:
    other = tuple(
        msgspec.structs.replace(each, **changes) if each.guest == guest else each
        for each in lookups()
    )
    assert failure_policies.warn_is_not_enough(Lab(), look_up=lambda _: other).verdict is UNDECIDED


def test_a_failed_lookup_loses_its_page_and_those_behind_it() -> None:
    warned = [each for each in lookups() if each.guest != failed_lookup.WITHDRAWS]
    assert {each.guest for each in warned} == {"snippet:5.17", "snippet:6.1", "snippet:6.12"}
    assert [(each.step, each.lost) for each in warned] == [(0, 3), (1, 2), (2, 1)] * 3
    one_page = [msgspec.structs.replace(each, lost=1) for each in warned]
    assert failed_lookup.rest_is_lost(warned)
    assert not failed_lookup.rest_is_lost(one_page)


def test_a_host_that_records_what_it_refuses_refutes_c20(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failure_policies, "_lost", lambda *_: frozenset())
    assert failure_policies.one_failure(Lab()).verdict is R
    monkeypatch.setattr(failure_policies, "_lost", lambda *_: frozenset(range(8)))
    assert failure_policies.one_failure(Lab()).verdict is C


def test_a_vmm_without_unmapped_memory_confirms_c29() -> None:
    by_gpa = NamedPages()
    arriving = {place: named(cell, Fate.RIGHT) for place, cell in by_gpa.table.items()}

    def mapped() -> NamedPages:
        return NamedPages(arriving)

    def known() -> NamedPages:
        return by_gpa

    repaired = ("block-gfn",)
    assert guest_addresses.gpas(Lab(), repaired, False, mapped).verdict is C
    assert guest_addresses.gpas(Lab(), repaired, False, known).verdict is UNDECIDED
    assert guest_addresses.gpas(Lab(), repaired, True, known).verdict is IF
    assert guest_addresses.gpas(Lab(), repaired, True, mapped).verdict is UNDECIDED


@pytest.mark.parametrize(
    ("naming", "page", "fate"),
    [
        (handler_path.GPA, handler_path.HOLE, Fate.CORRUPTED),
        (handler_path.GPA, "VMSA", Fate.RIGHT),
        (handler_path.RAM_ADDR, "unmapped", Fate.REFUSED),
        (handler_path.BLOCK_GPA, handler_path.HOLE, Fate.RIGHT),
    ],
)
def test_a_handler_that_behaves_otherwise_leaves_c29_undecided(
    naming: str, page: str, fate: Fate
) -> None:
    table = dict(handler_path.name_pages())
    table[naming, page] = named(table[naming, page], fate)
    other = NamedPages(table)
    assert guest_addresses.gpas(Lab(), name_them=lambda: other).verdict is UNDECIDED


def named(cell: NamingCell, fate: Fate) -> NamingCell:
    return msgspec.structs.replace(cell, fate=fate)


def test_a_handler_that_exports_as_the_guest_maps_leaves_c15_undecided() -> None:
    def by_mapping(is_shared: bool) -> KeptBytes:
        return KeptBytes(0, PAGE_SIZE) if is_shared else KeptBytes(PAGE_SIZE, 0)

    assert send_by_status.all_as_encrypted(Lab(), by_mapping).verdict is UNDECIDED


def test_a_handler_reads_and_writes_with_c1_only() -> None:
    for is_shared in (False, True):
        views = handler_path.send_by_handler(is_shared)
        assert views.keeps_private
        assert views.shared_kept < PAGE_SIZE // 16


def test_a_guest_kind_that_hides_a_loss_leaves_c19_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = failure_policies.refused_conversions(())
    assert {(cell.kind, cell.word) for cell in cells} == {
        ("sev", "lost"),
        ("snp", "ends"),
        ("tdx", "told"),
    }
    hidden = [msgspec.structs.replace(cell, is_told=True) for cell in cells]
    monkeypatch.setattr(failure_policies, "refused_conversions", lambda _kernels: hidden)
    assert failure_policies.warn_is_not_enough(Lab()).verdict is UNDECIDED


def test_a_rest_that_is_not_converted_leaves_c20_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = failure_policies.refused_ranges(())
    assert {cell.kind: cell.word for cell in cells}["sev"] == "goes on"
    fewer = [msgspec.structs.replace(cell, converted=1) for cell in cells]
    monkeypatch.setattr(failure_policies, "refused_ranges", lambda _kernels: fewer)
    assert failure_policies.one_failure(Lab()).verdict is UNDECIDED
