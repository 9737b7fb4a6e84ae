# SPDX-License-Identifier: GPL-2.0-or-later
"""INIT, SHUTDOWN, PLATFORM_STATUS and DF_FLUSH: as much as guests need.

Source: AMD's published firmware, sev_mcmd_init_common, sev_mcmd_shutdown, mcmd_df_flush_common.
Keys and certificates are the platform's from the start; only their use is modelled.
"""

from __future__ import annotations

from guestemu.abi.sev_firmware import PlatformState
from guestemu.host.firmware.buffers import InitBuffer, Nothing, PlatformStatusBuffer
from guestemu.host.firmware.platform import Platform


def init(platform: Platform, buffer: InitBuffer) -> None:
    """INIT: only from UNINIT (INVALID_PLATFORM_STATE)."""
    platform.require(PlatformState.UNINIT)
    platform.state = PlatformState.INIT
    platform.has_es = buffer.es


def shutdown(platform: Platform, _buffer: Nothing) -> None:
    """SHUTDOWN: from any state; guests are gone."""
    platform.shutdown()


def platform_status(platform: Platform, buffer: PlatformStatusBuffer) -> None:
    """PLATFORM_STATUS: from any state."""
    buffer.state = platform.state
    buffer.api_major, buffer.api_minor = platform.config.api
    buffer.guest_count = len(platform.guests)


def df_flush(platform: Platform, _buffer: Nothing) -> None:
    """DF_FLUSH: WBINVD_REQUIRED unless all cores executed WBINVD since the last DEACTIVATE."""
    platform.asids.df_flush()
