# SPDX-License-Identifier: GPL-2.0-or-later
"""A host's SEV side of KVM and a VM's: ASIDs, pinned pages, the firmware call.

Source: arch/x86/kvm/svm/sev.c (Linux 7.1), struct kvm_sev_info, sev_asid_new, sev_pin_memory,
sev_bind_asid, sev_unbind_asid, sev_issue_cmd. Facts E20 to E28.
"""

from __future__ import annotations

import enum

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U64_MASK
from guestemu.abi.errno import EBADF, EBUSY, EFAULT, EINVAL, EIO, ENOMEM
from guestemu.abi.sev_firmware import FW_BLOB_MAX, Command, PlatformState, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    HandleBuffer,
    InitBuffer,
    Nothing,
)
from guestemu.host.firmware.dispatch import execute
from guestemu.host.firmware.kvm_memory import KernelHeap, UserFault, UserMemory
from guestemu.host.firmware.kvm_params import SevCmd
from guestemu.host.firmware.platform import Platform

_INT_MAX = 0x7FFF_FFFF


class KernelError(Exception):
    """A handler ends with -`errno`."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class SevDefect(enum.Enum):
    """Historic defects, off by default (the behaviour of Linux 7.1)."""

    LENGTH_OVERFLOW = "length-overflow"
    """M13: guest_len + offset is added in 32 bits before the page-cross test."""

    MISSING_DECOMMISSION = "missing-decommission"
    """M14, CVE-2021-47389: RECEIVE_START leaks the handle where no ASID could be bound."""

    UNINITIALISED_TAIL = "uninitialised-tail"
    """M15: SEND_UPDATE_DATA's buffers are not zeroed; the tail shows old kernel memory."""

    READ_ONLY_PIN = "read-only-pin"
    """M16: RECEIVE_UPDATE_DATA pins its target for read: the firmware may write the zero page."""

    MISSING_CLFLUSH = "missing-clflush"
    """Pages are not flushed before the firmware writes them, nor when they are registered (E32)."""

    MISSING_RECLAIM_FLUSH = "missing-reclaim-flush"
    """M19, CVE-2022-0171: nothing is flushed when guest memory goes back to the host."""

    MIRROR_SOURCE_UNLOCKED = "mirror-source-unlocked"
    """M27, 5.15 (F2): COPY_ENC_CONTEXT_FROM reads the source, drops its lock, then installs."""

    MIRROR_NO_COMMANDS = "mirror-no-commands"
    """M28, before "Allow some commands for mirror VM": a mirror may issue none."""

    MIRROR_ALL_COMMANDS = "mirror-all-commands"
    """M28, the other way: no test which command a mirror issues."""

    MIRROR_OF_SNP = "mirror-of-snp"
    """M30, before 7.1.5: the context of an SNP VM may be copied and moved."""

    MOVE_DURING_VCPU_CREATION = "move-during-vcpu-creation"
    """M23, CVE-2025-38455: MOVE_ENC_CONTEXT_FROM while a vCPU is being created."""


class KvmConfig(msgspec.Struct, frozen=True):
    """Module parameters and limits: SEV kinds enabled, ASIDs below `min_asid` are for SEV-ES
    (CPUID 0x8000001F EDX), RLIMIT_MEMLOCK in pages (None: unlimited), /dev/sev's descriptor."""

    has_sev: bool = True
    has_es: bool = True
    has_snp: bool = False
    min_asid: int = 100
    max_asid: int = 509
    memlock_pages: int | None = None
    sev_fd: int = 3
    defects: frozenset[SevDefect] = frozenset()


