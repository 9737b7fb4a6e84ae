# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts with one defect each, and with two: pieces of `correct_vmm.py` or `correct_handler.py`
replaced.

A defect is (class, target, [(text, replacement), ...]); each text stands once in the file. The
target is the one that docs/hosts.md names for that part of a host.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

CORRECT = Path(__file__).with_name("correct_vmm.py")
CORRECT_HANDLER = Path(__file__).with_name("correct_handler.py")
BITMAP, TABLE, HANDLER = "BitmapVmm", "TableVmm", "Handler"
HYPERCALL, MSR = "hypercall", "msr"


class Defect(msgspec.Struct, frozen=True):
    """One defect: what is changed in which host, and the campaign's target."""

    summary: str
    edits: tuple[tuple[str, str], ...]
    host: str = BITMAP
    target: str = HYPERCALL


_CONVERT = "return self.convert(first, pages, attributes) & mask"
_ALIGN = "if gpa & 0xFFF:\n            return -EINVAL & mask"
_EMPTY = "if not pages:\n            return -EINVAL & mask"
_WRAP = "if first + pages > U64:\n            return -EINVAL & mask\n"
_LAST = "self.last = (first, end)\n        return 0"
_SLOT = "if low < high:\n                self.record(low, high, private)"
_COUNTED = "self.calls += 1\n"
_CPL = "if call.cpl:\n            return -EPERM & mask\n"
_NUMBER = "if nr != MAP_GPA_RANGE:\n            return -ENOSYS & mask\n"
_MASK = "mask = (1 << count) - 1 << bit"
_RESET = "self.control = 0\n        self.calls"
_RDMSR = "return self.control\n"
_WRMSR = "self.control = value\n"
_SHARE = "self.words[index] &= ~mask"
_ANSWER = "return self.convert(first, pages, attributes) & mask"
_ATTRIBUTES = "error = self.memory.set_memory_attributes(gpa, size, word)"
_PUNCH = "self.memory.fallocate(number, PUNCH, offset + slot.memfd_offset, length)"
_DISCARD = "self.memory.madvise(number, offset, length, MADV_DONTNEED)"

