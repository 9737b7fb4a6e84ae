# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest code with a bug: the snippet of a kernel generation with a few lines of assembly changed.

A variant is a list of edits of the snippet's source files, so that the bug can be read, and the
committed machine code that results (`snippets/NAME.elf`; with GNU as, `python -m
guestemu.campaign.planted.variants` builds it again). All variants start from `CLEAN`: the 6.12
snippet without the defects that Linux 6.12 still has under faults (A14, A19, A20, A26c). Planting a
bug leaves one of those repairs out or adds an edit.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.guest.snippet.elf import SNP_IMAGE, TDX_IMAGE, SnippetImage, parse_snippet
from guestemu.machine.assemble import PACKAGE, PLACED, AssemblySource, build, build_all

GENERATION: Final = "6.12"
_SNIPPETS: Final = PACKAGE / "guest" / "snippet"
_OUTPUT: Final = PACKAGE / "campaign" / "planted" / "snippets"


class Edit(msgspec.Struct, frozen=True):
    """Replaces `old`, which occurs once in `file`, by `new`."""

    file: str
    old: str
    new: str


_HOLES_REFUSED: Final = Edit(
    "cpa.inc.S",
    "8:	call	populate_pgd\n	pop	rbx\n	ret\n",
    "8:	mov	eax, -EPERM\n	pop	rbx\n	ret\n",
)
"""A hole in the range is an error (A26c); -EPERM is what a failed populate returns."""

_FRAME_ZERO_PASSED: Final = Edit(
    "notify-map-gpa.inc.S",
    "	jz	1b			# frame 0\n	and	rbx, rsi\n	add	rbx, r14\n",
    "	setz	cl\n	and	rbx, rsi\n	add	rbx, r14\n	test	cl, cl\n	jnz	1b\n",
)
"""The cursor moves on over a leaf of frame 0 (A14)."""

_HOLES_PASSED: Final = Edit(
    "notify-map-gpa.inc.S",
    "8:	warn_once lookup\n9:	pop	r14\n",
    "8:	and	rbx, -PAGE_SIZE\n	add	rbx, PAGE_SIZE\n	jmp	1b\n9:	pop	r14\n",
)
"""The walk goes on behind a hole (A13)."""

_ACTUAL_STATUS: Final = Edit(
    "notify-map-gpa.inc.S",
    "	shr	rdx, 12\n	mov	ecx, r13d\n	call	kvm_sev_hypercall3\n	jmp	1b\n",
    "	shr	rdx, 12\n	xor	ecx, ecx\n	test	r8, [info + INFO_cbit_mask]\n	setnz	cl\n"
    "	shl	ecx, MAP_GPA_RANGE_ENCRYPTED_BIT\n	call	kvm_sev_hypercall3\n	jmp	1b\n",
)
"""Each leaf is reported as it is, not as it was asked for (A19)."""

_SNP_FINISH: Final = (
    "	.ifdef	IS_SNP\n	test	r13d, r13d\n	jz	4f\n	mov	rdi, [rbp + CPA_VADDR]\n"
    "	movsxd	rsi, r12d\n	mov	edx, PSC_PRIVATE\n	call	snp_set_pages_state\n4:\n	.endif\n"
)
"""Of an SNP guest: not assembled here."""

_FAILURE_NOTIFIED: Final = Edit(
    "convert-platform.inc.S",
    "	test	ebx, ebx\n	jnz	6f\n"
    + _SNP_FINISH
    + "	mov	rdi, [rbp + CPA_VADDR]\n	mov	esi, r12d\n"
    "	mov	edx, r13d\n	call	notify_pages\n	mov	ebx, [info + INFO_finish_status]\n",
    "	mov	rdi, [rbp + CPA_VADDR]\n	mov	esi, r12d\n	mov	edx, r13d\n	call	notify_pages\n"
    "	test	ebx, ebx\n	jnz	6f\n	mov	ebx, [info + INFO_finish_status]\n",
)
"""A change that failed half-way is notified, too (A19)."""

