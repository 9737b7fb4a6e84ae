# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis strategies for valid programs, shared by the tests of the codecs."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from guestemu.abi.x86 import Mode
from guestemu.program.expectation_text import EXPECTATIONS
from guestemu.program.ops import (
    ARGUMENT_MASKS,
    REGIONS,
    SPECS,
    Instruction,
    Op,
    OpKind,
    canonical_op,
)
from guestemu.program.program import Expectation, Header, Program, SevKind
from guestemu.program.validity import regions_of

FAST = settings(max_examples=150, deadline=None, database=None)

names = st.text(max_size=12)

headers = st.builds(
    Header,
    guest=names,
    host=names,
    switches=st.lists(names, max_size=3, unique=True).map(tuple),
    sev=st.sampled_from(SevKind),
    cbit=st.integers(36, 51),
    memory=st.sampled_from([16, 64, 4096, 8192]),
    vcpus=st.integers(1, 64),
    seed=st.integers(0, 2**64 - 1),
    budget=st.integers(1, 10**9),
    coherent=st.booleans(),
)


@st.composite
def ops_for(draw: st.DrawFn, header: Header) -> Op:
    kind = draw(st.sampled_from(OpKind))
    region = draw(st.sampled_from(regions_of(header.memory)))
    mode = draw(st.sampled_from(Mode))
    return canonical_op(
        Op(
            kind=kind,
            arguments=tuple(
                draw(st.integers(0, ARGUMENT_MASKS[argument.sort]))
                for argument in SPECS[kind].arguments
            ),
            region=region,
            page=draw(st.integers(0, REGIONS[region].pages - 1)),
            has_page=draw(st.booleans()),
            vcpu=draw(st.integers(0, header.vcpus - 1)),
            mode=mode,
            cpl=0 if mode is Mode.REAL16 else draw(st.integers(0, 3)),
            instruction=draw(st.sampled_from(Instruction)),
        )
    )


@st.composite
def expectations_for(draw: st.DrawFn, ops: int) -> Expectation:
    usable = [name for name, spec in EXPECTATIONS.items() if ops or not spec.per_op]
    name = draw(st.sampled_from(usable))
    spec = EXPECTATIONS[name]
    about_op = spec.per_op if spec.per_op is not None else bool(ops) and draw(st.booleans())
    return Expectation(
        name,
        draw(st.from_regex(spec.pattern, fullmatch=True)),
        draw(st.integers(0, ops - 1)) if about_op else None,
    )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    header = draw(headers)
    ops = tuple(draw(st.lists(ops_for(header), max_size=5)))
    expectations = tuple(draw(st.lists(expectations_for(len(ops)), max_size=3)))
    return Program(header, ops, expectations)
