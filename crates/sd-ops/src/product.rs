//! The matrix product under all operators: rows of one matrix by panels of another's columns, a tile of the result at a time
//! in registers.
//!
//! An element's sum runs over the inner dimension in order, in equal blocks of at most [`DEPTH`]. Nothing else changes its
//! bits: neither its place in a tile, nor the number of rows and columns.
#![allow(
    unsafe_code,
    reason = "vectors are loaded from and stored to pointers, by instructions that not every machine has"
)]

use std::marker::PhantomData;

use crate::isa::Isa;

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Rows of a tile where no vector of a panel's row is missing.
pub(crate) const TILE: usize = 6;
/// Most of the inner dimension at a time: so much of a panel stays in a core's cache.
const DEPTH: usize = 384;

/// Rows of a panel that are asked for before they are multiplied.
const AHEAD: usize = 16;

/// Elements of a matrix in panels.
pub(crate) fn panels_len(depth: usize, columns: usize) -> usize {
    columns
        .div_ceil(PANEL)
        .saturating_mul(PANEL)
        .saturating_mul(depth)
}

/// A matrix to read, whose rows start `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    /// Whether `rows` rows of `columns` elements lie inside the data.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || (rows - 1)
                .checked_mul(self.stride)
                .and_then(|start| start.checked_add(columns))
                .is_some_and(|end| end <= self.data.len())
    }
}

/// A matrix to read, in panels of columns: `[columns / PANEL, depth, PANEL]`, the last panel filled up with anything.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    depth: usize,
}

