# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths clear what they convert, on the guest's memory; and the claims C9 to C11."""

from __future__ import annotations

import gzip
from importlib.resources import files

import pytest
from recorded import dma_lines, trace_path

from guestemu.abi.addresses import Gva
from guestemu.dma.clearing import Clearing
from guestemu.guest.base import CallOutcome
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.study.claims.claim import Lab
from guestemu.study.claims.coherent_memory import TRACES, lifetimes, most_paths_clear, pool_clearing
from guestemu.study.claims.result import ClaimVerdict


@pytest.mark.parametrize(
    ("guest", "converted", "swiotlb"), [("snippet:5.10", 4, 16), ("snippet:6.1", 3, 0)]
)
def test_the_paths_of_a_snippet(guest: str, converted: int, swiotlb: int) -> None:
    """Table A.9; 5.10 converts a fourth page and leaves it (A55)."""
    paths = {
        path.name: (path.to_private, path.pages, path.rewritten) for path in Clearing(guest).paths()
    }
    assert paths == {
        "atomic pool expansion": (False, 64, 0),
        "atomic pool hand-out": (False, 1, 1),
        "dma_alloc_coherent": (False, converted, 3),
        "dma_free_coherent": (True, converted, 0),
        "swiotlb at boot": (False, 16, swiotlb),
        "sev-guest's own pages": (False, 1, 0),
    }


def test_c9_is_confirmed_and_c10_conditional() -> None:
    assert pool_clearing(Lab()).verdict is ClaimVerdict.CONFIRMED
    assert most_paths_clear(Lab()).verdict is ClaimVerdict.CONDITIONAL


def test_without_the_memset_c9_is_open_and_c10_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    memset = SnippetGuest.memset

    def clear_nothing(self: SnippetGuest, gva: Gva, byte: int, _size: int) -> CallOutcome:
        return memset(self, gva, byte, 0)

    monkeypatch.setattr(SnippetGuest, "memset", clear_nothing)
    assert pool_clearing(Lab()).verdict is ClaimVerdict.UNDECIDED
    assert most_paths_clear(Lab()).verdict is ClaimVerdict.REFUTED


@pytest.mark.parametrize("name", TRACES)
def test_the_traces_of_the_claims_are_the_recorded_ones(name: str) -> None:
    packed = files("guestemu.study.claims").joinpath("data", f"linux-6.12-q35-{name}.trace.gz")
    assert gzip.decompress(packed.read_bytes()) == trace_path(name).read_bytes()


def test_c11_counts_equal_a_count_of_the_text() -> None:
    result = lifetimes(Lab())
    assert result.verdict is ClaimVerdict.CONDITIONAL
    values = {item.name: (item.value, item.how) for item in result.evidence}
    for name in TRACES:
        lines = dma_lines(name)
        made = sum(line.verb == "alloc" for line in lines)
        live: set[int] = set()
        for line in lines:
            (live.add if line.verb == "alloc" else live.discard)(line.address)
        assert values[f"trace {name}: never freed"] == (len(live), f"of {made}")
    assert values["a driver that allocates for each command"][0] == 200