_LENGTH_64_BIT: Final = Edit(
    "notify-map-gpa.inc.S",
    "	shl	esi, 12\n	movsxd	rsi, esi\n",
    "	movsxd	rsi, esi\n	shl	rsi, 12\n",
)
"""The length in bytes is made in 64 bits (A20)."""

_EARLY_FAILURE_NOTIFIED: Final = Edit(
    "early.inc.S",
    "8:	mov	ebx, 1\n9:	call	flush_tlb_all\n",
    "8:	mov	rdi, [rsp + 8]\n	mov	rsi, [rsp]\n	mov	edx, r13d\n	notify_early\n"
    "	mov	ebx, 1\n9:	call	flush_tlb_all\n",
)
"""An early conversion that met a hole is notified as far as it got."""

_HOLES_SKIPPED: Final = Edit(
    _HOLES_REFUSED.file,
    _HOLES_REFUSED.old,
    "8:	mov	qword ptr [rbp + CPA_NUMPAGES], 1\n	xor	eax, eax\n	pop	rbx\n	ret\n",
)
"""A hole in the range is left alone and the rest converted."""

CLEAN: Final = (
    _HOLES_REFUSED,
    _FRAME_ZERO_PASSED,
    _HOLES_PASSED,
    _ACTUAL_STATUS,
    _FAILURE_NOTIFIED,
    _LENGTH_64_BIT,
    _EARLY_FAILURE_NOTIFIED,
)


def _clean_without(*left_out: Edit) -> tuple[Edit, ...]:
    return tuple(edit for edit in CLEAN if edit not in left_out)


_SECOND_FLUSH: Final = "	mov	ebx, eax\n	xor	esi, esi\n	call	cpa_flush\n"
_FIRST_FLUSH: Final = "	sete	sil\n	call	cpa_flush\n"
_SPECULATION: Final = Edit(
    "convert-platform.inc.S",
    _FIRST_FLUSH,
    _FIRST_FLUSH + "	mov	rax, [rbp + CPA_VADDR]\n	mov	al, [rax]\n",
)
"""A load of the first page after the first flush, as a speculative fill of the TLB would be."""

_RETRY: Final = "	cmp	r10, TDVMCALL_STATUS_RETRY\n	jne	4f\n"
_PROGRESS: Final = "3:	mov	[rsp + TDX_NEXT], r11\n"
_SIZE_OF_CALL: Final = "	sub	r13, r12\n"
_ENDS: Final = "	mov	rdi, [rsp + TDX_FIRST]\n	mov	rsi, [rsp + TDX_LAST]\n"
_TWICE: Final = "	call	tdx_accept_memory\n" + _ENDS
_ACCEPT: Final = "	call	tdx_accept_memory\n	jmp	9f\n"

TD_VARIANTS: Final[Mapping[str, tuple[Edit, ...]]] = {
    "t14": (Edit("tdx.inc.S", _ACCEPT, _TWICE + _ACCEPT),),
    "t16": (
        Edit(
            "convert-platform.inc.S",
            "	test	r13d, r13d\n	jz	3f\n",
            "	jmp	3f\n",
        ),
        Edit(
            "tdx.inc.S",
            "	test	edx, edx\n	jnz	1f\n	movsxd	rsi, esi\n",
            "	movsxd	rsi, esi\n",
        ),
    ),
    "t17a": (Edit("tdx.inc.S", _RETRY, _RETRY + "	xor	r10d, r10d\n	jmp	4f\n"),),
    "t17b": (
        Edit(
            "tdx.inc.S",
            _PROGRESS + "	mov	qword ptr [rsp + TDX_TRIES], 0\n",
            _PROGRESS + "	inc	qword ptr [rsp + TDX_TRIES]\n",
        ),
    ),
    "t18": (
        Edit(
            "tdx.inc.S",
            _SIZE_OF_CALL,
            _SIZE_OF_CALL
            + "	cmp	r13, 0x200000\n	jbe	76f\n	mov	r13d, 0x200000\n76:\n",
        ),
    ),
}
"""Edits of the code of a TD, which is clean as it is; a bug's variant has its id."""

