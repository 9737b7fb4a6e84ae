# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called whom: a tree from a list of executed instructions.

Repetitions are folded: a conversion of 512 pages is one step, 512 times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from guestemu.report.trace.instructions import ControlFlow, Decoder
from guestemu.report.trace.symbols import SITE_TEXT, Symbols

_MAX_PERIOD: Final = 4


class CallNode(msgspec.Struct):
    """A call (`name` of the function), a site inside it (`is_site`), or a repeated group.

    `times` it happened in a row; `children` in order of time. A repeated group has no name.
    """

    name: str
    address: int = 0
    is_site: bool = False
    times: int = 1
    children: list[CallNode] = []


class TreeLine(msgspec.Struct, frozen=True):
    """One line of a printed tree; `times` above 1 where it was repeated."""

    depth: int
    name: str
    address: int
    is_site: bool
    times: int


class _Frame(msgspec.Struct):
    node: CallNode
    is_tail: bool


def build_tree(addresses: Iterable[int], decoder: Decoder, symbols: Symbols) -> CallNode:
    """The calls in `addresses`; the root has no name."""
    root = CallNode("", children=[])
    stack = [_Frame(root, False)]
    is_entry = True
    for address in addresses:
        top = stack[-1].node
        is_start = address in symbols.functions and address != top.address
        if is_entry or is_start:
            node = CallNode(symbols.name(address), address, children=[])
            top.children.append(node)
            stack.append(_Frame(node, not is_entry))  # jumped or fell into: its RET is the caller's
            top = node
        is_entry = False
        mark = _mark(address, symbols)
        if mark is not None:
            top.children.append(CallNode(mark, address, is_site=True, children=[]))
        flow = decoder.at(address).flow
        if flow is ControlFlow.CALL:
            is_entry = True
        elif flow is ControlFlow.RETURN:
            while len(stack) > 1 and stack.pop().is_tail:
                pass
    return root


def _mark(address: int, symbols: Symbols) -> str | None:
    kind = symbols.sites.get(address)
    if kind is not None:
        return SITE_TEXT[kind]
    name = symbols.warnings.get(address)
    return f"WARN {name}" if name is not None else None


def fold(node: CallNode) -> CallNode:
    """`node` with repetitions of one to four neighbours folded, from the leaves up."""
    children = [fold(child) for child in node.children]
    shapes = [_shape(child) for child in children]
    folded: list[CallNode] = []
    index = 0
    while index < len(children):
        period, times = _repetition(shapes, index)
        group = children[index : index + period]
        if times == 1:
            folded.append(group[0])
        elif period == 1:
            folded.append(msgspec.structs.replace(group[0], times=times))
        else:
            folded.append(CallNode("", times=times, children=group))
        index += period * times
    return msgspec.structs.replace(node, children=folded)


def _shape(node: CallNode) -> int:
    return hash((node.name, node.times, *(_shape(child) for child in node.children)))


def _repetition(shapes: Sequence[int], start: int) -> tuple[int, int]:
    """The shortest period at `start` that covers most, and how often it occurs; (1, 1) if none."""
    best = (1, 1)
    for period in range(1, _MAX_PERIOD + 1):
        times = 1
        pattern = shapes[start : start + period]
        if len(pattern) < period:
            break
        while shapes[start + times * period : start + (times + 1) * period] == pattern:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def tree_lines(root: CallNode, max_depth: int) -> Iterator[TreeLine]:
    """The lines of a folded tree without its root, calls down to `max_depth` (a repeated group is
    no level of its own); sites always."""
    yield from _lines(root, 0, max_depth)


def _lines(node: CallNode, depth: int, levels: int) -> Iterator[TreeLine]:
    for child in node.children:
        line = TreeLine(depth, child.name, child.address, child.is_site, child.times)
        if child.name:
            if child.is_site or levels > 0:
                yield line
                yield from _lines(child, depth + 1, levels - 1)
        elif inside := list(_lines(child, depth + 1, levels)):
            yield line
            yield from inside
