# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's coherent DMA memory: page allocator, atomic pools, dma_alloc_coherent."""
