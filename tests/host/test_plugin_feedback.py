# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign learns from a user's code: the numbers in it, and which blocks run."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.campaign.campaign import Options, header_of, target_of
from guestemu.campaign.session import Plan, Session
from guestemu.host.permission import named_by_user
from guestemu.host.plugin_guard import PluginHost
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu
from guestemu.program.binary import OpDecoder, encode_op
from guestemu.program.ops import Argument, OpKind
from guestemu.program.values import extra_values, palette_of

SOURCE = '''
"""A host with numbers."""
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from numbers_beside import MOST

LIMIT = 7_001


class Numbers(MapGpaRangeHost):
    """Derived."""

    def hypercall(self, call):
        """Looks at the page count."""
        if call.a1 == 77:
            return self.special(call)
        while call.a0 in (0x5000_0000, 0x6000_0000):
            break
        else:
            pass
        return super().hypercall(call) if call.a1 < LIMIT else self.special(call)

    @staticmethod
    def special(call):
        match call.a2 & 0x30:
            case 0x20:
                return 1
        return 0
'''


@pytest.fixture
def host(tmp_path: Path) -> PluginHost:
    (tmp_path / "numbers_beside.py").write_text("MOST = 8_123\n")
    path = tmp_path / "numbers_host.py"
    path.write_text(SOURCE)
    spec, plugin = named_by_user(f"{path}:Numbers")
    loaded = load_host(spec, plugin=plugin)
    assert isinstance(loaded, PluginHost)
    return loaded


def test_numbers_come_from_the_users_modules(host):
    found = host.numbers()
    assert {77, 0x5000_0000, 0x6000_0000, 0x30, 0x20, 7_001, 8_123} <= set(found)
    assert found.index(77) < found.index(8_123), "an operand comes before a mere constant"


def test_an_argument_can_be_each_number_and_all_usual_values():
    extra = extra_values((77, 0x5000_0000, *range(1000, 1100)), frames=(8192,))
    decoder = OpDecoder(1, False, frozenset({OpKind.HYPERCALL}), extra)
    plan = decoder.plans[0]
    assert {76, 77, 78, 0x5000_0} <= set(plan.palettes[2])
    masked = OpDecoder(1, False, frozenset({OpKind.HYPERCALL}), extra_values((0x7FF,))).plans[0]
    assert 0x800 in masked.palettes[1], "an address with the first bit that a mask leaves out"
    assert {77 << 12, 0x5000_0000, 8191 << 12, 8192 << 12} <= set(plan.palettes[1])
    for position, palette in enumerate(plan.palettes):
        assert set(palette_of(OpKind.HYPERCALL, position)) <= set(palette)
        assert len(palette) == 256
    data = bytearray(encode_op(decoder.decode(bytes(48))[0]))
    data[24] = plan.palettes[2].index(77)
    (op,) = decoder.decode(data)
    assert op.arguments[2] == 77
    assert decoder.decode(encode_op(op)) == (op,)
    assert extra[Argument.HYPERCALL_NUMBER][:2] == (77, 0x5000_0000)


def test_blocks_count_in_a_copy_and_the_class_stays(host):
    plain = host._plugin
    hits = memoryview(bytearray(64))
    host.count_blocks(hits)
    host.reset(64)
    vcpu = StandInVcpu()
    usual = vcpu.hypercall(12, 0x3000, 5, 0)
    seen = []
    for call in (usual, usual, vcpu.hypercall(12, 0x3000, 77, 0), vcpu.hypercall(12, 0, 77, 0x20)):
        hits[:] = bytes(64)
        host.hypercall(call)
        seen.append({place for place in range(64) if hits[place]})
    assert seen[0] == seen[1] != seen[2]
    assert seen[3] - seen[2], "a case of a match"
    assert host._plugin is not plain
    with host.as_new():
        assert type(host._plugin) is type(plain)


def test_a_file_that_cannot_run_twice_runs_without_counters(tmp_path):
    path = tmp_path / "once.py"
    path.write_text(
        f"import builtins\nassert not hasattr(builtins, 'once_{tmp_path.name}')\n"
        f"builtins.once_{tmp_path.name} = 1\n{SOURCE}".replace(
            "from numbers_beside", "from os"
        ).replace("import MOST", "import sep as MOST")
    )
    spec, plugin = named_by_user(f"{path}:Numbers")
    loaded = load_host(spec, plugin=plugin)
    before = loaded._plugin
    loaded.count_blocks(memoryview(bytearray(8)))
    assert loaded._plugin is before


def test_a_session_counts_blocks_of_the_host(host, tmp_path):
    options = Options("hypercall", host=f"{tmp_path / 'numbers_host.py'}:Numbers")
    target = target_of(options)
    session = Session(Plan(target, header_of(target, options)))
    session.execute(bytes(48))
    session.feedback.clear()
    first = bytearray(encode_op(session.executor.decode(bytes(48))[0]))
    first[24] = session.executor.decoder.plans[0].palettes[2].index(77)
    assert session.execute(bytes(first))
    assert sum(session.feedback.host_blocks) >= 2
