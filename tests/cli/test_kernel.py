# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel` without a kernel: fetching from a made-up apt, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from guestemu.abi.errors import MissingError
from guestemu.cli.main import main
from guestemu.guest.linux.images import fetched_images, find_image, version_key
from tests.guest.kernel_files import package

OLD = ("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1", "")
NEW = ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", "")
EMPTY = (
    "linux-image-7.3.4+deb13-cloud-amd64",
    "7.3.4-1~bpo13+1",
    "dracut, linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), "
    "linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)",
)
SPLIT = ("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1", "linux-base (>= 4.12~)")
BASE = ("linux-base-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1", "")
RT = ("linux-binary-7.3.4+deb13-rt-amd64", "7.3.4-1~bpo13+1", "")
SOURCE = ("linux-source-7.3", "7.3.4-1~bpo13+1", "")
CONTENT = package({"boot/vmlinuz-6": bytes(2 << 20)}, "")
WITHOUT_KERNEL = package({"usr/share/doc/README": bytes(2 << 20)}, "")
MIRROR = "http://mirror.example/debian"


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt that offers some kernels and downloads in two halves: the first try breaks off."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "content").write_bytes(CONTENT)
    offered = (OLD, NEW, EMPTY, SPLIT, BASE, RT, SOURCE)
    others = [f"{NEW[0]}-dbg", "linux-image-amd64", "linux-image-6.1-cloud-amd64"]
    records = "\n\n".join(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {needs}\n"
        f"Filename: pool/{name}_{version}_amd64.deb\nSize: {len(CONTENT)}\n"
        f"Description: a kernel\n with: a colon\nSHA256: {hashlib.sha256(CONTENT).hexdigest()}"
        for name, version, needs in offered
    )
    (tmp_path / "names").write_text("\n".join([name for name, *_ in offered] + others))
    (tmp_path / "records").write_text(records)
    (tmp_path / "sources").write_text(
        "http://elsewhere.example/tools/|nodistro\n"
        f"{MIRROR}/|bookworm\n{MIRROR}-security/|bookworm-security\n"
    )
    script(
        binaries / "apt-cache",
        f'case "$*" in *pkgnames*) /bin/cat {tmp_path}/names;; *) /bin/cat {tmp_path}/records;; '
        "esac",
    )
    lists = f"{tmp_path}/cache/guestemu/apt/state/lists"
    script(
        binaries / "apt-get",
        f'echo "$@" >> {tmp_path}/calls\n'
        f'case "$*" in *indextargets*) exec /bin/cat {tmp_path}/sources;; '
        f"*update*) [ -e {tmp_path}/offline ] || {{ : > {lists}/x_Packages; exit 0; }}; "
        'echo "E: no route" >&2; exit 100;; esac\n'
        'for last; do :; done; target="${last%=*}_${last#*=}_amd64.deb"\n'
        f'if [ -e "$target" ]; then /bin/cp {tmp_path}/content "$target"; '
        f'else /usr/bin/head -c 100 {tmp_path}/content > "$target"; '
        'echo "E: Connection broke off" >&2; exit 100; fi',
    )
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def calls(apt, what):
    return [call for call in (apt / "calls").read_text().splitlines() if what in call]


def line(capsys):
    """The one line on stderr that is no note."""
    text = capsys.readouterr().err
    return [part for part in text.splitlines() if part.startswith("guestemu: ")][-1]


def test_a_download_that_broke_off_is_continued(apt, capsys):
    assert main(["kernel", "fetch", "6.1"]) == 3
    assert "Connection broke off" in line(capsys)
    assert fetched_images() == ()
    capsys.readouterr()
    assert main(["kernel", "fetch", "6.1", "--json"]) == 0
    [kernel] = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["version"] == NEW[1]
    assert Path(kernel["path"]).read_bytes() == CONTENT
    assert find_image("6.1") == find_image("") == Path(kernel["path"])


def test_a_complete_package_is_not_downloaded_again(apt, capsys):
    main(["kernel", "fetch", "6.1"])
    main(["kernel", "fetch", "6.1"])
    assert main(["kernel", "fetch", "6.1"]) == 0
    assert len(calls(apt, "download")) == 2


def test_a_series_that_no_suite_has_is_named_with_those_that_there_are(apt, capsys):
    assert main(["kernel", "fetch", "6.12"]) == 2
    assert "kernel 6.12: not in bullseye-security" in (text := line(capsys))
    assert "there is 6.1, 7.3" in text


def test_the_list_names_every_series_and_flavour_and_fetches_nothing(apt, capsys):
    assert main(["kernel", "fetch", "--list", "--json"]) == 0
    offers = json.loads(capsys.readouterr().out)["kernels"]
    assert [(offer["name"], offer["package"]) for offer in offers] == [
        ("6.1", NEW[0]),
        ("7.3", SPLIT[0]),
        ("7.3-rt", RT[0]),
    ]
    assert not calls(apt, "download")


