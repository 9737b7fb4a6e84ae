# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory encryption: AES-128 with a tweak made from the physical address (facts E29, E30).

XEX form: C = AES(P ^ T(pa)) ^ T(pa) for every 16-byte block, T linear in the address bits. The
published tweak constants belong to certain processors; the ones here are drawn from the key, since
nothing that guestemu shows depends on their values, only on this: the same plaintext at another
address, or under another ASID's key, has another ciphertext, and there is no integrity.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from guestemu.abi.addresses import PAGE_SIZE, Gfn

_BLOCK: Final = 16
_BLOCKS: Final = PAGE_SIZE // _BLOCK
_REPEAT: Final = sum(1 << (128 * i) for i in range(_BLOCKS))
_ADDRESS_BITS: Final = 52


class PageCipher:
    """Encrypts and decrypts 4 KiB pages under one guest's key.

    `key` is 16 bytes: the AES-128 key of one ASID in the memory controller.
    """

    def __init__(self, key: bytes) -> None:
        aes = Cipher(AES128(key), ECB())
        self._encryptor = aes.encryptor()
        self._decryptor = aes.decryptor()
        constants = aes.encryptor().update(
            b"".join(bit.to_bytes(8, "little") + b"tweak\0\0\0" for bit in range(_ADDRESS_BITS))
        )
        self._tweaks = [
            int.from_bytes(constants[_BLOCK * i : _BLOCK * (i + 1)], "little")
            for i in range(_ADDRESS_BITS)
        ]
        self._within_page = sum(
            self._tweak(block * _BLOCK) << (128 * block) for block in range(_BLOCKS)
        )

    def _tweak(self, address: int) -> int:
        tweak = 0
        for bit in range(4, _ADDRESS_BITS):
            if address >> bit & 1:
                tweak ^= self._tweaks[bit]
        return tweak

    def _page_tweak(self, gfn: Gfn) -> int:
        return self._within_page ^ self._tweak(gfn * PAGE_SIZE) * _REPEAT

    def encrypt(self, gfn: Gfn, plain: bytes | memoryview) -> bytes:
        """The DRAM bytes of page `gfn` whose private view reads `plain` (4096 bytes)."""
        tweak = self._page_tweak(gfn)
        mixed = int.from_bytes(plain, "little") ^ tweak
        out = self._encryptor.update(mixed.to_bytes(PAGE_SIZE, "little"))
        return (int.from_bytes(out, "little") ^ tweak).to_bytes(PAGE_SIZE, "little")

    def decrypt(self, gfn: Gfn, dram: bytes | memoryview) -> bytes:
        """What the private view of page `gfn` reads when DRAM holds `dram` (4096 bytes)."""
        tweak = self._page_tweak(gfn)
        mixed = int.from_bytes(dram, "little") ^ tweak
        out = self._decryptor.update(mixed.to_bytes(PAGE_SIZE, "little"))
        return (int.from_bytes(out, "little") ^ tweak).to_bytes(PAGE_SIZE, "little")
