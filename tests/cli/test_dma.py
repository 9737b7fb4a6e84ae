# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu dma` as a user runs it."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from guestemu.cli import _dma_progress, _late_progress, console
from guestemu.cli.main import main
from guestemu.dma.emulate import Emulation
from guestemu.dma.events import Event
from guestemu.guest.snippet import guest as snippet
from guestemu.guest.snippet.elf import SnippetImage, load_snippet

TRACE = Path(__file__).parents[1] / "data" / "dma-traces" / "linux-6.12-q35-io.trace"

HEAD = "   kworker/0:1-9   [000] .....     1.000001: "
ALLOC = (
    HEAD + "dma_alloc: 0000:00:06.0 dma_addr=1000 size=9000 virt_addr=00000000f4d1864c "
    "flags=GFP_KERNEL attrs=\n"
)
UNKNOWN_FREE = HEAD + "dma_free: dev dma_addr=5000 size=1 virt_addr=00000000f4d1864c attrs=\n"

KEYS = {
    *("allocations", "frees", "unknown_frees", "pages_requested", "pages_released"),
    *("peak_live_pages", "live_at_end", "pool_hits", "pages_decrypted", "pages_encrypted"),
    *("hypercalls", "peak_shared_pages", "violations", "by_device", "lifetimes"),
}


