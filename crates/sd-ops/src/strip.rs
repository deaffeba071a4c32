//! Matrices cut into vertical strips that tasks fill side by side.
#![allow(
    unsafe_code,
    reason = "strips interleave in memory, which no safe slice expresses"
)]

use std::marker::PhantomData;

use crate::product::{Panels, Rows, Start, Target};

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
    strips_of(matrix, columns, 0..columns, width)
}

/// As [`strips`], of a range of columns alone.
///
/// # Panics
/// As [`strips`], or the range ends beyond the columns.
pub(crate) fn strips_of(
    matrix: &mut [f32],
    columns: usize,
    range: std::ops::Range<usize>,
    width: usize,
) -> impl Iterator<Item = Strip<'_>> {
    assert_eq!(matrix.len() % columns, 0, "whole rows");
    assert!(range.end <= columns, "{range:?} of {columns} columns");
    let rows = matrix.len() / columns;
    let start = matrix.as_mut_ptr();
    let end = range.end;
    range.step_by(width).map(move |first| Strip {
        // `first` is less than `columns`; without rows the pointer is never used.
        start: start.wrapping_add(first),
        rows,
        stride: columns,
        first,
        width: width.min(end - first),
        matrix: PhantomData,
    })
}

/// Neighbouring rows of pixels of a part of an image.
pub(crate) struct Tile<'a> {
    /// The image's row and column that are the tile's first.
    pub(crate) first: [usize; 2],
    /// The tile's rows of pixels: of each one a strip of all channels, as long as the tile is wide.
    pub(crate) rows: Vec<Strip<'a>>,
}

/// The tiles of `rows` and `columns`, fewer at the ends, of channels of `height` and `width`.
///
/// # Panics
/// A size is 0, or the channels are not whole.
pub(crate) fn tiles(
    channels: &mut [f32],
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Vec<Tile<'_>> {
    assert_eq!(channels.len() % (height * width), 0, "whole channels");
    let mut tiles = Vec::new();
    for y in (0..height).step_by(rows) {
        for x in (0..width).step_by(columns) {
            let strip = |y: usize| Strip {
                start: channels.as_mut_ptr().wrapping_add(y * width + x),
                rows: channels.len() / (height * width),
                stride: height * width,
                first: y * width + x,
                width: columns.min(width - x),
                matrix: PhantomData,
            };
            tiles.push(Tile {
                first: [y, x],
                rows: (y..height.min(y + rows)).map(strip).collect(),
            });
        }
    }
    tiles
}

impl<'a> Strip<'a> {
    /// Strips of `width` of its columns, the last one narrower if need be.
    ///
    /// # Panics
    /// `width` is 0.
    pub(crate) fn parts(self, width: usize) -> impl Iterator<Item = Strip<'a>> {
        (0..self.width).step_by(width).map(move |column| Strip {
            start: self.start.wrapping_add(column),
            first: self.first + column,
            width: width.min(self.width - column),
            ..self
        })
    }

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
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies inside the matrix, which is borrowed for as long as this strip, and no other strip
        // has these columns.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.width) }
    }

    /// Becomes `start` plus the product of `a [rows, depth]` and `b [depth, width]`, on the calling thread.
    ///
    /// # Panics
    /// One of them is smaller than that.
    pub(crate) fn set_product(&mut self, start: Start, a: Rows, b: Panels) {
        self.target().product(start, a, b);
    }

    fn target(&mut self) -> Target<'_> {
        // SAFETY: these are the elements that `row` gives.
        unsafe { Target::new(self.start, self.stride, self.rows, self.width) }
    }
}
