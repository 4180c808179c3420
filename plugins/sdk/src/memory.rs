//! The guest's allocator: a free list for each power of two, filled from the end of memory.
//!
//! The canonical ABI allocates every string of every argument, so a call is mostly allocation:
//! thirty blocks in, a few out, all given back. Here a block costs a handful of instructions
//! either way. The price is memory (a block is up to twice what was asked for, and a block never
//! changes its size), which a policy has plenty of: it keeps nothing but its settings. Measured
//! with wasmtime 48: a whole call takes a quarter to a half less than with the standard
//! library's allocator, and a component is 6 kB smaller.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::{memory_grow, memory_size};
use core::cell::UnsafeCell;
use core::ptr;

/// The smallest block, and the alignment of every block.
const SMALLEST: usize = 16;
const PAGE: usize = 65536;

#[global_allocator]
static MEMORY: Memory =
    Memory(UnsafeCell::new(Blocks { free: [ptr::null_mut(); 33], next: 0, end: 0 }));

struct Memory(UnsafeCell<Blocks>);

// SAFETY: a guest has one thread (the relay's engine has threads turned off), and no allocator
// method calls anything that could come back here.
unsafe impl Sync for Memory {}

struct Blocks {
    /// By the logarithm of the size: the first free block, whose first word is the next one.
    free: [*mut u8; 33],
    /// What was never handed out: `next..end`; both 0 before the first call.
    next: usize,
    end: usize,
}

/// The logarithm of the size of the block that holds `size` bytes.
fn class(size: usize) -> u32 {
    usize::BITS - (size.max(SMALLEST) - 1).leading_zeros()
}

impl Blocks {
    /// A block never used before, or null where memory is at its limit.
    #[cold]
    fn carve(&mut self, size: usize, align: usize) -> *mut u8 {
        unsafe extern "C" {
            /// Where the linker's own data ends.
            static __heap_base: u8;
        }
        if self.end == 0 {
            self.next = (&raw const __heap_base).addr();
            self.end = memory_size(0) * PAGE;
        }
        let Some(start) = self.next.checked_next_multiple_of(align) else {
            return ptr::null_mut();
        };
        let Some(stop) = start.checked_add(size) else {
            return ptr::null_mut();
        };
        if stop > self.end {
            let pages = (stop - self.end).div_ceil(PAGE);
            let before = memory_grow(0, pages);
            if before == usize::MAX {
                return ptr::null_mut();
            }
            // Nothing else in a guest grows its memory.
            assert!(before * PAGE == self.end);
            self.end += pages * PAGE;
        }
        self.next = stop;
        ptr::with_exposed_provenance_mut(start)
    }
}

// SAFETY: a block is in one place at a time: `alloc` takes it from `next..end` or off a free
// list, and only `dealloc` puts it on one. It is at least `layout.size()` long, as its class is
// the same at both ends (`Layout` is the same), and aligned to `layout.align()`: to 16 always,
// and to more by a fresh carve, which never takes from a list.
unsafe impl GlobalAlloc for Memory {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the only reference; see `Sync`.
        let blocks = unsafe { &mut *self.0.get() };
        let class = class(layout.size());
        let head = &mut blocks.free[class as usize];
        let block = *head;
        if block.is_null() || layout.align() > SMALLEST {
            return blocks.carve(1 << class, layout.align().max(SMALLEST));
        }
        // SAFETY: a block on a list holds the next one in its first word.
        *head = unsafe { block.cast::<*mut u8>().read() };
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the only reference; see `Sync`.
        let blocks = unsafe { &mut *self.0.get() };
        let head = &mut blocks.free[class(layout.size()) as usize];
        // SAFETY: the block came from `alloc`, has at least 16 bytes, and is nobody's any more.
        unsafe { block.cast::<*mut u8>().write(*head) };
        *head = block;
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if class(layout.size()) == class(new_size) {
            return block;
        }
        // SAFETY: the caller promises that `new_size` makes a layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_layout` is not empty; both blocks hold the shorter of the sizes; the old
        // one is given back with the layout it came with.
        unsafe {
            let new_block = self.alloc(new_layout);
            if !new_block.is_null() {
                ptr::copy_nonoverlapping(block, new_block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new_block
        }
    }
}
