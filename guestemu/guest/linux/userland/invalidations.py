# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel's text invalidates translations, and what each of these instructions drops.

The emulator has no hook for INVLPG, INVPCID and moves to CR3 and CR4, so the text is searched as it
lies in memory, after the kernel has patched its alternatives and paravirtual calls. Bytes that only
look like such an instruction are never executed as one, so a hook there does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from guestemu.abi.addresses import Gva
from guestemu.guest.linux.kernel import KERNEL_MAP, Kernel
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.machine import Machine
from guestemu.machine.translations import Translations

_ROOT: Final = re.compile(rb"\x0f\x22[\xd8-\xdf]")
_CONTROL: Final = re.compile(rb"\x0f\x22[\xe0-\xe7]")
_PAGE: Final = re.compile(rb"\x0f\x01[\x38-\x3f\x78-\x7f\xb8-\xbf]")
_CONTEXT: Final = re.compile(rb"\x66\x0f\x38\x82")
"""MOV to CR3, MOV to CR4, INVLPG, INVPCID: without a REX prefix."""

_GENERAL: Final = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_REX: Final = range(0x40, 0x50)
_REX_B: Final = 1
_NEEDS_MORE: Final = (4, 5)
"""Numbers of a memory operand's base that stand for something else than [register]."""


def _page_register(modrm: int, rex: int) -> str | None:
    """The register that INVLPG's operand [register] names; None for another operand."""
    if modrm >> 6 or modrm & 7 in _NEEDS_MORE:
        return None
    return _GENERAL[modrm & 7 | (8 if rex & _REX_B else 0)]


def _sites(text: bytes) -> Iterator[tuple[int, re.Pattern[bytes], int, int]]:
    """Place, pattern, last byte and REX prefix (0: none) of what looks like an instruction that
    drops translations."""
    for pattern in (_ROOT, _CONTROL, _PAGE, _CONTEXT):
        for found in pattern.finditer(text):
            at, modrm = found.start(), text[found.end() - 1]
            yield at, pattern, modrm, 0
            if text[at - 1] in _REX:
                yield at - 1, pattern, modrm, text[at - 1]


def watch_invalidations(kernel: Kernel, machine: Machine) -> Translations:
    """From now on each CPU of `machine` keeps its translations until it executes an instruction of
    the kernel's text that drops them. Raises `InputError` for an image without `_etext`."""
    translations = machine.keep_translations()
    first, end = (kernel.address(name) - KERNEL_MAP for name in ("_text", "_etext"))
    text = bytes(machine.ram.private[first:end])
    hooks = machine.hooks

    def add(address: int, effect: Callable[[], None]) -> None:
        def on_instruction(_uc: object, _rip: int, _size: int, _user: object) -> None:
            try:
                effect()
            except BaseException as error:
                hooks.errors.append(error)
                hooks.engine.stop()

        hooks.engine.add_hook(HOOK_CODE, CodeHook(on_instruction), begin=address, end=address)

    def drop_page(register: str | None) -> Callable[[], None]:
        if register is None:
            return translations.drop_all
        return lambda: translations.drop(Gva(machine.current.read_register(register)))

    def effect(pattern: re.Pattern[bytes], modrm: int, rex: int) -> Callable[[], None]:
        if pattern is _PAGE:
            return drop_page(_page_register(modrm, rex))
        return translations.drop_local if pattern is _ROOT else translations.drop_all

    for at, pattern, modrm, rex in _sites(text):
        add(KERNEL_MAP + first + at, effect(pattern, modrm, rex))
    machine.engine.flush_blocks()
    return translations
