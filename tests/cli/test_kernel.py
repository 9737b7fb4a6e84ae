# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel` without a kernel: fetching from a made-up apt, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from guestemu.abi.errors import MissingError
from guestemu.cli.main import main
from guestemu.guest.linux.images import fetched_images, find_image, version_key

OLD = ("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1")
NEW = ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2")
CONTENT = b"!<arch>\nnot really a kernel\n" * 50_000


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt that offers two kernels and downloads in two halves: the first try breaks off."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "content").write_bytes(CONTENT)
    names = "\n".join([OLD[0], NEW[0], f"{NEW[0]}-dbg", "linux-image-amd64"])
    records = "\n\n".join(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        f"Filename: pool/{name}_{version}_amd64.deb\nSize: {len(CONTENT)}\n"
        f"Description: a kernel\n with: a colon\nSHA256: {hashlib.sha256(CONTENT).hexdigest()}"
        for name, version in (OLD, NEW)
    )
    (tmp_path / "names").write_text(names)
    (tmp_path / "records").write_text(records)
    script(
        binaries / "apt-cache",
        f'if [ "$1" = pkgnames ]; then /bin/cat {tmp_path}/names; '
        f"else /bin/cat {tmp_path}/records; fi",
    )
    target = f"{NEW[0]}_{NEW[1]}_amd64.deb"
    script(
        binaries / "apt-get",
        f'echo "$@" >> {tmp_path}/calls\n'
        f"if [ -e {target} ]; then /bin/cp {tmp_path}/content {target}; "
        f"else /usr/bin/head -c 100 {tmp_path}/content > {target}; "
        'echo "E: Connection broke off" >&2; exit 100; fi',
    )
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def line(capsys):
    """The one line on stderr that is no note."""
    text = capsys.readouterr().err
    return [part for part in text.splitlines() if part.startswith("guestemu: ")][-1]


def test_a_download_that_broke_off_is_continued(apt, capsys):
    assert main(["kernel", "fetch", "6.1"]) == 3
    assert "Connection broke off" in line(capsys)
    assert fetched_images() == ()
    assert main(["kernel", "fetch", "6.1", "--json"]) == 0
    [kernel] = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["version"] == NEW[1]
    assert Path(kernel["path"]).read_bytes() == CONTENT
    assert find_image("6.1") == find_image("") == Path(kernel["path"])


def test_a_complete_package_is_not_downloaded_again(apt, capsys):
    main(["kernel", "fetch", "6.1"])
    main(["kernel", "fetch", "6.1"])
    calls = (apt / "calls").read_text().count("download")
    assert main(["kernel", "fetch", "6.1"]) == 0
    assert (apt / "calls").read_text().count("download") == calls == 2


def test_a_series_that_apt_does_not_have_is_named_with_those_it_has(apt, capsys):
    assert main(["kernel", "fetch", "6.12"]) == 2
    assert "series 6.12" in (text := line(capsys))
    assert "there is 6.1" in text


def test_empty_lists_ask_for_an_update(apt, capsys):
    (apt / "names").write_text("")
    assert main(["kernel", "fetch"]) == 3
    assert "apt-get update" in line(capsys)


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
