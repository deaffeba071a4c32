//! A global allocator for programs that make and drop large results in turn.
#![allow(
    unsafe_code,
    reason = "an allocator gives out memory that nothing is known of"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller blocks are the system's.
const SMALLEST: usize = 1 << 20;
/// Smaller ones still start at a line of the cache from this size on: vectors that lie in two lines take longer to read.
const ALIGNED: usize = 4096;
const CACHE_LINE: usize = 64;
/// Large pages, where a system has them.
const LARGE_PAGE: usize = 2 << 20;
/// Blocks that are kept at most: more than a network has results of different sizes.
const KEPT: usize = 64;

/// Gives out large blocks again instead of asking the system for fresh ones, which it has to fill with zeros: that takes up to a
/// third of the time of a network's cheaper layers. On Linux it makes blocks of one size of those of others, too.
///
/// It keeps a block only while all blocks, used and kept, take no more memory than the used ones alone once did: the largest
/// footprint of a program stays what it is. [`trim`](Self::trim) gives back what is kept.
///
/// ```
/// #[global_allocator]
/// static MEMORY: sd_ops::Recycler = sd_ops::Recycler::new();
///
/// let first = vec![1f32; 1 << 20];
/// let place = first.as_ptr();
/// drop(first);
/// assert_eq!(Vec::<f32>::with_capacity(1 << 20).as_ptr(), place);
/// ```
#[derive(Debug)]
pub struct Recycler {
    blocks: Mutex<Blocks>,
}

impl Default for Recycler {
    fn default() -> Self {
        Self::new()
    }
}

impl Recycler {
    /// One that keeps nothing yet.
    pub const fn new() -> Self {
        Self {
            blocks: Mutex::new(Blocks {
                kept: [None; KEPT],
                used_bytes: 0,
                kept_bytes: 0,
                most_bytes: 0,
            }),
        }
    }

    /// Gives back to the system what is kept, and forgets the largest footprint.
    pub fn trim(&self) {
        let mut blocks = self.blocks();
        blocks.most_bytes = blocks.used_bytes;
        blocks.shrink();
    }

    /// Bytes that are kept at the moment.
    pub fn kept_bytes(&self) -> usize {
        self.blocks().kept_bytes
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block that nobody uses, of the system's.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a kept block belongs to the recycler alone, on whatever thread that is.
unsafe impl Send for Block {}

#[derive(Debug)]
struct Blocks {
    /// From the one kept longest on; then none.
    kept: [Option<Block>; KEPT],
    used_bytes: usize,
    kept_bytes: usize,
    /// The largest that `used_bytes` was. It is at least `used_bytes` and `kept_bytes` together.
    most_bytes: usize,
}

impl Blocks {
    /// A block of that very layout, the one that was kept last.
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let is_of = |block: &Option<Block>| block.is_some_and(|block| block.layout == layout);
        let i = self.kept.iter().rposition(is_of)?;
        self.remove(i)
    }

    /// The first large page of the oldest block that has some, to be moved.
    fn take_large_page(&mut self) -> Option<NonNull<u8>> {
        let has_some = |block: &Block| block.layout.align() == LARGE_PAGE;
        let i = self
            .kept
            .iter()
            .position(|block| block.as_ref().is_some_and(has_some))?;
        let Block { start, layout } = self.remove(i)?;
        let rest = Layout::from_size_align(layout.size() - LARGE_PAGE, LARGE_PAGE).ok()?;
        if rest.size() > 0 {
            // SAFETY: the block goes on there.
            let start = unsafe { start.byte_add(LARGE_PAGE) };
            let rest = Block {
                start,
                layout: rest,
            };
            if rest.layout.size() >= LARGE_PAGE {
                self.kept[i..].rotate_right(1);
                self.kept[i] = Some(rest);
                self.kept_bytes += rest.layout.size();
            } else {
                // SAFETY: nobody uses it.
                unsafe { system::give_back(rest.start, rest.layout) }
            }
        }
        Some(start)
    }

    fn remove(&mut self, i: usize) -> Option<Block> {
        let block = self.kept[i].take()?;
        self.kept[i..].rotate_left(1);
        self.kept_bytes -= block.layout.size();
        Some(block)
    }

    fn keep(&mut self, block: Block) {
        let free = self.kept.iter().position(Option::is_none);
        let i = free.unwrap_or_else(|| {
            self.give_back_oldest();
            KEPT - 1
        });
        self.kept[i] = Some(block);
        self.kept_bytes += block.layout.size();
    }

    /// Gives blocks back until all take no more than once were used.
    fn shrink(&mut self) {
        while self.kept_bytes > 0 && self.used_bytes + self.kept_bytes > self.most_bytes {
            self.give_back_oldest();
        }
    }

    fn give_back_oldest(&mut self) {
        if let Some(Block { start, layout }) = self.remove(0) {
            // SAFETY: the system gave out the block for this layout, and nobody else has it.
            unsafe { system::give_back(start, layout) }
        }
    }
}

/// The layout of the block for memory of `layout`, if it is one to keep: sizes are an eighth of a power of two apart, so that
/// about as much is as good.
fn block(layout: Layout) -> Option<Layout> {
    let size = layout.size();
    if size < SMALLEST || layout.align() > SMALLEST {
        return None;
    }
    let step = 1 << (size.ilog2() - 3);
    let size = size.checked_next_multiple_of(step)?;
    let align = if size < 2 * LARGE_PAGE {
        layout.align().max(4096)
    } else {
        LARGE_PAGE
    };
    Layout::from_size_align(size, align).ok()
}

/// The system's layout for memory of `layout` that is no block.
fn small(layout: Layout) -> Layout {
    let lines = Layout::from_size_align(layout.size(), layout.align().max(CACHE_LINE));
    match lines {
        Ok(lines) if layout.size() >= ALIGNED => lines,
        _ => layout,
    }
}

/// Where blocks come from. The C library's allocator would keep some of what it is given back, between what is still in use.
#[cfg(target_os = "linux")]
mod system {
    use std::alloc::Layout;
    use std::ptr::{self, NonNull};