DEFECTS = {
    # Truncations
    "pages-32": Defect(
        "pages cut to 32 bits", ((_CONVERT, _CONVERT.replace("pages", "pages & U32")),)
    ),
    "pages-16": Defect(
        "pages cut to 16 bits",
        ((_CONVERT, _CONVERT.replace("pages", "pages & 0xFFFF")),),
        TABLE,
    ),
    "gpa-32": Defect(
        "address cut to 32 bits", (("first = gpa >> PAGE", "first = (gpa & U32) >> PAGE"),)
    ),
    "number-32": Defect("number cut to 32 bits", (("nr = call.nr & mask", "nr = call.nr & U32"),)),
    "pages-legacy": Defect(
        "upper half of pages counts outside 64-bit code",
        (("pages = call.a1 & mask", "pages = call.a1"),),
    ),
    "answer-legacy": Defect(
        "an error of 64 bits outside 64-bit code",
        ((_ALIGN, _ALIGN.replace("& mask", "& U64")),),
        TABLE,
    ),
    "attributes-word": Defect(
        "any attribute means private", (("bool(attributes & ENCRYPTED)", "bool(attributes)"),)
    ),
    "attributes-bit": Defect(
        "bit 0 means private", (("ENCRYPTED = 1 << 4", "ENCRYPTED = 1"),), TABLE
    ),
    # The contract
    "cpl-3": Defect("refuses CPL 3 only", (("if call.cpl:", "if call.cpl == 3:"),)),
    "cpl-late": Defect(
        "looks at the address before the CPL",
        (
            (_CPL, "pass\n"),
            (
                "first = gpa >> PAGE_SHIFT\n",
                "first = gpa >> PAGE_SHIFT\n        " + _CPL.rstrip() + "\n",
            ),
        ),
        TABLE,
    ),
    "number-13": Defect(
        "takes 13 for 12", (("if nr != MAP_GPA_RANGE:", "if nr not in (12, 13):"),)
    ),
    "align-2k": Defect("looks at 11 bits of the address", (("gpa & 0xFFF", "gpa & 0x7FF"),), TABLE),
    "empty-ok": Defect("0 pages succeed", ((_EMPTY, "if not pages:\n            return 0"),)),
    "wrap-ok": Defect("a wrapping range is taken", ((_WRAP, "pass\n"),), TABLE),
    "align-errno": Defect(
        "EFAULT for an address inside a page", ((_ALIGN, _ALIGN.replace("EINVAL", "14")),)
    ),
    # Words, slots, tables
    "word-full": Defect(
        "a full word loses its last page", ((_MASK, "mask = (1 << min(count, 63)) - 1 << bit"),)
    ),
    "word-first": Defect(
        "a page is skipped behind a first partial word",
        (("low += count", "low += count + (bit and bit + count == WORD)"),),
    ),
    "slot-end": Defect("the first slot is a page short", (("(0, half), (", "(0, half - 1), ("),)),
    "slot-second": Defect(
        "only the first slot of a range is converted", ((_SLOT, _SLOT + "\n                break"),)
    ),
    "slot-offset": Defect(
        "an address in the second slot counts from its start",
        (("self.record(low, high, private)", "self.record(low - start, high - start, private)"),),
        TABLE,
    ),
    "end-inclusive": Defect(
        "the last page is left out", (("high = min(end, stop)", "high = min(end - 1, stop)"),)
    ),
    "ram-end": Defect(
        "the last page of RAM is left out",
        (("min(first + pages, self.frames)", "min(first + pages, self.frames - 1)"),),
        TABLE,
    ),
    "table-tail": Defect(
        "a split range loses its tail",
        (("if stop > high:\n                    kept.append((max(start, high), stop))", "pass"),),
        TABLE,
    ),
    "table-head": Defect(
        "private in the middle keeps the head shared to the end",
        (("kept.append((start, min(stop, low)))", "kept.append((start, stop))"),),
        TABLE,
    ),
    "table-merge": Defect(
        "merging ranges forgets the new one's end",
        (("high = max(high, stop)", "high = stop"),),
        TABLE,
    ),
    "table-full": Defect(
        "the ninth range is dropped",
        (("if not private:\n", "if not private and len(kept) < 8:\n"),),
        TABLE,
    ),
    "large-leaf": Defect(
        "512 pages are 511",
        ((_COUNTED, _COUNTED + "        if pages == 512:\n            end -= 1\n"),),
        TABLE,
    ),
    "seventy-seven": Defect(
        "77 pages begin a page late",
        ((_COUNTED, _COUNTED + "        if pages == 77:\n            first += 1\n"),),
    ),
    # Repeat calls, deferred effects, reset, late errors
    "repeat-same": Defect(
        "a range converted just before is not converted again",
        ((_COUNTED, _COUNTED + "        if self.last == (first, end):\n            return 0\n"),),
    ),
    "third-call": Defect(
        "the third conversion is refused",
        ((_COUNTED, _COUNTED + "        if self.calls == 3:\n            return -ENOMEM\n"),),
        TABLE,
    ),
    "deferred": Defect(
        "to private happens at the next conversion",
        (
            (
                _COUNTED,
                _COUNTED + "        for late in self.late:\n            self.record(*late)\n"
                "        self.late = []\n",
            ),
            (
                _SLOT,
                "if low < high and private:\n                self.late.append((low, high, True))\n"
                "            elif low < high:\n                self.record(low, high, private)",
            ),
            ("self.last = None\n", "self.last = None\n        self.late = []\n"),
        ),
    ),
    "reset-record": Defect(
        "the record survives a reset",
        (("self.shared = []", "self.shared = getattr(self, 'shared', [])"),),
        TABLE,
    ),
    "reset-ready": Defect(
        "READY survives a reset",
        ((_RESET, "self.control = getattr(self, 'control', 0)\n        self.calls"),),
        BITMAP,
        MSR,
    ),
    "late-error": Defect(
        "more than 256 pages are converted and refused",
        ((_LAST, "if pages > 256:\n            return -ENOMEM\n        " + _LAST),),
    ),
    "slot-error": Defect(
        "a range over two slots fails half done",
        (
            (
                _SLOT,
                "if low < high and end > stop > first and stop < self.frames:\n"
                "                self.record(low, high, private)\n"
                "                return -EINVAL\n            " + _SLOT,
            ),
        ),
        TABLE,
    ),
    # MSR
    "msr-zero": Defect("RDMSR reads 0", (("return self.control\n", "return 0\n"),), TABLE, MSR),
    "msr-sticky": Defect(
        "READY cannot be taken back",
        (("self.control = value\n", "self.control |= value\n"),),
        BITMAP,
        MSR,
    ),
    "msr-reserved": Defect("bit 1 is taken", (("value & ~1", "value & ~3"),), TABLE, MSR),
    "msr-32": Defect("32 bits are tested", (("value & ~1", "value & U32 & ~1"),), BITMAP, MSR),
    # What a handler does besides being wrong
    "raises": Defect(
        "a range that starts beyond RAM raises",
        ((_COUNTED, _COUNTED + "        self.words[first // WORD]\n"),),
    ),
    "hangs": Defect(
        "a range that ends at a word's end and began in it never ends",
        (("low += count", "low += count if count < WORD else 0"),),
    ),
    "wrong-type": Defect(
        "an error is None",
        ((_EMPTY, "if not pages:\n            return None"),),
        TABLE,
    ),
    "every-500th": Defect(
        "every 500th conversion of the process is refused",
        (
            ('once for the process."""\n', 'once for the process."""\n        self.total = 0\n'),
            (
                _COUNTED,
                _COUNTED + "        self.total += 1\n        if self.total % 500 == 0:\n"
                "            return -ENOMEM\n",
            ),
        ),
    ),
    # Other kinds: vCPUs, widths, memory between calls, an exit handler's own
    "vcpu-ready": Defect(
        "READY is kept for each vCPU",
        (
            (_RESET, "self.control = 0\n        self.ready = {}\n        self.calls"),
            (_RDMSR, "return self.ready.get(vcpu.index, 0)\n"),
            (_WRMSR, _WRMSR + "        self.ready[vcpu.index] = value\n"),
        ),
        BITMAP,
        MSR,
    ),
    "vcpu-cache": Defect(
        "each vCPU remembers its last conversion and skips it",
        (
            (_RESET, "self.control = 0\n        self.told = {}\n        self.calls"),
            (
                _ANSWER,
                "told = first, pages, attributes\n        vcpu = call.vcpu.index\n"
                "        if self.told.get(vcpu) == told:\n            return 0\n"
                "        self.told[vcpu] = told\n        " + _ANSWER,
            ),
        ),
        TABLE,
    ),
    "vcpu-msr": Defect(
        "RDMSR serves vCPU 0 only",
        ((_RDMSR, "return self.control if not vcpu.index else 0\n"),),
        TABLE,
        MSR,
    ),
    "pages-signed": Defect(
        "the page count is signed",
        (
            (
                "end = min(first + pages, self.frames)",
                "end = min(first + (pages ^ 1 << 63) - (1 << 63), self.frames)",
            ),
        ),
    ),
    "cbit-kept": Defect(
        "address bits from 39 on are cut off",
        (("first = gpa >> PAGE_SHIFT", "first = (gpa & (1 << 39) - 1) >> PAGE_SHIFT"),),
        TABLE,
    ),
    "word-last": Defect(
        "a range that begins at the last bit of a word loses it",
        ((_MASK, _MASK + "\n            if bit == WORD - 1:\n                mask = 0"),),
    ),
    "toggles": Defect(
        "a shared range that is shared again becomes private",
        ((_SHARE, "self.words[index] ^= mask"),),
    ),
    "attributes-exact": Defect(
        "private only without a size in the attributes",
        (("bool(attributes & ENCRYPTED)", "attributes == ENCRYPTED"),),
        TABLE,
    ),
    "crosses-2m": Defect(
        "a range over a 2 MiB border ends there",
        (
            (
                _COUNTED,
                _COUNTED + "        if first % 512 and first // 512 != (end - 1) // 512:\n"
                "            end = first // 512 * 512 + 512\n",
            ),
        ),
    ),
    "error-sticks": Defect(
        "after a refusal the next conversion is refused",
        (
            (_EMPTY, _EMPTY.replace("return", "self.broken = True\n            return")),
            (_RESET, "self.control = 0\n        self.broken = False\n        self.calls"),
            (
                _COUNTED,
                _COUNTED + "        if self.broken:\n            self.broken = False\n"
                "            return -EINVAL\n",
            ),
        ),
        TABLE,
    ),
    "reset-cache": Defect(
        "the last range survives a reset and is not converted again",
        (
            ("self.last = None\n", "self.last = getattr(self, 'last', None)\n"),
            (
                _COUNTED,
                _COUNTED + "        if self.last == (first, end) and self.calls == 1:\n"
                "            return 0\n",
            ),
        ),
    ),
    "table-equal": Defect(
        "an entry that is made private as a whole stays",
        (
            (
                "elif private:\n",
                "elif private and (start, stop) == (low, high):\n"
                "                kept.append((start, stop))\n            elif private:\n",
            ),
        ),
        TABLE,
    ),
    "forty-three": Defect(
        "43 or more pages at a page number of 1,234 or more are refused",
        (
            (
                _COUNTED,
                _COUNTED + "        if first >= 1234 and pages >= 43 and first < self.frames:\n"
                "            return -ENOMEM\n",
            ),
        ),
    ),
    "ready-bool": Defect(
        "migration_ready is the MSR, not a bool",
        (("return bool(self.control & 1)", "return self.control & 1 or False"),),
        BITMAP,
        MSR,
    ),
    "no-punch": Defect("shared frames keep their private pages", ((_PUNCH, "0"),), HANDLER),
    "no-discard": Defect(
        "private frames keep their shared copies from the second page on",
        ((_DISCARD, _DISCARD.replace("length", "4096")),),
        HANDLER,
    ),
    "madvise-all": Defect(
        "the whole slot's shared copies are discarded",
        ((_DISCARD, _DISCARD.replace("offset, length", "0, slot.size")),),
        HANDLER,
    ),
    "punch-all": Defect(
        "the whole slot's private pages are freed",
        (
            (
                _PUNCH,
                "self.memory.fallocate(number, PUNCH, slot.memfd_offset, slot.size)",
            ),
        ),
        HANDLER,
    ),
    "punch-error": Defect(
        "the file offset is counted from GPA 0",
        ((_PUNCH, _PUNCH.replace("offset + slot.memfd_offset", "start")),),
        HANDLER,
    ),
    "first-slot": Defect(
        "only the first slot of a range is freed",
        (
            (
                "            if error:\n                return error\n        return 0",
                "            return error\n        return 0",
            ),
        ),
        HANDLER,
    ),
    "handler-word": Defect(
        "any attribute means private",
        (("bool(attributes & PRIVATE)", "bool(attributes)"),),
        HANDLER,
    ),
    "handler-errno": Defect(
        "a positive errno for a range without memory",
        (("return -EINVAL  # no memory", "return EINVAL"),),
        HANDLER,
    ),
    "handler-chunks": Defect(
        "what is left behind the last whole 512 pages is not converted",
        ((_ATTRIBUTES, "if pages > 512:\n            size &= ~0x1FFFFF\n        " + _ATTRIBUTES),),
        HANDLER,
    ),
    "handler-size": Defect(
        "the size is cut to 32 bits",
        (("size = pages << PAGE_SHIFT", "size = pages << PAGE_SHIFT & 0xFFFFFFFF"),),
        HANDLER,
    ),
}

