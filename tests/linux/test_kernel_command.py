# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel` and `--guest linux:IMAGE` with real kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestemu.cli.main import main

CORPUS = Path(__file__).parents[2] / "corpora/conversion"


@pytest.fixture(params=[pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def series(request):
    """The verbs are the same for all series; what 6.1 does is held by the other tests here."""
    return request.param


@pytest.fixture
def run(own_loader, series, image_of, capsys):
    """Runs a verb of `guestemu kernel` on a real image; its JSON and its status."""

    def command(verb, *words):
        image = str(image_of(series))
        status = main(["kernel", verb, *words, "--image", image, "--json"])
        captured = capsys.readouterr()
        return (json.loads(captured.out) if captured.out else captured.err), status

    return command


def test_info_knows_version_configuration_and_functions(run, series):
    found, status = run("info")
    assert status == 0
    assert found["version"].startswith(series)
    assert found["config"]["CONFIG_AMD_MEM_ENCRYPT"] == "y"
    assert found["symbols"]["set_memory_decrypted"] > 0xFFFF_FFFF_8000_0000
    assert "facts" not in found  # how a kernel behaves is measured, by `kernel defects`


def test_boot_arrives_and_tells_what_the_host_heard(run, series):
    found, status = run("boot", "--until", "rest_init")
    assert status == 0
    assert found["reached"] == "rest_init"
    assert found["version"].startswith(series)
    assert found["active"] == "AMD SEV"
    assert found["migration_control"] == [1]
    assert found["hypercalls"][0]["nr"] == 12
    assert "Linux version" in found["console"]


def test_boot_stops_at_the_function_that_is_asked_for(run):
    found, status = run("boot", "--until", "kvm_init_platform")
    assert status == 0
    assert found["hypercalls"] == []
    assert found["migration_control"] == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--memory", "64"], "needs at least 96M"),
        (["--budget", "1000"], "budget used up in"),
        (["--until", "no_such_function"], "no symbol no_such_function"),
    ],
)
def test_a_boot_that_cannot_be_is_one_line(run, words, problem):
    found, status = run("boot", *words)
    assert (found["schema"], found["status"], status) == ("guestemu.error/1", 2, 2)
    assert problem in found["message"]
    assert "\n" not in found["message"]


def test_call_tells_result_hypercalls_and_leaves(run):
    found, status = run("call", "set_memory_decrypted", "page:2", "3")
    assert status == 0
    assert found["returned"] == 0
    assert [call["args"][1:3] for call in found["hypercalls"]] == [[1, 0]] * 3
    assert [(leaf["pages"], leaf["private"]) for leaf in found["ptes"]] == [(1, False)] * 3
    assert found["ptes"][0]["gva"] == found["arguments"][0]["value"]
    assert found["instructions"] > 1000


def test_call_makes_devices_and_vmalloc_memory(run):
    found, status = run("call", "dma_alloc_attrs", "device", "9000", "page:0", "0xcc0", "0")
    assert status == 0
    assert len(found["hypercalls"]) == 3
    found, status = run("call", "set_memory_decrypted", "vmalloc:0x2000+0x1000", "1")
    assert (status, found["returned"], len(found["hypercalls"])) == (0, 0, 1)
    found, status = run("call", "strlen", "string:hello")
    assert (status, found["returned"]) == (0, 5)


@pytest.mark.parametrize("series", ["6.1", pytest.param("6.12", marks=pytest.mark.soak)])
def test_an_oops_and_a_warning_are_findings(run):
    found, status = run("call", "memset", "0x1000", "0", "8")
    assert status == 1
    assert found["oops"].startswith("exception 14")
    found, status = run("call", "set_memory_decrypted", "page:0+5", "1")
    assert status == 1
    assert len(found["warnings"]) == 1


def test_an_endless_call_names_the_function_that_loops(run):
    found, status = run("call", "set_memory_decrypted", "gpa:0", "1", "--budget", "100000")
    assert status == 1
    assert "looping in enc_dec_hypercall" in found["oops"]


def test_the_number_of_arguments_is_checked(run):
    found, status = run("call", "set_memory_decrypted", "page:0")
    assert (found["schema"], status) == ("guestemu.error/1", 2)
    assert "takes 2 arguments (addr, numpages); 1 are given" in found["message"]


def test_programs_run_on_a_kernel_by_name(series, image_of, capsys):
    program = CORPUS / "hole-first-page-6.1.prog"
    status = main(["run", "--guest", f"linux:{image_of(series)}", "--json", str(program)])
    found = json.loads(capsys.readouterr().out)
    assert status == 1
    assert found["outcome"] == "no-progress"
    assert "looping in enc_dec_hypercall" in found["violations"][0]["message"]


def test_a_call_that_does_not_return_is_a_finding(run):
    """A hole at the first page is filled with frame 0, which the notifier never leaves (A14)."""
    hole = "0xffffc9003f000000"
    found, status = run("call", "set_memory_decrypted", hole, "1", "--budget", "2000000")
    assert status == 1
    assert found["returned"] is None
    assert found["oops"].startswith("did not return: 2000000 basic blocks used up in ")


def test_calls_in_a_row_share_a_machine(run):
    found, status = run(
        *("call", "set_memory_decrypted", "page:0", "1"),
        *("--then", "set_memory_encrypted argument:1.1 1"),
        *("--then", "strlen string:hello"),
    )
    assert status == 0
    first, second, third = found["calls"]
    address = first["arguments"][0]["value"]
    assert second["arguments"][0]["value"] == address
    assert [(one["gva"], one["private"]) for one in first["ptes"] + second["ptes"]] == [
        (address, False),
        (address, True),
    ]
    assert [call["args"][2] for call in first["hypercalls"] + second["hypercalls"]] == [0, 0x10]
    assert (third["returned"], third["hypercalls"]) == (5, [])
    assert all(one["instructions"] for one in found["calls"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("strlen result:2", "there is no call 2 before this one"),
        ("strlen argument:1.3", "call 1 has 1 arguments"),
        ("strlen argument:1", "use result:N or argument:N.M"),
        ("'", "No closing quotation"),
        (" ", "give a function and its arguments"),
    ],
)
def test_a_call_that_cannot_follow_is_one_line(run, text, problem):
    found, status = run("call", "strlen", "string:a", "--then", text)
    assert status == 2
    assert problem in found["message"]


@pytest.mark.soak
@pytest.mark.parametrize("function", ["kernel_init", "prepare_namespace"])
def test_calls_can_be_made_in_the_init_thread(run, function):
    """Before and after the initcalls."""
    found, status = run("call", "set_memory_decrypted", "page:0", "1", "--at", function)
    assert status == 0
    assert (found["returned"], len(found["ptes"]), len(found["hypercalls"])) == (0, 1, 1)
