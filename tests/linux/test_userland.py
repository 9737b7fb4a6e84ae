# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel run`: real kernels in user space, their own drivers over emulated devices."""

from __future__ import annotations

import json
import struct
from collections import Counter

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.tdx import Vmcall
from guestemu.cli.main import main
from guestemu.dma.events import Alloc
from guestemu.dma.source import open_trace
from guestemu.dma.workload import record_workload
from guestemu.events.devices import DeviceAccess, DeviceMessage
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.guest.linux.userland import rules
from guestemu.guest.linux.userland.initramfs import make_initramfs
from guestemu.guest.linux.userland.running import (
    HOST_NEXT,
    HOST_RESULT,
    RunningKernel,
    command_line,
)
from guestemu.guest.linux.userland.session import Setting, Userland, read_device
from guestemu.kernel.hostile import HostileRuns
from guestemu.machine.devices import find_device

LIFE = """\
read /dev/nvme0n1 512 0
fill /dev/nvme0n1 65536 0  # a PRP list
write /sys/class/nvme/nvme0/reset_controller 1
sleep 50
write /sys/bus/pci/drivers/nvme/unbind 0000:00:01.0
write /sys/bus/pci/drivers/nvme/bind 0000:00:01.0
sleep 100
write /sys/bus/pci/devices/0000:00:01.0/remove 1
"""
DEVICES = ("nvme", "virtio-rng", "virtio-blk", "virtio-net")
"""What `kernel drivers` has by default."""
ALL = tuple(word for name in DEVICES for word in ("--device", name))


@pytest.fixture
def run(image_of, capsys):
    """`guestemu kernel run`; its JSON, or what it complained about, and its status."""

    def command(series, *words):
        status = main(["kernel", "run", str(image_of(series)), *words, "--json"])
        captured = capsys.readouterr()
        return (json.loads(captured.out) if captured.out else captured.err), status

    return command


def test_drivers_read_what_their_devices_hold_and_runs_are_equal(run):
    first, status = run("6.12", *ALL)
    assert status == 0, first
    assert "init: user space is up" in first["console"]
    assert [read["is_right"] for read in first["reads"]] == [True] * len(DEVICES)
    assert {read["size"] for read in first["reads"]} == {512}
    assert first["conversions"] > 1000
    second, _ = run("6.12", *ALL)
    assert second["restored"]
    for key in ("event_hash", "blocks", "hypercalls", "accesses", "interrupts"):
        assert first[key] == second[key]


def test_commands_reach_the_device_and_the_result_comes_back(run):
    words = ("fill /dev/nvme0n1 8192 4096", "read /dev/nvme0n1 16 4096", "read /dev/absent 1 0")
    found, status = run("6.12", *ALL, *(part for word in words for part in ("--command", word)))
    assert status == 0
    assert [command["value"] for command in found["commands"]] == [8192, 16, -2]
    assert found["commands"][1]["data"] == bytes(range(0xA0, 0xB0)).hex()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--device", "nvm"), "did you mean nvme"),
        (("--device", "nvme", "--device", "nvme"), "each once"),
        (("--init", "/dev/null", "--command", "say x"), "without --init"),
        (("--memory", "64"), "needs at least 96M"),
        (("--until", "no_such_function"), "no symbol no_such_function"),
        (("--append", "x" * 3000), "the command line has"),
        (("--sev", "sevv"), "a linux guest runs as"),
        (("--workload", "/no/such/file"), "cannot be read"),
        (("--cpus", "9"), "1 to 8"),
    ],
)
def test_bad_input_is_named(run, words, problem):
    error, status = run("6.12", *words)
    assert status == 2
    assert problem in error["message"]


def test_a_run_stops_at_a_function(run):
    found, status = run("6.12", "--until", "start_kernel")
    assert (status, found["reached"]) == (0, "start_kernel")
    assert found["syscalls"] == 0


