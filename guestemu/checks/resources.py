# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest may not make its host allocate without bound, nor corrupt the host's memory.

The models of historic hosts note what the modelled kernel would have suffered (out-of-bounds
writes, use after free, growth beyond `HOST_MEMORY_BOUND`) instead of suffering it; here it becomes
a violation. Source: K1-c, K1-d, K1-f, K2-a, K2-e, C24, H.4 item 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.host.base import Host
from guestemu.host.kvm.findings import ReportsFindings, ResourceFinding
from guestemu.program.ops import OpKind


class ResourceCheck(Oracle):
    """One violation for each finding that the operation added; its message has the bytes."""

    name = "resources"
    kinds: frozenset[OpKind] | None = None
    demands: ClassVar[Mapping[str, str]] = {
        "resources": (
            "A guest cannot make its host allocate memory without bound, nor write outside of it."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "resources": "A guest can do this to its host at will.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts that account for what a guest costs them."""
        return isinstance(host, ReportsFindings)

    def __init__(self) -> None:
        self._host: Host | None = None
        self._reports: ReportsFindings | None = None
        self._seen = 0

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        host = view.host
        if host is not self._host:
            self._host = host
            self._reports = host if isinstance(host, ReportsFindings) else None
            self._seen = 0
        if self._reports is None:
            return ()
        found = self._reports.findings
        if view.index == 0 or len(found) < self._seen:
            self._seen = 0
        new = found[self._seen :]
        self._seen = len(found)
        return [Violation(self.name, view.index, _text(finding), finding.source) for finding in new]


def _text(finding: ResourceFinding) -> str:
    amount = f"{finding.amount} bytes: " if finding.amount else ""
    return f"{finding.kind.value}: {amount}{finding.message}"
