# SPDX-License-Identifier: GPL-2.0-or-later
"""The KVM of a real kernel as a partner: batches of steps in, replies out.

A machine that dies, hangs or is killed is started again; what it was doing is told by `LiveKvm.run`
as a `MachineEnded` with the number of the step, and the next batch finds a new machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from guestemu.abi.errors import InputError, MissingError
from guestemu.oracle import wire
from guestemu.oracle.harness_build import build_init
from guestemu.oracle.image import TestedKernel, initramfs
from guestemu.oracle.qemu import TCG, Accelerator, MachineEnded, Qemu, splats

BATCH_S: Final = 60.0
"""A batch that makes no progress for half of that, and has taken all of it, hangs."""


class Replies(msgspec.Struct, frozen=True):
    """The replies to a batch, and lines in which the kernel complained meanwhile."""

    data: bytes
    count: int
    splats: tuple[str, ...] = ()

    def __getitem__(self, index: int) -> memoryview:
        size = wire.REPLY_BYTES
        return memoryview(self.data)[index * size : (index + 1) * size]


class LiveKvm:
    """The machine that runs `kernel`. Raises `MissingError` without QEMU, a compiler or nested SVM,
    `MachineEnded` where the kernel does not come up."""

    def __init__(
        self, kernel: TestedKernel, accelerator: Accelerator = TCG, *, batch_s: float = BATCH_S
    ) -> None:
        self.kernel = kernel
        self.starts = 0
        self._accelerator = accelerator
        self._batch_s = batch_s
        self._archive = initramfs(build_init()[0], kernel.modules)
        self._configs: dict[int, bytes] = {}
        self._qemu: Qemu | None = None
        self._seen = 0
        self._pending = 0
        self.tape: list[bytes] | None = None
        """What was posted, for `play`, where it is not None."""
        self.machine = self._start()

    def _start(self) -> wire.MachineFacts:
        self._qemu = qemu = Qemu(self.kernel.kernel, self._archive, self._accelerator)
        self.starts += 1
        self.start_up = qemu.start_up
        machine = wire.read_machine(qemu.memory[: wire.CONFIGS_AT])
        if machine is None:
            self.close()
            raise MachineEnded("/init speaks another protocol; `guestemu cache clear oracle`")
        if machine.kvm:
            self.close()
            raise MissingError(_no_kvm(self.kernel, machine))
        self._seen = qemu.console_size
        for slot, config in self._configs.items():
            self._write_config(qemu, slot, config)
        return machine

    @property
    def pid(self) -> int:
        """The id of QEMU's process; 0 when it does not run."""
        return 0 if self._qemu is None else self._qemu.pid

    @staticmethod
    def _write_config(qemu: Qemu, slot: int, config: bytes) -> None:
        at = wire.CONFIGS_AT + slot * wire.CONFIG.size
        qemu.memory[at : at + len(config)] = config

    def set_config(self, slot: int, config: bytes) -> None:
        """How VMs of `slot` are made from now on."""
        if not 0 <= slot < wire.SLOTS or len(config) != wire.CONFIG.size:
            raise InputError(f"slot {slot}: there are {wire.SLOTS} slots")
        self._configs[slot] = config
        if self._qemu is not None:
            self._write_config(self._qemu, slot, config)

    def post(self, requests: Sequence[bytes]) -> None:
        """Starts a batch of at most `wire.CAPACITY` steps; `take` waits for it."""
        if len(requests) > wire.CAPACITY:
            raise InputError(f"{len(requests)} steps in a batch; {wire.CAPACITY} at most")
        if self._qemu is None:
            self.machine = self._start()
        qemu = self._qemu
        if qemu is None:
            raise MachineEnded("the machine did not start")
        blob = b"".join(requests)
        if self.tape is not None:
            count = len(requests).to_bytes(4, "little")
            self.tape.append(qemu.memory[wire.CONFIGS_AT : wire.CONFIGS_END] + count + blob)
        qemu.memory[wire.REQUESTS_AT : wire.REQUESTS_AT + len(blob)] = blob
        self._pending = len(requests)
        qemu.post(self._pending)

    def take(self, tell: Callable[[], None] | None = None) -> Replies:
        """The replies to what was posted. Raises `MachineEnded`; the next batch starts anew."""
        qemu = self._qemu
        if qemu is None:
            raise MachineEnded("the machine is not running")
        try:
            qemu.wait(self._batch_s, tell)
        except MachineEnded:
            self.close()
            raise
        size = self._pending * wire.REPLY_BYTES
        data = qemu.memory[wire.REPLIES_AT : wire.REPLIES_AT + size]
        end = qemu.console_size
        complaints: tuple[str, ...] = ()
        if end != self._seen:
            complaints = splats(qemu.console(self._seen))
            self._seen = end
        return Replies(data, self._pending, complaints)

    def run(self, requests: Sequence[bytes]) -> Replies:
        """`post` and `take`."""
        self.post(requests)
        return self.take()

    def play(self, tape: Sequence[bytes], program: Path) -> float:
        """Has the C client `program` post the batches of `tape`; the seconds it took for all but
        the first. Raises `MissingError` where it does not run."""
        qemu = self._qemu
        if qemu is None:
            raise MachineEnded("the machine is not running")
        head = (wire.CONFIGS_END - wire.CONFIGS_AT).to_bytes(4, "little")
        return qemu.play(head + b"".join(tape), program)

    def console(self) -> str:
        """What the kernel has printed since it was started."""
        return "" if self._qemu is None else self._qemu.console()

    def close(self) -> None:
        """Ends the machine."""
        qemu, self._qemu = self._qemu, None
        if qemu is not None:
            qemu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _no_kvm(kernel: TestedKernel, machine: wire.MachineFacts) -> str:
    names = ("irqbypass.ko", "ccp.ko", "kvm.ko", "kvm-amd.ko")
    failed = [
        f"{name}: errno {-result}"
        for name, result in zip(names, machine.modules, strict=True)
        if result < 0
    ]
    why = ", ".join(failed) or "no module was loaded and KVM is not built in"
    return (
        f"{kernel.name}: {machine.release} has no /dev/kvm under QEMU ({why}); the modules must be "
        "those of this kernel, and QEMU must emulate SVM"
    )
