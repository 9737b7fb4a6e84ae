# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark suite: each figure beside its floor or peer, measured in the same run."""
