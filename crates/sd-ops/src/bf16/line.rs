//! Lines of 32 bf16 numbers: what the products read at a time.

use crate::isa::vectorized;

/// Numbers of a line.
pub(super) const WIDTH: usize = 32;

/// 32 bf16 numbers in a cache line, as 16 pairs. The first number of a pair is its lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; WIDTH / 2]);

impl Line {
    pub(super) const ZERO: Self = Self([0; WIDTH / 2]);

    /// Up to [`WIDTH`] numbers, and zeros.
    #[cfg(test)]
    pub(super) fn new(values: &[f32]) -> Self {
        let mut all = [0.; WIDTH];
        all[..values.len()].copy_from_slice(values);
        let mut line = [Self::ZERO];
        Self::round(&all, &mut line);
        line[0]
    }

    /// Fills `lines` with as many numbers.
    #[inline(always)]
    pub(super) fn round(values: &[f32], lines: &mut [Self]) {
        let pairs = Self::as_pairs_mut(lines).iter_mut();
        for (to, v) in pairs.zip(values.as_chunks::<2>().0) {
            *to = pair(v[0], v[1]);
        }
    }

    /// The pairs of all `lines`: compilers make better code of one long loop than of many short ones.
    #[inline(always)]
    #[allow(unsafe_code, reason = "lines are aligned arrays of pairs")]
    fn as_pairs_mut(lines: &mut [Self]) -> &mut [u32] {
        let count = lines.len() * (WIDTH / 2);
        // SAFETY: a line is an array of so many pairs, and nothing else.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count) }
    }
}

/// Rows of numbers that start `stride` apart, of which the first `width` are read.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl Rows<'_> {
    /// Writes `count` rows as lines, the last one of each row filled up with zeros: `[lines of a row, apart]`.
    ///
    /// # Panics
    /// There are fewer rows or lines.
    pub(super) fn round(self, count: usize, lines: &mut [Line], apart: usize) {
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            return avx512::round(self, count, lines, apart);
        }
        vectorized!(self.each(count, lines, apart, |values| {
            let mut line = [Line::ZERO];
            Line::round(values, &mut line);
            line[0]
        }));
    }

    #[inline(always)]
    fn each(
        self,
        count: usize,
        lines: &mut [Line],
        apart: usize,
        line: impl Fn(&[f32; WIDTH]) -> Line,
    ) {
        for i in 0..count {
            let (full, rest) = self.values[i * self.stride..][..self.width].as_chunks();
            for (step, values) in full.iter().enumerate() {
                lines[step * apart + i] = line(values);
            }
            if !rest.is_empty() {
                let mut last = [0.; WIDTH];
                last[..rest.len()].copy_from_slice(rest);
                lines[full.len() * apart + i] = line(&last);
            }
        }
    }
}

/// The same with an instruction for it.
#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "instructions that not every machine has, on pointers"
)]
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use super::{Line, Rows, WIDTH};

    pub(in crate::bf16) fn available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    /// # Panics
    /// The machine has not the instructions; as [`Rows::round`].
    pub(super) fn round(rows: Rows, count: usize, lines: &mut [Line], apart: usize) {
        assert!(available());
        // SAFETY: as asserted.
        unsafe { round_rows(rows, count, lines, apart) };
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round_rows(rows: Rows, count: usize, lines: &mut [Line], apart: usize) {
        rows.each(count, lines, apart, |values: &[f32; WIDTH]| {
            // SAFETY: twice sixteen floats.
            let [low, high] = [0, 16].map(|i| unsafe { _mm512_loadu_ps(values[i..].as_ptr()) });
            line(low, high)
        });
    }

    /// The nearest bf16 to 32 numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in crate::bf16) fn line(low: __m512, high: __m512) -> Line {
        let pairs = _mm512_cvtne2ps_pbh(high, low);
        // SAFETY: both are 64 bytes, of which any make pairs.
        unsafe { std::mem::transmute::<__m512bh, Line>(pairs) }
    }
}

/// The bits of `v` with those of the nearest bf16 in their upper half.
#[inline(always)]
fn rounded(v: f32) -> u32 {
    let bits = v.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding up must not make an infinity of what is not a number.
    if v.is_nan() {
        bits | 0x40_0000
    } else {
        nearest
    }
}

/// Two numbers as a pair.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> u32 {
    rounded(first) >> 16 | rounded(second) & 0xffff_0000
}
