# SPDX-License-Identifier: GPL-2.0-or-later
"""The snippet guest: the kernel's conversion code written anew in assembly, per generation.

Each `snippet-<generation>.S` picks its parts from the `.inc.S` files beside it, one concept each;
`make snippets` rebuilds the committed ELF files.
"""