    use super::LARGE_PAGE;

    /// A block of large pages that are nobody's any more, as far as there are some, and else of fresh memory. Large pages are only
    /// what lies in its first `used` bytes: else some of the rest would take memory, too.
    ///
    /// # Safety
    /// The layout is of a block.
    pub(super) unsafe fn assemble(
        layout: Layout,
        used: usize,
        large_page: &mut dyn FnMut() -> Option<NonNull<u8>>,
    ) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        let Some(all) = size.checked_add(align) else {
            return ptr::null_mut();
        };
        // SAFETY: memory at no particular place; what is not of the block goes back, in whole pages, as sizes and alignments of
        // blocks are some.
        unsafe {
            let start = libc::mmap(
                ptr::null_mut(),
                all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return ptr::null_mut();
            }
            let before = start.cast::<u8>().align_offset(align);
            let block = start.byte_add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            libc::munmap(block.byte_add(size), align - before);
            if align < LARGE_PAGE {
                return block.cast();
            }
            let mut done = 0;
            while used - done >= LARGE_PAGE
                && let Some(page) = large_page()
            {
                let place = block.byte_add(done);
                let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let page = page.as_ptr().cast();
                done += LARGE_PAGE;
                if libc::mremap(page, LARGE_PAGE, LARGE_PAGE, how, place) == libc::MAP_FAILED {
                    // The place may be another's by now.
                    libc::munmap(page, LARGE_PAGE);
                    libc::munmap(block, done - LARGE_PAGE);
                    libc::munmap(block.byte_add(done), size - done);
                    return assemble(layout, used, &mut || None);
                }
            }
            let rest = (used - done) / LARGE_PAGE * LARGE_PAGE;
            libc::madvise(block.byte_add(done), rest, libc::MADV_HUGEPAGE);
            block.cast()
        }
    }

    /// # Safety
    /// The block is one of [`assemble`], or whole pages of one, and nobody uses it.
    pub(super) unsafe fn give_back(block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's.
        unsafe {
            libc::munmap(block.as_ptr().cast(), layout.size());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::ptr::NonNull;

    /// # Safety
    /// The layout is of a block.
    pub(super) unsafe fn assemble(
        layout: Layout,
        _: usize,
        _: &mut dyn FnMut() -> Option<NonNull<u8>>,
    ) -> *mut u8 {
        // SAFETY: blocks are not empty.
        unsafe { System.alloc(layout) }
    }

    /// # Safety
    /// The block is one of [`assemble`], for this layout, and nobody uses it.
    pub(super) unsafe fn give_back(block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block.as_ptr(), layout) }
    }
}

