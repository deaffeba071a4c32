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
        let mut line = [Self::ZERO];
        Self::round(values, &mut line);
        let [line] = line;
        line
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