CONTROL = {
    "end-32": Defect(
        "the end is cut to 32 bits",
        (("end = min(first + pages, self.frames)", "end = min(first + pages & U32, self.frames)"),),
    ),
    "word-fourth": Defect(
        "a range covers three words at most",
        (
            ("while low < high:\n", "for _ in range(3):\n"),
            (
                "count = min(high - low, WORD - bit)",
                "count = min(high - low, WORD - bit)\n            if count <= 0:\n"
                "                break",
            ),
        ),
    ),
    "table-gap": Defect(
        "a split range's tail begins a page late",
        (("kept.append((max(start, high), stop))", "kept.append((max(start, high) + 1, stop))"),),
        TABLE,
    ),
    "vcpu-limit": Defect(
        "the second vCPU converts four pages at most",
        (
            (
                _CONVERT,
                "if call.vcpu.index and pages > 4:\n            pages = 4\n        " + _CONVERT,
            ),
        ),
        TABLE,
    ),
    "sixth-call": Defect(
        "from the sixth conversion on the second slot is ignored",
        ((_SLOT, "if self.calls > 5 and start:\n                continue\n            " + _SLOT),),
    ),
    "adjacent": Defect(
        "a range behind the last one gets its status",
        (
            (
                _COUNTED,
                _COUNTED + "        if self.last and self.last[1] == first:\n"
                "            private = self.status\n        self.status = private\n",
            ),
        ),
        TABLE,
    ),
    "msr-63": Defect(
        "bit 63 is not tested", (("value & ~1", "value & ~1 & U64 >> 1"),), BITMAP, MSR
    ),
    "cpl-legacy": Defect(
        "EPERM of 64 bits outside 64-bit code", ((_CPL, _CPL.replace("& mask", "& U64")),), TABLE
    ),
    "one-page": Defect(
        "a single private page keeps its shared copy",
        ((_DISCARD, f"pages > 1 and {_DISCARD}"),),
        HANDLER,
    ),
    "part-word": Defect(
        "attributes are set for the first slot's part only",
        (
            (
                _ATTRIBUTES,
                "size = next(self.memory.parts(gpa, size))[3]\n        " + _ATTRIBUTES,
            ),
        ),
        HANDLER,
    ),
}
"""Written last. `end-32` and `adjacent` were each more than one finding, which was repaired: they
are no control of what came later."""

