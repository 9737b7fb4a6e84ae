# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcomes of all experiments that need no kernel, run once."""

from __future__ import annotations

import pytest

from guestemu.study.claims.claim import Lab, Need
from guestemu.study.claims.debate import Decided, all_claims, decide_claim


@pytest.fixture(scope="session")
def decided() -> dict[str, Decided]:
    claims = [claim for claim in all_claims() if claim.needs is Need.NOTHING]
    return {claim.ident: decide_claim(claim, Lab()) for claim in claims}
