//! The product of matrices of bf16 numbers, with sums in f32.

use std::sync::LazyLock;

use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::line::{Line, WIDTH, pair};
use crate::buffer::room;
use crate::isa::Isa;

/// Rows that are multiplied at a time: the left matrix, and the result, have a multiple of them.
pub(super) const GROUP: usize = 32;
/// Lines of a strip of the right matrix for one step: pairs of rows, of its first 16 columns and then of the others.
pub(super) const STEP: usize = 32;

/// `WIDTH` neighbours of a row of the result.
pub(super) type Sums = [f32; WIDTH];

/// The left matrix, a line of each row a step: row `i` has in step `s` the line `steps[s] + i`.
///
/// So a row's lines may lie anywhere, but neighbouring rows lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) lines: &'a [Line],
    pub(super) steps: &'a [usize],
    /// [`GROUP`]s of rows.
    pub(super) groups: usize,
}

/// The right matrix, `[strips, steps, STEP]`, and what of it need not be multiplied.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) lines: &'a [Line],
    /// From this step on only the first `pairs` of rows of a step are not zeros.
    pub(super) full_steps: usize,
    pub(super) pairs: usize,
    /// Columns of the last strip that count: others of the result may stay what they are.
    pub(super) columns: usize,
}

/// The lines of a [`Right`] of the elements `at(step, row, column)`: rows of the step, columns of all strips.
pub(super) fn right(
    strips: usize,
    steps: usize,
    at: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<Line> {
    let line = |i: usize| {
        let (strip, step, i) = (i / STEP / steps, i / STEP % steps, i % STEP);
        let (side, row) = (i / (STEP / 2), i % (STEP / 2) * 2);
        let mut line = Line::ZERO;
        for (pairs, column) in line.0.iter_mut().zip(strip * WIDTH + side * WIDTH / 2..) {
            *pairs = pair(at(step, row, column), at(step, row + 1, column));
        }
        line
    };
    let count = strips * steps * STEP;
    let mut lines = room(count);
    (0..count)
        .into_par_iter()
        .with_min_len(STEP)
        .map(line)
        .collect_into_vec(&mut lines);
    lines
}

/// Fills `out`, `[strips, rows]`, with the product of `left` and `right` on the calling thread.
///
/// # Panics
/// A matrix is smaller than that.
pub(super) fn product(left: Left, right: Right, out: &mut [Sums]) {
    product_by(*BEST, left, right, out);
}

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

static BEST: LazyLock<Kernel> =
    LazyLock::new(|| Kernel::available().next_back().unwrap_or(Kernel::Plain));

impl Kernel {
    /// Those of this machine, the fastest last.
    fn available() -> impl DoubleEndedIterator<Item = Self> {
        [
            Some(Self::Plain),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"))
                .then_some(Self::Avx512),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            amx::available().then_some(Self::Amx),
        ]
        .into_iter()
        .flatten()
    }
}

#[allow(
    unsafe_code,
    reason = "the fast kernels take pointers, and instructions that not every machine has"
)]
fn product_by(kernel: Kernel, left: Left, right: Right, out: &mut [Sums]) {
    let (rows, steps) = (left.groups * GROUP, left.steps.len());
    if out.is_empty() {
        return;
    }
    if steps == 0 {
        return out.fill([0.; WIDTH]);
    }
    let last = left.steps.iter().max().copied().unwrap_or(0);
    assert!(last + rows <= left.lines.len(), "{rows} rows on the left");
    assert_eq!(out.len() % rows, 0, "whole strips of {rows} rows");
    let strips = out.len() / rows;
    let lines = right.lines;
    assert!(lines.len() >= strips * steps * STEP, "{strips} strips");
    match kernel {
        Kernel::Plain => Isa::best().run(
            #[inline(always)]
            || plain(left, lines, out),
        ),
        // SAFETY: the asserts keep all that is read inside `left` and `right`, and all that is written inside `out`; a kernel is
        // made in `available` alone, where the machine has it.
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => unsafe { avx512::product(left, right, out) },
        // SAFETY: as above.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kernel::Amx => unsafe { amx::product(left, lines, out) },
    }
}

/// What a compiler makes of the definition.
#[inline(always)]
fn plain(left: Left, right: &[Line], out: &mut [Sums]) {
    /// Rows at a time.
    const ROWS: usize = 4;
    let strips = right.chunks_exact(left.steps.len() * STEP);
    for (right, out) in strips.zip(out.chunks_exact_mut(left.groups * GROUP)) {
        for (i, out) in out.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            let mut sums = [[0f32; WIDTH]; ROWS];
            for (step, right) in left.steps.iter().zip(right.chunks_exact(STEP)) {
                let rows = &left.lines[step + i * ROWS..][..ROWS];
                for p in 0..WIDTH / 2 {
                    let (mut low, mut high) = ([0f32; WIDTH], [0f32; WIDTH]);
                    let pairs = right[p].0.iter().chain(&right[p + STEP / 2].0);
                    for ((low, high), pair) in low.iter_mut().zip(&mut high).zip(pairs) {
                        (*low, *high) = halves(*pair);
                    }
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let (first, second) = halves(row.0[p]);
                        for ((sum, low), high) in sums.iter_mut().zip(&low).zip(&high) {
                            *sum += first * low;
                            *sum += second * high;
                        }
                    }
                }
            }
            *out = sums;
        }
    }
}

