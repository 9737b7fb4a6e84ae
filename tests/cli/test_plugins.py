# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that name code, and hosts that misbehave, through every verb that takes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from guestemu.cli.main import main

Captured = pytest.CaptureFixture[str]

HOST = """from pathlib import Path
Path("ran").touch()

from guestemu.host.base import GuestFault
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost

class Host(MapGpaRangeHost):
    pass

class Leaves(MapGpaRangeHost):
    def hypercall(self, call): raise SystemExit(0)

class Raises(MapGpaRangeHost):
    def hypercall(self, call): return {}[call.nr]

class Wrong(MapGpaRangeHost):
    def hypercall(self, call): return "ok"

class Faults(MapGpaRangeHost):
    def hypercall(self, call): raise GuestFault(13)

class Resets(MapGpaRangeHost):
    times = 0
    def reset(self, frames):
        Resets.times += 1
        if Resets.times > 4: raise ValueError("once more")
        super().reset(frames)

class Late(MapGpaRangeHost):
    def private_map(self): raise ValueError("late")
"""
FAILING = ("Leaves", "Raises", "Wrong", "Faults")
PROGRAM = "guestemu-program 1\nhost evil.py:{}\n---\nset_memory_decrypted D[3] pages=1\n"
GOOD = "guestemu-program 1\n---\nset_memory_decrypted D[3] pages=1\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a host that leaves a mark when it is imported, and programs that name it."""
    (tmp_path / "evil.py").write_text(HOST)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "evil.prog").write_text(PROGRAM.format("Host"))
    (tmp_path / "programs" / "good.prog").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", ["run", "show", "minimize", "replay"])
