# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel lacks for a guest kind follows from its functions, wherever they are linked; one
host plug-in under every kind of kernel and snippet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from guestemu.guest.linux.boot import lacking
from guestemu.guest.linux.kernel import Kernel
from guestemu.host.plugin import load_plugin
from guestemu.program.ops import Op, OpKind, Region
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.guests import SNIPPET, has_kind, outcome_guest

PAT = "arch_io_reserve_memtype_wc"
OLD = {"sme_enable", "snp_init", "kvm_guest_init", "tdx_early_init", PAT}
NEW = {"__pi_sme_enable", "__pi_snp_init", "kvm_guest_init", "tdx_early_init", PAT}


def kernel_with(names: set[str]) -> Kernel:
    return cast("Kernel", SimpleNamespace(symbols=dict.fromkeys(names, 0)))


@pytest.mark.parametrize("names", [OLD, NEW], ids=["6.12", "7.3"])
@pytest.mark.parametrize("kind", ["sev", "es", "snp", "tdx"])
def test_a_kernel_of_either_layout_has_every_kind(names: set[str], kind: str) -> None:
    assert lacking(kernel_with(names), kind) == ()


def test_what_is_missing_is_named_by_its_option() -> None:
    assert lacking(kernel_with(NEW - {"__pi_sme_enable"}), "es") == ("CONFIG_AMD_MEM_ENCRYPT=y",)
    assert lacking(kernel_with(NEW - {"kvm_guest_init"}), "sev") == ("CONFIG_KVM_GUEST=y",)
    assert lacking(kernel_with(NEW - {PAT}), "es") == ("CONFIG_X86_PAT=y, CONFIG_MTRR=y",)
    assert lacking(kernel_with(NEW - {PAT}), "tdx") == ()
    [reason] = lacking(kernel_with(OLD - {"snp_init"}), "snp")
    assert reason.startswith("SEV-SNP guest code")


def test_outcomes_leave_out_a_kind_that_a_guest_does_not_have(image_of) -> None:
    """Debian's 6.1 has no CONFIG_INTEL_TDX_GUEST, snippets have no SEV-ES."""
    kinds = ("sev", "es", "snp", "tdx")
    old, new = (f"linux:{image_of(series)}" for series in ("6.1", "6.12"))
    assert [kind for kind in kinds if has_kind(old, kind)] == ["sev", "es", "snp"]
    assert [kind for kind in kinds if has_kind(new, kind)] == list(kinds)
    assert [kind for kind in kinds if has_kind(SNIPPET, kind)] == ["sev", "snp", "tdx"]


PLAIN = """
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost


class Plain(MapGpaRangeHost):
    def hypercall(self, call):
        if call.nr != KVM_HC_MAP_GPA_RANGE:
            return super().hypercall(call)
        first, end = call.a0 >> 12, (call.a0 >> 12) + call.a1
        self.private_map()[first:end] = 1 if call.a2 & MAP_GPA_RANGE_ENCRYPTED else 0
        return 0
"""


def conversions(testbed: Testbed) -> tuple[list[int | None], set[str]]:
    ops = [
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, 3),
        Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), Region.D, 3),
        Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), Region.L, 0),
    ]
    outcome = testbed.run(ops)
    values = [result.outcome.value for result in outcome.results]
    return values, {violation.check for violation in outcome.violations}


GUESTS = [
    *((SNIPPET, kind) for kind in ("sev", "snp", "tdx")),
    *(pytest.param("6.12", kind, marks=pytest.mark.soak) for kind in ("sev", "es", "snp", "tdx")),
]


@pytest.mark.parametrize(("name", "kind"), GUESTS)
def test_one_plug_in_works_under_every_kind(
    name: str, kind: str, tmp_path: Path, image_of: Callable[[str], Path]
) -> None:
    """The same file, loaded as `--host FILE.py:CLASS` does."""
    plugin = tmp_path / "plain.py"
    plugin.write_text(PLAIN)
    guest = outcome_guest(name if name == SNIPPET else f"linux:{image_of(name)}", kind)
    host = load_plugin(f"{plugin}:Plain", str(plugin))
    assert conversions(Testbed(guest, host)) == ([0, 0, 0], set())
