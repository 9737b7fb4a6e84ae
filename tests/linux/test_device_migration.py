# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel migrate`: a real kernel migrated while its device works for a driver."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main
from guestemu.guest.linux.load import LOADER
from guestemu.guest.linux.userland.complaints import printed_warnings
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.host.registry import load_host
from guestemu.kernel import device_migration
from guestemu.kernel.device_migration import DeviceMigrations

POINTS = ["submitted", "moved", "completed", "raised"]
DEVICES = ("nvme", "virtio-rng", "virtio-blk", "virtio-net")
"""Those of test_userland.py, so that there is one snapshot."""


@pytest.fixture
def migrate(image_of):
    """Migrations of 6.12: the device, the point, the page that the record misses, commands."""
    opened = []

    def one(device, point, lose="", *commands):
        setting = Setting(devices=DEVICES)
        host = load_host("map-gpa-range")
        opened.append(DeviceMigrations(Userland(LOADER), image_of("6.12"), setting, host, lose))
        return opened[-1].migrate(device, point, commands)

    yield one
    for migrations in opened:
        migrations.close()


@pytest.fixture
def command(image_of, capsys):
    """`guestemu kernel migrate`; its JSON and its status."""

    def run(series, *words):
        status = main(["kernel", "migrate", str(image_of(series)), *words, "--json"])
        return json.loads(capsys.readouterr().out), status

    return run


@pytest.mark.parametrize(
    ("point", "held"),
    [
        ("submitted", "doorbell 0x1008 = 2"),
        ("moved", "completion queue 1 (16 bytes), interrupt"),
        ("completed", "interrupt"),
        ("raised", ""),
    ],
)
def test_a_guest_goes_on_wherever_its_device_was_stopped(migrate, point, held):
    found = migrate("nvme", point)
    assert (found.outcome, found.text, found.held) == ("right", "", held)
    assert found.shared > 1000
    assert found.private > 10_000


def test_shared_pages_of_zeros_move_too(migrate):
    """The bounce pool's allocator and the rings of a network device lie beside them."""
    assert migrate("virtio-net", "submitted").outcome == "right"


@pytest.mark.parametrize(
    ("device", "page", "point", "outcome", "use"),
    [
        ("nvme", "data", "moved", "wrong", "dma_map_sg of 0000:00:01.0"),
        ("virtio-blk", "data", "raised", "wrong", "dma_map of 0000:00:03.0"),
        ("virtio-blk", "data", "submitted", "lost", "dma_map of 0000:00:03.0"),
        ("virtio-blk", "queue", "completed", "stopped", "dma_alloc_class of 0000:00:03.0"),
    ],
)
def test_a_page_that_the_record_misses_is_lost_and_named(
    migrate, device, page, point, outcome, use
):
    found = migrate(device, point, page)
    assert found.outcome == outcome
    (lost,) = found.lost
    assert lost.gfn == found.loss > 0
    assert (lost.sent_private, lost.is_private, lost.use) == (True, False, use)
    if outcome == "lost":
        assert "is private for the host" in found.violations[0]


def test_what_a_driver_writes_arrives_through_a_migration(migrate):
    words = ("fill /dev/nvme0n1 8192 4096", "read /dev/nvme0n1 8192 4096")
    assert migrate("nvme", "submitted", "", *words).outcome == "right"
    assert migrate("nvme", "submitted", "data", *words).text.startswith("byte 0 and on:")


def test_a_guest_that_reads_something_else_is_wrong(migrate, monkeypatch):
    real = device_migration.take_over

    def change_the_medium(target, record):
        real(target, record)
        target.hardware.devices["nvme"].disk.write(0, b"?" * 512)

    monkeypatch.setattr(device_migration, "take_over", change_the_medium)
    found = migrate("nvme", "submitted")
    assert (found.outcome, found.lost) == ("wrong", ())
    assert found.text.startswith("byte 0 and on: 3f3f3f3f")


def test_the_command_shows_each_device(command):
    words = tuple(word for name in DEVICES for word in ("--device", name))
    found, status = command("6.12", *words, "--at", "moved")
    assert status == 0, found
    assert [(one["device"], one["outcome"]) for one in found["migrations"]] == [
        (name, "right") for name in DEVICES
    ]
    words = ("--device", "nvme", *words[2:], "--command", "sleep 1", "--at", "moved")
    found, status = command("6.12", *words)
    assert (status, found["migrations"][0]["outcome"]) == (1, "absent")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--at", "movd"), "--at movd: did you mean moved?"),
        (("--lose", "ring"), "--lose ring: use one of data, queue"),
        (("--host", "nobody"), "no such host"),
    ],
)
def test_bad_input_is_named(command, words, problem):
    found, status = command("6.12", *words)
    assert status == 2
    assert problem in found["message"]


def test_a_warn_with_a_text_is_named_by_its_place():
    text = (
        "[    0.1] ------------[ cut here ]------------\n"
        "[    0.1] Misaligned __add_pages start: 0xe0000 end: 0xe0003\n"
        "[    0.1] WARNING: mm/memory_hotplug.c:410 at __add_pages+0xff/0x120, CPU#0: init/1\n"
        "[    0.2] ------------[ cut here ]------------\n"
        "[    0.2] WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2\n"
    )
    assert printed_warnings(text) == [
        "WARNING: mm/memory_hotplug.c:410 at __add_pages+0xff/0x120, CPU#0: init/1",
        "WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2",
    ]


@pytest.mark.soak
@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("devices", [(*DEVICES, "virtio-console"), ("vmxnet3",)])
@pytest.mark.parametrize(
    ("series", "kind"),
    [
        *((series, kind) for series in ("6.1", "6.12", "7.3") for kind in ("sev", "es", "snp")),
        *((series, "tdx") for series in ("6.12", "7.3")),
    ],
)
def test_every_kernel_and_kind_of_guest_moves(command, series, kind, devices, cpus):
    words = [word for name in devices for word in ("--device", name)]
    found, status = command(series, "--sev", kind, "--cpus", str(cpus), *words)
    assert status == 0, found
    assert [(one["device"], one["point"], one["outcome"]) for one in found["migrations"]] == [
        (name, point, "right") for name in devices for point in POINTS
    ]
