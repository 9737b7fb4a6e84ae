# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run did, as typed events: derived from its outcome, written as lines, hashed,
described."""
