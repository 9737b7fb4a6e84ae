# SPDX-License-Identifier: GPL-2.0-or-later
"""Real SNP kernels under a hypervisor that lies (N40 to N52): each goes on, ends itself or stands
still, and no page has two validated frames."""

from __future__ import annotations

import pytest

from guestemu.abi.errors import MissingError
from guestemu.guest.linux.images import find_image
from guestemu.machine.psc_lies import LIES
from guestemu.program.text import parse_text
from guestemu.report.trace.run import run_program
from guestemu.report.trace.words import run_word

INJECTED = {
    "vector=29 code=0x72": "terminated",  # no CPUID stands there: vc_check_opcode_bytes()
    "vector=29 code=0x404": "terminated",
    "vector=0x80": "ok",
    "vector=0xec": "ok",
}

ENDS = {
    "stall": "run-failed",
    **dict.fromkeys(("claim", "shrink", "far", "backwards", "high-bits", "rewrite"), "ok"),
    **dict.fromkeys(("redirect", "msr-code", "msr-error"), "ok"),  # the buffer is honest
    **dict.fromkeys(("grow", "reserved", "error", "malformed", "inject-gp"), "terminated"),
    "inject-pf": "terminated",
    **dict.fromkeys(("take-back", "remap"), "terminated"),
    **dict.fromkeys(("alias", "other-guest"), "run-failed"),
}


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_what_a_kernel_makes_of_each_lie(series: str) -> None:
    try:
        find_image(series)
    except MissingError:
        pytest.skip(f"no {series} kernel; run `guestemu kernel fetch {series}`")
    assert set(ENDS) == set(LIES)
    found, violations = {}, {}
    for lie in LIES:
        text = (
            f"guestemu-program 1\nguest linux:{series}\nsev snp\nmemory 128\nbudget 300000\n"
            f"host hostile-hypervisor:{lie}\n---\n"
            "set_memory_decrypted D[3] pages=4\nread D[11]\n"
        )
        run = run_program(parse_text(text, lie))
        found[lie] = run_word(run)
        violations[lie] = [violation.message for violation in run.outcome.violations]
    assert found == ENDS
    assert not any(violations.values()), violations


@pytest.mark.soak
@pytest.mark.parametrize("after", [100, 3000])
@pytest.mark.parametrize("event", INJECTED)
def test_what_a_kernel_makes_of_an_injected_event(event: str, after: int) -> None:
    """In the middle of an encryption: it goes on right, or ends itself (N55)."""
    try:
        find_image("6.12")
    except MissingError:
        pytest.skip("no 6.12 kernel; run `guestemu kernel fetch 6.12`")
    text = (
        "guestemu-program 1\nguest linux:6.12\nsev snp\nmemory 128\nbudget 300000\n"
        "host hostile-hypervisor:far\n---\nset_memory_decrypted D[3] pages=4\n"
        f"hypervisor_inject {event} after={after}\nset_memory_encrypted D[3] pages=4\n"
        "write D[4] value=1\nread D[4]\n"
    )
    run = run_program(parse_text(text, event))
    assert run_word(run) == INJECTED[event]
    assert not run.outcome.violations
