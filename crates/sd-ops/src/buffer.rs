//! Memory for results, and for what operators make on the way to them.

/// So many zeros.
///
/// Large buffers come in large pages where the system has them (Linux): a result is written once, and to get its memory in pages
/// of 4 KiB takes longer than many an operator.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let buffer = vec![0f32; len];
    #[cfg(target_os = "linux")]
    advise(&buffer);
    buffer
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "a system call that takes a pointer")]
fn advise(buffer: &[f32]) {
    const LARGE: usize = 2 << 20;
    const PAGE: usize = 4096;
    let bytes = size_of_val(buffer);
    if bytes < 2 * LARGE {
        return;
    }
    // Whole pages: the buffer's own, and no others.
    let start = buffer.as_ptr().addr();
    let first = start.next_multiple_of(PAGE);
    let end = (start + bytes) / PAGE * PAGE;
    // SAFETY: the advice changes how memory is provided, not what it holds. Without it everything works: the result is of no
    // interest.
    unsafe {
        libc::madvise(
            buffer.as_ptr().with_addr(first).cast_mut().cast(),
            end - first,
            libc::MADV_HUGEPAGE,
        );
    }
}