class KvmSevHost:
    """One host: its firmware, its user space and its pool of ASIDs."""

    def __init__(
        self,
        platform: Platform,
        user: UserMemory,
        heap: KernelHeap,
        config: KvmConfig | None = None,
    ) -> None:
        self.platform = platform
        self.user = user
        self.heap = heap
        self.config = config or KvmConfig()
        self.flushed: list[int] = []
        """System-physical addresses of pages flushed with CLFLUSH, in order."""
        self._used: set[int] = set()
        self._reclaim: set[int] = set()

    def init_platform(self) -> Status:
        """sev_platform_init: INIT, then WBINVD and DF_FLUSH for the first guest."""
        platform = self.platform
        if platform.state is not PlatformState.UNINIT:
            return Status.SUCCESS
        status = execute(platform, Command.INIT, InitBuffer(self.config.has_es))
        if status is Status.SUCCESS:
            self.flush_asids()
        return status

    def flush_asids(self) -> None:
        """sev_flush_asids: WBINVD on all cores and DF_FLUSH."""
        self.wbinvd()
        execute(self.platform, Command.DF_FLUSH, Nothing())

    def new_asid(self, es: bool) -> int:
        """sev_asid_new: the lowest free ASID of the kind; freed ones after a flush; -EBUSY."""
        config = self.config
        asids = range(1, config.min_asid) if es else range(config.min_asid, config.max_asid + 1)
        for _attempt in range(2):
            for asid in asids:
                if asid not in self._used:
                    self._used.add(asid)
                    return asid
            self.flush_asids()
            self._used -= self._reclaim
            self._reclaim = set()
        raise KernelError(EBUSY)

    def free_asid(self, asid: int) -> None:
        """sev_asid_free: to be used again after the next flush."""
        self._reclaim.add(asid)

    def flush_pages(self, pages: list[int]) -> None:
        """sev_clflush_pages."""
        if SevDefect.MISSING_CLFLUSH in self.config.defects:
            return
        self.flushed += pages
        for page in pages:
            self.platform.memory.flush(page, PAGE_SIZE)

    def wbinvd(self) -> None:
        """WBINVD on all cores."""
        self.platform.asids.wbinvd()
        self.platform.memory.write_back_all()

    def memory_reclaimed(self) -> None:
        """sev_guest_memory_reclaimed: pages of a SEV guest go back to the host; their lines with
        the C-bit must not be written over what the host puts there."""
        if SevDefect.MISSING_RECLAIM_FLUSH not in self.config.defects:
            self.wbinvd()

    def flush_encrypted_page(self, page: int) -> None:
        """sev_flush_encrypted_page: one page's lines with the C-bit, by the MSR VM_PAGE_FLUSH."""
        self.platform.memory.flush(page, PAGE_SIZE, private=True)

    def copy_blob(self, uaddr: int, size: int) -> bytes:
        """psp_copy_user_blob: -EINVAL for NULL, 0 and more than 16 KiB, -EFAULT."""
        if not uaddr or not size or size > FW_BLOB_MAX:
            raise KernelError(EINVAL)
        return self.copy_in(uaddr, size)

    def copy_in(self, uaddr: int, size: int) -> bytes:
        """copy_from_user, or -EFAULT."""
        try:
            return self.user.read(uaddr, size)
        except UserFault:
            raise KernelError(EFAULT) from None

    def copy_out(self, uaddr: int, data: bytes) -> None:
        """copy_to_user, or -EFAULT."""
        try:
            self.user.write(uaddr, data)
        except UserFault:
            raise KernelError(EFAULT) from None


class PinnedRange(msgspec.Struct, frozen=True):
    """A registered range of host virtual memory and the pages it pinned."""

    uaddr: int
    size: int
    pages: list[int]


class SevVcpu(msgspec.Struct):
    """What SEV keeps of a vCPU: whether it has an encrypted save area (made at its creation in a
    SEV-ES VM) and whether the firmware encrypted it (guest_state_protected)."""

    has_vmsa: bool = False
    is_protected: bool = False


class WouldBlock(Exception):
    """The caller would sleep until another one releases kvm->lock."""


