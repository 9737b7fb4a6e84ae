# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of two real kernels, and lines made up in their format."""

import json
from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle"
META = json.dumps({"meta": "start", "kernel": "6.1.0-56-cloud-amd64"})

CFG = {
    "exit_hypercall": "0x1000",
    "cpuid": "kvm_leaf",
    "kvm_features": "0x10000",
    "enforce_pv": 0,
    "irqchip": 0,
    "user_space_msr": None,
    "msr_filter": "none",
}
RC = {"exit": 0, "cpuid": 0, "enforce": 0, "umsr": 0, "filter": 0, "quirk": 0}
CALL = {"rax": "0xc", "rbx": "0x100000", "rcx": "0x4", "rdx": "0x10", "rsi": "0x0"}


def line(op, inputs, out=None, *, mode="long64", cpl=0, number=0, case=1, events=(), **cfg):
    return {
        "id": case,
        "step": number,
        "grp": "test",
        "cfg": CFG | cfg,
        "rc": RC,
        "op": op,
        "mode": mode,
        "cpl": cpl,
        "in": inputs,
        "events": list(events),
        "out": out or {},
    }


def write(path, *lines, meta=META):
    texts = [text if isinstance(text, str) else json.dumps(text) for text in (meta, *lines)]
    path.write_text("\n".join(texts) + "\n")
    return path
