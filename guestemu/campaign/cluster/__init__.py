# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns, replays and explorations on the workers of a Dask cluster."""