impl<'a> Panels<'a> {
    pub(crate) fn new(data: &'a [f32], depth: usize) -> Self {
        Self { data, depth }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// What the target holds.
    Target,
    /// One number for each row.
    Rows(&'a [f32]),
    /// One number for each column.
    Columns(&'a [f32]),
}

/// A matrix to write: rows that start `stride` elements apart.
pub(crate) struct Target<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

impl Target<'_> {
    /// # Safety
    /// `rows` rows of `columns` elements that start `stride` elements apart from `start` on may be read and written for as long
    /// as this lives, and are by nobody else.
    pub(crate) unsafe fn new(start: *mut f32, stride: usize, rows: usize, columns: usize) -> Self {
        Self {
            start,
            stride,
            rows,
            columns,
            matrix: PhantomData,
        }
    }

    /// Becomes `start` plus the product of `a [rows, depth]` and `b [depth, columns]`.
    ///
    /// # Panics
    /// One of them is smaller than that.
    pub(crate) fn product(&mut self, start: Start, a: Rows, b: Panels) {
        self.product_by(Isa::best(), start, a, b);
    }

    fn product_by(&mut self, isa: Isa, start: Start, a: Rows, b: Panels) {
        let (rows, columns) = (self.rows, self.columns);
        assert!(a.holds(rows, b.depth), "{rows} rows of {}", b.depth);
        let panels = panels_len(b.depth, columns);
        assert!(b.data.len() >= panels, "{columns} columns of {}", b.depth);
        match start {
            Start::Rows(each) => assert!(each.len() >= rows, "{rows} rows"),
            Start::Columns(each) => assert!(each.len() >= columns, "{columns} columns"),
            Start::Zero | Start::Target => (),
        }
        // SAFETY: the asserts keep all reads inside `a`, `b` and `start`, and this is a target of `rows` and `columns`. `isa` is
        // one that the machine has, and the vectors are its own.
        unsafe {
            match isa {
                Isa::Portable => blocks::<Portable>(self, start, a, b),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => isa.run(
                    #[inline(always)]
                    || blocks::<std::arch::x86_64::__m256>(self, start, a, b),
                ),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => isa.run(
                    #[inline(always)]
                    || blocks::<std::arch::x86_64::__m512>(self, start, a, b),
                ),
            }
        }
    }
}

/// A vector register.
trait Vector: Copy {
    /// Its elements.
    const LANES: usize;
    /// Vectors of a row of a tile.
    const PASS: usize;
    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn plus(self, other: Self) -> Self;
    /// `self + a * b`.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Asks for memory that will be needed, where there is an instruction for that. The address may be any.
    unsafe fn prefetch(_: *const f32) {}
}

/// What a compiler makes of four floats on any machine.
#[derive(Clone, Copy)]
struct Portable([f32; 4]);

impl Vector for Portable {
    const LANES: usize = 4;
    const PASS: usize = if cfg!(target_arch = "x86_64") { 2 } else { 4 };

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Self([v; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { from.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for i in 0..4 {
            self.0[i] += other.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..4 {
            // Where it is no instruction, a fused product is a slow call.
            self.0[i] = if cfg!(target_arch = "aarch64") {
                a.0[i].mul_add(b.0[i], self.0[i])
            } else {
                self.0[i] + a.0[i] * b.0[i]
            };
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    macro_rules! vector {
        ($vector:ty, $lanes:literal, $pass:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident) => {
            // Callers use these where the machine has the instructions, on pointers to as many floats.
            impl Vector for $vector {
                const LANES: usize = $lanes;
                const PASS: usize = $pass;

                #[inline(always)]
                unsafe fn splat(v: f32) -> Self {
                    // SAFETY: as all of them.
                    unsafe { $splat(v) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: as all of them.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: as all of them.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                unsafe fn plus(self, other: Self) -> Self {
                    // SAFETY: as all of them.
                    unsafe { $add(self, other) }
                }

                #[inline(always)]
                unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: as all of them.
                    unsafe { $fma(a, b, self) }
                }

                #[inline(always)]
                unsafe fn prefetch(address: *const f32) {
                    // SAFETY: as all of them.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
                }
            }
        };
    }

    vector!(
        __m256,
        8,
        2,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );
    vector!(
        __m512,
        16,
        4,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );
}

/// Part of a product: `depth` of the inner dimension.
struct Block<'a> {
    /// The first row of `a`, and elements from one to the next.
    a: *const f32,
    a_stride: usize,
    /// The first row of some columns of a panel.
    b: *const f32,
    depth: usize,
    /// Of all rows, and of these columns.
    start: Start<'a>,
}

/// # Safety
/// `a` holds the rows of `target`, `b` its columns, and `start` both; the machine has the instructions of `V`, which the caller
/// is compiled for.
#[inline(always)]
unsafe fn blocks<V: Vector>(target: &mut Target, start: Start, a: Rows, b: Panels) {
    let pass = V::LANES * V::PASS;
    let block = b.depth.div_ceil(b.depth.div_ceil(DEPTH).max(1)).max(1);
    for first in (0..b.depth.max(1)).step_by(block) {
        let depth = block.min(b.depth - first);
        for column in (0..target.columns).step_by(pass) {
            let columns = pass.min(target.columns - column);
            // SAFETY: passes divide panels, so these columns lie in one, and in the target.
            unsafe {
                let panel = b.data.as_ptr().add(column / PANEL * PANEL * b.depth);
                let block = Block {
                    a: a.data.as_ptr().wrapping_add(first),
                    a_stride: a.stride,
                    b: panel.wrapping_add(first * PANEL + column % PANEL),
                    depth,
                    start: match start {
                        _ if first > 0 => Start::Target,
                        Start::Columns(each) => Start::Columns(&each[column..]),
                        start => start,
                    },
                };
                let out = target.start.add(column);
                let (stride, rows) = (target.stride, target.rows);
                match columns.div_ceil(V::LANES) {
                    1 => tiles::<V, 1>(&block, out, stride, rows, columns),
                    2 => tiles::<V, 2>(&block, out, stride, rows, columns),
                    3 => tiles::<V, 3>(&block, out, stride, rows, columns),
                    _ => tiles::<V, 4>(&block, out, stride, rows, columns),
                }
            }
        }
    }
}

/// All rows of a pass of `N` vectors, of which the last may have fewer `columns`.
#[inline(always)]
unsafe fn tiles<V: Vector, const N: usize>(
    block: &Block,
    out: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
) {
    // With the vectors of a row, and those of `b`, they fill the registers.
    let at_a_time = match N {
        _ if N == V::PASS => TILE,
        1 | 2 => 12,
        _ => 9,
    };
    for row in (0..rows).step_by(at_a_time) {
        // SAFETY: the row is one of the target's.
        unsafe {
            let out = out.add(row * stride);
            let block = &Block {
                a: block.a.wrapping_add(row * block.a_stride),
                start: match block.start {
                    Start::Rows(each) => Start::Rows(&each[row..]),
                    start => start,
                },
                ..*block
            };
            match at_a_time.min(rows - row) {
                1 => tile::<V, 1, N>(block, out, stride, columns),
                2 => tile::<V, 2, N>(block, out, stride, columns),
                3 => tile::<V, 3, N>(block, out, stride, columns),
                4 => tile::<V, 4, N>(block, out, stride, columns),
                5 => tile::<V, 5, N>(block, out, stride, columns),
                6 => tile::<V, 6, N>(block, out, stride, columns),
                7 => tile::<V, 7, N>(block, out, stride, columns),
                8 => tile::<V, 8, N>(block, out, stride, columns),
                9 => tile::<V, 9, N>(block, out, stride, columns),
                10 => tile::<V, 10, N>(block, out, stride, columns),
                11 => tile::<V, 11, N>(block, out, stride, columns),
                _ => tile::<V, 12, N>(block, out, stride, columns),
            }
        }
    }
}

/// `M` rows of `N` vectors.
#[expect(
    clippy::needless_range_loop,
    reason = "indices unroll, where iterators would have to be inlined first"
)]
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const N: usize>(
    block: &Block,
    out: *mut f32,
    stride: usize,
    columns: usize,
) {
    // SAFETY: the caller's: `a` has `M` rows of `depth`, a panel's row has `N` vectors, `out` has `M` rows of `columns`, and
    // `start` as many of what it has.
    unsafe {
        let zero = V::splat(0.);
        let mut sums = [[zero; N]; M];
        for i in 0..M {
            for j in 0..N {
                V::prefetch(out.wrapping_add(i * stride + j * V::LANES));
            }
        }
        for k in 0..block.depth {
            let mut b = [zero; N];
            for j in 0..N {
                let from = block.b.add(k * PANEL + j * V::LANES);
                b[j] = V::load(from);
                V::prefetch(from.wrapping_add(AHEAD * PANEL));
            }
            for i in 0..M {
                let a = V::splat(*block.a.add(i * block.a_stride + k));
                for j in 0..N {
                    sums[i][j] = sums[i][j].plus_product(a, b[j]);
                }
            }
        }
        for i in 0..M {
            for j in 0..N {
                let inside = columns - j * V::LANES;
                let out = out.add(i * stride + j * V::LANES);
                let before = match block.start {
                    Start::Zero => zero,
                    Start::Target => load_part(out, inside),
                    Start::Rows(each) => V::splat(*each.get_unchecked(i)),
                    Start::Columns(each) => load_part(each.as_ptr().add(j * V::LANES), inside),
                };
                store_part(before.plus(sums[i][j]), out, inside);
            }
        }
    }
}

/// A vector of the first `count` elements, if there are fewer than it has.
#[inline(always)]
unsafe fn load_part<V: Vector>(from: *const f32, count: usize) -> V {
    // SAFETY: the caller's: there are `count`, or as many as a vector has.
    unsafe {
        if count >= V::LANES {
            return V::load(from);
        }
        let mut part = [0f32; PANEL];
        part.as_mut_ptr().copy_from_nonoverlapping(from, count);
        V::load(part.as_ptr())
    }
}

/// Writes the first `count` elements, if there are fewer than the vector has.
#[inline(always)]
unsafe fn store_part<V: Vector>(vector: V, to: *mut f32, count: usize) {
    // SAFETY: the caller's: there is room for `count`, or for as many as a vector has.
    unsafe {
        if count >= V::LANES {
            return vector.store(to);
        }
        let mut part = [0f32; PANEL];
        vector.store(part.as_mut_ptr());
        to.copy_from_nonoverlapping(part.as_ptr(), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.)
            .collect()
    }

    const STARTS: [&str; 4] = ["zero", "target", "rows", "columns"];

    /// The product by `isa` into a matrix of wider rows, and whether the rest of it stayed as it was.
    fn product(isa: Isa, [rows, columns, depth]: [usize; 3], start: &str) -> (Vec<f32>, bool) {
        let (a, b) = (
            numbers(rows * (depth + 3), 1),
            numbers(panels_len(depth, columns), 2),
        );
        let stride = columns + 5;
        let mut out = numbers(rows * stride, 3);
        let before = out.clone();
        // SAFETY: the rows are those of `out`.
        let mut target = unsafe { Target::new(out.as_mut_ptr(), stride, rows, columns) };
        let each = numbers(rows.max(columns), 4);
        let start = match start {
            "target" => Start::Target,
            "rows" => Start::Rows(&each[..rows]),
            "columns" => Start::Columns(&each[..columns]),
            _ => Start::Zero,
        };
        target.product_by(isa, start, Rows::new(&a, depth + 3), Panels::new(&b, depth));
        let untouched = out
            .chunks(stride)
            .zip(before.chunks(stride))
            .all(|(out, before)| out[columns..] == before[columns..]);
        let out = out.chunks(stride).flat_map(|row| &row[..columns]);
        (out.copied().collect(), untouched)
    }

    fn reference([rows, columns, depth]: [usize; 3], start: &str) -> Vec<f64> {
        let (a, b) = (
            numbers(rows * (depth + 3), 1),
            numbers(panels_len(depth, columns), 2),
        );
        let (before, each) = (
            numbers(rows * (columns + 5), 3),
            numbers(rows.max(columns), 4),
        );
        let element = |i: usize, j: usize| {
            let sum: f64 = (0..depth)
                .map(|k| {
                    let b = b[j / PANEL * PANEL * depth + k * PANEL + j % PANEL];
                    f64::from(a[i * (depth + 3) + k]) * f64::from(b)
                })
                .sum();
            let before = match start {
                "target" => before[i * (columns + 5) + j],
                "rows" => each[i],
                "columns" => each[j],
                _ => 0.,
            };
            f64::from(before) + sum
        };
        (0..rows * columns)
            .map(|at| element(at / columns, at % columns))
            .collect()
    }

    #[test]
    fn is_the_product_whatever_the_sizes() {
        for isa in Isa::available() {
            for rows in (0..=13).chain([23]) {
                for columns in [1, 3, 8, 15, 16, 17, 33, 49, 64, 65, 130] {
                    for depth in [0, 1, 2, 100, 384, 385, 900] {
                        for start in STARTS {
                            let sizes = [rows, columns, depth];
                            let (found, untouched) = product(isa, sizes, start);
                            assert!(untouched, "{isa:?} {sizes:?} wrote beside its columns");
                            for (found, expected) in found.iter().zip(reference(sizes, start)) {
                                let error = (f64::from(*found) - expected).abs();
                                let case = (isa, sizes, start);
                                assert!(error < 1e-4, "{case:?} {found} {expected}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_neighbours() {
        for isa in Isa::available() {
            let (all, _) = product(isa, [13, 130, 900], "zero");
            let (few, _) = product(isa, [2, 130, 900], "zero");
            assert_eq!(all[..few.len()], few);
            let one_column = product(isa, [13, 1, 900], "zero").0;
            let first: Vec<f32> = all.chunks(130).map(|row| row[0]).collect();
            // Panels are laid out alike whatever their number.
            assert_eq!(first, one_column);
        }
    }

    #[test]
    #[should_panic(expected = "3 rows of 5")]
    fn refuses_to_read_beyond_the_rows() {
        let (a, b) = (numbers(14, 1), numbers(5 * PANEL, 2));
        let mut out = [0f32; 3];
        // SAFETY: three rows of one element.
        let mut target = unsafe { Target::new(out.as_mut_ptr(), 1, 3, 1) };
        target.product(Start::Zero, Rows::new(&a, 5), Panels::new(&b, 5));
    }

    #[test]
    #[should_panic(expected = "65 columns of 5")]
    fn refuses_to_read_beyond_the_panels() {
        let (a, b) = (numbers(5, 1), numbers(5 * PANEL, 2));
        let mut out = [0f32; 65];
        // SAFETY: one row of 65 elements.
        let mut target = unsafe { Target::new(out.as_mut_ptr(), 65, 1, 65) };
        target.product(Start::Zero, Rows::new(&a, 5), Panels::new(&b, 5));
    }
    #[test]
    #[should_panic(expected = "3 columns")]
    fn refuses_to_read_beyond_the_start() {
        let (a, b) = (numbers(10, 1), numbers(5 * PANEL, 2));
        let mut out = [0f32; 6];
        // SAFETY: two rows of three elements.
        let mut target = unsafe { Target::new(out.as_mut_ptr(), 3, 2, 3) };
        target.product(
            Start::Columns(&[1., 2.]),
            Rows::new(&a, 5),
            Panels::new(&b, 5),
        );
    }
}
