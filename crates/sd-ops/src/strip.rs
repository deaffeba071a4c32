//! Matrices cut into vertical strips that tasks fill side by side: the crate's only unsafe code.
#![allow(
    unsafe_code,
    reason = "strips interleave in memory, which no safe slice expresses, and `gemm` takes pointers"
)]

use std::marker::PhantomData;

use gemm::Parallelism;

/// A matrix to read, whose rows, or columns if it is transposed, start `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            stride,
            transposed: false,
        }
    }

    /// Without the columns before `first`, which must exist.
    pub(crate) fn columns_from(self, first: usize) -> Self {
        Self {
            data: &self.data[first..],
            ..self
        }
    }

    /// Rows as columns.
    pub(crate) fn transposed(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Elements from one row to the next, and from one column to the next.
    fn strides(&self) -> [isize; 2] {
        let stride = self.stride as isize;
        if self.transposed {
            [1, stride]
        } else {
            [stride, 1]
        }
    }

    /// Whether `rows` rows of `columns` elements lie inside the data.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        let (lines, length) = if self.transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        lines == 0
            || (lines - 1)
                .checked_mul(self.stride)
                .and_then(|start| start.checked_add(length))
                .is_some_and(|end| length <= self.stride && end <= self.data.len())
    }
}

/// Some neighbouring columns of a matrix; no other strip has them.
pub(crate) struct Strip<'a> {
    /// The first element of the first row. Row `i` is the `width` elements from `i * stride` on.
    start: *mut f32,
    rows: usize,
    stride: usize,
    first: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a strip is a set of `&mut [f32]`, one a row, which nobody else has; those may be sent.
unsafe impl Send for Strip<'_> {}

/// The strips of `width` columns, the last one narrower if need be, of a matrix of rows of `columns` elements.
///
/// # Panics
/// `width` or `columns` is 0, or `columns` does not divide the matrix.
pub(crate) fn strips(
    matrix: &mut [f32],
    columns: usize,
    width: usize,
) -> impl Iterator<Item = Strip<'_>> {
    assert_eq!(matrix.len() % columns, 0, "whole rows");
    let rows = matrix.len() / columns;
    let start = matrix.as_mut_ptr();
    (0..columns).step_by(width).map(move |first| Strip {
        // `first` is less than `columns`; without rows the pointer is never used.
        start: start.wrapping_add(first),
        rows,
        stride: columns,
        first,
        width: width.min(columns - first),
        matrix: PhantomData,
    })
}

impl Strip<'_> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The matrix's column that is this strip's first.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Row `i`.
    ///
    /// # Panics
    /// There is no row `i`.
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies inside the matrix, which is borrowed for as long as this strip, and no other strip
        // has these columns.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.width) }
    }

    /// Adds the product of `a [rows, inner]` and `b [inner, width]`, on the calling thread.
    ///
    /// # Panics
    /// `a` or `b` is smaller than that.
    pub(crate) fn add_product(&mut self, a: Rows, b: Rows, inner: usize) {
        self.product(a, b, inner, true);
    }

    /// Becomes the product of `a [rows, inner]` and `b [inner, width]`, on the calling thread.
    ///
    /// # Panics
    /// `a` or `b` is smaller than that.
    pub(crate) fn set_product(&mut self, a: Rows, b: Rows, inner: usize) {
        self.product(a, b, inner, false);
    }

    fn product(&mut self, a: Rows, b: Rows, inner: usize, add: bool) {
        assert!(a.holds(self.rows, inner), "{} rows of {inner}", self.rows);
        assert!(b.holds(inner, self.width), "{inner} rows of {}", self.width);
        let ([a_row, a_column], [b_row, b_column]) = (a.strides(), b.strides());
        // SAFETY: the asserts keep all reads inside `a` and `b`; the strip's rows lie inside the matrix, and `self`
        // is the only way to them. No slice is longer than `isize::MAX` bytes, so no stride wraps around.
        unsafe {
            gemm::gemm(
                self.rows,
                self.width,
                inner,
                self.start,
                1,
                self.stride as isize,
                add,
                a.data.as_ptr(),
                a_column,
                a_row,
                b.data.as_ptr(),
                b_column,
                b_row,
                1.,
                1.,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}
