# SPDX-License-Identifier: GPL-2.0-or-later
"""A handler compiled with -fsanitize-coverage says which blocks ran, and every handler's machine
code which numbers it compares with."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_builds import HEADERS, compile_c

from guestemu.host.native.code_words import numbers_of
from guestemu.host.native.host import NativeHost
from guestemu.host.standin import StandInVcpu

HANDLER = """
#include "guestemu_host.h"
uint32_t guestemu_abi(void) { return GUESTEMU_HOST_ABI; }
void *guestemu_open(const struct guestemu_layout *l, const struct guestemu_kernel *k)
{
	static int vm;
	return l && k ? &vm : 0;
}
int guestemu_reset(void *vm) { return !vm; }
void guestemu_close(void *vm) { (void)vm; }
static volatile int converted;
__attribute__((noinline)) static int seldom(uint64_t pages)
{
	if (pages == 4321)
		converted = 1;
	return 0;
}
int guestemu_exit(void *vm, struct guestemu_exit *e)
{
	(void)vm;
	e->hypercall.ret = (uint64_t)(e->hypercall.args[1] > 77 ? seldom(e->hypercall.args[1]) : 0);
	return GUESTEMU_REENTER;
}
"""
FLAG = "-fsanitize-coverage=trace-pc"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("coverage")
    source = directory / "handler.c"
    source.write_text(HANDLER)
    compile_c(directory / "plain.so", source)
    compile_c(directory / "counted.so", source, flags=(FLAG,))
    serve = HEADERS / "guestemu_serve.c"
    compile_c(directory / "program", source, serve, flags=("-DGUESTEMU_SERVE_MAIN", FLAG))
    return directory


def states(spec: str, *pages: int) -> list[int]:
    host = NativeHost(spec)
    host.reset(8192)
    found = []
    for count in pages:
        host.hypercall(StandInVcpu().hypercall(12, 0, count, 0))
        found.append(host.state)
    return found


@pytest.mark.parametrize("spec", ["{}/counted.so", "{}/counted.so:in-process", "cmd:{}/program"])
def test_each_path_through_a_counted_handler_is_a_state(built, spec):
    one, two, many, rare = states(spec.format(built), 1, 2, 78, 4321)
    assert one == two
    assert len({one, many, rare}) == 3


def test_the_same_blocks_are_the_same_state_in_another_process(built):
    spec = str(built / "counted.so")
    assert states(spec, 1, 78) == states(spec, 1, 78)


def test_a_handler_without_the_flag_has_the_path_in_kvm_only(built):
    assert len(set(states(str(built / "plain.so"), 1, 78, 4321))) == 1


def test_the_numbers_of_the_handler_and_of_what_it_calls_are_read(built):
    numbers = numbers_of(built / "plain.so")
    assert {77, 4321} <= set(numbers)
    host = NativeHost(f"{built / 'plain.so'}:in-process")
    assert host.numbers() == numbers


def test_a_file_without_machine_code_has_no_numbers(tmp_path, built):
    assert numbers_of(tmp_path / "missing.so") == ()
    for text in (b"", b"\x7fELF", b"\x7fELF" + bytes(200), (built / "plain.so").read_bytes()[:900]):
        (tmp_path / "bad.so").write_bytes(text)
        assert numbers_of(tmp_path / "bad.so") == ()