@pytest.fixture
def running(image_of, request):
    """6.12 in user space with `DEVICES`, or those of the test, from the snapshot."""
    setting = Setting(devices=getattr(request, "param", DEVICES))
    running = Userland(LOADER).start(image_of("6.12"), setting)
    yield running
    running.machine.close()


@pytest.fixture
def accesses(running):
    """What devices do to memory from now on."""
    seen = []

    def keep(event):
        if isinstance(event, DeviceAccess):
            seen.append(event)

    running.listeners.append(keep)
    return seen


def broken(running):
    return {violation.rule for violation in running.rules.violations}


def test_every_access_of_a_device_is_shared_bounced_and_mapped(running, accesses):
    assert read_device(running, "nvme").is_right
    assert running.command("fill /dev/vda 65536 0").value == 65536
    assert running.command("read /dev/nvme0n1 131072 0").value == 131072
    counts = running.rules.checked
    assert counts[rules.MAPPING] == counts[rules.PRIVATE_ADDRESS] == running.accesses
    payload = sum(access.is_payload for access in accesses)
    assert payload > 40
    assert counts[rules.BOUNCE_POOL] > payload
    assert broken(running) == set()


def test_a_network_device_lives_and_goes(running):
    slot = "0000:00:04.0"
    commands = (
        "frame eth0 1500",
        f"write /sys/bus/pci/devices/{slot}/driver/unbind {slot}",
        f"write /sys/bus/pci/drivers_probe {slot}",
        "frame eth0 600",
        f"write /sys/bus/pci/devices/{slot}/remove 1",
        "frame eth0 600",
    )
    results = [running.command(command) for command in commands]
    assert [result.value for result in results] == [1500, 12, 12, 600, 1, -19]
    device = running.hardware.devices["virtio-net"]
    assert [device.holds(results[at].data) for at in (0, 3)] == [True, True]
    assert not device.holds(results[0].data[:-1] + b"?")
    assert running.callers.pages["coherent free"] == 4
    assert broken(running) == set()


@pytest.mark.soak
@pytest.mark.parametrize("running", [("vmxnet3",)], indirect=True)
def test_a_driver_with_much_coherent_memory_sends_and_receives(running, accesses):
    slot = "0000:00:01.0"
    device = running.hardware.devices["vmxnet3"]
    answers = [running.command(f"frame eth0 {size}") for size in (100, 600, 1514)]
    assert [answer.value for answer in answers] == [100, 600, 1514]
    assert all(device.holds(answer.data) for answer in answers)
    sent = [(one.part, one.size) for one in accesses if not one.is_write and "ring" in one.part]
    assert [size for part, size in sent if part == "data ring" and size >= 100] == [100, 128, 128]
    payload = [(one.is_write, one.size) for one in accesses if one.is_payload]
    assert payload == [(True, 100), (False, 472), (True, 600), (False, 1386), (True, 1514)]
    assert running.mappings.counts["dma_alloc_class"] == 10
    commands = (
        f"write /sys/bus/pci/devices/{slot}/driver/unbind {slot}",
        f"write /sys/bus/pci/drivers_probe {slot}",
        "frame eth0 600",
    )
    assert [running.command(command).value for command in commands] == [12, 12, 600]
    assert broken(running) == set()


@pytest.mark.soak
@pytest.mark.parametrize("running", [("virtio-console",)], indirect=True)
def test_a_console_sends_and_takes_lines(running, accesses):
    assert read_device(running, "virtio-console").is_right
    device = running.hardware.devices["virtio-console"]
    again = running.command("read /dev/hvc0 128 0")
    assert device.holds(again.data)
    assert not device.holds(again.data[:-1] + b"?")
    assert not device.holds(b"?" + again.data)
    assert not device.holds(b"?" * 64)
    assert running.command("write /dev/hvc0 hello").value == 5
    assert {access.part for access in accesses if access.is_payload} == {"input", "output"}
    assert broken(running) == set()


