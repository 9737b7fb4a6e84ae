# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest under a policy, its host, the checks and the injector: made once for each policy."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gpa
from guestemu.checks.base import Check
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.guest.base import Guest
from guestemu.guest.registry import SNIPPET_STATUS, GuestSettings, load_guest
from guestemu.guest.snippet.elf import load_snippet
from guestemu.guest.snippet.guest import SnippetGuest, image_name
from guestemu.host.base import Host
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.links import plain_link
from guestemu.runner.migration_operations import DESTINATION_KEY
from guestemu.runner.testbed import Testbed
from guestemu.study.ledger.code import GENERATION, POLICY_WORD, load_policy_code
from guestemu.study.ledger.host import LedgerHost
from guestemu.study.ledger.injector import Injector, guest_symbols
from guestemu.study.ledger.policies import LedgerRow

MEMORY: Final = 32
"""MiB of a guest of our own code."""

KERNEL_MEMORY: Final = 128
"""MiB of a real kernel."""

CBIT: Final = 39
BUDGET: Final = 100_000
"""Basic blocks of an operation of our own code; the longest, a memset of 64 pages, needs 32 768."""

_SNIPPET: Final = "snippet:"


class Rig:
    """`bed` and `injector` of one policy. `can_migrate`: the whole guest moves; for a real kernel
    its pages do (`carry`), and so for SNP guests and TDs."""

    def __init__(self, policy: LedgerRow) -> None:
        self.policy = policy
        self.host = LedgerHost()
        self.can_migrate = not policy.is_kernel and policy.sev == "sev"
        guest, symbols = _guest(policy, None)
        self.bed = Testbed(
            guest,
            self.host,
            _checks(),
            (lambda: _destination(policy)) if self.can_migrate else None,
        )
        self.injector = Injector(guest, self.host, guest_symbols(guest, symbols))
        self._guest = guest
        self._other: Machine | None = None

    def carry(self, frames: set[int]) -> Machine:
        """Sends frames to another machine under another key, each by the host's record."""
        source = self._guest.machine
        if self._other is None:
            config = msgspec.structs.replace(
                source.config, key=DESTINATION_KEY, defer_memory_hooks=False
            )
            self._other = Machine(config)
            self._other.checkpoint()
        self._other.rollback()
        link = plain_link(source.ram, self._other.ram)
        record = self.host.private_map()
        for gfn in sorted(frames):
            link.deliver(link.send(Gfn(gfn), bool(record[gfn])))
        return self._other

    def close(self) -> None:
        """Frees both ends."""
        self.bed.reset()
        self.bed.close()
        if self._other is not None:
            self._other.close()


def _checks() -> tuple[Check, ...]:
    """The oracles that need no word from guest or VMM (H.4 items 1, 2, 6; A14, A26c)."""
    return (ProgressCheck(), MappingCheck(), ConversionCheck(), ReadyCheck(), FreePagesCheck())


def _destination(policy: LedgerRow) -> tuple[Guest, Host]:
    return _guest(policy, DESTINATION_KEY)[0], LedgerHost()


def _guest(policy: LedgerRow, key: bytes | None) -> tuple[Guest, dict[str, int]]:
    """The policy's guest, and the symbols of its code if that is ours."""
    if policy.is_kernel:
        settings = GuestSettings(policy.guest, CBIT, KERNEL_MEMORY, 1, BUDGET, True, policy.sev)
        return load_guest(settings), {}
    generation = policy.guest.removeprefix(_SNIPPET) or GENERATION
    config = MachineConfig(
        frames=MEMORY << 20 >> PAGE_SHIFT,
        cbit=CBIT,
        sev_status=SNIPPET_STATUS[policy.sev],
        tdx=policy.sev == "tdx",
    )
    if key is not None:
        config = msgspec.structs.replace(config, key=key)
    own = load_snippet(image_name(generation, config)) if policy.guest else None
    image = own or load_policy_code()
    guest = SnippetGuest(generation, config, BUDGET, image)
    if own is None:
        guest.machine.ram.write_u64(Gpa(image.symbols[POLICY_WORD]), policy.word)
        guest.machine.checkpoint()
        guest.generation = policy.callers
    return guest, dict(image.symbols)