PAIRS = (
    ("align-errno", "word-full"),
    ("cpl-3", "pages-32"),
    ("empty-ok", "late-error"),
    ("number-13", "large-leaf"),
    ("attributes-bit", "slot-offset"),
    ("number-32", "attributes-word"),
    ("end-inclusive", "seventy-seven"),
    ("wrap-ok", "table-tail"),
    ("raises", "word-first"),
    ("msr-reserved", "msr-sticky"),
)


def find(name: str) -> Defect:
    """A defect by its name."""
    return DEFECTS.get(name) or CONTROL[name]


def correct(*names: str) -> Path:
    """The file that these defects change."""
    is_handler = any(find(name).host == HANDLER for name in names)
    return CORRECT_HANDLER if is_handler else CORRECT


def source(*names: str) -> str:
    """The file with these defects."""
    text = correct(*names).read_text()
    for name in names:
        for old, new in find(name).edits:
            if text.count(old) != 1:
                raise AssertionError(f"{name}: {old!r} stands {text.count(old)} times")
            text = text.replace(old, new)
    return text


def write(directory: Path, *names: str) -> str:
    """Writes that file; returns the host to name."""
    path = directory / f"{'_'.join(names).replace('-', '_')}.py"
    path.write_text(source(*names))
    return f"{path}:{find(names[-1]).host}"


def changed_lines(*names: str) -> set[int]:
    """The lines that differ from the correct file, and for lines taken away the neighbours."""
    import difflib

    before, after = correct(*names).read_text().splitlines(), source(*names).splitlines()
    found: set[int] = set()
    for tag, _, _, start, end in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if tag == "delete":
            found |= {start, start + 1}
        elif tag != "equal":
            found |= set(range(start + 1, end + 1))
    return found