_OOPS: Final = "3:	mov	rax, [rsp + FRAME_VECTOR]\n"
_VALIDATES_AGAIN: Final = (
    "3:	cmp	qword ptr [rsp + FRAME_VECTOR], 29\n	jne	4f\n"
    "	cmp	qword ptr [rsp + FRAME_ERROR_CODE], 0x404\n	jne	4f\n"
    "	push	rdx\n	mov	rax, cr2\n	and	rax, -PAGE_SIZE\n	xor	ecx, ecx\n	mov	edx, 1\n"
    "	.byte	0xf2, 0x0f, 0x01, 0xff\n"
    "	pop	rdx\n	pop	rcx\n	pop	rax\n	add	rsp, 16\n	iretq\n"
    "4:	mov	rax, [rsp + FRAME_VECTOR]\n"
)

SNP_VARIANTS: Final[Mapping[str, tuple[Edit, ...]]] = {
    "n17": (
        Edit(
            "snp.inc.S",
            "	cmp	r13d, PSC_SHARED\n	jne	2f\n	xor	edx, edx\n",
            "	jmp	2f\n",
        ),
    ),
    "n19": (Edit("snp.inc.S", "	jnc	1f\n	mov	eax, PVALIDATE_NO_CHANGE\n", ""),),
    "n23": (Edit("exceptions.inc.S", _OOPS, _VALIDATES_AGAIN),),
    "n42": (
        Edit(
            "snp.inc.S",
            "1:	mov	r12, [r15 + rbx*8 + 8]\n",
            "1:	mov	r12, [r15 + rbx*8 + 8]\n	test	ebp, ebp\n	jz	7f\n"
            "	mov	r12, [snp_ghcb]\n	mov	r12, [r12 + rbx*8 + GHCB_BUFFER + 8]\n7:\n",
        ),
    ),
}
"""Edits of the code of an SNP guest, which is clean for this; a bug's variant has its id."""

VARIANTS: Final[Mapping[str, tuple[Edit, ...]]] = {
    "clean": CLEAN,
    "status-as-asked": _clean_without(_ACTUAL_STATUS),
    "m1": (
        *_clean_without(_ACTUAL_STATUS),
        Edit(
            "snippet-6.12.S",
            "	call	enc_dec_hypercall\n",
            "	add	rsi, PAGE_SIZE - 1\n	shr	rsi, 12\n	call	notify_pages\n",
        ),
    ),
    "m5": _clean_without(_ACTUAL_STATUS),
    "m6": _clean_without(_FAILURE_NOTIFIED),
    "holes-skipped": (*_clean_without(_HOLES_REFUSED), _HOLES_SKIPPED),
    "m7": (*_clean_without(_HOLES_REFUSED, _HOLES_PASSED), _HOLES_SKIPPED),
    "m8": _clean_without(_HOLES_REFUSED, _FRAME_ZERO_PASSED),
    "m9": _clean_without(_LENGTH_64_BIT),
    "m61": (
        *CLEAN,
        Edit(
            "notify-map-gpa.inc.S",
            "	.set	KVM_HC_MAP_GPA_RANGE, 12",
            "	.set	KVM_HC_MAP_GPA_RANGE, 11",
        ),
    ),
    "m62": (
        *CLEAN,
        Edit(
            "cpa.inc.S",
            "	mov	rcx, [info + INFO_cbit_mask]\n	test	edx, edx\n",
            "	mov	rcx, 1 << 47\n	test	edx, edx\n",
        ),
    ),
    "speculative": (*CLEAN, _SPECULATION),
    "m65": (
        *CLEAN,
        Edit(
            "convert-platform.inc.S",
            _SECOND_FLUSH + "	mov	rdi, [rbp + CPA_VADDR]\n",
            _SECOND_FLUSH
            + "	test	ebx, ebx\n	jnz	1f\n	mov	rdi, [rbp + CPA_VADDR]\n"
            + "	mov	qword ptr [rdi], 0\n1:	mov	rdi, [rbp + CPA_VADDR]\n",
        ),
    ),
    "m66": (
        *CLEAN,
        _SPECULATION,
        Edit("convert-platform.inc.S", _SECOND_FLUSH, "	mov	ebx, eax\n"),
    ),
    "m67": (*CLEAN, Edit("convert-platform.inc.S", _FIRST_FLUSH, "	call	cpa_flush\n")),
    "m68": (
        *CLEAN,
        Edit(
            "cpa.inc.S",
            "	cmp	rax, [info + INFO_max_pfn]\n	jae	2f\n1:	xor	eax, eax\n",
            "	cmp	rax, [info + INFO_max_pfn]\n1:	xor	eax, eax\n",
        ),
    ),
    "m71": _clean_without(_HOLES_REFUSED),
    "boot-cpu-decides": (
        *CLEAN,
        Edit(
            "platform.inc.S",
            "	function kvm_guest_cpu_offline\n",
            "	function kvm_guest_cpu_offline\n	cmp	rsp, BOOT_STACK_END\n	ja	1f\n",
        ),
        Edit(
            "platform.inc.S",
            "	.set	KVM_MIGRATION_READY, 1\n",
            "	.set	KVM_MIGRATION_READY, 1\n	.set	BOOT_STACK_END, 0x32000\n",
        ),
    ),
    "notified-device": (
        *CLEAN,
        Edit(
            "memory.inc.S",
            "	invlpg	[rdi]\n	xor	eax, eax\n	ret\n",
            "	invlpg	[rdi]\n	mov	esi, 1\n	xor	edx, edx\n	call	notify_pages\n"
            "	xor	eax, eax\n	ret\n",
        ),
    ),
}
"""The edits of every variant by name; a bug's variant has its id."""