/// The numbers of a pair.
#[inline(always)]
fn halves(pair: u32) -> (f32, f32) {
    (
        f32::from_bits(pair << 16),
        f32::from_bits(pair & 0xffff_0000),
    )
}

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vectors are loaded from and stored to pointers, by instructions that not every machine has"
)]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{GROUP, Left, Right, STEP, Sums, WIDTH};

    /// # Safety
    /// `left`, `right` and `out` are as large as `product` says.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn product(left: Left, right: Right, out: &mut [Sums]) {
        let (rows, steps) = (left.groups * GROUP, left.steps.len());
        let strips = out.len() / rows;
        for (strip, out) in out.chunks_exact_mut(rows).enumerate() {
            let lines = &right.lines[strip * steps * STEP..];
            let right = Right { lines, ..right };
            let narrow = strip + 1 == strips && right.columns <= WIDTH / 2;
            for (i, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let (first, out) = (i * GROUP, out.as_mut_ptr());
                // SAFETY: the caller's. Tiles are as large as the registers, with what they are multiplied by, allow.
                unsafe {
                    if narrow {
                        tile::<16, 1>(left, first, right, out);
                        tile::<16, 1>(left, first + 16, right, out.add(16));
                    } else {
                        tile::<12, 2>(left, first, right, out);
                        tile::<12, 2>(left, first + 12, right, out.add(12));
                        tile::<8, 2>(left, first + 24, right, out.add(24));
                    }
                }
            }
        }
    }

    /// `N` vectors of `M` rows from `first` on, to as many rows of `out`.
    ///
    /// # Safety
    /// As above, for these rows and the first strip of `right`.
    #[expect(
        clippy::needless_range_loop,
        reason = "indices unroll, where iterators would have to be inlined first"
    )]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const M: usize, const N: usize>(
        left: Left,
        first: usize,
        right: Right,
        out: *mut Sums,
    ) {
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let mut strip = right.lines.as_ptr().cast::<i32>();
        for (i, step) in left.steps.iter().enumerate() {
            let pairs = if i < right.full_steps {
                STEP / 2
            } else {
                right.pairs.min(STEP / 2)
            };
            // SAFETY: the caller's: a step has `STEP` lines of 16 pairs, and each row a line.
            unsafe {
                let row = left.lines.as_ptr().add(step + first).cast::<i32>();
                for p in 0..pairs {
                    let mut b = [_mm512_setzero_si512(); N];
                    for j in 0..N {
                        b[j] = _mm512_load_epi32(strip.add((j * STEP / 2 + p) * 16));
                    }
                    for i in 0..M {
                        let a = _mm512_set1_epi32(*row.add(i * 16 + p));
                        for j in 0..N {
                            sums[i][j] = _mm512_dpbf16_ps(
                                sums[i][j],
                                std::mem::transmute::<__m512i, __m512bh>(a),
                                std::mem::transmute::<__m512i, __m512bh>(b[j]),
                            );
                        }
                    }
                }
                strip = strip.add(STEP * 16);
            }
        }
        for i in 0..M {
            for j in 0..N {
                // SAFETY: the caller's: a row has two vectors.
                unsafe { _mm512_storeu_ps(out.add(i).cast::<f32>().add(16 * j), sums[i][j]) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::line::pair;

    impl<'a> Right<'a> {
        /// All of it counts.
        fn full(lines: &'a [Line]) -> Self {
            Self {
                lines,
                full_steps: usize::MAX,
                pairs: 0,
                columns: WIDTH,
            }
        }
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 + seed * 104_729) % 251) as f32 / 64. - 2.)
            .collect()
    }

    /// The product by `kernel`; the left rows of a step overlap those of the next, as a convolution's do.
    fn found(kernel: Kernel, groups: usize, steps: usize, strips: usize) -> Vec<Sums> {
        let offsets: Vec<usize> = (0..steps).map(|s| 3 * s).collect();
        let left = numbers((groups * GROUP + 3 * steps) * WIDTH, 1);
        let left: Vec<Line> = left.chunks(WIDTH).map(Line::new).collect();
        let right = numbers(strips * steps * STEP * WIDTH, 2);
        let right: Vec<Line> = right.chunks(WIDTH).map(Line::new).collect();
        let mut out = vec![[f32::NAN; WIDTH]; strips * groups * GROUP];
        let left = Left {
            lines: &left,
            steps: &offsets,
            groups,
        };
        let right = Right::full(&right);
        product_by(kernel, left, right, &mut out);
        out
    }

    #[test]
    fn is_the_product_whatever_the_sizes() {
        for (groups, steps, strips) in [(1, 1, 1), (1, 5, 3), (3, 2, 1), (2, 40, 2), (2, 0, 1)] {
            let left = numbers((groups * GROUP + 3 * steps) * WIDTH, 1);
            let right = numbers(strips * steps * STEP * WIDTH, 2);
            let expected = |strip: usize, row: usize, column: usize| -> f64 {
                (0..steps * WIDTH)
                    .map(|k| {
                        let (step, k) = (k / WIDTH, k % WIDTH);
                        let a = left[(3 * step + row) * WIDTH + k];
                        let line = (strip * steps + step) * STEP + column / 16 * (STEP / 2) + k / 2;
                        let b = right[line * WIDTH + column % 16 * 2 + k % 2];
                        f64::from(a) * f64::from(b)
                    })
                    .sum()
            };
            for kernel in Kernel::available() {
                let out = found(kernel, groups, steps, strips);
                for (i, sums) in out.iter().enumerate() {
                    let (strip, row) = (i / (groups * GROUP), i % (groups * GROUP));
                    for (column, sum) in sums.iter().enumerate() {
                        let error = (f64::from(*sum) - expected(strip, row, column)).abs();
                        assert!(error < 1e-3, "{kernel:?} {strip} {row} {column}: {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn leaves_out_zeros_and_columns_that_do_not_count() {
        for kernel in Kernel::available() {
            for (full_steps, pairs, columns) in [(3, 0, 32), (2, 5, 16), (0, 16, 17), (1, 1, 1)] {
                let left = numbers(5 * GROUP * WIDTH, 1);
                let left: Vec<Line> = left.chunks(WIDTH).map(Line::new).collect();
                let mut right = numbers(2 * 3 * STEP * WIDTH, 2);
                for (i, line) in right.chunks_mut(WIDTH).enumerate() {
                    if i / STEP % 3 >= full_steps && i % (STEP / 2) >= pairs {
                        line.fill(0.);
                    }
                }
                let right: Vec<Line> = right.chunks(WIDTH).map(Line::new).collect();
                let left = Left {
                    lines: &left,
                    steps: &[0, GROUP, 3 * GROUP],
                    groups: 2,
                };
                let [mut all, mut out] = [(); 2].map(|()| vec![[7.; WIDTH]; 2 * 2 * GROUP]);
                product_by(kernel, left, Right::full(&right), &mut all);
                let right = Right {
                    lines: &right,
                    full_steps,
                    pairs,
                    columns,
                };
                product_by(kernel, left, right, &mut out);
                for (row, (found, expected)) in out.iter().zip(&all).enumerate() {
                    let count = if row < 2 * GROUP { WIDTH } else { columns };
                    assert_eq!(found[..count], expected[..count], "{kernel:?} row {row}");
                }
            }
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_neighbours() {
        for kernel in Kernel::available() {
            let all = found(kernel, 3, 7, 2);
            let few = found(kernel, 1, 7, 1);
            assert_eq!(all[..GROUP], few[..], "{kernel:?}");
        }
    }

    #[test]
    fn rounds_to_nearest_and_ties_to_even() {
        use half::bf16;
        let numbers = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)));
        let ties = (0..100).map(|i| f32::from_bits(0x3f80_8000 + (i << 16)));
        let special = [0., -0., f32::INFINITY, f32::MAX, f32::NAN, -f32::NAN];
        for v in numbers.chain(ties).chain(special) {
            let expected = bf16::from_f32(v);
            let found = pair(1., v) >> 16;
            if v.is_nan() {
                assert!(f32::from_bits(found << 16).is_nan(), "{:x}", v.to_bits());
            } else {
                assert_eq!(found, u32::from(expected.to_bits()), "{v:e}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "32 rows on the left")]
    fn refuses_to_read_beyond_the_left() {
        let left = Left {
            lines: &[Line::ZERO; GROUP],
            steps: &[0, 1],
            groups: 1,
        };
        let right = [Line::ZERO; 2 * STEP];
        product(left, Right::full(&right), &mut [[0.; WIDTH]; GROUP]);
    }

    #[test]
    #[should_panic(expected = "2 strips")]
    fn refuses_to_read_beyond_the_right() {
        let left = Left {
            lines: &[Line::ZERO; GROUP],
            steps: &[0],
            groups: 1,
        };
        let right = [Line::ZERO; STEP];
        product(left, Right::full(&right), &mut [[0.; WIDTH]; 2 * GROUP]);
    }
}
