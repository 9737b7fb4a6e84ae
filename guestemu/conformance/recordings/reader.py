# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a recording of a real KVM; everything wrong with it is found here, with its line number."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.conformance.recordings.recording import (
    FORMAT,
    FailedCase,
    Hex,
    Meta,
    RecordedStep,
    Recording,
)

_START: Final = "start"
_LARGEST: Final = 256 << 20
_GZIP: Final = b"\x1f\x8b"


class _Probe(msgspec.Struct, frozen=True):
    """Just enough of a line to tell a meta line, a failed case and a step."""

    meta: str | None = None
    error: str | None = None


def decode_hex(kind: type, value: object) -> object:
    """The `dec_hook` of `Hex`; ValueError for anything but a 64-bit hexadecimal string."""
    if kind is not Hex:
        raise NotImplementedError
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError(f"{value!r} is not a hexadecimal string")
    number = int(value, 16)
    if number >> 64:
        raise ValueError(f"{value} has more than 64 bits")
    return Hex(number)


_PROBE = msgspec.json.Decoder(_Probe)
_META = msgspec.json.Decoder(Meta)
_FAILED = msgspec.json.Decoder(FailedCase)
_STEP = msgspec.json.Decoder(RecordedStep, dec_hook=decode_hex)


def read_recording(path: Path) -> Recording:
    """Reads a recording, plain or compressed with gzip.

    Raises `InputError` that names the file and line: an unreadable file, a line that is not the
    JSON of a step, a missing or second `start` line, steps of a case out of order.
    """
    try:
        raw = _unpacked(read_regular(path, _LARGEST), path).splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a recording (.jsonl)") from error
    reader = _Reader(path)
    for number, line in enumerate(raw, start=1):
        if line.strip():
            reader.take(number, line)
    return reader.finish()


def _unpacked(data: bytes, path: Path) -> bytes:
    """The text of a recording that may be compressed with gzip. Raises `InputError`."""
    if not data.startswith(_GZIP):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            text = stream.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); copy it again") from None
    if len(text) > _LARGEST:
        raise InputError(
            f"{path}: unpacks to more than {_LARGEST >> 20} MiB; it is not a recording"
        )
    return text


class _Reader:
    """Collects a recording line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._meta: Meta | None = None
        self._steps: list[RecordedStep] = []
        self._lines: list[int] = []
        self._failed: list[FailedCase] = []
        self._last: dict[int, RecordedStep] = {}

    def take(self, number: int, line: bytes) -> None:
        """Reads line `number`. Raises `InputError` with its place."""
        try:
            probe = _PROBE.decode(line)
            if probe.meta is not None:
                self._take_meta(number, _META.decode(line))
            elif probe.error is not None:
                self._failed.append(_FAILED.decode(line))
            else:
                self._take_step(number, _STEP.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._bad(
                number,
                f"not a recorded step ({error}); the line may be cut off, "
                "record again or delete it",
            ) from None

    def _take_meta(self, number: int, meta: Meta) -> None:
        if self._meta is None:
            if meta.format != FORMAT:
                raise self._bad(
                    number, f"format {meta.format}, this guestemu reads {FORMAT}; use a newer one"
                )
            self._meta = meta
        elif meta.meta == _START:
            raise self._bad(
                number, "a second run starts here; one run a file, split the file at this line"
            )

    def _take_step(self, number: int, step: RecordedStep) -> None:
        """The steps of a case must come in rising order, with one configuration."""
        if self._meta is None:
            raise self._bad(
                number,
                "a step before the meta line; the first line must "
                'be {"meta": "start", "kernel": …}',
            )
        before = self._last.get(step.id)
        if before is not None and step.step <= before.step:
            raise self._bad(
                number,
                f"case {step.id}: step {step.step} after step {before.step}; "
                "keep the recorder's order",
            )
        if before is not None and step.cfg != before.cfg:
            raise self._bad(
                number,
                f"case {step.id}: another cfg than the step before; "
                "the steps of one case share one VM",
            )
        self._last[step.id] = step
        self._steps.append(step)
        self._lines.append(number)

    def finish(self) -> Recording:
        """The recording. Raises `InputError` if no line named the kernel."""
        if self._meta is None or not self._meta.kernel:
            raise self._bad(1, "no meta line with the kernel's release; is it a recording?")
        return Recording(self._meta, tuple(self._steps), tuple(self._lines), tuple(self._failed))

    def _bad(self, number: int, problem: str) -> InputError:
        return InputError(f"{self._path}:{number}: {problem}")
