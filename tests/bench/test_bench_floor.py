# SPDX-License-Identifier: GPL-2.0-or-later
"""The C floor does the work that guestemu does: same code, same hypercall, same memory after it."""

import pytest

from guestemu.abi.errors import EngineError, MissingError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.bench import floor as floor_module
from guestemu.bench.floor import Floor, compile_floor, find_compiler
from guestemu.bench.scene import CONVERSION, LOOP_CALLS, BenchScene
from guestemu.guest.snippet.elf import load_snippet
from guestemu.guest.snippet.memory_map import STACK_SIZE, STACKS

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> BenchScene:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        scene = BenchScene()
        assert scene.floor_note or scene.library is not None
    return scene


def dirty_pages(scene: BenchScene) -> dict[int, bytes]:
    """Every page the conversion wrote, as guestemu leaves it, by index of the dirty list."""
    guest = scene.testbed.guest
    guest.machine.hooks.handler = scene.testbed.recorder
    guest.reset()
    guest.set_memory_decrypted(scene.conversion.gva, 1)
    pages = {index: bytes(guest.machine.ram._page(index)) for index in scene.conversion.dirty}
    guest.reset()
    return pages


@needs_compiler
@pytest.mark.parametrize("name", ["floor", "hooked_floor"])
def test_floor_makes_the_hypercall_and_the_stores_of_the_guest(
    scene: BenchScene, name: str
) -> None:
    expected = scene.testbed.run(CONVERSION)
    (record,) = expected.results[0].exits
    floor: Floor = getattr(scene, name)
    before = floor.state.hypercalls
    floor.run(3)
    assert floor.state.hypercalls == before + 3
    assert floor.state.result & 0xFFFFFFFF == expected.results[0].outcome.value == 0
    nr, gpa, pages, attributes = floor.state.last
    assert (nr, gpa, pages, attributes) == (record.nr, *record.args[:3])
    assert nr == KVM_HC_MAP_GPA_RANGE
    assert gpa == scene.conversion.gpa
    assert not floor.is_private(gpa >> 12)
    assert floor.is_private((gpa >> 12) + 1)
    pages_after = dirty_pages(scene)
    assert len(pages_after) == len(scene.conversion.dirty) > 0
    for index, content in pages_after.items():
        assert bytes(floor._ram._page(index)) == content


@needs_compiler
def test_hooked_floor_notes_the_pages_that_guestemu_notes(scene: BenchScene) -> None:
    hooked = scene.hooked_floor
    assert hooked is not None
    hooked.run(1)
    ram = hooked._ram
    assert ram.dirty_list[: ram.watch.dirty_count].tolist() == scene.conversion.dirty


@needs_compiler
def test_floor_says_when_an_execution_wrote_an_unexpected_page(scene: BenchScene) -> None:
    library = scene.library
    assert library is not None
    few = scene.conversion.dirty[:1]
    floor = Floor(
        library,
        scene.testbed.guest.machine,
        load_snippet("6.1").symbols["set_memory_decrypted"],
        {"rdi": scene.conversion.gva, "rsi": 1, "rsp": STACKS + STACK_SIZE - 8},
        few,
        hooks=True,
    )
    with pytest.raises(EngineError, match="error 1"):
        floor.run(2)
    floor.close()


@needs_compiler
def test_the_loop_makes_as_many_hypercalls_in_c_and_in_python(scene: BenchScene) -> None:
    calls: list[int] = []
    loop = scene.loop
    hooks = loop.testbed.guest.machine.hooks
    host = hooks.handler
    hooks.handler = loop.testbed.recorder
    loop.testbed.recorder.records = []
    loop.run(2)
    calls = [record.nr for record in loop.testbed.recorder.records]
    hooks.handler = host
    assert scene.library is not None
    floor = loop.floor(scene.library)
    floor.run(2)
    assert floor.state.hypercalls == len(calls) == 2 * LOOP_CALLS
    assert set(calls) == {floor.state.last[0]}


def test_without_a_compiler_the_scene_says_so_and_has_no_floor(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(floor_module, "COMPILERS", ("no-such-compiler",))
    scene = BenchScene()
    assert scene.library is None
    assert scene.floor is None
    assert "no C compiler" in scene.floor_note


def test_a_compiler_that_fails_is_something_this_machine_lacks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(floor_module, "find_compiler", lambda: "false")
    with pytest.raises(MissingError, match="cannot compile"):
        compile_floor(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(floor_module, "find_compiler", lambda: "cc")
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(MissingError, match="XDG_CACHE_HOME"):
        compile_floor(blocker / "guestemu")


@needs_compiler
def test_a_compiled_floor_is_used_again(tmp_path, monkeypatch) -> None:
    first = compile_floor(tmp_path)
    monkeypatch.setattr(floor_module, "find_compiler", lambda: None)
    assert compile_floor(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