def without_vmmcall(generation: str) -> SnippetImage:
    image = load_snippet(generation)
    segments = tuple(
        msgspec.structs.replace(segment, data=segment.data.replace(b"\x0f\x01\xd9", b"\x90" * 3))
        for segment in image.segments
    )
    return msgspec.structs.replace(image, segments=segments)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "some.trace"
    path.write_text(text)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], str]:
    """Status, JSON object and stderr."""
    status = main(["dma", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return status, json.loads(out), err


def test_a_real_trace_on_the_default_guest_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    status, report, err = run(capsys, str(TRACE), "--strict")
    assert status == 0
    assert report.keys() >= KEYS
    assert (report["allocations"], report["pages_decrypted"], report["violations"]) == (
        366,
        982,
        [],
    )
    assert err.startswith("384 events, 1345 pages converted in ")


def test_the_tables_show_what_trace_and_machine_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dma", str(TRACE)]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "allocations 366" in rows
    assert "machine: pages decrypted 982 (3.8 MiB)" in rows
    assert "machine: violations 0" in rows


def test_a_guest_without_its_vmmcall_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(snippet, "load_snippet", without_vmmcall)
    status, report, _ = run(capsys, str(TRACE))
    assert (status, report["hypercalls"]) == (1, 0)
    violations = report["violations"]
    assert isinstance(violations, list)
    assert report["violation_count"] == len(violations) >= 300
    assert main(["dma", str(TRACE)]) == 1
    assert "is private, expected shared" in capsys.readouterr().out


def test_a_users_host_that_records_nothing_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "deaf.py"
    plugin.write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost\n"
        "class Deaf(MapGpaRangeHost):\n"
        "    name = 'deaf'\n"
        "    def hypercall(self, call):\n"
        "        return 0\n"
    )
    status, report, _ = run(capsys, "e1000", "--host", f"{plugin}:Deaf")
    assert status == 1
    assert report["hypercalls"] == report["pages_decrypted"] == 2


@pytest.mark.parametrize(
    ("kind", "exits"), [("sev", 44), ("snp", 8), ("tdx", 8)], ids=["sev", "snp", "tdx"]
)
def test_a_pattern_runs_in_guests_of_every_kind(
    capsys: pytest.CaptureFixture[str], kind: str, exits: int
) -> None:
    """44 pages in 8 allocations: a SEV guest makes a hypercall of each leaf, an SNP guest a request
    and a TD a MapGPA of each allocation."""
    arguments = ["nvme:queues=2", "--guest", "snippet:6.12", "--sev", kind, "--json"]
    assert main(["dma", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pages_decrypted"], report["hypercalls"]) == (44, exits)
    assert report["violations"] == []


@pytest.mark.soak
def test_a_real_kernel_runs_a_pattern_as_a_td(
    capsys: pytest.CaptureFixture[str], image_of: Callable[[str], Path]
) -> None:
    arguments = ["nvme:queues=2", "--guest", f"linux:{image_of('6.12')}", "--sev", "tdx", "--json"]
    assert main(["dma", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pages_decrypted"], report["violations"]) == (44, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nvme", "--sev", "sme"), "take one of sev, es, snp, tdx"),
        (("nvme", "--guest", "model:6.1", "--sev", "tdx"), "snippet: or linux:"),
        (("nvme", "--sev", "tdx", "--policy", "all"), "model of a SEV guest"),
    ],
)
def test_kinds_that_cannot_be_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert main(["dma", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_5_10_tells_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    status, report, _ = run(capsys, "e1000", "--guest", "snippet:5.10")
    assert (status, report["hypercalls"], report["pages_decrypted"]) == (1, 0, 2)


def test_lines_that_cannot_be_read_are_told_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path, ALLOC + "\x00\xff gibberish\n\nanother one\n")
    status, report, _ = run(capsys, trace)
    assert (status, report["pages_decrypted"]) == (0, 3)
    counts = report["input"]
    assert isinstance(counts, dict)
    assert [line["line"] for line in counts["garbage_lines"]] == [2, 4]
    assert main(["dma", trace, "--strict"]) == 1
    out = capsys.readouterr().out
    assert "2 lines could not be read" in out
    assert "line 4: not a trace line: another one" in out


def test_oddities_are_findings_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path, ALLOC + UNKNOWN_FREE)
    status, report, _ = run(capsys, trace)
    assert (status, report["unknown_frees"]) == (0, 1)
    assert run(capsys, trace, "--strict")[0] == 1


def test_a_buffer_larger_than_the_guest_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path, ALLOC.replace("size=9000", "size=18446744073709551615"))
    status, report, err = run(capsys, trace, "--memory", "32")
    assert (status, report["pages_decrypted"]) == (0, 0)
    assert "1 allocations did not fit into the guest's 32 MiB" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no TRACE or PATTERN given"),
        (["missing.trace"], "missing.trace: No such file or directory; give"),
        (["nvmee:queues=2"], "or a pattern (guestemu dma --list)"),
        (["nvme:queues=0"], "queues=0 is not a number from 1 to 256"),
        (["nvme+floppy"], "pattern 'floppy': no such pattern"),
        (["nvme", "--guest", "snippet:1.0"], "guest 'snippet:1.0': no such guest"),
        (["nvme", "--host", "xen"], "host 'xen': no such host"),
        (["nvme", "--memory", "-1"], "memory -1M"),
        (["nvme", "--memory", "1" + "0" * 30], "takes 32M to 1048576M"),
        ([str(TRACE.parent)], "Is a directory"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dma", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize("text", ["", "\n\n", "no event here\n", "# tracer: nop\n"])
def test_a_file_without_events_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path, text)
    assert main(["dma", trace, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["schema"] == "guestemu.error/1"
    assert err.count("\n") == 1
    assert f"{trace}: no dma_alloc or dma_free event" in err


def test_the_patterns_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dma", "--list"]) == 0
    text = capsys.readouterr().out
    status, listed, _ = run(capsys, "--list")
    assert status == 0
    patterns = listed["patterns"]
    assert isinstance(patterns, list)
    names = [pattern["name"] for pattern in patterns]
    assert {"nvme", "virtio-net", "dma-pool"} <= set(names)
    assert all(f"\n{name} " in text for name in names)
    for name in names:
        assert main(["dma", name]) == 0


def test_ctrl_c_keeps_what_was_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Emulation.step
    count = 0

    def interrupted(self: Emulation, event: Event) -> None:
        nonlocal count
        count += 1
        if count == 10:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, event)

    monkeypatch.setattr(Emulation, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    status, report, err = run(capsys, str(TRACE))
    assert (status, report["interrupted"]) == (130, True)
    assert report["allocations"] == 9  # ten events, the first a mark
    assert err.endswith("guestemu: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_the_bar_appears_only_on_a_terminal_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "notes", lambda: Console(file=screen, force_terminal=True))
    for is_live, delay, is_shown in ((False, 0.0, False), (True, 60.0, False), (True, 0.0, True)):
        monkeypatch.setattr(console, "is_live", lambda is_live=is_live: is_live)
        monkeypatch.setattr(_late_progress, "DELAY_S", delay)
        with _dma_progress.DmaProgress(200) as progress:
            progress.update(100, 7, 12)
        assert ("7 events, 12 pages converted" in screen.getvalue()) == is_shown
    assert "50%" in screen.getvalue()


def test_a_model_counts_what_the_machine_counts(capsys: pytest.CaptureFixture[str]) -> None:
    _, machine, _ = run(capsys, str(TRACE))
    status, model, _ = run(capsys, str(TRACE), "--guest", "model:6.1", "--strict")
    assert status == 0
    assert (model.pop("violations"), model.pop("violation_count")) == (None, None)
    assert machine.pop("violations") == []
    assert machine.pop("violation_count") == 0
    assert model == machine
    assert main(["dma", str(TRACE), "--guest", "model:6.1"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "model: pages decrypted 982 (3.8 MiB)" in rows
    assert not any("violations" in row for row in rows)


def test_a_model_that_does_not_exist_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dma", "e1000", "--guest", "model:5.4"]) == 2
    assert "use model:5.10" in capsys.readouterr().err


def test_policies_are_compared_in_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    source = "nvme:prp=0,scenario=reset,rounds=9"
    status, report, _ = run(capsys, source, "--policy", "keep-shared,align-2m")
    policies = report["policies"]
    assert status == 0
    assert isinstance(policies, dict)
    assert [(name, row["conversions"]) for name, row in policies.items()] == [
        ("kernel", 80),
        ("keep-shared", 8),
        ("align-2m", 1),
    ]
    assert main(["dma", source, "--policy", "align-2m"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(row.startswith("align-2m 1 79 1 ") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "nonsense"), "no such policy"),
        (("--policy", "all", "--guest", "linux:x"), "linux:x"),
        (("--report", "/"), "/: Is a directory; name another place with --html"),
        (("--perfetto", "/"), "--perfetto /: "),
    ],
)
def test_options_that_cannot_be_are_told(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dma", "e1000", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]


def test_every_file_is_written_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("perfetto")
    page, tables, trace = tmp_path / "o.html", tmp_path / "t", tmp_path / "o.perfetto-trace"
    files = ("--report", str(page), "--parquet", str(tables), "--perfetto", str(trace))
    status, _, _ = run(capsys, str(TRACE), *files)
    assert status == 0
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tables.iterdir()) == [
        "conversions.parquet",
        "events.parquet",
    ]
    assert trace.stat().st_size > 10_000


def test_a_migration_is_laid_over_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, perfetto = tmp_path / "dma.html", tmp_path / "dma.perfetto-trace"
    args = ("--guest", "model:6.12", "--migrate", "at=0.5,rate=100,stop=0", "--report", str(page))
    status, report, _ = run(capsys, str(TRACE), *args, "--perfetto", str(perfetto))
    assert status == 0
    migrations = report["migrations"]
    assert isinstance(migrations, list)
    assert [one["status"] for one in migrations] == ["copied", "live"]
    assert all(one["passes"][0]["sent"] == 65536 for one in migrations)
    assert "Migration over the run" in page.read_text()
    assert b"migration, live status" in perfetto.read_bytes()
    assert main(["dma", str(TRACE), *args]) == 0
    assert "Migration over the run" in capsys.readouterr().out


def test_5_10_with_cma_shares_pages_that_are_not_the_buffers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {}
    for generation in ("5.10", "6.1"):
        _, report, _ = run(capsys, str(TRACE), "--guest", f"model:{generation}", "--cma", "16")
        requested = report["requested"]
        assert isinstance(requested, dict)
        found[generation] = requested["pages_beyond"]
    assert found["5.10"] > 0
    assert found["6.1"] == 0


def test_models_are_among_the_guests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guests", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)["guests"]]
    assert {"model:5.10", "model:6.12"} <= set(names)


@pytest.mark.parametrize("extra", [("--migrate", "rate=0"), ("--cma", "512"), ("--cma", "-1")])
def test_runs_that_cannot_be_are_told(
    extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dma", "e1000", "--guest", "model:6.1", *extra]) == 2
    assert capsys.readouterr().err.count("\n") == 1
