# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel lacks for a guest kind follows from its functions, wherever they are linked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from guestemu.guest.linux.boot import lacking
from guestemu.guest.linux.kernel import Kernel
from guestemu.study.outcomes.guests import SNIPPET, has_kind

OLD = {"sme_enable", "snp_init", "kvm_guest_init", "tdx_early_init"}
NEW = {"__pi_sme_enable", "__pi_snp_init", "kvm_guest_init", "tdx_early_init"}


def kernel_with(names: set[str]) -> Kernel:
    return cast("Kernel", SimpleNamespace(symbols=dict.fromkeys(names, 0)))


@pytest.mark.parametrize("names", [OLD, NEW], ids=["6.12", "7.3"])
@pytest.mark.parametrize("kind", ["sev", "es", "snp", "tdx"])
def test_a_kernel_of_either_layout_has_every_kind(names: set[str], kind: str) -> None:
    assert lacking(kernel_with(names), kind) == ()


def test_what_is_missing_is_named_by_its_option() -> None:
    assert lacking(kernel_with(NEW - {"__pi_sme_enable"}), "es") == ("CONFIG_AMD_MEM_ENCRYPT=y",)
    assert lacking(kernel_with(NEW - {"kvm_guest_init"}), "sev") == ("CONFIG_KVM_GUEST=y",)
    [reason] = lacking(kernel_with(OLD - {"snp_init"}), "snp")
    assert reason.startswith("SEV-SNP guest code")


def test_outcomes_leave_out_a_kind_that_a_guest_does_not_have(image_of) -> None:
    """Debian's 6.1 has no CONFIG_INTEL_TDX_GUEST, snippets have no SEV-ES."""
    kinds = ("sev", "es", "snp", "tdx")
    old, new = (f"linux:{image_of(series)}" for series in ("6.1", "6.12"))
    assert [kind for kind in kinds if has_kind(old, kind)] == ["sev", "es", "snp"]
    assert [kind for kind in kinds if has_kind(new, kind)] == list(kinds)
    assert [kind for kind in kinds if has_kind(SNIPPET, kind)] == ["sev", "snp", "tdx"]
