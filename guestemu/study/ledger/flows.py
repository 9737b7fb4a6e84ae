# SPDX-License-Identifier: GPL-2.0-or-later
"""The flows: what a guest does at boot, at run time and at its end that the host has to hear of.

Each has a part before anything fails (`prepare`), the part in which a failure can be injected
(`act`), and for a kexec a part that runs only if the VMM waits (`late`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.snippet.memory_map import BSS_DECRYPTED
from guestemu.program.ops import Op, OpKind
from guestemu.study.ledger.scene import NEW, OLD, Scene

PAGES: Final = 3
LARGE: Final = 512
_SPLIT_FROM: Final = 510
_SPLIT_PAGES: Final = 4
_POOL_SLOT: Final = 15

Part = Callable[[Scene], None]


class Flow(msgspec.Struct, frozen=True):
    """One flow. `region`, `page`, `pages` are what it is about, and what a migration sends in
    passes; `splits` the large leaves that it splits; `has_entries`: each page has an entry of its
    own that can be taken away; `in_migration`: it can happen while a migration runs;
    `on_kernels`: a booted kernel can do it; `needs_control`: it is about MIGRATION_CONTROL."""

    name: str
    text: str
    act: Part
    prepare: Part
    region: Region = Region.D
    page: int = 0
    pages: int = 1
    splits: int = 0
    has_entries: bool = False
    in_migration: bool = True
    on_kernels: bool = True
    needs_control: bool = False
    late: Part | None = None


def _boot(scene: Scene) -> None:
    scene.step(Op(OpKind.INIT_PLATFORM, (0,)))


def _converting(
    name: str,
    text: str,
    kind: OpKind,
    region: Region,
    page: int,
    pages: int,
    *,
    splits: int = 0,
    shared_before: bool = False,
) -> Flow:
    """A caller converts pages and, unless it gets an error, fills them."""

    def prepare(scene: Scene) -> None:
        _boot(scene)
        if shared_before:
            scene.convert(OpKind.SET_MEMORY_DECRYPTED, region, page, pages)
        scene.fill(region, page, pages, OLD)

    def act(scene: Scene) -> None:
        if scene.convert(kind, region, page, pages):
            scene.fill(region, page, pages, NEW)

    has_entries = region is Region.D
    return Flow(name, text, act, prepare, region, page, pages, splits, has_entries)


def _boot_dma(scene: Scene) -> None:
    """The atomic pools are there, so that the flow's own conversions are the next ones."""
    _boot(scene)
    scene.dma_alloc(_POOL_SLOT, 1, atomic=True)


def _dma_alloc(scene: Scene) -> None:
    scene.dma_alloc(0, PAGES, atomic=False)
    scene.reuse_freed()


def _dma_free() -> tuple[Part, Part]:
    """The two parts share which frames the buffer has."""
    buffers: dict[int, range] = {}

    def prepare(scene: Scene) -> None:
        _boot_dma(scene)
        buffers[0] = scene.dma_alloc(0, PAGES, atomic=False)

    def act(scene: Scene) -> None:
        scene.dma_free(0, buffers[0])
        scene.reuse_freed()

    return prepare, act


def _dma_pool(scene: Scene) -> None:
    scene.dma_alloc(0, 1, atomic=True)
    scene.reuse_freed()


def _nothing(_scene: Scene) -> None:
    pass


def _opt_in(scene: Scene) -> None:
    """Boot of a kernel: its RAM is private, .bss..decrypted is shared, migration is allowed."""
    _boot(scene)
    first = BSS_DECRYPTED >> PAGE_SHIFT
    scene.fill_frames(range(first, first + PAGES), NEW)
    scene.fill(Region.D, 0, 1, NEW)


def _private_page(scene: Scene) -> None:
    _boot(scene)
    scene.fill(Region.D, 0, 1, OLD)


def _offline(scene: Scene) -> None:
    scene.step(Op(OpKind.CPU_OFFLINE))


