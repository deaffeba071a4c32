//! Memory for results, and for what operators make on the way to them.

/// A buffer to be written: its numbers are any.
#[allow(
    unsafe_code,
    reason = "to write what is written over takes as long as many an operator"
)]
pub(crate) fn unwritten(len: usize) -> Vec<f32> {
    let mut buffer = room(len);
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    // SAFETY: there is room for `len` numbers. As far as the compiler knows, the assembly writes them, so they are initialised;
    // whatever they hold is an f32.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) buffer.as_mut_ptr(), options(nostack, preserves_flags));
        buffer.set_len(len);
    }
    buffer.resize(len, 0.);
    buffer
}

/// So much of `buffer`, which grows if need be, to be written.
pub(crate) fn part(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        // The old one goes before the new one comes.
        *buffer = Vec::new();
        *buffer = unwritten(len);
    }
    &mut buffer[..len]
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
    if bytes < 2 * LARGE {
        return;
    }
    // Large pages that are the buffer's alone: advice that ends inside of one keeps it from being moved elsewhere as a whole.
    let first = start.addr().next_multiple_of(LARGE);
    let end = (start.addr() + bytes) / LARGE * LARGE;
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
