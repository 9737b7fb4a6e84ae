# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM's exit handler as a class: KVM's half comes before it, its memory is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errors import HostFailedError
from guestemu.conformance.hosts.suite import check_host
from guestemu.host.plugin import load_plugin
from guestemu.host.userspace.base import VmStopped
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.runner.testbed import build_testbed

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_handler.py"
SHARE = "hypercall nr=12 a0=0x5000 a1={pages} a2=0 a3=0\n"
BACK = "hypercall nr=12 a0=0x5000 a1={pages} a2=0x10 a3=0\n"


def run(path, lines, name="MyHandler"):
    text = f"guestemu-program 1\nhost {path.name}:{name}\n---\n{lines}"
    program = parse_text(text, "x.prog")
    header = Header(host=program.header.host, plugin=str(path))
    return build_testbed(header).run(program.ops)


def edited(tmp_path, old, new):
    text = EXAMPLE.read_text()
    assert text.count(old) == 1
    path = tmp_path / "edited.py"
    path.write_text(text.replace(old, new))
    return path


def repaired(tmp_path):
    return edited(tmp_path, "if is_private and pages == 1:", "if False:")


def test_kvm_answers_what_never_reaches_user_space(tmp_path):
    path = repaired(tmp_path)
    lines = (
        "hypercall nr=12 a0=0x5001 a1=1 a2=0 a3=0\n"
        "hypercall nr=12 a0=0x5000 a1=0 a2=0 a3=0\n"
        "hypercall nr=99 a0=0 a1=0 a2=0 a3=0\n"
        "hypercall nr=12 a0=0x5000 a1=1 a2=0 a3=0 cpl=3\n"
    )
    outcome = run(path, lines)
    assert outcome.is_ok
    answers = [result.outcome.value for result in outcome.results]
    assert answers == [answer & U64_MASK for answer in (-22, -22, -1000, -1)]


def test_a_repaired_handler_is_sound_and_the_example_leaves_a_copy(tmp_path):
    path = repaired(tmp_path)
    for pages in (1, 3):
        assert run(path, SHARE.format(pages=pages) + BACK.format(pages=pages)).is_ok
    assert check_host(load_plugin(f"{path}:MyHandler", str(path))) == []
    assert run(EXAMPLE, SHARE.format(pages=3) + BACK.format(pages=3)).is_ok
    (violation,) = run(EXAMPLE, SHARE.format(pages=1) + BACK.format(pages=1)).violations
    assert (violation.check, violation.op) == ("guest-memory", 1)


@pytest.mark.parametrize(
    ("old", "new", "lines", "words"),
    [
        ("number, offset, length, MADV", "number, 0, slot.size, MADV", "private", "its copy"),
        ("offset + slot.memfd_offset, length", "0, slot.size", "shared", "its page"),
    ],
)
def test_what_is_freed_lies_in_the_converted_range(tmp_path, old, new, lines, words):
    path = repaired(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    program = SHARE.format(pages=3) + BACK.format(pages=1)
    outcome = run(path, program if lines == "private" else SHARE.format(pages=1))
    (violation,) = outcome.violations
    assert violation.check == "guest-memory"
    frame = "GPA 0x6000 is shared" if lines == "private" else "GPA 0x0 is private"
    assert f"{frame}, was not converted, and {words} was freed" in violation.message


def test_a_page_may_be_freed_before_its_range_is_converted(tmp_path):
    """Of a refused call, and of a converted range, nothing is lost."""
    path = repaired(tmp_path)
    text = path.read_text()
    first = "        error = self.memory.set_memory_attributes(gpa, size, word)\n"
    punch = "        for number, slot, start, length in self.memory.parts(gpa, size):\n"
    punch += "            self.memory.fallocate(number, PUNCH, start - slot.gpa, length)\n"
    path.write_text(text.replace(first, punch + first))
    assert run(path, SHARE.format(pages=3) + BACK.format(pages=2)).is_ok


def test_an_answer_that_is_no_errno_is_the_handlers_failure(tmp_path):
    path = edited(tmp_path, "return -EINVAL", "return EINVAL")
    with pytest.raises(VmStopped) as caught:
        run(path, "hypercall nr=12 a0=0x5000 a1=0x100000 a2=0 a3=0\n")
    assert "return 0 or a negative errno" in str(caught.value)
    assert isinstance(caught.value.__cause__, HostFailedError)


IN_PLACE = """from guestemu.host.handler import VmmHandler


class MyHandler(VmmHandler):
    converts_in_place = True

    def map_gpa_range(self, gpa, pages, attributes):
        word = 8 if attributes & 16 else 0
        for number, slot, start, length in self.memory.parts(gpa, pages << 12):
            offset = start - slot.gpa + slot.memfd_offset
            error = self.memory.convert(number, offset, length, word)
            if error:
                return ERROR
        return 0
"""


@pytest.mark.parametrize(("error", "found"), [("error", []), ("0", ["record"])])
def test_a_handler_may_convert_in_place(tmp_path, error, found):
    path = tmp_path / "in_place.py"
    path.write_text(IN_PLACE.replace("ERROR", error))
    pinned = "pin_page gfn=6 conversions=1\n"
    outcome = run(path, SHARE.format(pages=3) + pinned + BACK.format(pages=3))
    assert [violation.check for violation in outcome.violations] == found