@pytest.mark.parametrize("name", ["evil.py:Host", "{here}/evil.py:Host", "../evil.py:Host"])
def test_a_program_alone_runs_no_code(here: Path, capsys: Captured, verb: str, name: str) -> None:
    path = here / "programs" / "evil.prog"
    path.write_text(PROGRAM.replace("evil.py:{}", name.format(here=here)))
    assert main([verb, str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "evil.prog: host " in err
    assert "--host" in err or "--plugins DIR" in err
    assert not (here / "ran").exists()


def test_what_the_user_types_or_allows_runs(here: Path, capsys: Captured) -> None:
    path = str(here / "programs" / "evil.prog")
    assert main(["run", path, "--plugins", "."]) == 0
    assert (here / "ran").exists()
    assert main(["run", path, "--host", "evil.py:Host"]) == 0
    assert main(["show", path, "--plugins", "."]) == 0
    (here / "pyproject.toml").write_text('[tool.guestemu]\nplugins = ["."]\n')
    assert main(["replay", path]) == 0
    capsys.readouterr()


def test_replay_says_what_could_not_run_and_judges_the_others(here: Path, capsys: Captured) -> None:
    assert main(["replay", "programs", "--json", "--junit", "out.xml", "--jobs", "2"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == 1
    assert [bad["program"] for bad in found["bad"]] == ["programs/evil.prog"]
    suite = ElementTree.parse(here / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("2", "1", "0")
    assert not (here / "ran").exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_hosts_that_fail_are_each_one_programs_result(
    here: Path, capsys: Captured, jobs: str
) -> None:
    for name in FAILING:
        (here / "programs" / f"{name}.prog").write_text(PROGRAM.format(name))
    words = ["--plugins", ".", "--junit", "out.xml", "--jobs", jobs, "--json"]
    assert main(["replay", "programs", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["programs"], found["passed"], found["bad"]) == (6, 2, [])
    failed = {Path(entry["program"]).stem: entry["found"] for entry in found["failed"]}
    assert failed.keys() == set(FAILING)
    assert all("host-failed" in text and "evil.py:" in text for text in failed.values()), failed
    suite = ElementTree.parse(here / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("6", "4")


@pytest.mark.parametrize("name", FAILING)
def test_run_says_whose_defect_it_is(here: Path, capsys: Captured, name: str) -> None:
    path = here / "programs" / "evil.prog"
    assert main(["run", str(path), "--host", f"evil.py:{name}", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "host-failed"
    (violation,) = found["violations"]
    assert violation["check"] == "host-failed"
    line = HOST.splitlines().index(f"class {name}(MapGpaRangeHost):") + 2
    assert violation["message"].startswith(f"evil.py:{line}: {name}.hypercall ")
    assert main(["run", str(path), "--host", f"evil.py:{name}"]) == 1
    assert "the defect is the host's" in capsys.readouterr().out


def test_a_host_that_fails_between_exits_is_said(here: Path, capsys: Captured) -> None:
    path = here / "programs" / "evil.prog"
    assert main(["run", str(path), "--host", "evil.py:Late"]) == 1
    out, err = capsys.readouterr()
    assert "evil.py:" in out + err
    assert "ValueError: late" in out + err


def test_a_campaign_takes_a_failing_host_for_a_finding(here: Path, capsys: Captured) -> None:
    words = ["--engine", "random", "--execs", "50", "--workdir", "w", "--json"]
    assert main(["fuzz", "hypercall", "--host", "evil.py:Raises", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in found["findings"]} == {"host-failed"}
    (program, *_) = sorted((here / "w" / "findings").glob("*.prog"))
    assert "Reproduce: guestemu run w/findings/" in program.read_text()
    assert "--plugins ." in program.read_text()
    assert main(["triage", "w"]) == 2
    assert main(["merge", "w"]) == 2
    assert "w/campaign.json: host evil.py:Raises is code" in capsys.readouterr().err
    assert main(["triage", "w", "--plugins", "."]) == 1
    assert main(["merge", "w", "--plugins", "."]) == 0


def test_a_host_that_fails_at_a_reset_is_a_finding(here: Path, capsys: Captured) -> None:
    words = ["--engine", "random", "--execs", "50", "--workdir", "w", "--json"]
    assert main(["fuzz", "hypercall", "--host", "evil.py:Resets", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    # The fifth reset of the process fails, whatever the program: it is not the program's doing.
    assert {finding["check"] for finding in found["findings"]} == {"not-reproducible"}
    (program,) = (here / "w" / "findings").glob("*.prog")
    assert "Resets.reset raised ValueError: once more" in program.read_text()


def test_pytest_runs_no_code_unless_it_is_configured(here: Path) -> None:
    def run(*words: str) -> str:
        without = ("cacheprovider", "xdist", "hypothesispytest")  # they take as long as the rest
        plain = [word for name in without for word in ("-p", f"no:{name}")]
        command = [sys.executable, "-m", "pytest", "-q", *plain, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert "1 failed, 1 passed" in run("programs")
    assert not (here / "ran").exists()
    assert "2 passed" in run("-o", "guestemu_plugins=.", "programs")
    (here / "ran").unlink()
    (here / "pyproject.toml").write_text('[tool.guestemu]\nplugins = ["."]\n')
    assert "2 passed" in run("programs")
    assert (here / "ran").exists()


def test_packages_and_neighbours_import_as_python_does(here: Path, capsys: Captured) -> None:
    hosts = here / "vmm" / "hosts"
    hosts.mkdir(parents=True)
    (here / "vmm" / "__init__.py").write_text("")
    (hosts / "__init__.py").write_text("")
    (hosts / "base.py").write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost as Base\n"
    )
    (hosts / "mine.py").write_text(
        "from vmm.hosts import base\nfrom .base import Base\nfrom .. import __name__ as name\n"
        "assert name == 'vmm' and base.Base is Base and __name__ == 'vmm.hosts.mine'\n"
        "class Host(Base): pass\n"
    )
    path = str(here / "programs" / "good.prog")
    assert main(["run", path, "--host", "vmm/hosts/mine.py:Host"]) == 0
    for name in ("one", "two"):
        (here / name).mkdir()
        (here / name / "helper.py").write_text(f"NAME = {name!r}\n")
        (here / name / "host.py").write_text(
            "import helper\nfrom guestemu.host.kvm.map_gpa_range import MapGpaRangeHost as Base\n"
            f"assert helper.NAME == {name!r}\nclass Host(Base): pass\n"
        )
        assert main(["run", path, "--host", f"{name}/host.py:Host"]) == 0
    assert main(["run", path, "--host", "one/host.py:Host"]) == 0
    capsys.readouterr()


def test_two_programs_that_name_two_files_alike_run_on_two_hosts(
    here: Path, capsys: Captured
) -> None:
    for name, base in (("one", "pass"), ("two", "def hypercall(self, call): return 7")):
        (here / name).mkdir()
        (here / name / "a.prog").write_text(
            PROGRAM.replace("evil.py:{}", "host.py:Host") + "\nexpect result 0 at 0\n"
        )
        (here / name / "host.py").write_text(
            "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost as Base\n"
            f"class Host(Base):\n    {base}\n"
        )
    assert main(["replay", "one", "two", "--plugins", ".", "--json", "--jobs", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {entry["program"] for entry in found["failed"]} == {"two/a.prog"}