def _shared_pages(scene: Scene) -> None:
    _boot(scene)
    scene.convert(OpKind.SET_MEMORY_DECRYPTED, Region.D, 0, PAGES)
    scene.fill(Region.D, 0, PAGES, OLD)


def _jump(scene: Scene) -> None:
    """The old kernel's last word, then the page tables of the new one, which say private."""
    _offline(scene)
    for page in range(PAGES):
        scene.step(Op(OpKind.TOUCH_CBIT, (1,), page=page))
    scene.fill(Region.D, 0, PAGES, NEW)


def _new_kernel(scene: Scene) -> None:
    _boot(scene)
    scene.fill(Region.D, 0, PAGES, NEW)


def _jump_and_boot(scene: Scene) -> None:
    _jump(scene)
    _new_kernel(scene)


_DMA_FREE: Final = _dma_free()

FLOWS: Final = (
    _converting(
        "decrypt-1",
        "set_memory_decrypted() of 1 page",
        OpKind.SET_MEMORY_DECRYPTED,
        Region.D,
        0,
        1,
    ),
    _converting(
        "decrypt-3",
        "set_memory_decrypted() of 3 pages",
        OpKind.SET_MEMORY_DECRYPTED,
        Region.D,
        0,
        PAGES,
    ),
    _converting(
        "decrypt-2m",
        "set_memory_decrypted() of a whole 2 MiB leaf",
        OpKind.SET_MEMORY_DECRYPTED,
        Region.L,
        0,
        LARGE,
    ),
    _converting(
        "split",
        "set_memory_decrypted() of the last 2 and the first 2 pages of two 2 MiB leaves",
        OpKind.SET_MEMORY_DECRYPTED,
        Region.L,
        _SPLIT_FROM,
        _SPLIT_PAGES,
        splits=2,
    ),
    _converting(
        "re-encrypt",
        "set_memory_encrypted() of 3 shared pages",
        OpKind.SET_MEMORY_ENCRYPTED,
        Region.D,
        0,
        PAGES,
        shared_before=True,
    ),
    _converting(
        "early",
        "early_set_memory_decrypted() of 3 pages",
        OpKind.EARLY_SET_MEMORY_DECRYPTED,
        Region.D,
        0,
        PAGES,
    ),
    Flow("dma-alloc", "dma_alloc_coherent() of 3 pages", _dma_alloc, _boot_dma),
    Flow("dma-free", "dma_free_coherent() of 3 pages", _DMA_FREE[1], _DMA_FREE[0]),
    Flow("dma-pool", "the atomic pools are made", _dma_pool, _boot),
    Flow(
        "boot",
        "kvm_init_platform(): e820 and .bss..decrypted reported, MIGRATION_CONTROL = 1",
        _opt_in,
        _nothing,
        in_migration=False,
        on_kernels=False,
        needs_control=True,
    ),
    Flow(
        "cpu-offline",
        "a CPU goes off line: MIGRATION_CONTROL = 0",
        _offline,
        _private_page,
        needs_control=True,
    ),
    Flow(
        "kexec",
        "3 shared pages, kexec, and the new kernel reports its memory",
        _jump_and_boot,
        _shared_pages,
        pages=PAGES,
        in_migration=False,
        on_kernels=False,
        needs_control=True,
    ),
    Flow(
        "kexec-window",
        "the same; a migration is wanted between the jump and the new kernel's reports",
        _jump,
        _shared_pages,
        pages=PAGES,
        in_migration=False,
        on_kernels=False,
        needs_control=True,
        late=_new_kernel,
    ),
)


def find_flows(names: tuple[str, ...]) -> tuple[Flow, ...]:
    """The flows of these names, all for none. Raises `InputError` for one that does not exist."""
    by_name = {flow.name: flow for flow in FLOWS}
    for name in names:
        if name not in by_name:
            raise InputError(f"flow {name!r}: unknown, take one of {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) or FLOWS
