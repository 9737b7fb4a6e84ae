# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's host: what loading and running say when it is wrong."""

import textwrap

import pytest

from guestemu.abi.errors import GuestemuError, HostFailedError, PluginError
from guestemu.conformance.hosts import check_host
from guestemu.host.base import GuestFault
from guestemu.host.permission import named_by_user
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu

GOOD = """
    from bitarray import bitarray
    from guestemu.host.base import GuestFault, Host

    class Mine(Host):
        name = "mine"
        summary = "a bitmap"

        def reset(self, frames):
            self.bits = bitarray(frames, endian="little")
            self.bits.setall(True)

        def hypercall(self, call):
            if call.nr != 12 or call.cpl:
                return 2**64 - (1 if call.cpl else 1000)
            first, end = call.a0 >> 12, (call.a0 >> 12) + call.a1
            self.bits[first:end] = bool(call.a2 & 16)
            return 0

        def rdmsr(self, index, vcpu):
            raise GuestFault()

        def wrmsr(self, index, value, vcpu):
            raise GuestFault()

        def private_map(self):
            return self.bits

        @property
        def migration_ready(self):
            return False
"""


EVIL = 'return type("Evil", (), {"__repr__": lambda self: 1 / 0})()'


def write(tmp_path, source=GOOD, **changes):
    text = textwrap.dedent(source)
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "mine.py"
    path.write_text(text)
    return f"{path}:Mine"


def line_of(tmp_path, text):
    lines = (tmp_path / "mine.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def load(spec):
    return load_host(spec, plugin=named_by_user(spec)[1])


def failure(tmp_path, spec, use=None, match=""):
    def run():
        host = load(spec)
        host.reset(64)
        use(host)

    with pytest.raises(GuestemuError, match=match) as caught:
        run()
    is_loading = use is None or isinstance(caught.value, PluginError)
    assert isinstance(caught.value, PluginError if is_loading else HostFailedError)
    text = str(caught.value)
    assert "\n" not in text
    return text


def call(host, gpa=0x1000, pages=1, attributes=0):
    return host.hypercall(StandInVcpu().hypercall(12, gpa, pages, attributes))


def test_good_plugin_answers(tmp_path):
    host = load(write(tmp_path))
    host.reset(64)
    assert call(host) == 0
    assert host.private_map().count(0) == 1
    assert host.state == 0
    with pytest.raises(GuestFault):
        host.rdmsr(0x4B564D08, StandInVcpu())
    with pytest.raises(NotImplementedError):
        host.inject_answer(0, 1)


def test_a_hypercall_from_user_mode_may_fault(tmp_path):
    host = load(write(tmp_path, a=("return 0", "raise GuestFault(13)"), b=("or call.cpl", "")))
    host.reset(64)
    with pytest.raises(GuestFault):
        host.hypercall(StandInVcpu(cpl=3).hypercall(12, 0x1000, 1, 0))
    with pytest.raises(HostFailedError):
        call(host)


def test_plugin_does_not_need_the_base_class(tmp_path):
    spec = write(tmp_path, a=("class Mine(Host):", "class Mine:"))
    host = load(spec)
    host.reset(8)
    assert call(host) == 0
    assert host.state == 0
    with pytest.raises(NotImplementedError, match="no inject_answer"):
        host.inject_answer(0, 1)


def test_conformance_suite_finds_what_the_plugin_lacks(tmp_path):
    checks = {found.check for found in check_host(load(write(tmp_path)))}
    assert checks == {"unaligned", "wrapping", "narrow-mode"}


@pytest.mark.parametrize(
    ("change", "message", "line"),
    [
        (("import bitarray", "import bitarrai"), "import failed: ImportError", "bitarrai"),
        (("class Mine(Host):", "class Mine(Host:"), "import failed: SyntaxError", "class Mine"),
        (
            ("def rdmsr", "def rdmrs"),
            r"no method rdmsr; add def rdmsr\(self, index, vcpu\)",
            "class",
        ),
        (
            ("def wrmsr(self, index, value,", "def wrmsr(self, index,"),
            "wrmsr has other param",
            "class",
        ),
        (("def migration_ready", "def ready"), "no migration_ready", "class"),
    ],
)
def test_faults_while_loading(tmp_path, change, message, line):
    text = failure(tmp_path, write(tmp_path, a=change), match=message)
    assert f"mine.py:{line_of(tmp_path, line)}" in text


def test_relative_path(tmp_path, monkeypatch):
    write(tmp_path, a=("return 0", "return [][1]"))
    monkeypatch.chdir(tmp_path)
    text = failure(tmp_path, "mine.py:Mine", call, match="raised IndexError")
    assert text.startswith(f"mine.py:{line_of(tmp_path, '[][1]')}:")


def test_missing_class_names_those_that_are_there(tmp_path):
    spec = write(tmp_path).replace(":Mine", ":Yours")
    failure(tmp_path, spec, match=r"no class 'Yours'; the file defines Mine")
    failure(tmp_path, spec.replace(":Yours", ""), match="no class named; write .*:CLASS")


def test_constructor_that_raises(tmp_path):
    source = ("def reset(self", "def __init__(self): 1 / 0\n\n    def reset(self")
    text = failure(tmp_path, write(tmp_path, a=source), match=r"Mine\(\) failed: ZeroDivision")
    assert f"mine.py:{line_of(tmp_path, '1 / 0')}" in text


@pytest.mark.parametrize(
    ("change", "use", "message", "line"),
    [
        (("return 0", "return [][1]"), call, "hypercall raised IndexError", "[][1]"),
        (("return 0", "return None"), call, "hypercall returned None; return an int", "def hyper"),
        (("return 0", "raise SystemExit(0)"), call, "hypercall raised SystemExit: 0", "SystemExit"),
        (
            ("return 0", "raise GuestFault(13)"),
            call,
            "raised GuestFault.* for an MSR",
            "GuestFault(13)",
        ),
        (("return 0", "return 1 << 99999"), call, "returned an int of 100000 bits", "def hyper"),
        (("return 0", EVIL), call, "returned a Evil; return an int", "def hyper"),
        (("return 0", "return -22"), call, "returned -22; .*mask a negative", "def hyper"),
        (("self.bits\n", "7\n"), lambda h: h.private_map(), "returned 7; return a lit", "def priv"),
        (("return False", "return 0"), lambda h: h.migration_ready, "return a bool", ""),
        (("return False", "return []["), None, "SyntaxError", "[]["),
        (('endian="little"', 'endian="big"'), lambda h: h.private_map(), "64 bits, big", ""),
        (("bitarray(frames,", "bitarray(9,"), lambda h: h.private_map(), "9 bits, little", ""),
    ],
)
def test_faults_during_a_run(tmp_path, change, use, message, line):
    text = failure(tmp_path, write(tmp_path, a=change), use, match=message)
    assert f"mine.py:{line_of(tmp_path, line)}" in text if line else "mine.py" in text
