# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel race`: conversions of a real kernel on two CPUs."""

from __future__ import annotations

import json

import pytest

from guestemu.abi.addresses import Gva
from guestemu.cli.main import main
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.cpus import IPI, Turn
from guestemu.guest.linux.userland.rules import DeviceRules
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.guest.linux.userland.two_calls import KernelCall, TwoCalls

AFTER_THE_FIRST_IPI = "0:ipi,1:return"
"""CPU 0 stands in its conversion and has not told the host; CPU 1 goes on to the end."""


@pytest.fixture
def race(image_of, capsys):
    """`guestemu kernel race` on a kernel; its JSON and status."""

    def command(series, *words):
        status = main(["kernel", "race", str(image_of(series)), *words, "--json"])
        return json.loads(capsys.readouterr().out), status

    return command


def keys(report):
    return {finding["key"] for raced in report["scenarios"] for finding in raced["findings"]}


def test_a_conversion_is_in_force_on_both_cpus(race):
    orders = ("--order", AFTER_THE_FIRST_IPI, "--order", "1:cpa_flush,0:return,1:300,0:hypercall")
    report, status = race("6.12", "--scenario", "neighbours", *orders)
    assert (status, keys(report)) == (0, set())
    (raced,) = report["scenarios"]
    assert raced["returned"] == {"0 0": 2}


def test_an_snp_guest_s_second_cpu_converts_too(race, monkeypatch):
    """It starts from the VMSA that the kernel made; page states agree with what was told."""
    words = ("--sev", "snp", "--scenario", "neighbours", "--order", AFTER_THE_FIRST_IPI)
    report, status = race("6.12", *words)
    assert (report["sev"], status, keys(report)) == ("snp", 0, set())
    assert report["scenarios"][0]["returned"] == {"0 0": 1}
    monkeypatch.setattr(DeviceRules, "page_state", lambda rules, gfn: "validated")
    report, status = race("6.12", *words)
    assert (status, keys(report)) == (1, {"page-state"})


ORDER = "1:300,0:5000,1:20"


def test_a_neighbour_goes_back_meanwhile(race):
    report, status = race("6.12", "--scenario", "back", "--order", ORDER)
    assert (status, keys(report)) == (0, set())
    assert report["scenarios"][0]["returned"] == {"0 0": 1}


def test_a_cpu_is_taken_off_while_its_thread_stands_in_the_conversion(race):
    report, status = race("6.12", "--scenario", "offline", "--order", ORDER)
    assert (status, keys(report)) == (0, set())
    assert report["scenarios"][0]["returned"] == {"0 0": 1}


OFF, ON = 500, 9_000
"""Rounds of `LOOP`; one is a basic block."""

LOOP = b"\xff\xc9\x75\xfc"
"""1: dec ecx; jne 1b."""


def loops():
    """cli; mov ecx, OFF; LOOP; sti; mov ecx, ON; LOOP; ret."""
    rounds = [b"\xb9" + count.to_bytes(4, "little") + LOOP for count in (OFF, ON)]
    return b"\xfa" + rounds[0] + b"\xfb" + rounds[1] + b"\xc3"


