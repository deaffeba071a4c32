//! Lines of 32 bf16 numbers: what the products read at a time.

/// Numbers of a line.
pub(super) const WIDTH: usize = 32;

/// 32 bf16 numbers in a cache line, as 16 pairs. The first number of a pair is its lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; WIDTH / 2]);

impl Line {
    pub(super) const ZERO: Self = Self([0; WIDTH / 2]);

    /// Up to [`WIDTH`] numbers, and zeros.
    #[inline(always)]
    pub(super) fn new(values: &[f32]) -> Self {
        match values.first_chunk::<WIDTH>() {
            Some(values) => Self::full(values),
            None => {
                let mut all = [0.; WIDTH];
                all[..values.len()].copy_from_slice(values);
                Self::full(&all)
            }
        }
    }

    #[inline(always)]
    pub(super) fn full(values: &[f32; WIDTH]) -> Self {
        let mut halves = [0u16; WIDTH];
        for (half, v) in halves.iter_mut().zip(values) {
            *half = (rounded(*v) >> 16) as u16;
        }
        let mut line = Self::ZERO;
        for (pair, halves) in line.0.iter_mut().zip(halves.as_chunks::<2>().0) {
            *pair = u32::from(halves[0]) | u32::from(halves[1]) << 16;
        }
        line
    }
}

/// The bits of `v` with those of the nearest bf16 in their upper half.
#[inline(always)]
fn rounded(v: f32) -> u32 {
    let bits = v.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding up must not make an infinity of what is not a number.
    if v.is_nan() { bits | 0x40_0000 } else { nearest }
}

/// Two numbers as a pair.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> u32 {
    rounded(first) >> 16 | rounded(second) & 0xffff_0000
}
