# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from guestemu.abi.errors import InputError
from guestemu.host.registry import hosts, load_host


def test_lists_names_switches_and_kernels():
    entries = {entry.name: entry for entry in hosts()}
    assert hosts()[0].name == "map-gpa-range"
    assert entries["map-gpa-range"].kernels == ("6.1", "5.15", "6.12", "6.18", "7.2", "7.3")
    assert entries["bitmap-v6"].kernels == ()
    assert "wrap" in entries["bitmap-v1"].switches
    assert all(entry.summary and "\n" not in entry.summary for entry in hosts())


def test_kernel_of_a_spec():
    assert load_host("map-gpa-range").kernel.name == "6.1"
    assert load_host("map-gpa-range:6.12").kernel.name == "6.12"
    assert load_host("qemu-v4:7.2").kernel.name == "7.2"


@pytest.mark.parametrize(
    ("spec", "switches", "message"),
    [
        ("nothing", (), r"'nothing': no such host, and not FILE\.py:CLASS; use one of bitmap-v1,"),
        ("map-gpa-range:4.19", (), r"'4\.19'.*use one of 5\.15"),
        ("map-gpa-range:", (), r"nothing after ':'; use one of 5\.15, 6\.1"),
        ("bitmap-v6:6.1", (), "has no choice of kernels; write bitmap-v6"),
        ("bitmap-v6", ("warp",), "no repair switch 'warp'; use one of gate, end-frame"),
        ("map-gpa-range", ("warp",), "no repair switch 'warp'; it has none"),
        (
            "none.py:Host",
            (),
            r"host none\.py:Host: is code, and nothing .* allows it; .*--plugins DIR",
        ),
        ("./none.so", (), r"host \./none\.so: is code"),
        ("cmd:reboot", (), r"host cmd:reboot: is code"),
        ("kvm:x", (), r"host kvm:x: starts a virtual machine, which only --host can ask for"),
    ],
)
def test_bad_specs_are_one_line_with_the_remedy(spec, switches, message):
    with pytest.raises(InputError, match=message) as caught:
        load_host(spec, switches)
    assert "\n" not in str(caught.value)
