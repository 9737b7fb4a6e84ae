# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel run`: real kernels in user space, their own drivers over emulated devices."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main

ALL = ("--device", "nvme", "--device", "virtio-rng", "--device", "virtio-blk")


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
    assert status == 0
    assert "init: user space is up" in first["console"]
    assert [read["is_right"] for read in first["reads"]] == [True, True, True]
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


@pytest.mark.soak
@pytest.mark.parametrize("sev", ["sev", "es", "snp", "tdx"])
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_every_kernel_and_kind_of_guest(run, series, sev):
    if (series, sev) in {("6.1", "snp"), ("6.1", "tdx"), ("7.3", "es")}:
        pytest.skip("this kernel does not support this guest kind here")
    found, status = run(series, "--sev", sev, "--cold")
    assert status == 0
    assert found["reads"] == [
        {"device": "nvme", "node": "/dev/nvme0n1", "size": 512, "is_right": True, "error": 0}
    ]
    again, _ = run(series, "--sev", sev, "--cold")
    assert again["event_hash"] == found["event_hash"]
