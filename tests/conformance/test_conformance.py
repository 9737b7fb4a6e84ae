# SPDX-License-Identifier: GPL-2.0-or-later
"""One suite over every built-in host: sound with its defects repaired, and as posted wrong in
exactly the ways the mails and sources say."""

import pytest

from guestemu.conformance.hosts import check_host
from guestemu.host.registry import hosts, load_host

# The checks that a host fails as posted; the defect's item in the law book beside each.
AS_POSTED = {
    "map-gpa-range": set(),
    "qemu-v4": {
        "sequences",  # M54
        "size-hints",  # M53
        "migration-control",  # M57
        "reserved-bits",  # M57
        "fault-orders",  # M22: ret never written, the guest reads the answer before
    },
    "sev-firmware": set(),
    "mirror": set(),
    "mirror-2021": set(),
    "qemu-migration": set(),
    "qemu-migration-2021": set(),
    "qemu-migration-2020": set(),
    "qemu-migration-2019": set(),
    "qemu-10.2": {"any-input", "beyond-ram"},  # D27: the guest stops its VM; M58: 2^52 pages wrap
    "qemu-11": {"any-input", "beyond-ram", "host-survives"},  # V3, V7: the guest stops its VM
    "cloud-hypervisor": {"any-input", "beyond-ram"},  # V7
    "openvmm": set(),
    "libkrun": {"size-hints", "any-input", "beyond-ram", "host-survives"},  # V2, V7
    "in-place": set(),
    "dragonball": {"any-input", "beyond-ram"},  # V7
    "tdx-cut": set(),
    "stop-at-fault": set(),
    "snp-kvm": set(),
    "hostile-hypervisor": set(),
    "shared-list-v10": {
        "early-notice",  # K2-d
        "single-ranges",  # K2-d: list counts as answers
        "sequences",  # K2-f
        "refusals",  # K2-d
        "beyond-ram",  # K2-d
        "unaligned",  # M43
        "migration-control",  # write-only MSR
    },
    "bitmap-v8": {"beyond-ram", "unaligned", "migration-control"},  # M37, M43, set-only MSR
    "bitmap-v6": {"early-notice", "host-survives", "unaligned"},  # M34, M43
    "bitmap-v3": {"host-survives", "unaligned"},
    "bitmap-v2": {"host-survives", "unaligned", "wrapping"},  # M31
    "bitmap-v1": {"host-survives", "unaligned", "wrapping"},
}
SPECS = [entry.name for entry in hosts()]


def test_every_host_is_listed():
    assert set(SPECS) == set(AS_POSTED)


@pytest.mark.parametrize("name", SPECS)
def test_defects_as_posted(name):
    assert {failure.check for failure in check_host(load_host(name))} == AS_POSTED[name]


@pytest.mark.parametrize("entry", hosts(), ids=SPECS)
def test_no_failure_with_every_defect_repaired(entry):
    assert check_host(load_host(entry.name, entry.switches)) == []


@pytest.mark.parametrize(
    "spec", [f"{entry.name}:{kernel}" for entry in hosts() for kernel in entry.kernels]
)
def test_every_kernel_with_every_defect_repaired(spec):
    entry = next(entry for entry in hosts() if entry.name == spec.split(":")[0])
    failures = check_host(load_host(spec, entry.switches))
    # 6.12's own defect (K3-i) loses an exit of 32-bit code and reports success; of snp-kvm the
    # kernel is that of page-state changes
    is_lossy = spec.endswith(":6.12") and entry.name != "snp-kvm"
    expected = {"narrow-mode"} if is_lossy else set()
    assert {failure.check for failure in failures} == expected


@pytest.mark.parametrize("entry", hosts(), ids=SPECS)
def test_each_repair_matters(entry):
    """Leaving out one repair shows, in the suite or in the host's own tests (those of QEMU's
    migration code in tests/qemu and tests/zoo, of the handlers' prototype in
    tests/mirror_migration, of failing calls and of backings in tests/host/test_vmm_handlers.py, of
    hot-plug in the corpora, of page-state changes and MapGPA in tests/machine and
    tests/outcomes)."""
    if entry.name.startswith(("qemu-migration", "mirror")):
        pytest.skip("the suite does not migrate")
    elsewhere = {
        "set-ioctl",
        "wants-to-run",
        "half-done-batch",
        "eagain-is-fatal",
        "get-race",
        "get-words",
        "end-frame",
        "vcpu-reset",
        "set-offset",
        "section",
        "stale-ret",
        "size-wrap",
        "answer-one",
        "attributes-first",
        "punch-logged",
        "fault-no-punch",
        "no-discard",
        "listener-fails",
        "other-number-ok",
        "plug-plain",
    }
    for switch in entry.switches:
        others = tuple(name for name in entry.switches if name != switch)
        failures = check_host(load_host(entry.name, others))
        assert bool(failures) or switch in elsewhere, switch
