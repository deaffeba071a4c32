//! Memory for results, and for what operators make on the way to them.

use rayon::prelude::*;

/// So many zeros.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    /// Fewer are made sooner than threads are woken.
    const SHARED: usize = 1 << 20;
    /// More come from the system, as zeros, when they are first touched.
    const FRESH: usize = 1 << 23;
    if !(SHARED..FRESH).contains(&len) {
        let buffer = vec![0.; len];
        advise(&buffer);
        return buffer;
    }
    let mut buffer = room(len);
    (0..len)
        .into_par_iter()
        .with_min_len(SHARED / 16)
        .map(|_| 0f32)
        .collect_into_vec(&mut buffer);
    buffer
}

/// An empty buffer with room for so much.
pub(crate) fn room<T>(len: usize) -> Vec<T> {
    let buffer = Vec::with_capacity(len);
    advise(&buffer);
    buffer
}

/// Asks the system for large pages, where it has them (Linux), if `buffer` is large: a result is written once, and to get its
/// memory in pages of 4 KiB takes longer than many an operator.
fn advise<T>(buffer: &Vec<T>) {
    let bytes = buffer.capacity().saturating_mul(size_of::<T>());
    advise_bytes(buffer.as_ptr().cast(), bytes);
}

#[cfg(not(target_os = "linux"))]
fn advise_bytes(_: *const u8, _: usize) {}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "a system call that takes a pointer")]
fn advise_bytes(start: *const u8, bytes: usize) {
    const LARGE: usize = 2 << 20;
    const PAGE: usize = 4096;
    if bytes < 2 * LARGE {
        return;
    }
    // Whole pages: the buffer's own, and no others.
    let first = start.addr().next_multiple_of(PAGE);
    let end = (start.addr() + bytes) / PAGE * PAGE;
    // SAFETY: the advice changes how memory is provided, not what it holds. Without it everything works: the result is of no
    // interest.
    unsafe {
        libc::madvise(
            start.with_addr(first).cast_mut().cast(),
            end - first,
            libc::MADV_HUGEPAGE,
        );
    }
}
