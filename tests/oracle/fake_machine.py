# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of QEMU: a process that speaks /init's side of the channel, with the model as its KVM.

`defect` names what is wrong with it: "alignment" (unaligned addresses reach user space),
"alignment-end" (besides, a hypercall with address 0 ends the guest), "panic", "warning" and "hang"
at hypercall 77, "hole" (punching leaves the pages), "plain" (no protected VMs), "garbage" (replies
of random bytes), "exit" (ends at once). With "kcov" the first step of each mode reaches new code.
"""

import mmap
import os
import random
import re
import struct
import sys
import time

from guestemu.conformance.recordings.recording import (
    Answer,
    Cpuid,
    Filter,
    Hex,
    HypercallEvent,
    ImmediateEvent,
    Inputs,
    RdmsrEvent,
    RecordedOutcome,
    StepOp,
    WrmsrEvent,
)
from guestemu.host.kvm.kernels import KERNELS
from guestemu.oracle import steps, wire
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.matrix import MODES, Act, config
from guestemu.oracle.wire import ConfigFlag, WireOp

RELEASE = "6.1.0-99-fake"
_CAPS = (0, 0, 0, 0, 0, 3, 8, 1)
_OPS = {number: op for op, number in steps._OPS.items()}
_ENDS = {text: int(end) for end, text in steps._ENDS.items()}


def unpack_config(record):
    values = wire.CONFIG.unpack(record)
    flags = ConfigFlag(values[0])
    return config(
        exits=values[7] if ConfigFlag.EXIT in flags else None,
        cpuid=tuple(Cpuid)[values[1]],
        features=values[5],
        enforce=int(ConfigFlag.ENFORCE in flags),
        irqchip=int(ConfigFlag.IRQCHIP in flags),
        user_msr=values[6] if ConfigFlag.USER_MSR in flags else None,
        msr_filter=tuple(Filter)[values[2]],
        late=int(ConfigFlag.EXIT_LATE in flags),
        quirks=values[8] if ConfigFlag.QUIRKS in flags else None,
        read_only=int(ConfigFlag.READ_ONLY in flags),
        ignore_msrs=int(ConfigFlag.IGNORE_MSRS in flags),
        protected=int(ConfigFlag.PROTECTED in flags),
    ), values[3]


def unpack_act(values):
    op = _OPS[values[0]]
    rax, rbx, rcx, rdx, rsi, ret = (Hex(word) for word in values[9:])
    answer = tuple(Answer)[values[4]]
    if op.is_hypercall:
        inputs = Inputs(rax=rax, rbx=rbx, rcx=rcx, rdx=rdx, rsi=rsi, answer=answer, ret=ret)
    elif op in (StepOp.SET_SLOT, StepOp.CREATE_MEMFD) or op.is_memory:
        inputs = Inputs(rax=rax, rbx=rbx, rcx=rcx, rdx=rdx, rsi=rsi)
    else:
        inputs = Inputs(msr=rcx, val=rax, answer_error=values[7], answer_data=ret)
    return Act(op=op, inputs=inputs, mode=MODES[values[1]], cpl=values[2], vcpu=values[3])


def pack_event(event):
    match event:
        case HypercallEvent():
            words = (event.nr, *event.args, event.ret_at_exit, event.longmode_u32, event.pad_u32)
            return wire.EVENT.pack(1, 0, *words, event.rip_off, event.rax_at_exit)
        case ImmediateEvent():
            nr = event.rc & (1 << 64) - 1
            return wire.EVENT.pack(2, event.errno, nr, *(0,) * 9, event.rip_off, event.rax)
        case RdmsrEvent() | WrmsrEvent():
            kind = 3 if isinstance(event, RdmsrEvent) else 4
            words = (event.index, *(0,) * 6, event.data, event.error_at_exit, 0, event.rip_off, 0)
            return wire.EVENT.pack(kind, event.reason, *words)


def pack_reply(vm, events, out, covered=0):
    if out.outcome in ("memory_fault", "mmio"):
        end, rc = wire.End.OTHER_EXIT, 0
    elif out.ioctl is not None:
        end, rc = wire.End.IOCTL, out.ioctl
    elif out.outcome == "set_sregs_failed":
        end, rc = wire.End.SREGS_REFUSED, out.rc
    else:
        end, rc = _ENDS[out.outcome], 0
    if out.outcome in ("memory_fault", "mmio"):
        out = access_exit(out)
    setup = (vm.rc.exit, vm.rc.cpuid, vm.rc.enforce, vm.rc.umsr, vm.rc.filter, vm.rc.quirk)
    code = bytes.fromhex(out.code_patched_to or "").ljust(4, b"\0")
    reason = -1 if out.exit_reason is None else out.exit_reason
    if out.outcome == "done" and out.rax is None:
        import msgspec

        out = msgspec.structs.replace(out, rax=out.data)
    head = wire.REPLY.pack(
        *(int(end), len(events), out.vector or 0, 0, rc, reason, out.info or 0, out.rax or 0),
        *(out.rdx or 0, out.rip_off or 0, out.fault_rip_off or 0, out.errcode or 0, out.cr2 or 0),
        *(out.data or 0, out.hw or 0, code),
        *(*setup, covered),
    )
    return (head + b"".join(map(pack_event, events))).ljust(wire.REPLY_BYTES, b"\0")


def access_exit(out):
    """The fields of a reply in which /init has an exit of an access."""
    import msgspec

    if out.outcome == "mmio":
        return msgspec.structs.replace(out, exit_reason=6)
    return msgspec.structs.replace(out, exit_reason=39, cr2=out.rax)


class Machine:
    def __init__(self, channel, console, defect):
        self.memory = mmap.mmap(channel, wire.CHANNEL_BYTES)
        self.console = console
        self.defect = defect
        self.vms = {}
        self.modes = set()
        name, build = RELEASE.encode(), b"#1 fake"
        caps = (0,) * 8 if defect == "plain" else _CAPS
        numbers = (wire.VERSION, wire.BOOTING, 0, 0, 0, 0, 1, 0, 0, 0, *caps, 0, 40, 0)
        self.memory[: wire.HEADER.size] = wire.HEADER.pack(
            wire.MAGIC, *numbers, *(0,) * 16, name, build
        )
        self.state(wire.IDLE)

    def say(self, text):
        os.write(self.console, text.encode())

    def state(self, value):
        struct.pack_into("<I", self.memory, wire.STATE_AT, value)

    def number(self, at):
        return struct.unpack_from("<I", self.memory, at)[0]

    def serve(self):
        while True:
            if self.number(wire.STATE_AT) != wire.REQUESTED:
                time.sleep(0.0002)
                continue
            for index in range(self.number(wire.COUNT_AT)):
                struct.pack_into("<I", self.memory, wire.DONE_AT, index)
                at = wire.REPLIES_AT + index * wire.REPLY_BYTES
                self.memory[at : at + wire.REPLY_BYTES] = self.step(index)
            self.state(wire.IDLE)

    def step(self, index):
        at = wire.REQUESTS_AT + index * wire.REQUEST.size
        values = wire.REQUEST.unpack_from(self.memory, at)
        flags, slot = values[5], values[6]
        if values[0] == WireOp.DROP:
            self.vms.pop(slot, None)
            return bytes(wire.REPLY_BYTES)
        if flags & wire.FRESH or slot not in self.vms:
            at = wire.CONFIGS_AT + slot * wire.CONFIG.size
            cfg, vcpus = unpack_config(self.memory[at : at + wire.CONFIG.size])
            self.vms[slot] = DirectVm(cfg, KERNELS["6.1"], vcpus or 1)
        act = unpack_act(values)
        if act.op.is_hypercall and act.inputs.rax == 77 and not act.cpl:
            self.go_wrong()
        if self.defect == "garbage":
            return random.Random(index).randbytes(wire.REPLY_BYTES)
        vm = self.vms[slot]
        if self.defect.startswith("alignment") and act.op is StepOp.VMMCALL:
            if self.defect == "alignment-end" and act.inputs.rbx == 0:
                return pack_reply(vm, (), RecordedOutcome(outcome="shutdown"))
            if act.inputs.rbx & 0x800:
                act = self.realigned(act)
        memory = vm._hosts[0]._script.memory
        before = dict(memory._private) if self.defect == "hole" and memory else None
        is_new = self.defect == "kcov" and act.mode not in self.modes
        self.modes.add(act.mode)
        reply = pack_reply(vm, *vm.do(act), covered=7 * is_new)
        if before is not None and act.op is StepOp.FALLOCATE:
            memory._private = before
        return reply

    def realigned(self, act):
        """Bit 11 of the address does not count for this KVM."""
        import msgspec

        inputs = msgspec.structs.replace(act.inputs, rbx=Hex(act.inputs.rbx & ~0x800))
        return msgspec.structs.replace(act, inputs=inputs)

    def go_wrong(self):
        if self.defect == "panic":
            self.say(
                "WARNING: x86.c:7 at f+0x1/0x2\n"
                "BUG: unable to handle page fault for address: 0\nKernel panic - not syncing\n"
            )
            sys.exit(0)
        if self.defect == "warning":
            self.say("WARNING: CPU: 0 PID: 1 at arch/x86/kvm/x86.c:1 kvm_fake+0x1/0x2\n")
        if self.defect == "hang":
            time.sleep(3600)


def main(defect):
    words = " ".join(sys.argv)
    if "--version" in sys.argv:
        print("QEMU emulator version 0.0-fake")
        return
    if defect == "exit":
        sys.exit("no machine today")
    channel = os.open(re.search(r"mem-path=(/dev/fd/\d+)", words)[1], os.O_RDWR)
    console = os.open(re.search(r"path=(/dev/fd/\d+)", words)[1], os.O_WRONLY | os.O_APPEND)
    Machine(channel, console, defect).serve()