class KvmSevVm:
    """struct kvm_sev_info of one VM. `owner` is the VM whose context a mirror shares.

    `users` counts references (struct kvm's users_count): the descriptor and each mirror hold one,
    the last `put` destroys the VM. `is_dead` is kvm->vm_bugged and vm_dead: ioctls give -EIO.
    """

    def __init__(self, host: KvmSevHost) -> None:
        self.host = host
        self.is_sev = False
        self.is_es = False
        self.is_snp = False
        self.asid = 0
        self.handle = 0
        self.fd = 0
        self.owner: KvmSevVm | None = None
        self.mirrors: list[KvmSevVm] = []
        self.users = 1
        self.is_dead = False
        self.is_locked = False
        self.is_migrating = False
        self.created_vcpus = 0
        self.vcpus: list[SevVcpu] = []
        self.pages_locked = 0
        self.regions: list[PinnedRange] = []

    def call(self, cmd: SevCmd, fd: int, command: Command, buffer: CommandBuffer) -> int:
        """__sev_issue_cmd: 0, or -EIO with the firmware's status in `cmd.error`; -EBADF where `fd`
        is not /dev/sev."""
        if fd != self.host.config.sev_fd:
            return -EBADF
        status = execute(self.host.platform, command, buffer)
        cmd.error = status & 0xFFFF_FFFF
        return -EIO if status else 0

    def issue(self, cmd: SevCmd, command: Command, buffer: CommandBuffer) -> int:
        """sev_issue_cmd: with the descriptor of LAUNCH_START or RECEIVE_START (-EBADF before)."""
        return self.call(cmd, self.fd, command, buffer)

    def bind(self, cmd: SevCmd, handle: int) -> int:
        """sev_bind_asid: ACTIVATE with the VM's ASID."""
        return self.call(cmd, cmd.sev_fd, Command.ACTIVATE, ActivateBuffer(handle, self.asid))

    def decommission(self, handle: int) -> None:
        """sev_decommission: errors are ignored."""
        if handle:
            execute(self.host.platform, Command.DECOMMISSION, HandleBuffer(handle))

    def unbind(self, handle: int) -> None:
        """sev_unbind_asid: DEACTIVATE and DECOMMISSION."""
        if handle:
            execute(self.host.platform, Command.DEACTIVATE, HandleBuffer(handle))
            self.decommission(handle)

    def pin(self, uaddr: int, size: int, write: bool) -> list[int]:
        """sev_pin_memory: -EINVAL for an empty or wrapping range, -ENOMEM beyond RLIMIT_MEMLOCK or
        where a page cannot be pinned. Short pins also count against the limit."""
        if not size or uaddr + size > U64_MASK:
            raise KernelError(EINVAL)
        count = (uaddr + size - 1 >> PAGE_SHIFT) - (uaddr >> PAGE_SHIFT) + 1
        limit = self.host.config.memlock_pages
        if count > _INT_MAX:
            raise KernelError(EINVAL)
        if limit is not None and self.pages_locked + count > limit:
            raise KernelError(ENOMEM)
        first = uaddr & ~PAGE_MASK
        user = self.host.user
        try:
            pages = [user.pin(first + index * PAGE_SIZE, write) for index in range(count)]
        except UserFault:
            raise KernelError(ENOMEM) from None
        self.pages_locked += count
        return pages

    def unpin(self, pages: list[int]) -> None:
        """sev_unpin_memory."""
        self.pages_locked -= len(pages)

    def put(self) -> None:
        """kvm_put_kvm: gives one reference back, the last one destroys the VM."""
        self.users -= 1
        if not self.users:
            self.destroy()

    def destroy(self) -> None:
        """sev_vm_destroy: regions, then the firmware's guest, then the ASID; a mirror owns none and
        gives its reference to the owner back."""
        for region in self.regions:
            self.unpin(region.pages)
        self.regions = []
        if self.is_sev and self.owner is None:
            self.unbind(self.handle)
            self.host.free_asid(self.asid)
        self.is_sev = False
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.mirrors.remove(self)
            owner.put()
