# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened, as typed events: one vocabulary for every guest, host and recording.

Why one: a check, a trace, a coverage counter and a report all need to know that a guest left for
its host, that a page-table leaf changed or that a page was validated. Each event is a frozen struct
whose `tag` is its name in JSON lines. Who sees it happen emits it; who reads it finds it by type.
A new kind is its struct and the line that emits it: traces, JSON lines, coverage and the text for
people are made from the struct's fields.

What *is* (page tables, page states, the host's record) is not an event: read it from the guest and
the host.

`exits` holds what a guest leaves for and how it was answered, `memory` what happens to pages,
`operations` what a program's operations do, `snp` and `tdx` what only
those guests do, `lines` the JSON form, `text` the form for people.
"""