def test_suites_lie_where_the_machine_s_own_lie(apt):
    assert main(["kernel", "fetch", "--list"]) == 0
    listing = (apt / "cache/guestemu/apt/sources.list").read_text()
    found = [re.sub(r"deb (\[.*\] )?", "", entry) for entry in listing.splitlines()]
    assert found == [
        f"{MIRROR}-security bullseye-security main",
        f"{MIRROR}-security bookworm-security main",
        f"{MIRROR}-security trixie-security main",
        f"{MIRROR} trixie-backports main",
    ]


def test_nothing_but_the_private_root_is_updated(apt):
    assert main(["kernel", "fetch", "--list", "--suite", "trixie-backports"]) == 0
    [update] = calls(apt, "update")
    root = apt / "cache/guestemu/apt"
    assert update == f"--config-file={root}/apt.conf update -q"
    settings = (root / "apt.conf").read_text()
    for key in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourcelist"):
        assert f'{key} "{root}/' in settings


def test_lists_of_the_same_hour_are_not_fetched_again(apt):
    main(["kernel", "fetch", "--list"])
    main(["kernel", "fetch", "--list"])
    assert len(calls(apt, "update")) == 1
    stamp = apt / "cache/guestemu/apt/updated"
    os.utime(stamp, (0, 0))
    (apt / "offline").touch()
    assert main(["kernel", "fetch", "--list"]) == 0
    assert len(calls(apt, "update")) == 2


def test_lists_that_cannot_be_had_are_said_in_apt_s_words(apt, capsys):
    (apt / "offline").touch()
    assert main(["kernel", "fetch", "--list"]) == 3
    assert line(capsys).endswith("trixie-backports: no route")


def test_a_split_package_is_followed_to_the_one_with_the_kernel(apt, capsys):
    for _ in range(2):  # the kernel and its configuration: each breaks off once
        assert main(["kernel", "fetch", "newest"]) == 3
    capsys.readouterr()
    status = main(["kernel", "fetch", "newest", "--json"])
    [kernel] = json.loads(capsys.readouterr().out)["kernels"]
    assert (status, kernel["name"], Path(kernel["path"]).name) == (
        0,
        "7.3",
        f"{SPLIT[0]}_{SPLIT[1]}_amd64.deb",
    )
    assert find_image("7.3") == Path(kernel["path"])
    assert Path(kernel["path"]).with_name(f"{BASE[0]}_{BASE[1]}_amd64.deb").exists()