// SAFETY: what is given out is the system's: blocks of at least the size and alignment that were asked for, each of which is
// either in use or kept. The layout alone decides which memory is a block, so it comes back as what it was given out.
unsafe impl GlobalAlloc for Recycler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(block) = block(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.alloc(small(layout)) };
        };
        let mut blocks = self.blocks();
        blocks.used_bytes += block.size();
        if let Some(taken) = blocks.take(block) {
            return taken.start.as_ptr();
        }
        // SAFETY: this is a block.
        let start =
            unsafe { system::assemble(block, layout.size(), &mut || blocks.take_large_page()) };
        if start.is_null() {
            blocks.used_bytes -= block.size();
        }
        blocks.most_bytes = blocks.most_bytes.max(blocks.used_bytes);
        blocks.shrink();
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match (block(layout), NonNull::new(start)) {
            (Some(layout), Some(start)) => {
                let mut blocks = self.blocks();
                blocks.used_bytes -= layout.size();
                blocks.keep(Block { start, layout });
            }
            // SAFETY: the caller's.
            _ => unsafe { System.dealloc(start, small(layout)) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else {
            return null_mut();
        };
        // SAFETY: the caller's; the copied bytes lie inside both blocks.
        unsafe {
            match (block(layout), block(wanted)) {
                (None, None) if small(layout) == layout && small(wanted) == wanted => {
                    System.realloc(start, layout, size)
                }
                (Some(before), Some(after)) if before == after => start,
                _ => {
                    let moved = self.alloc(wanted);
                    if !moved.is_null() {
                        start.copy_to_nonoverlapping(moved, layout.size().min(size));
                        self.dealloc(start, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn of(size: usize) -> Layout {
        Layout::from_size_align(size, 4).unwrap()
    }

    /// Takes memory and writes all of it.
    fn take(recycler: &Recycler, size: usize) -> *mut u8 {
        // SAFETY: the size is not 0, and the memory has it.
        unsafe {
            let start = recycler.alloc(of(size));
            assert!(!start.is_null());
            start.write_bytes(1, size);
            start
        }
    }

    fn leave(recycler: &Recycler, start: *mut u8, size: usize) {
        // SAFETY: each test leaves what it took.
        unsafe { recycler.dealloc(start, of(size)) }
    }

    #[test]
    fn about_the_same_size_is_given_out_again() {
        let recycler = Recycler::new();
        let first = take(&recycler, 20 * MIB);
        leave(&recycler, first, 20 * MIB);
        let second = take(&recycler, 20 * MIB - 1000);
        assert_eq!(first, second);
        leave(&recycler, second, 20 * MIB - 1000);
        recycler.trim();
    }

    #[test]
    fn all_together_take_no_more_than_were_once_used() {
        let recycler = Recycler::new();
        let sizes: Vec<usize> = (0..200).map(|i| (1 + i * 37 % 23) * MIB + i).collect();
        let (mut used, mut most) = (Vec::new(), 0);
        for (i, size) in sizes.iter().enumerate() {
            used.push((take(&recycler, *size), *size));
            let of_block = |(_, size): &(*mut u8, usize)| block(of(*size)).unwrap().size();
            let now: usize = used.iter().map(of_block).sum();
            most = most.max(now);
            assert!(now + recycler.kept_bytes() <= most);
            if i % 4 != 0 {
                let (start, size) = used.swap_remove(i * 31 % used.len());
                leave(&recycler, start, size);
            }
            if i % 50 == 49 {
                for (start, size) in used.drain(..) {
                    leave(&recycler, start, size);
                }
            }
        }
        assert!(recycler.kept_bytes() > 0);
        recycler.trim();
        assert_eq!(recycler.kept_bytes(), 0);
    }

    #[test]
    fn more_blocks_than_it_keeps_go_back() {
        let recycler = Recycler::new();
        let all: Vec<_> = (0..KEPT + 9).map(|_| take(&recycler, MIB)).collect();
        all.into_iter()
            .for_each(|start| leave(&recycler, start, MIB));
        assert_eq!(recycler.kept_bytes(), KEPT * MIB);
        recycler.trim();
    }

    #[test]
    fn grows_and_shrinks_with_what_was_written() {
        let recycler = Recycler::new();
        let mut start = take(&recycler, 1000);
        let mut size = 1000;
        for next in [2 * MIB, 2 * MIB + 5, 9 * MIB, 3 * MIB, 500] {
            // SAFETY: the memory is of `size`; only what was written is read.
            unsafe {
                start = recycler.realloc(start, of(size), next);
                for i in [0, size.min(next) - 1] {
                    assert_eq!(start.add(i).read(), 1, "{i} of {size} to {next}");
                }
                start.write_bytes(1, next);
            }
            size = next;
        }
        leave(&recycler, start, size);
        recycler.trim();
    }

    #[test]
    fn zeros_are_zeros_in_a_used_block_too() {
        let recycler = Recycler::new();
        let first = take(&recycler, 2 * MIB);
        leave(&recycler, first, 2 * MIB);
        // SAFETY: the memory is of that size.
        let zeros = unsafe {
            let start = recycler.alloc_zeroed(of(2 * MIB));
            assert_eq!(start, first);
            std::slice::from_raw_parts(start, 2 * MIB)
        };
        assert!(zeros.iter().all(|v| *v == 0));
        leave(&recycler, first, 2 * MIB);
        recycler.trim();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_page_that_cannot_be_moved_is_done_without() {
        let size = 3 * LARGE_PAGE;
        let layout = block(of(size)).unwrap();
        // Nothing is mapped there.
        let nowhere = NonNull::new(std::ptr::without_provenance_mut(LARGE_PAGE));
        // SAFETY: what there is of the block is nobody else's.
        unsafe {
            let start = system::assemble(layout, size, &mut || nowhere);
            assert_eq!(start.addr() % LARGE_PAGE, 0);
            start.write_bytes(1, size);
            assert_eq!(start.add(size - 1).read(), 1);
            system::give_back(NonNull::new(start).unwrap(), layout);
        }
    }

    #[test]
    fn what_is_not_for_blocks_is_the_systems() {
        let recycler = Recycler::new();
        for layout in [
            of(MIB - 1),
            Layout::from_size_align(4 * MIB, 4 * MIB).unwrap(),
        ] {
            // SAFETY: the size is not 0.
            unsafe {
                let start = recycler.alloc(layout);
                assert_eq!(start.addr() % layout.align(), 0);
                recycler.dealloc(start, layout);
            }
        }
        assert_eq!(recycler.kept_bytes(), 0);
    }
}
