//! Squares of 16x16.

/// Swaps rows and columns.
#[inline(always)]
pub(crate) fn transpose(square: &mut [[u32; 16]; 16]) {
    // The off-diagonal quarters of squares of 16, 8, 4 and 2 change places.
    quarters::<8>(square);
    quarters::<4>(square);
    quarters::<2>(square);
    quarters::<1>(square);
}

#[inline(always)]
fn quarters<const SIDE: usize>(square: &mut [[u32; 16]; 16]) {
    for pair in 0..8 {
        let above = pair / SIDE * 2 * SIDE + pair % SIDE;
        let (first, second) = (square[above], square[above + SIDE]);
        for i in 0..16 {
            let right = i & SIDE != 0;
            square[above][i] = if right { second[i - SIDE] } else { first[i] };
            square[above + SIDE][i] = if right { second[i] } else { first[i + SIDE] };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::transpose;
    use crate::isa::assert_same_bits;

    #[test]
    fn swaps_rows_and_columns() {
        let square: [[u32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as u32));
        let mut turned = square;
        transpose(&mut turned);
        for (i, row) in square.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                assert_eq!(turned[j][i], *v);
            }
        }
        assert_same_bits(
            #[inline(always)]
            || {
                let mut turned = square;
                transpose(&mut turned);
                turned.as_flattened().iter().map(|v| *v as f32).collect()
            },
        );
    }
}
