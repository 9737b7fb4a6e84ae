// SPDX-License-Identifier: MIT
//! A small VMM's exit handler, with a bug: the size of a range is a product that wraps.
//!
//!     cargo build --release --example my_vmm
//!     guestemu fuzz hypercall --host target/release/examples/libmy_vmm.so --time 20

use guestemu_host::{
    export_vmm, Kernel, Layout, Outcome, Slot, Vmm, ATTRIBUTE_PRIVATE, MADV_DONTNEED, PUNCH_HOLE,
    SLOT_GUEST_MEMFD,
};

const EINVAL: u64 = 22;

struct MyVmm {
    kernel: Kernel,
    slots: Vec<Slot>,
}

impl MyVmm {
    fn convert(&self, gpa: u64, pages: u64, to_private: bool) -> Result<(), i32> {
        let size = pages.wrapping_mul(4096);
        let attributes = if to_private { ATTRIBUTE_PRIVATE } else { 0 };
        self.kernel.set_memory_attributes(gpa, size, attributes)?;
        for (number, slot) in self.slots.iter().enumerate() {
            let from = gpa.max(slot.gpa);
            let to = gpa.saturating_add(size).min(slot.gpa + slot.size);
            if from >= to || slot.flags & SLOT_GUEST_MEMFD == 0 {
                continue;
            }
            let (number, offset) = (number as u32, from - slot.gpa);
            if to_private {
                self.kernel.madvise(number, offset, to - from, MADV_DONTNEED)?;
            } else {
                let offset = offset + slot.memfd_offset;
                self.kernel.fallocate(number, PUNCH_HOLE, offset, to - from)?;
            }
        }
        Ok(())
    }
}

impl Vmm for MyVmm {
    fn open(layout: &Layout, kernel: Kernel) -> Option<Self> {
        Some(MyVmm { kernel, slots: layout.slots().to_vec() })
    }

    fn layout(&mut self, layout: &Layout) -> Result<(), i32> {
        self.slots = layout.slots().to_vec();
        Ok(())
    }

    fn hypercall(&mut self, _nr: u64, args: &[u64; 6], ret: &mut u64) -> Outcome {
        *ret = match self.convert(args[0], args[1], args[2] & 0x10 != 0) {
            Ok(()) => 0,
            Err(_) => EINVAL,
        };
        Outcome::Reenter
    }

    fn memory_fault(&mut self, gpa: u64, size: u64, is_private: bool) -> Outcome {
        match self.convert(gpa, size >> 12, is_private) {
            Ok(()) => Outcome::Reenter,
            Err(_) => Outcome::Stop,
        }
    }
}

export_vmm!(MyVmm);