def test_modules_that_the_archive_no_longer_has_are_named(apt, capsys):
    for _ in range(2):
        main(["kernel", "fetch", "newest"])
    capsys.readouterr()
    assert main(["kernel", "fetch", "newest", "--modules"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the archive no longer has {SPLIT[0].replace('binary', 'modules')};" in said
    assert find_image("7.3").exists()


def test_the_source_is_unpacked_where_one_works(apt, capsys, monkeypatch):
    work = apt / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    name, version, _ = SOURCE
    archive = f"usr/src/{name}.tar.xz"
    script(
        apt / "bin/dpkg-deb", f'/bin/mkdir -p "$3/usr/src"\n/bin/cp {apt}/content "$3/{archive}"'
    )
    script(
        apt / "bin/tar",
        f'[ -e {apt}/damaged ] && {{ echo "tar: Unexpected EOF" >&2; exit 2; }}\n'
        f'[ -s "$2" ] && /bin/mkdir "$4/{name}" && : > "$4/{name}/Kbuild"',
    )
    assert main(["kernel", "fetch", "7.3", "--source"]) == 3
    assert "Connection broke off" in line(capsys)
    (apt / "damaged").touch()
    assert main(["kernel", "fetch", "7.3", "--source"]) == 3
    assert line(capsys).endswith("cannot be unpacked: tar: Unexpected EOF")
    (apt / "damaged").unlink()
    assert main(["kernel", "fetch", "7.3-rt", "--source", "--json"]) == 0
    [tree] = json.loads(capsys.readouterr().out)["sources"]
    assert tree == {"series": "7.3", "version": version, "path": name}
    assert [path.name for path in work.iterdir()] == [name]
    assert (work / name / "Kbuild").exists()
    assert len(calls(apt, "download")) == 2
    assert not list((apt / "cache/guestemu/sources").glob("*.deb"))
    assert main(["kernel", "fetch", "7.3", "--source"]) == 2
    assert "linux-source-7.3: is there already" in line(capsys)


def test_a_source_that_cannot_be_named_or_had_is_said(apt, capsys, monkeypatch):
    monkeypatch.chdir(apt)
    assert main(["kernel", "fetch", "--source"]) == 2
    assert "name a series" in line(capsys)
    assert main(["kernel", "fetch", "6.1", "--source"]) == 2
    assert "no linux-source-6.1 in bullseye-security" in line(capsys)


def test_a_package_without_a_kernel_is_refused_and_not_kept(apt, capsys):
    digest = hashlib.sha256(WITHOUT_KERNEL).hexdigest()
    records = (apt / "records").read_text()
    old = hashlib.sha256(CONTENT).hexdigest()
    (apt / "records").write_text(
        records.replace(old, digest).replace(f"{len(CONTENT)}", f"{len(WITHOUT_KERNEL)}")
    )
    (apt / "content").write_bytes(WITHOUT_KERNEL)
    main(["kernel", "fetch", "6.1"])
    assert main(["kernel", "fetch", "6.1"]) == 2
    assert "holds no kernel; it is not kept" in line(capsys)
    assert fetched_images() == ()


def test_a_machine_without_a_debian_source_is_told_what_to_do(apt, capsys):
    (apt / "sources").write_text("http://elsewhere.example/tools/|nodistro\n")
    assert main(["kernel", "fetch"]) == 3
    assert "no Debian source" in (text := line(capsys))
    assert "--image PATH" in text


@pytest.mark.parametrize("suite", ["../etc", "a b", "http://x", ""])
def test_what_is_no_suite_is_refused(apt, capsys, suite):
    assert main(["kernel", "fetch", "--suite", suite]) == 2
    assert "not the name of a suite" in line(capsys)


def test_without_apt_the_remedy_is_an_image(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["kernel", "fetch"]) == 3
    assert "--image PATH" in line(capsys)


@pytest.mark.parametrize("verb", [["boot"], ["info"], ["call", "memset"]])
def test_nothing_fetched_is_something_missing(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["kernel", *verb]) == 3
    assert "guestemu kernel fetch" in line(capsys)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "neither a Debian package"),
        (b"!<arch>\n" + b"data.tar.xz     " + b" " * 32 + b"1000000   `\n", "ends early"),
        (b"\x7fELF" + bytes(100), "damaged ELF"),
        (bytes(0x202) + b"HdrS" + bytes(0x100), "truncated"),
    ],
)
def test_a_damaged_image_is_refused_in_one_line(tmp_path, capsys, content, problem):
    path = tmp_path / "image"
    path.write_bytes(content)
    assert main(["kernel", "info", "--image", str(path)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert str(path) in text
    assert problem in text


def test_an_image_that_is_not_there_is_named(capsys):
    assert main(["kernel", "boot", "--image", "/nonexistent/vmlinuz"]) == 2
    assert "/nonexistent/vmlinuz" in line(capsys)


def test_versions_sort_as_debian_sorts_them():
    mixed = ["6.12.117-1", "6.1.192-2", "6.12.117-1~deb12u1", "6.1.99-1", "6.12.100-1"]
    assert sorted(mixed, key=version_key) == [
        "6.1.99-1",
        "6.1.192-2",
        "6.12.100-1",
        "6.12.117-1~deb12u1",
        "6.12.117-1",
    ]


PACKAGES = [
    "linux-image-5.10.0-46-rt-amd64_5.10.262-1_amd64.deb",
    "linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1_amd64.deb",
    "linux-image-6.12.118+deb13-rt-amd64_6.12.118-1_amd64.deb",
    "linux-binary-7.3.4+deb13-amd64_7.3.4-1~bpo13+1_amd64.deb",
    "linux-binary-7.2.12+deb13-cloud-amd64_7.2.12-1~bpo13+1_amd64.deb",
]


@pytest.mark.parametrize(
    ("name", "package"),
    [("5.10", 0), ("5.10-rt", 0), ("6.12", 1), ("6.12-rt", 2), ("7.3", 3), ("7.2", 4), ("", 4)],
)
def test_a_series_means_its_cloud_kernel_unless_another_flavour_is_named(
    tmp_path, monkeypatch, name, package
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = tmp_path / "guestemu" / "kernels"
    kernels.mkdir(parents=True)
    for file in PACKAGES:
        (kernels / file).write_bytes(CONTENT)
    assert find_image(name).name == PACKAGES[package]


def test_a_package_of_dependencies_is_never_the_kernel_that_a_series_means(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = tmp_path / "guestemu" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "linux-image-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb").write_bytes(
        b"!<arch>\n" * 200
    )
    with pytest.raises(MissingError, match=r"kernel fetch 7\.3"):
        find_image("7.3")


def test_help_has_examples_for_every_verb(capsys):
    for verb in ("fetch", "info", "boot", "call"):
        assert main(["kernel", verb, "--help"]) == 0
        assert f"guestemu kernel {verb}" in capsys.readouterr().out