def test_an_interrupt_is_taken_soon_after_a_cpu_turns_interrupts_on(image_of):
    """Not at the end of its turn: CPU 1 may wait for the answer with a lock that CPU 0 wants next,
    with interrupts off again."""
    running = Userland(LOADER).start(image_of("6.12"), Setting(cpus=2))
    try:
        kernel, calls = running.kernel, TwoCalls(running)
        calls.start_thread()
        code, function = "__x64_sys_sysinfo", kernel.address("retrigger_next_event")
        assert running.machine.current.write_memory(Gva(kernel.address(code)), loops())
        taken: list[int] = []
        running.intercept(function, lambda: taken.append(running.blocks))
        sent = KernelCall("smp_call_function_single", (0, function, 0, 0))
        turns = [Turn(0, 100), Turn(1, event=IPI), Turn(0, OFF + ON // 2)]
        calls.run((KernelCall(code), sent), turns, 1_000_000)
        returned = calls.returned[1]
        assert returned is not None
        assert OFF // 2 < taken[0] - calls.entered[1] < OFF + 1_000
    finally:
        running.machine.close()


def test_a_missing_remote_flush_leaves_a_stale_translation(race):
    report, status = race("6.12", "--scenario", "neighbours", "--plant", "flush", "--execs", "2")
    assert (status, keys(report)) == (1, {"stale-translation"})
    (finding,) = report["scenarios"][0]["findings"]
    assert finding["count"] == 2
    assert "still translates page" in finding["first"]["text"]
    assert "," not in finding["smallest"]["order"], "one CPU has made its call before the other"
    steps = finding["smallest"]["race"]["steps"]
    assert {step["lane"] for step in steps} == {"guest CPU 0", "guest CPU 1", "host"}
    wrong = next(step for step in steps if step["effects"])
    assert wrong["text"] == "set_memory_decrypted returns 0"
    assert wrong["effects"] == [finding["smallest"]["text"]]


def test_a_call_may_return_long_before_the_other(race):
    """CPU 0 is refused at once; CPU 1, which holds the lock, has not returned yet."""
    order = "1:set_memory_enc_stop_conversion,1:45,0:return,0:2000"
    report, status = race("6.12", "--scenario", "stop", "--order", order)
    assert (status, keys(report)) == (0, set())
    assert report["scenarios"][0]["returned"] == {"-16 1": 1}


def test_all_orders_of_a_few_events_are_tried(race):
    report, status = race("6.12", "--scenario", "stop", "--turns", "2", "--plant", "lock")
    (raced,) = report["scenarios"]
    assert raced["experiments"] == 6 + 36
    assert status == 1
    (finding,) = raced["findings"]
    assert finding["key"] == "conversion-after-stop"
    assert finding["smallest"]["order"].startswith("0:")
    assert "," not in finding["smallest"]["order"]


@pytest.mark.parametrize("scenario", ["stop", "stop-try"])
def test_without_mem_enc_lock_a_conversion_goes_on_after_the_stop(race, scenario):
    words = ("--scenario", scenario, "--order", AFTER_THE_FIRST_IPI)
    report, status = race("6.12", *words)
    assert (status, keys(report)) == (0, set())
    waits = scenario == "stop"  # the try form fails while a conversion is under way
    assert report["scenarios"][0]["returned"] == {f"0 {int(waits)}": 1}
    report, status = race("6.12", *words, "--plant", "lock")
    assert (status, keys(report)) == (1, {"conversion-after-stop"})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--scenario", "stopp"), "did you mean stop"),
        (("--plant", "locks"), "did you mean lock"),
        (("--order", "2:100"), "CPU:WHERE"),
        (("--order", "0:no_such_function"), "no symbol no_such_function"),
        (("--order", "0:cpa_flush+x"), "the offset is no number"),
        (("--order", "0:0"), "basic blocks"),
        (("--order", ",".join(["0:1"] * 65)), "64 at most"),
    ],
)
def test_bad_input_is_named(race, words, problem):
    report, status = race("6.12", "--scenario", "neighbours", *words)
    assert status == 2
    assert problem in report["message"]


@pytest.mark.soak  # boots another kernel
def test_a_kernel_without_the_lock_has_no_race_for_it(race):
    report, status = race("6.1", "--scenario", "stop")
    assert status == 2
    assert "has no set_memory_enc_stop_conversion" in report["message"]


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_drawn_orders_hold_and_are_repeatable(race, series):
    report, status = race(series, "--execs", "30")
    assert (status, keys(report)) == (0, set())
    again, _ = race(series, "--execs", "30")
    assert [raced["returned"] for raced in report["scenarios"]] == [
        raced["returned"] for raced in again["scenarios"]
    ]
