# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory encryption: AES-128 with a tweak made from the physical address (facts E29, E30).

XEX form: C = AES(P ^ T(pa)) ^ T(pa) for every 16-byte block, T linear in the address bits. The
published tweak constants belong to certain processors; the ones here are drawn from the key, since
nothing that guestemu shows depends on their values, only on this: the same plaintext at another
address, or under another ASID's key, has another ciphertext, and there is no integrity.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from guestemu.abi.addresses import PAGE_SIZE, Gfn

_BLOCK: Final = 16
_BLOCKS: Final = PAGE_SIZE // _BLOCK
_ADDRESS_BITS: Final = 52
_KEPT_TWEAKS: Final = 256


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
        within = (self._tweak(block * _BLOCK) for block in range(_BLOCKS))
        self._within_page = _bits(b"".join(tweak.to_bytes(_BLOCK, "little") for tweak in within))
        self._page_tweaks: dict[int, bitarray] = {}

    def _tweak(self, address: int) -> int:
        tweak = 0
        for bit in range(4, address.bit_length()):
            if address >> bit & 1:
                tweak ^= self._tweaks[bit]
        return tweak

    def _page_tweak(self, gfn: Gfn) -> bitarray:
        """The tweaks of a page's blocks, one after another; those of the last pages are kept."""
        found = self._page_tweaks.get(gfn)
        if found is None:
            if len(self._page_tweaks) >= _KEPT_TWEAKS:
                self._page_tweaks.clear()
            page = self._tweak(gfn * PAGE_SIZE).to_bytes(_BLOCK, "little")
            found = self._page_tweaks[gfn] = self._within_page ^ _bits(page * _BLOCKS)
        return found

    def encrypt(self, gfn: Gfn, plain: bytes | memoryview) -> bytes:
        """The DRAM bytes of page `gfn` whose private view reads `plain` (4096 bytes)."""
        tweak = self._page_tweak(gfn)
        out = self._encryptor.update(memoryview(_bits(plain) ^ tweak))
        return (_bits(out) ^ tweak).tobytes()

    def decrypt(self, gfn: Gfn, dram: bytes | memoryview) -> bytes:
        """What the private view of page `gfn` reads when DRAM holds `dram` (4096 bytes)."""
        tweak = self._page_tweak(gfn)
        out = self._decryptor.update(memoryview(_bits(dram) ^ tweak))
        return (_bits(out) ^ tweak).tobytes()


def _bits(data: bytes | memoryview) -> bitarray:
    """`data` as a bit array, not copied: XOR of these is the fastest that Python has."""
    return bitarray(buffer=data, endian="little")
