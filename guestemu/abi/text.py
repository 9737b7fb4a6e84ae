# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of others on a terminal: names in recordings and traces, kernel banners, file names.

A terminal obeys control characters, and a newline forges a line of the program's own. So foreign
text is shown, never sent: what is not printable becomes the escape that Python writes for it.
"""

from __future__ import annotations


def visible(text: str) -> str:
    """`text` with every character that is not printable (controls, newlines, marks that turn the
    direction of writing, halves of surrogate pairs) as an escape such as \\x1b or \\n."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
