// SPDX-License-Identifier: MIT
//! Safe bindings of `guestemu_host.h`, ABI 1, without dependencies.
//!
//! Implement [`Vmm`] and name the type in [`export_vmm!`]; build a `cdylib`.
//! Test the profile that ships: a debug build panics where a release build wraps.

use std::ffi::c_void;

pub const ABI: u32 = 1;
pub const SLOT_GUEST_MEMFD: u32 = 1;
pub const ATTRIBUTE_PRIVATE: u64 = 1 << 3;
pub const PUNCH_HOLE: i32 = 3;
pub const MADV_DONTNEED: i32 = 4;

/// A memory slot; addresses and sizes in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub gpa: u64,
    pub size: u64,
    pub memfd_offset: u64,
    pub flags: u32,
    pad: u32,
}

#[repr(C)]
pub struct Layout {
    abi: u32,
    pub vcpus: u32,
    slots: u32,
    pad: u32,
    slot: *const Slot,
}

impl Layout {
    /// The VM's memory slots.
    pub fn slots(&self) -> &[Slot] {
        // SAFETY: guestemu passes `slots` slots that live as long as the layout.
        unsafe { std::slice::from_raw_parts(self.slot, self.slots as usize) }
    }
}

type Call4 = extern "C" fn(*mut c_void, u64, u64, u64, u64) -> i32;
type CallSlot = extern "C" fn(*mut c_void, u32, i32, u64, u64) -> i32;
type CallAdvice = extern "C" fn(*mut c_void, u32, u64, u64, i32) -> i32;
type CallRange = extern "C" fn(*mut c_void, u64, u64) -> i32;
type CallMap = extern "C" fn(*mut c_void, u64, u64, i32) -> i32;

/// The kernel's half: each call returns 0 or a negative errno.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kernel {
    token: *mut c_void,
    set_memory_attributes: Call4,
    fallocate: CallSlot,
    madvise: CallAdvice,
    pre_fault: CallRange,
    map_for_device: CallMap,
}

fn check(result: i32) -> Result<(), i32> {
    if result == 0 {
        Ok(())
    } else {
        Err(-result)
    }
}

impl Kernel {
    /// KVM_SET_MEMORY_ATTRIBUTES.
    pub fn set_memory_attributes(&self, gpa: u64, size: u64, attributes: u64) -> Result<(), i32> {
        check((self.set_memory_attributes)(self.token, gpa, size, attributes, 0))
    }
    /// fallocate() of a slot's guest_memfd, offset within the file.
    pub fn fallocate(&self, slot: u32, mode: i32, offset: u64, length: u64) -> Result<(), i32> {
        check((self.fallocate)(self.token, slot, mode, offset, length))
    }
    /// madvise() of a slot's mapping, offset from the slot's start.
    pub fn madvise(&self, slot: u32, offset: u64, length: u64, advice: i32) -> Result<(), i32> {
        check((self.madvise)(self.token, slot, offset, length, advice))
    }
    /// KVM_PRE_FAULT_MEMORY.
    pub fn pre_fault(&self, gpa: u64, size: u64) -> Result<(), i32> {
        check((self.pre_fault)(self.token, gpa, size))
    }
    /// VFIO: maps shared memory for a device, or unmaps it.
    pub fn map_for_device(&self, gpa: u64, size: u64, is_mapped: bool) -> Result<(), i32> {
        check((self.map_for_device)(self.token, gpa, size, i32::from(is_mapped)))
    }
}

/// What the handler does with the vCPU.
pub enum Outcome {
    /// Calls KVM_RUN again.
    Reenter,
    /// Ends the VM.
    Stop,
}

/// A VMM's exit handler. Everything has a default but the hypercall.
pub trait Vmm: Sized {
    /// A new VM.
    fn open(layout: &Layout, kernel: Kernel) -> Option<Self>;
    /// KVM_EXIT_HYPERCALL: writes the answer to `ret`.
    fn hypercall(&mut self, nr: u64, args: &[u64; 6], ret: &mut u64) -> Outcome;
    /// KVM_EXIT_X86_RDMSR: the value, or `None` for #GP.
    fn rdmsr(&mut self, _index: u32) -> Option<u64> {
        None
    }
    /// KVM_EXIT_X86_WRMSR: false for #GP.
    fn wrmsr(&mut self, _index: u32, _value: u64) -> bool {
        false
    }
    /// Memory was hot-plugged: the layout with the new slot behind the others. `Err` has the errno
    /// of a VMM that refuses it.
    fn layout(&mut self, _layout: &Layout) -> Result<(), i32> {
        Err(25) // ENOTTY: no hot-plug
    }
    /// KVM_EXIT_MEMORY_FAULT.
    fn memory_fault(&mut self, _gpa: u64, _size: u64, _is_private: bool) -> Outcome {
        Outcome::Stop
    }
}

#[doc(hidden)]
#[repr(C)]
pub struct Exit {
    reason: u32,
    vcpu: u32,
    word: [u64; 9],
}

#[doc(hidden)]
pub fn dispatch<T: Vmm>(vmm: &mut T, exit: &mut Exit) -> i32 {
    let w = &mut exit.word;
    let outcome = match exit.reason {
        3 => {
            let args = [w[1], w[2], w[3], w[4], w[5], w[6]];
            vmm.hypercall(w[0], &args, &mut w[7])
        }
        29 => {
            match vmm.rdmsr(w[0] as u32) {
                Some(value) => w[2] = value,
                None => w[3] = 1,
            }
            Outcome::Reenter
        }
        30 => {
            w[3] = u64::from(!vmm.wrmsr(w[0] as u32, w[2]));
            Outcome::Reenter
        }
        39 => vmm.memory_fault(w[1], w[2], w[0] & ATTRIBUTE_PRIVATE != 0),
        _ => Outcome::Stop,
    };
    match outcome {
        Outcome::Reenter => 0,
        Outcome::Stop => 1,
    }
}

/// Exports the functions of `guestemu_host.h` for a type that implements [`Vmm`].
#[macro_export]
macro_rules! export_vmm {
    ($vmm:ty) => {
        #[no_mangle]
        pub extern "C" fn guestemu_abi() -> u32 {
            $crate::ABI
        }
        #[no_mangle]
        pub unsafe extern "C" fn guestemu_open(
            layout: *const $crate::Layout,
            kernel: *const $crate::Kernel,
        ) -> *mut $vmm {
            match <$vmm as $crate::Vmm>::open(&*layout, *kernel) {
                Some(vmm) => Box::into_raw(Box::new(vmm)),
                None => std::ptr::null_mut(),
            }
        }
        #[no_mangle]
        pub unsafe extern "C" fn guestemu_exit(vm: *mut $vmm, exit: *mut $crate::Exit) -> i32 {
            $crate::dispatch(&mut *vm, &mut *exit)
        }
        #[no_mangle]
        pub unsafe extern "C" fn guestemu_layout(
            vm: *mut $vmm,
            layout: *const $crate::Layout,
        ) -> i32 {
            match $crate::Vmm::layout(&mut *vm, &*layout) {
                Ok(()) => 0,
                Err(errno) => -errno,
            }
        }
        #[no_mangle]
        pub extern "C" fn guestemu_reset(_vm: *mut $vmm) -> i32 {
            1 // closed and opened again
        }
        #[no_mangle]
        pub unsafe extern "C" fn guestemu_close(vm: *mut $vmm) {
            drop(Box::from_raw(vm));
        }
    };
}
