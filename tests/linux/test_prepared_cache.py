# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepared kernels in the user's cache: a restored guest is the booted one, and nothing can go
wrong with a cache but time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zstandard

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.regions import Region
from guestemu.guest.linux import load
from guestemu.guest.linux.cache import prune, read_sealed, write_sealed
from guestemu.guest.linux.load import LinuxLoader, linux_config
from guestemu.guest.linux.recorder import BootRecorder

BUDGET = 10_000_000

AGAIN = """
import sys
from pathlib import Path
from guestemu.guest.linux import load
def no_boot(*_args, **_kwargs):
    raise SystemExit("booted")
load.boot_kernel = load.load_kernel = no_boot
sys.path.insert(0, sys.argv[1])
from test_prepared_cache import behaviour, guest_of
print(behaviour(guest_of(load.LinuxLoader(), Path(sys.argv[2]), sys.argv[3])))
"""


def guest_of(loader, image, sev="sev"):
    return loader.guest(image, linux_config(128, 39, sev), BUDGET)


def current_views(ram):
    """Each page through the view it was last written in; what the other reads is its ciphertext."""
    memory = bytearray(ram.private)
    for gfn in ram.shared_current():
        page = slice(gfn * PAGE_SIZE, (gfn + 1) * PAGE_SIZE)
        memory[page] = ram.shared[page]
    return memory


def behaviour(guest):
    """What a conversion, an allocation and a refused call do, and memory after it."""
    recorder = BootRecorder()
    guest.machine.hooks.handler = recorder
    guest.reset()
    ends = [
        guest.set_memory_decrypted(guest.gva(Region.L, 3), 2),
        guest.set_memory_decrypted(guest.gva(Region.V, 1), 1),
        guest.dma_alloc_coherent(9000, True),
        guest.memset(guest.gva(Region.D, 7), 0xA5, 4096),
        guest.set_memory_encrypted(guest.gva(Region.L, 4), 1),
    ]
    flips = guest.leaf_map.update(guest.machine.ram.table_writes())
    memory = hashlib.sha256(current_views(guest.machine.ram))
    return str((ends, recorder.exits, flips, guest.boot_exits, guest.console.text)) + (
        memory.hexdigest()
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory, image_of):
    """A cache directory after a boot of 6.1, and what the booted guest did. Copied for each test:
    two boots differ, as a kernel's random numbers do."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root))
        return root, behaviour(guest_of(LinuxLoader(), image_of("6.1")))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "guestemu/prepared"


@pytest.fixture
def cache(filled, empty_cache):
    shutil.copytree(filled[0] / "guestemu", empty_cache.parent)
    return empty_cache


def refuse_to_boot(monkeypatch):
    def boot(*_args, **_kwargs):
        raise AssertionError("booted although the cache has it")

    monkeypatch.setattr(load, "boot_kernel", boot)
    monkeypatch.setattr(load, "load_kernel", boot)


def run_again(image, sev):
    """`behaviour` in another process, which may not boot."""
    words = [sys.executable, "-c", AGAIN, str(Path(__file__).parent), str(image), sev]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    return run.stdout or run.stderr


def test_another_process_gets_the_same_guest_without_a_boot(image_of, filled, cache):
    assert run_again(image_of("6.1"), "sev") == filled[1] + "\n"


@pytest.mark.soak
def test_snp_guests_are_kept_with_their_page_states(image_of, empty_cache):
    booted = behaviour(guest_of(LinuxLoader(), image_of("6.12"), "snp"))
    assert run_again(image_of("6.12"), "snp") == booted + "\n"


@pytest.mark.soak
def test_a_damaged_cache_is_written_anew(image_of, cache, monkeypatch):
    files = sorted(cache.iterdir())
    assert {path.suffix for path in files} == {".guest", ".kernel", ".segments"}
    contents = {path: path.read_bytes() for path in files}
    for path in files:
        middle = len(contents[path]) // 2
        path.write_bytes(contents[path][:middle] + b"??" + contents[path][middle + 2 :])
    booted = behaviour(guest_of(LinuxLoader(), image_of("6.1")))
    refuse_to_boot(monkeypatch)
    assert behaviour(guest_of(LinuxLoader(), image_of("6.1"))) == booted


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_guest_is_no_guest(image_of, cache, monkeypatch, keep):
    for path in cache.glob("*.guest"):
        path.write_bytes(path.read_bytes()[:keep])
    refuse_to_boot(monkeypatch)
    with pytest.raises(AssertionError, match="booted"):
        guest_of(LinuxLoader(), image_of("6.1"))


def test_well_formed_files_with_other_content_are_not_restored(image_of, cache, monkeypatch):
    """Another CPU context in a file that is whole: restored raw, it would end the process."""
    (path,) = cache.glob("*.guest")
    sealed = path.read_bytes()
    seal, packed = sealed[:32], sealed[32:]
    body = msgspec.msgpack.decode(zstandard.decompress(packed))
    body["context"] = bytes(len(body["context"]))
    other = zstandard.compress(msgspec.msgpack.encode(body))
    refuse_to_boot(monkeypatch)
    for content in (other, seal + other):
        path.write_bytes(content)
        with pytest.raises(AssertionError, match="booted"):
            guest_of(LinuxLoader(), image_of("6.1"))


def test_a_file_is_good_under_its_own_name_only(tmp_path):
    write_sealed(tmp_path / "a", b"content")
    assert read_sealed(tmp_path / "a") == b"content"
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    assert read_sealed(tmp_path / "b") is None
    (tmp_path / "a").chmod(0o666)
    assert read_sealed(tmp_path / "a") is None
    os.mkfifo(tmp_path / "c")
    assert read_sealed(tmp_path / "c") is None
    assert read_sealed(tmp_path / "d") is None


def test_other_configurations_and_code_are_other_files(image_of, cache, monkeypatch):
    refuse_to_boot(monkeypatch)
    loader = LinuxLoader()
    guest_of(loader, image_of("6.1"))
    with pytest.raises(AssertionError, match="booted"):
        loader.guest(image_of("6.1"), linux_config(128, 38, "sev"), BUDGET)
    monkeypatch.setattr(load, "build_id", lambda: "another build")
    with pytest.raises(AssertionError, match="booted"):
        guest_of(LinuxLoader(), image_of("6.1"))


def test_a_cache_that_cannot_be_written_is_one_warning(
    image_of, filled, tmp_path, capfd, monkeypatch
):
    image = image_of("6.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled[0]))
    analysed = LinuxLoader().kernel(image)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(load, "load_kernel", lambda path: analysed)
    loader = LinuxLoader()
    for path in (image, shutil.copy(image, tmp_path / "copy")):
        assert loader.kernel(Path(path)) is analysed
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert "booted kernels are not kept" in captured.err
    assert captured.out == ""


def test_no_cache_on_request(image_of, cache, monkeypatch):
    monkeypatch.setenv("GUESTEMU_NO_CACHE", "1")
    refuse_to_boot(monkeypatch)
    with pytest.raises(AssertionError, match="booted"):
        guest_of(LinuxLoader(), image_of("6.1"))


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]
