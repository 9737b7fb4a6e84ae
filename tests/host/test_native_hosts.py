# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM's exit handler in C: in process, in a process of its own, as a command; and its deaths."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from native_builds import HEADERS, ROOT, compile_c, example, example_program

from guestemu.abi.errors import HostFailedError, InputError, PluginError
from guestemu.cli.main import main
from guestemu.host.kvm.guest_memory import MemoryFaultExit
from guestemu.host.native import library, wire
from guestemu.host.native.host import NativeHost, NativeUserSpace
from guestemu.host.native.process import HandlerProcess
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu

FRAMES = 1024
DEATHS = {2: "ended by a segmentation fault", 3: "did not return", 4: "aborted"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("native")
    for bug in range(5):
        example(directory, bug)
    for bug in (0, 3):
        example_program(directory, bug)
    return directory


def spec_of(built: Path, bug: int, way: str) -> str:
    if way == "cmd":
        return f"cmd:{built / f'program{bug}'}"
    return f"{built / f'bug{bug}.so'}{':in-process' if way == 'in-process' else ''}"


def make(spec: str, frames: int = FRAMES) -> NativeHost:
    host = NativeHost(spec)
    host.reset(frames)
    return host


def call(host: NativeHost, gpa: int, pages: int, attributes: int) -> int:
    return host.hypercall(StandInVcpu().hypercall(12, gpa, pages, attributes))


@pytest.mark.parametrize("way", ["process", "in-process", "cmd"])
def test_a_handler_without_a_bug_is_the_reference(built: Path, way: str) -> None:
    host, reference = make(spec_of(built, 0, way)), load_host("map-gpa-range")
    reference.reset(FRAMES)
    chooser = random.Random(4)
    for _ in range(200):
        gpa = chooser.randrange(FRAMES + 8) << 12 | (chooser.random() < 0.1)
        pages, attributes = chooser.choice((0, 1, 2, 7, 64, 1 << 40)), chooser.choice((0, 16, 17))
        request = StandInVcpu().hypercall(12, gpa, pages, attributes)
        assert host.hypercall(request) == reference.hypercall(request)
        assert host.private_map() == reference.private_map()
        if chooser.random() < 0.2:
            host.restore(FRAMES)
            reference.restore(FRAMES)
            assert host.private_map().all()
    vcpu = StandInVcpu()
    host.wrmsr(0x4B564D08, 1, vcpu)
    assert host.migration_ready
    assert host.rdmsr(0x4B564D08, vcpu) == 1
    host.restore(FRAMES)
    assert not host.migration_ready
    assert host.rdmsr(0x4B564D08, vcpu) == 0, "the handler was reset"


@pytest.mark.parametrize("way", ["process", "in-process"])
def test_calls_of_the_handler_reach_the_vms_memory(built: Path, way: str) -> None:
    host = make(spec_of(built, 0, way))
    call(host, 0x3000, 2, 0)
    assert [(one.name, one.arguments) for one in host.guest_memory.calls] == [
        ("KVM_SET_MEMORY_ATTRIBUTES", (0x3000, 0x2000, 0, 0)),
        ("fallocate", (0, 3, 0x3000, 0x2000)),
    ]
    host.guest_memory.order_failure(0, 12)
    assert call(host, 0x3000, 2, 16) == 22, "the handler answers a failed call with EINVAL"
    assert not host.private_map()[3]
    assert host.user.memory_fault(MemoryFaultExit(0x3000, 0x1000, True))
    assert host.private_map()[3]


@pytest.mark.parametrize("way", ["process", "cmd"])
def test_a_death_ends_the_program_and_not_the_host(built: Path, way: str) -> None:
    for bug, how in DEATHS.items() if way == "process" else [(3, DEATHS[3])]:
        host = make(spec_of(built, bug, way))
        for _ in range(3):
            host.restore(FRAMES)
            assert call(host, 0, 1, 0) == 0
            with pytest.raises(HostFailedError, match=how):
                call(host, 0, 33, 0)
        host.restore(FRAMES)
        assert call(host, 0, 32, 0) == 0
        process = host.user.handler
        assert isinstance(process, HandlerProcess)
        assert process.starts == 1, "the process that forks the handler lives on"


def test_a_story_that_ended_in_death_is_not_told_again(built: Path) -> None:
    host = make(spec_of(built, 4, "process"))
    process = host.user.handler
    assert isinstance(process, HandlerProcess)
    with pytest.raises(HostFailedError, match="aborted"):
        call(host, 0, 33, 0)
    process.stop()
    host.restore(FRAMES)
    with pytest.raises(HostFailedError, match="aborted"):
        call(host, 0, 33, 0)
    assert process.starts == 1


def test_no_process_is_left_behind(built: Path) -> None:
    host = make(spec_of(built, 0, "cmd"))
    process = host.user.handler
    assert isinstance(process, HandlerProcess)
    child = process._child
    assert child is not None
    assert child.poll() is None
    del host, process
    assert child.poll() is not None


@pytest.mark.parametrize("bug", DEATHS)
def test_a_campaign_files_a_death_as_one_finding(
    built: Path,
    bug: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "guestemu-program 1\nguest snippet:6.12\n---\nhypercall a0=0x1000 a1=33 a2=0\n"
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    seeds.joinpath("killer.prog").write_text(text)
    shutil.copy(built / f"bug{bug}.so", "vmm.so")
    command = "fuzz hypercall --engine random --host ./vmm.so --execs 400 --inputs seeds --json"
    assert main(command.split()) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in report["findings"]] == ["host-failed"]
    assert report["executions"] >= 400
    program = Path(report["findings"][0]["program"])
    assert "a1=33" in program.read_text()
    assert main(["run", str(program)]) == 2, "a program runs no code that nothing allowed"
    assert "--plugins" in capsys.readouterr().err
    assert main(["run", "--plugins", ".", str(program)]) == 1
    assert DEATHS[bug] in capsys.readouterr().out


def test_the_bug_of_the_example_is_shown(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.prog"
    path.write_text("guestemu-program 1\n---\nhypercall a0=0x3e000 a1=2 a2=0\n")
    for way in ("process", "in-process"):
        assert main(["run", "--host", spec_of(built, 1, way), str(path)]) == 1
        assert "GPA 0x3f000 is recorded as private" in capsys.readouterr().out
    assert main(["hosts", "--check", spec_of(built, 0, "process")]) == 0


@pytest.mark.soak
def test_a_loop_in_this_process_ends_it_with_one_line(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.prog"
    path.write_text("guestemu-program 1\n---\nhypercall a0=0x1000 a1=33 a2=0\n")
    words = ["run", "--limit", "0.2", "--host", spec_of(built, 3, "in-process"), str(path)]
    command = [sys.executable, "-m", "guestemu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "does not stop when it is interrupted" in line


STATIC = """
#include "guestemu_host.h"
uint32_t guestemu_abi(void) { return GUESTEMU_HOST_ABI; }
void *guestemu_open(const struct guestemu_layout *l, const struct guestemu_kernel *k)
{
	static int vm;
	return l && k ? &vm : 0;
}
int guestemu_reset(void *vm) { return !vm; }
void guestemu_close(void *vm) { (void)vm; }
int guestemu_exit(void *vm, struct guestemu_exit *e)
{
	static uint64_t calls;
	(void)vm;
	e->hypercall.ret = calls++;
	return GUESTEMU_REENTER;
}
"""


@pytest.mark.parametrize("way", ["process", "cmd"])
def test_a_renewed_handler_has_run_nothing(tmp_path: Path, way: str) -> None:
    source = tmp_path / "static.c"
    source.write_text(STATIC)
    if way == "cmd":
        flags = ("-DGUESTEMU_SERVE_MAIN",)
        compile_c(tmp_path / "program", source, HEADERS / "guestemu_serve.c", flags=flags)
        host = make(f"cmd:{tmp_path / 'program'}")
    else:
        host = make(str(compile_c(tmp_path / "static.so", source)))
    assert [call(host, 0, 1, 0) for _ in range(2)] == [0, 1]
    host.restore(FRAMES)
    assert call(host, 0, 1, 0) == 2, "a reset leaves static data"
    host.renew()
    host.restore(FRAMES)
    assert [call(host, 0, 1, 0) for _ in range(2)] == [0, 1]


NONSENSE = {
    "wrong magic": ("reply(b'x' * 16)", "has ABI"),
    "another ABI": ("reply(struct.pack('<4I', MAGIC, 9, 0, 0))", "has ABI 9"),
    "no answer": ("sys.exit(5)", "does not start"),
}
LATER = {
    "fewer replies": ("reply(struct.pack('<2I', 1, 0) + bytes(24))", "wrong reply"),
    "too many calls": ("reply(struct.pack('<2I', 2, 1 << 31))", "wrong reply"),
    "calls of no record": ("reply(struct.pack('<2I', 2, 1) + bytes(48 + 40))", "wrong reply"),
    "an outcome that is none": (
        "reply(struct.pack('<2I', 2, 0) + bytes(24) + struct.pack('<2I2Q', 7, 0, 0, 0))",
        "wrong reply",
    ),
    "more calls than were sent": (
        "reply(struct.pack('<2I', 2, 0) + bytes(24) + struct.pack('<2I2Q', 0, 9, 0, 0))",
        "wrong reply",
    ),
    "a result that the call does not have": (
        "reply(struct.pack('<2I', 2, 1) + bytes(24) + struct.pack('<2I2Q', 0, 1, 0, 0)"
        " + struct.pack('<Ii4Q', 1, 0, 5, 5, 5, 5))",
        "was told 0 by a call that returns -22",
    ),
    "an unknown call": (
        "reply(struct.pack('<2I', 2, 1) + bytes(24) + struct.pack('<2I2Q', 0, 1, 0, 0)"
        " + struct.pack('<Ii4Q', 77, 0, 0, 0, 0, 0))",
        "unknown call 77",
    ),
    "the end": ("sys.exit(3)", "ended"),
}


def speak(directory: Path, first: str, later: str = "sys.exit()") -> str:
    """A command that speaks the protocol with `first` as its hello and `later` for each message."""
    path = directory / "speaks.py"
    text = f"""
        import os, struct, sys
        MAGIC = {wire.MAGIC}
        into, out = map(int, os.environ["GUESTEMU_HOST_FDS"].split(","))
        other = os.fdopen(into, "rb")
        reply = lambda data: os.write(out, data)
        other.read({wire.HELLO.size + wire.SLOT.size})
        {first}
        while True:
            count, _ = struct.unpack("<2I", other.read(8) or sys.exit())
            other.read(count * {wire.REQUEST.size})
            {later}
        """
    path.write_text(textwrap.dedent(text))
    return f"cmd:{shlex.join([sys.executable, str(path)])}"


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_process_that_does_not_start_right(kind: str, tmp_path: Path) -> None:
    first, words = NONSENSE[kind]
    with pytest.raises(PluginError, match=words):
        make(speak(tmp_path, first))


@pytest.mark.parametrize("kind", LATER)
def test_a_hostile_process_is_a_failed_host(kind: str, tmp_path: Path) -> None:
    later, words = LATER[kind]
    host = make(speak(tmp_path, f"reply(struct.pack('<4I', MAGIC, {wire.ABI}, 0, 0))", later))
    if not words:  # a call that belongs to no reply is ignored
        assert call(host, 0, 1, 0) == 0
        assert host.guest_memory.calls == []
        return
    with pytest.raises(HostFailedError, match=words):
        call(host, 0, 1, 0)


def test_what_cannot_be_a_handler(tmp_path: Path) -> None:
    for spec, words in (
        (str(tmp_path / "none.so"), "no such file"),
        ("cmd:", "no command"),
        (f"cmd:{tmp_path}/none", "cannot be started"),
        (f"{tmp_path}/none.so:in-process", "cannot be loaded"),
    ):
        with pytest.raises(PluginError, match=words):
            make(spec)
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;\n")
    library = compile_c(tmp_path / "empty.so", empty)
    for mode in ("", ":in-process"):
        with pytest.raises(PluginError, match="missing"):
            make(f"{library}{mode}")
    with pytest.raises(InputError, match="nothing here allows it"):
        load_host("./x.so")
    with pytest.raises(InputError, match="no switches"):
        load_host("./x.so", ("wrap",), "/x.so")
    with pytest.raises(InputError, match="is not known"):
        load_host("./x.so:faster", (), "/x.so")


def test_the_header_and_the_wire_have_the_same_layouts(tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    source.write_text(
        '#define GUESTEMU_SERVE_MAIN\n#define main ignored\n#include "guestemu_serve.c"\n'
        "#undef main\n#include <stdio.h>\n"
        "uint32_t guestemu_abi(void) { return 0; }\n"
        "void *guestemu_open(const struct guestemu_layout *l, const struct guestemu_kernel *k)"
        " { (void)l; (void)k; return 0; }\n"
        "int guestemu_exit(void *v, struct guestemu_exit *e) { (void)v; (void)e; return 0; }\n"
        "int guestemu_reset(void *v) { (void)v; return 0; }\n"
        "void guestemu_close(void *v) { (void)v; }\n"
        'int main(void) { (void)ignored; printf("%zu %zu %zu %zu %zu %zu %zu %zu %zu\\n",'
        " sizeof(struct hello), sizeof(struct guestemu_slot), sizeof(struct ready),"
        " sizeof(struct head), sizeof(struct request), sizeof(struct reply),"
        " sizeof(struct call), sizeof(struct guestemu_exit), sizeof(struct half));"
        " return 0; }\n"
    )
    program = compile_c(tmp_path / "sizes", source)
    sizes = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    layouts = (wire.HELLO, wire.SLOT, wire.READY, wire.HEAD, wire.REQUEST, wire.REPLY, wire.CALL)
    half = ctypes.sizeof(library.Half)
    assert list(map(int, sizes)) == [*(one.size for one in layouts), 80, half]


def test_a_hole_is_refused_by_the_same_rules_on_both_sides(tmp_path: Path) -> None:
    """GM4: the kernel's half in C tells the handler what the model then comes to as well."""
    source = tmp_path / "holes.c"
    source.write_text(
        textwrap.dedent("""
        #include "guestemu_host.h"
        static struct guestemu_kernel k;
        uint32_t guestemu_abi(void) { return GUESTEMU_HOST_ABI; }
        void *guestemu_open(const struct guestemu_layout *l, const struct guestemu_kernel *kernel)
        { (void)l; k = *kernel; return &k; }
        int guestemu_reset(void *vm) { (void)vm; return 0; }
        void guestemu_close(void *vm) { (void)vm; }
        int guestemu_exit(void *vm, struct guestemu_exit *e)
        {
            uint64_t *args = e->hypercall.args;
            (void)vm;
            e->hypercall.ret = (uint64_t)-k.fallocate(k.token, 0, (int)args[2], args[0],
                                                      args[1] << 11);
            return GUESTEMU_REENTER;
        }
        """)
    )
    built = compile_c(tmp_path / "holes.so", source)
    cases = [
        (0, 2, 3, 0),
        (0, 1, 3, errno.EINVAL),
        (0, 1 << 52, 3, errno.EINVAL),
        (1 << 63, 2, 3, errno.EINVAL),
        (1 << 62, 1 << 51, 3, errno.EFBIG),
        (0, 1, 0, errno.EOPNOTSUPP),
        (0, 2, 2, errno.EOPNOTSUPP),
        (0, 2, 1, 0),
        (FRAMES << 12, 2, 1, errno.EINVAL),
    ]
    for mode in ("", ":in-process"):
        host = make(f"{built}{mode}")
        assert [call(host, *case[:3]) for case in cases] == [case[3] for case in cases]
        assert [made.name for made in host.guest_memory.calls] == ["fallocate"] * len(cases)


def test_a_handler_with_a_record_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "own.c"
    source.write_text(
        textwrap.dedent("""
        #include "guestemu_host.h"
        static uint8_t map[128];
        uint32_t guestemu_abi(void) { return GUESTEMU_HOST_ABI; }
        void *guestemu_open(const struct guestemu_layout *l, const struct guestemu_kernel *k)
        { (void)l; (void)k; for (int i = 0; i < 128; i++) map[i] = 0xff; return map; }
        int guestemu_reset(void *vm) { (void)vm; return 1; }
        void guestemu_close(void *vm) { (void)vm; }
        const uint8_t *guestemu_private(void *vm) { return vm; }
        int guestemu_exit(void *vm, struct guestemu_exit *e)
        { (void)vm; map[0] = 0xfe; e->hypercall.ret = 0; return GUESTEMU_REENTER; }
        """)
    )
    library = compile_c(tmp_path / "own.so", source)
    for mode in ("", ":in-process"):
        host = make(f"{library}{mode}")
        assert host.private_map().all()
        call(host, 0x5000, 1, 0)
        assert host.private_map().index(0) == 0
        host.restore(FRAMES)
        assert host.private_map().all()


def has_rust() -> bool:
    """Whether `cargo` builds: rustup's is a launcher, and a new HOME has no toolchain for it."""
    cargo = shutil.which("cargo")
    return cargo is not None and not subprocess.run([cargo, "--version"], check=False).returncode


def test_the_rust_example_is_a_handler_with_its_bug(tmp_path: Path) -> None:
    if not has_rust():
        pytest.skip("no Rust compiler")
    crate = tmp_path / "crate"
    shutil.copytree(ROOT / "examples" / "native-host" / "rust", crate)
    command = ["cargo", "build", "--quiet", "--release", "--example", "my_vmm", "--offline"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(tmp_path / "target")}
    subprocess.run(command, cwd=crate, env=environment, check=True)
    host = make(str(tmp_path / "target" / "release" / "examples" / "libmy_vmm.so"))
    assert call(host, 0x5000, 2, 0) == 0
    assert host.private_map().count(0) == 2
    assert call(host, 0, 1 << 52 | 1, 0) == 0
    assert host.private_map().count(0) == 3, "the size wrapped: one page more, success reported"


def test_the_header_stands_alone(tmp_path: Path) -> None:
    source = tmp_path / "alone.c"
    source.write_text('#include "guestemu_host.h"\n#include "guestemu_host.h"\nint x;\n')
    compile_c(tmp_path / "alone.so", source, flags=("-std=c11", "-pedantic", "-Wextra"))
    for name in ("guestemu_host.h", "guestemu_serve.c"):
        assert "SPDX-License-Identifier: MIT" in HEADERS.joinpath(name).read_text()


def test_user_space_keeps_one_vm_at_a_time(built: Path) -> None:
    host = make(spec_of(built, 0, "process"))
    assert isinstance(host.user, NativeUserSpace)
    host.reset(64)
    assert len(host.private_map()) == 64
    assert call(host, 0, 64, 0) == 0
    assert not host.private_map().any()
