# SPDX-License-Identifier: GPL-2.0-or-later
"""Planted bugs of a VMM that converts guest_memfd memory in place (GM10)."""

from __future__ import annotations

from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EAGAIN
from guestemu.host.kvm.guest_memory import Slot
from guestemu.host.userspace.converting import ConvertingUserSpace
from guestemu.host.userspace.in_place import TRIES, InPlaceHost, InPlaceUserSpace


class RestForgottenUserSpace(InPlaceUserSpace):
    """Converts what lies before the error offset and forgets the rest."""

    __slots__ = ()

    def _convert_part(self, number: int, place: Slot, gpa: int, size: int, is_private: bool) -> int:
        start = place.offset_of(gpa)
        error = self._ask(number, start, start + size, is_private)
        if error == -EAGAIN:
            self._ask(number, start, self.memory.error_offset, is_private)
            return 0
        return error


class AgainUserSpace(InPlaceUserSpace):
    """Converts what lies before the error offset, and then all of it again: what is taken back at
    last is the state that the last try found."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Again and again from the start."""
        error = -EAGAIN
        for _ in range(TRIES):
            error = super().convert(gpa, pages, attributes)
            if error != -EAGAIN:
                break
        return error

    def _convert_part(self, number: int, place: Slot, gpa: int, size: int, is_private: bool) -> int:
        start = place.offset_of(gpa)
        error = self._ask(number, start, start + size, is_private)
        if error == -EAGAIN and self.memory.error_offset > start:
            self._ask(number, start, self.memory.error_offset, is_private)
        return error

    def _take_back(self, gpa: int, before: bitarray) -> None:
        """The state before is what is there now."""
        super()._take_back(gpa, self._attributes_of(gpa, len(before) << PAGE_SHIFT).copy())


class EagainDoneUserSpace(InPlaceUserSpace):
    """Takes EAGAIN for something that will come right by itself."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Success, also where nothing was done."""
        error = super().convert(gpa, pages, attributes)
        return 0 if error == -EAGAIN else error


class StaysUnmappedUserSpace(InPlaceUserSpace):
    """Takes the attributes back, not the device map."""

    __slots__ = ()

    def _take_back(self, gpa: int, before: bitarray) -> None:
        mapped = self.memory.device_map.copy()
        super()._take_back(gpa, before)
        self.memory.device_map[:] = mapped


class LateUnmapUserSpace(InPlaceUserSpace):
    """Converts first: pages that are mapped for the device are in use."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """The device map follows."""
        error = super().convert(gpa, pages, attributes)
        if not error:
            size = pages << PAGE_SHIFT
            for _, place, start, length in self.memory.parts(gpa, size):
                if self.memory.is_private(start >> PAGE_SHIFT) and place.has_guest_memfd:
                    self.memory.map_for_device(start, length, False)
        return error

    def _unmap(self, gpa: int, size: int) -> int:
        return 0


class OffsetAsGpaUserSpace(InPlaceUserSpace):
    """Goes on at the GPA that has the number of the error offset: behind a hole another one."""

    __slots__ = ()

    def _convert_part(self, number: int, place: Slot, gpa: int, size: int, is_private: bool) -> int:
        start = place.offset_of(gpa)
        error = self._ask(number, start, start + size, is_private)
        if error == -EAGAIN:
            stop = self.memory.error_offset
            error = self._ask(number, start, stop, is_private) if stop > start else 0
            for other, slot, part, length in self.memory.parts(stop, start + size - stop):
                error = error or super()._convert_part(other, slot, part, length, is_private)
        return error


class RestForgottenHost(InPlaceHost):
    """With `RestForgottenUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = RestForgottenUserSpace


class AgainHost(InPlaceHost):
    """With `AgainUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = AgainUserSpace


class EagainDoneHost(InPlaceHost):
    """With `EagainDoneUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = EagainDoneUserSpace


class StaysUnmappedHost(InPlaceHost):
    """With `StaysUnmappedUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = StaysUnmappedUserSpace


class LateUnmapHost(InPlaceHost):
    """With `LateUnmapUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = LateUnmapUserSpace


class OffsetAsGpaHost(InPlaceHost):
    """With `OffsetAsGpaUserSpace`."""

    handler: ClassVar[type[ConvertingUserSpace]] = OffsetAsGpaUserSpace