def test_a_driver_that_does_not_bounce_is_caught(running):
    field = running.kernel.address("io_tlb_default_mem") + running.kernel.btf.offset(
        "io_tlb_mem.force_bounce"
    )
    vcpu = running.machine.current
    assert vcpu.read_memory(field, 1) == b"\1"
    assert vcpu.write_memory(field, b"\0")
    running.command("read /dev/vda 1024 512")
    assert rules.PRIVATE_ADDRESS in broken(running)
    text = next(v.text for v in running.rules.violations if v.rule == rules.PRIVATE_ADDRESS)
    assert "virtio-blk" in text
    assert "the address has the C-bit" in text


def test_a_descriptor_that_names_a_private_page_is_caught(running, monkeypatch):
    ram = running.machine.ram
    private = next(gfn for gfn in range(0x2000, ram.frames) if gfn not in running.rules.shared)
    device = running.hardware.devices["nvme"]
    monkeypatch.setattr(device, "pieces", lambda _command, size: [(private * PAGE_SIZE, size)])
    before = ram.read(private * PAGE_SIZE, 512)
    running.command("read /dev/nvme0n1 512 1024")
    assert broken(running) == {
        rules.PAGE_TABLE,
        rules.HOST_STATUS,
        rules.BOUNCE_POOL,
        rules.MAPPING,
    }
    assert ram.read(private * PAGE_SIZE, 512) == before


def test_a_buffer_used_after_its_unmap_is_caught(running, accesses):
    read_device(running, "virtio-blk")
    data = next(access for access in accesses if access.part == "data")
    assert broken(running) == set()
    running.hardware.devices["virtio-blk"].dma.write(data.gpa, b"late", "data", is_payload=True)
    assert broken(running) == {rules.MAPPING}
    assert "has ended" in running.rules.violations[0].text


def test_an_experiment_is_rolled_back(running):
    running.checkpoint()

    def experiment():
        read = read_device(running, "virtio-blk")
        filled = running.command("fill /dev/nvme0n1 8192 0").value
        end = (read, filled, running.event_hash, running.blocks, running.accesses)
        assert running.hardware.devices["nvme"].disk.written
        running.rollback()
        return end

    first = experiment()
    assert first[0].is_right
    assert not running.hardware.devices["nvme"].disk.written
    assert [experiment(), experiment()] == [first, first]
    assert broken(running) == set()


def test_hostile_answers_are_repeatable_and_do_not_outlive_their_experiment(running):
    runs = HostileRuns(running, "virtio-blk", 1)
    first = list(runs.run(range(8)))
    assert [experiment.number for experiment in first] == list(range(8))
    assert any(experiment.changes for experiment in first)
    assert list(runs.run(range(8))) == first
    assert read_device(running, "virtio-blk").is_right


def test_a_kernel_that_warns_is_a_finding(running, monkeypatch):
    runs = HostileRuns(running, "virtio-blk", 1)
    real = running.command

    def command(text, budget):
        real("say WARNING: CPU: 0 PID: 1 at drivers/x.c:7 f+0x1/0x2")
        return real(text, budget)

    monkeypatch.setattr(running, "command", command)
    (found,) = runs.run(range(1))
    assert found.is_finding
    assert found.key == "warning: WARNING: CPU: N PID: N at drivers/x.c:N f+N/N"


def test_the_trace_of_a_workload_has_the_events_that_happened(image_of, tmp_path):
    setting = Setting(devices=DEVICES)
    commands = ("read /dev/nvme0n1 131072 0", "fill /dev/vda 8192 0", "read /dev/absent 1 0")
    recording = record_workload(image_of("6.12"), setting, commands, None)
    counts = recording.counts
    assert [value for _, value in counts.results] == [131072, 8192, -2]
    assert counts.agrees
    assert counts.events["dma_map_sg"] == counts.events["dma_unmap_sg"] > 0
    assert counts.broken == 0
    assert counts.conversions["atomic pool, in the background"] == 32
    assert counts.conversions["coherent allocation"] == 8
    assert "other" not in counts.conversions
    path = tmp_path / "workload.trace"
    path.write_bytes(recording.text)
    with open_trace(path) as reader:
        events = list(reader)
        report = reader.report()
    allocations = [event for event in events if isinstance(event, Alloc)]
    assert len(allocations) == counts.events["dma_alloc_class"]
    assert report.drivers["0000:00:01.0"] == "nvme"
    assert not report.garbage