EVERY: Final = {**VARIANTS, **TD_VARIANTS, **SNP_VARIANTS}
_UNITS: Final = {**dict.fromkeys(TD_VARIANTS, TDX_IMAGE), **dict.fromkeys(SNP_VARIANTS, SNP_IMAGE)}
"""The source of variants that are not plain SEV guests."""


def load_variant(name: str) -> SnippetImage:
    """The committed machine code of a variant. Raises `InputError` for one that does not exist."""
    if name not in EVERY:
        raise InputError(f"zoo variant {name!r}: unknown, take one of {', '.join(EVERY)}")
    image = (files("guestemu.campaign.planted") / "snippets" / f"{name}.elf").read_bytes()
    return parse_snippet(GENERATION, image)


def _apply(edits: tuple[Edit, ...], directory: Path, name: str) -> None:
    for edit in edits:
        path = directory / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise InputError(
                f"zoo variant {name}: {edit.file} has {text.count(edit.old)} times the text "
                f"that an edit replaces; correct the edit:\n{edit.old}"
            )
        path.write_text(text.replace(edit.old, edit.new))


def build_variant(name: str, output: Path) -> None:
    """Assembles a variant into the ELF file `output`.

    Raises `MissingError` without binutils, `InputError` for an edit that does not fit the source.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for path in (*_SNIPPETS.glob("*.S"), *_SNIPPETS.glob("*.ld")):
            shutil.copy(path, directory)
        _apply(EVERY[name], directory, name)
        # An absolute path stays itself under `PACKAGE`.
        place = (*PLACED, "--script=snippet.ld")
        unit = _UNITS.get(name, GENERATION)
        source = AssemblySource(str(directory / f"snippet-{unit}.S"), place)
        build(source, output)


def main() -> int:
    """Builds every variant; returns the exit status."""
    _OUTPUT.mkdir(exist_ok=True)
    outputs = {name: _OUTPUT / f"{name}.elf" for name in EVERY}
    return build_all(
        (str(output.relative_to(PACKAGE)), partial(build_variant, name, output))
        for name, output in outputs.items()
    )


if __name__ == "__main__":
    sys.exit(main())
