# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one firmware command: the mailbox's point of view.

A command either takes effect and returns SUCCESS, or returns an error and changes nothing but the
fields of the buffer that length queries write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware import (
    commands_guest,
    commands_launch,
    commands_platform,
    commands_receive,
    commands_send,
)
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    CopyBuffer,
    DebugBuffer,
    GuestStatusBuffer,
    HandleBuffer,
    InitBuffer,
    LaunchMeasureBuffer,
    LaunchUpdateBuffer,
    Nothing,
    PlatformStatusBuffer,
    SendStartBuffer,
    StartBuffer,
    UpdateBuffer,
)
from guestemu.host.firmware.platform import Platform
from guestemu.host.firmware.state import Refused

_B = TypeVar("_B", bound=CommandBuffer)
_Run = Callable[[Platform, CommandBuffer], None]


def _takes(
    kind: type[_B], command: Callable[[Platform, _B], None]
) -> tuple[type[CommandBuffer], _Run]:
    """`command` with the test that it gets its own kind of buffer."""

    def run(platform: Platform, buffer: CommandBuffer) -> None:
        if not isinstance(buffer, kind):
            raise TypeError(f"{command.__name__} takes a {kind.__name__}")
        command(platform, buffer)

    return kind, run


_COMMANDS: Final[Mapping[int, tuple[type[CommandBuffer], _Run]]] = {
    Command.INIT: _takes(InitBuffer, commands_platform.init),
    Command.SHUTDOWN: _takes(Nothing, commands_platform.shutdown),
    Command.PLATFORM_STATUS: _takes(PlatformStatusBuffer, commands_platform.platform_status),
    Command.DF_FLUSH: _takes(Nothing, commands_platform.df_flush),
    Command.DECOMMISSION: _takes(HandleBuffer, commands_guest.decommission),
    Command.ACTIVATE: _takes(ActivateBuffer, commands_guest.activate),
    Command.DEACTIVATE: _takes(HandleBuffer, commands_guest.deactivate),
    Command.GUEST_STATUS: _takes(GuestStatusBuffer, commands_guest.guest_status),
    Command.COPY: _takes(CopyBuffer, commands_guest.copy),
    Command.LAUNCH_START: _takes(StartBuffer, commands_launch.launch_start),
    Command.LAUNCH_UPDATE_DATA: _takes(LaunchUpdateBuffer, commands_launch.launch_update_data),
    Command.LAUNCH_UPDATE_VMSA: _takes(LaunchUpdateBuffer, commands_launch.launch_update_vmsa),
    Command.LAUNCH_MEASURE: _takes(LaunchMeasureBuffer, commands_launch.launch_measure),
    Command.LAUNCH_FINISH: _takes(HandleBuffer, commands_launch.launch_finish),
    Command.SEND_START: _takes(SendStartBuffer, commands_send.send_start),
    Command.SEND_UPDATE_DATA: _takes(UpdateBuffer, commands_send.send_update_data),
    Command.SEND_UPDATE_VMSA: _takes(UpdateBuffer, commands_send.send_update_vmsa),
    Command.SEND_FINISH: _takes(HandleBuffer, commands_send.send_finish),
    Command.SEND_CANCEL: _takes(HandleBuffer, commands_send.send_cancel),
    Command.RECEIVE_START: _takes(StartBuffer, commands_receive.receive_start),
    Command.RECEIVE_UPDATE_DATA: _takes(UpdateBuffer, commands_receive.receive_update_data),
    Command.RECEIVE_UPDATE_VMSA: _takes(UpdateBuffer, commands_receive.receive_update_vmsa),
    Command.RECEIVE_FINISH: _takes(HandleBuffer, commands_receive.receive_finish),
    Command.DBG_DECRYPT: _takes(DebugBuffer, commands_guest.dbg_decrypt),
    Command.DBG_ENCRYPT: _takes(DebugBuffer, commands_guest.dbg_encrypt),
}


def buffer_kind(command: int) -> type[CommandBuffer] | None:
    """The buffer that a command id takes, or None for an id that the firmware does not know."""
    entry = _COMMANDS.get(command)
    return entry[0] if entry else None


def execute(platform: Platform, command: int, buffer: CommandBuffer) -> Status:
    """Runs `command` and returns its status; INVALID_COMMAND for an unknown id. `buffer` is of
    `buffer_kind(command)` (else TypeError: software cannot hand over the wrong kind)."""
    entry = _COMMANDS.get(command)
    if entry is None:
        return Status.INVALID_COMMAND
    try:
        entry[1](platform, buffer)
    except Refused as refusal:
        return refusal.status
    return Status.SUCCESS