@pytest.mark.soak
def test_dma_records_a_controllers_life_and_replays_it(image_of, tmp_path, capsys):
    workload = tmp_path / "nvme.txt"
    workload.write_text(LIFE)
    trace = tmp_path / "nvme.trace"
    guest = f"linux:{image_of('6.12')}"
    words = ["dma", "--guest", guest, "--workload", str(workload), "--dump-trace", str(trace)]
    assert main([*words, "--json"]) == 0
    live = json.loads(capsys.readouterr().out)
    assert live["workload"]["events"] == live["workload"]["written"]
    assert all(value >= 0 for _, value in live["workload"]["results"])
    assert {site["site"] for site in live["input"]["call_sites"]} >= {"nvme_alloc_queue"}
    assert main(["dma", str(trace), "--guest", guest, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for key in ("allocations", "frees", "pages_requested", "by_device", "pages_decrypted"):
        assert live[key] == again[key]


ONLINE = "/sys/devices/system/cpu/cpu1/online"
BOTH = "/sys/devices/system/cpu/online"
LIFE_OF_A_CPU = (
    f"read {BOTH} 8 0",
    f"write {ONLINE} 0",
    f"read {BOTH} 8 0",
    "read /dev/nvme0n1 512 0",
    f"write {ONLINE} 1",
    f"read {BOTH} 8 0",
    "read /dev/nvme0n1 512 512",
)


def test_a_second_cpu_comes_goes_and_comes_back(run):
    words = [part for command in LIFE_OF_A_CPU for part in ("--command", command)]
    found, status = run("6.12", "--cpus", "2", *words)
    assert status == 0
    shown = [bytes.fromhex(command["data"]) for command in found["commands"]]
    assert [shown[at] for at in (0, 2, 5)] == [b"0-1\n", b"0\n", b"0-1\n"]
    assert [found["commands"][at]["value"] for at in (3, 6)] == [512, 512]
    assert found["cpus"] == 2
    assert found["ipis"] > 100
    assert found["violations"] == []
    assert found["rules"]["device-page-table"] > 36
    assert "smpboot: CPU 1 is now offline" in found["console"]


def message_interrupts(text):
    """Of /proc/interrupts: the counts of each online CPU by the name of an MSI-X interrupt."""
    lines = [line.partition("PCI-MSIX")[::2] for line in text.splitlines() if "PCI-MSIX" in line]
    return {rest.split()[-1]: [int(n) for n in head.split()[1:]] for head, rest in lines}


def test_the_queues_of_a_device_interrupt_different_cpus(image_of):
    running = Userland(LOADER).start(image_of("6.12"), Setting(cpus=2))
    sent = []

    def keep(event):
        if isinstance(event, DeviceMessage):
            sent.append((event.entry, event.cpus))

    def counts():
        return message_interrupts(running.command("read /proc/interrupts 8192 0").data.decode())

    before = counts()
    assert set(before) == {"nvme0q0", "nvme0q1", "nvme0q2"}
    running.listeners.append(keep)
    assert read_device(running, "nvme").is_right
    assert running.command(f"write {ONLINE} 0").value == 1
    assert running.command("read /dev/nvme0n1 512 512").value == 512
    assert sent == [(2, (1,)), (1, (0,))]
    after = counts()
    assert running.command(f"write {ONLINE} 1").value == 1
    assert [after[f"nvme0q{queue}"][0] - before[f"nvme0q{queue}"][0] for queue in (0, 1)] == [0, 1]
    assert broken(running) == set()
    running.machine.close()


def test_two_cpus_are_rolled_back(image_of):
    running = Userland(LOADER).start(image_of("6.12"), Setting(cpus=2))
    running.checkpoint()

    def experiment():
        values = [running.command(command).value for command in LIFE_OF_A_CPU[1:4]]
        cpus = running.hardware.cpus
        end = (values, cpus.online, cpus.state, running.event_hash, running.blocks)
        running.rollback()
        return end, running.hardware.cpus.online

    first = experiment()
    assert first[0][:2] == ([1, 2, 512], 1)
    assert first[1] == 2
    assert experiment() == first
    running.machine.close()


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_two_cpus_run_twice_alike(run, series):
    words = [part for command in LIFE_OF_A_CPU for part in ("--command", command)]
    first, status = run(series, "--cpus", "2", "--cold", *words)
    assert (status, first["cpus"], first["violations"]) == (0, 2, [])
    second, _ = run(series, "--cpus", "2", *words)
    assert second["restored"]
    for key in ("event_hash", "blocks", "interrupts", "ipis"):
        assert first[key] == second[key]


READS = (
    "read /dev/nvme0n1 512 0",
    "read /dev/hwrng 512 0",
    "read /dev/vda 512 0",
    "frame eth0 512",
)
KINDS_WITH_CPUS = [
    (series, sev)
    for series in ("6.1", "6.12", "7.3")
    for sev in ("sev", "es", "snp", "tdx")
    if (series, sev) != ("6.1", "tdx")
]


@pytest.mark.soak
@pytest.mark.parametrize(("series", "sev"), KINDS_WITH_CPUS)
def test_a_second_cpu_of_each_guest_kind_starts_twice_alike(run, series, sev):
    """By the AP jump table, by AP creation, by the wakeup mailbox; all devices by MSI-X."""
    words = ["--cpus", "2", "--sev", sev, *ALL]
    for command in (f"read {BOTH} 8 0", *READS):
        words += ("--command", command)
    first, status = run(series, *words, "--cold")
    assert (status, first["cpus"], first["violations"]) == (0, 2, [])
    assert bytes.fromhex(first["commands"][0]["data"]) == b"0-1\n"
    assert [command["value"] for command in first["commands"][1:]] == [512] * len(READS)
    assert set(first["messages"]) == set(DEVICES)
    assert all(map(sum, zip(*first["messages"].values(), strict=True)))
    second, _ = run(series, *words)
    assert second["restored"]
    for key in ("event_hash", "blocks", "interrupts", "ipis", "messages"):
        assert first[key] == second[key]


@pytest.mark.soak
@pytest.mark.parametrize(("series", "sev"), KINDS_WITH_CPUS)
def test_vmxnet3_interrupts_by_its_queues_vector(run, series, sev):
    words = ["--cpus", "2", "--sev", sev, "--device", "vmxnet3"]
    for size in (100, 600, 1514):
        words += ("--command", f"frame eth0 {size}")
    first, status = run(series, *words, "--cold")
    assert (status, first["violations"]) == (0, [])
    assert [command["value"] for command in first["commands"]] == [100, 600, 1514]
    assert sum(first["messages"]["vmxnet3"]) >= 3
    second, _ = run(series, *words)
    assert second["restored"]
    assert second["event_hash"] == first["event_hash"]


@pytest.fixture
def drivers(image_of, capsys):
    """`guestemu kernel drivers`: its runs, or what it complained about, and its status."""

    def command(series, *words):
        status = main(["kernel", "drivers", str(image_of(series)), *words, "--json"])
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        return found.get("runs", found.get("message")), status

    return command


def test_a_kernel_of_another_kind_reads_through_its_driver(drivers):
    (run,), status = drivers("7.3", "--sev", "snp", "--device", "nvme", "--once")
    assert (status, run["outcome"], run["again"]) == (0, "right", "")
    assert [read["is_right"] for read in run["reads"]] == [True]
    assert run["rules"]["device-page-state"] == run["accesses"] > 20
    assert run["traps"] > 20


@pytest.fixture
def from_snapshot(monkeypatch):
    """Boots take the snapshot."""
    start = Userland.start
    monkeypatch.setattr(
        Userland, "start", lambda self, image, setting, is_cold=False: start(self, image, setting)
    )


@pytest.mark.usefixtures("from_snapshot")
def test_a_driver_that_reads_other_bytes_fails(drivers, monkeypatch):
    monkeypatch.setattr(find_device("virtio-rng"), "holds", lambda *_: False)
    words = [word for name in DEVICES for word in ("--device", name)]
    (run,), status = drivers("6.12", "--sev", "sev", "--once", *words)
    assert (status, run["outcome"]) == (1, "failed")
    assert run["text"] == "virtio-rng: not what the device holds"


def test_boots_that_differ_fail(drivers, monkeypatch):
    runs = iter(("one", "two"))

    def read_all(head, _image, _setting):
        return msgspec.structs.replace(head, outcome="right", event_hash=next(runs))

    monkeypatch.setattr("guestemu.kernel.drivers._read_all", read_all)
    (run,), status = drivers("6.12", "--sev", "sev")
    assert (status, run["outcome"], run["text"]) == (1, "failed", "two boots differ")


KVM_LEAF = 0x40000000
REPORTS_CPUID = (
    b"\xb8%b\x0f\xa2" % KVM_LEAF.to_bytes(4, "little")  # mov eax, leaf; cpuid
    + b"\x89\xda\x31\xf6"  # mov edx, ebx; xor esi, esi
    + b"\xb8%b\x0f\x05" % HOST_RESULT.to_bytes(4, "little")
    + b"\xb8%b\x0f\x05" % HOST_NEXT.to_bytes(4, "little")
)


def static_program(code):
    """An ELF file for x86-64 with one segment."""
    base, head = 0x400000, 64 + 56
    size = head + len(code)
    header = struct.pack(
        "<4s4B8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, PAGE_SIZE)
    return header + segment + code


@pytest.mark.soak
def test_cpuid_in_user_space_is_asked_of_the_hypervisor(image_of):
    """virt_exception_user() of arch/x86/coco/tdx/tdx.c."""
    kernel = LOADER.kernel(image_of("6.12"))
    initramfs = make_initramfs(static_program(REPORTS_CPUID), {})
    line = command_line(kernel, "tdx")
    running = RunningKernel(kernel, linux_config(256, 39, "tdx"), initramfs, command_line=line)
    td = running.platform.td
    running.stop_at("run_init_process")
    assert running.run().reason == "until"
    before = Counter(td.reflected)
    assert running.run().reason == "idle"
    assert running.results[-1].value == int.from_bytes(b"KVMK", "little")
    assert Counter(td.reflected) - before == {Vmcall.CPUID: 1}
    running.machine.close()


def test_a_kernel_without_a_kind_is_absent(drivers):
    (run,), status = drivers("6.1", "--sev", "tdx")
    assert (status, run["outcome"]) == (0, "absent")
    assert "CONFIG_INTEL_TDX_GUEST" in run["text"]
    message, status = drivers("6.1", "--sev", "tdxx")
    assert status == 2
    assert "--sev tdxx: take one of sev, es, snp, tdx" in message


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_every_kernel_and_kind_of_guest(drivers, series):
    runs, status = drivers(series)
    assert status == 0
    absent = {run["sev"] for run in runs if run["outcome"] == "absent"}
    assert absent == ({"tdx"} if series == "6.1" else set())
    for run in runs:
        if run["outcome"] == "absent":
            continue
        assert [read["is_right"] for read in run["reads"]] == [True] * len(DEVICES)
        assert run["rules"]["device-page-table"] == run["accesses"] > 100
        assert (run["rules"]["device-page-state"] > 100) == (run["sev"] in {"snp", "tdx"})
        assert (run["rules"]["device-mapping"] > 100) == (series != "6.1")
        assert run["again"] == run["event_hash"]
