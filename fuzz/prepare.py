# SPDX-License-Identifier: GPL-2.0-or-later
"""What ClusterFuzz wants beside a target: python fuzz/prepare.py OUT [PROGRAMS]

Writes OUT/TARGET.dict, OUT/TARGET_seed_corpus.zip (the modelled kernels' flows and the programs in
the directory PROGRAMS) and OUT/TARGET.options for every target, by its script's name; no seeds
where no flow and no program has an operation of the target.
"""

import sys
import zipfile
from pathlib import Path

from guestemu.campaign.dictionary import dictionary_text
from guestemu.campaign.journal import input_name
from guestemu.campaign.seeds import FLOWS_WORD, seed_inputs
from guestemu.campaign.targets import TARGETS, find_target
from guestemu.program.binary import RECORD_SIZE

out = Path(sys.argv[1])
words = [FLOWS_WORD, *sys.argv[2:]]
by_script = {name.replace("-", "_"): target for name, target in TARGETS.items()}
by_script["hostile_td"] = find_target("hostile-host:tdx")
for name, target in by_script.items():
    (out / f"{name}.dict").write_text(dictionary_text(target.kinds))
    inputs = seed_inputs(words, target, target.header, target.kinds)
    if inputs:
        with zipfile.ZipFile(out / f"{name}_seed_corpus.zip", "w") as archive:
            for data in inputs:
                archive.writestr(input_name(data), data)
    size = target.max_ops * RECORD_SIZE
    (out / f"{name}.options").write_text(f"[libfuzzer]\nmax_len = {size}\n")
