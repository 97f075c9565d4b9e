//! Products of small matrices that lie in cache.
//!
//! Every element is one sum in the order of the inner dimension, whatever the sizes, so that a row's
//! result does not depend on the rows beside it.

/// Columns of the right matrix and of the result come in multiples of this many.
pub(crate) const COLUMNS: usize = 16;

/// Rows of one block.
const ROWS: usize = 4;

/// `n` rounded up to whole [`COLUMNS`].
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(COLUMNS)
}

/// The left matrix of a product.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// Row-major `[rows, inner]`, or, transposed, `[inner, rows]`.
    pub(crate) values: &'a [f32],
    /// From one row of `values` to the next.
    pub(crate) stride: usize,
    /// Whether the rows of `values` are the columns of the matrix.
    pub(crate) transposed: bool,
}

/// The right matrix of a product, row-major `[inner, width]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    /// The values, the last row whole.
    pub(crate) values: &'a [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
}

/// `result (+)= left * right`: `result` is row-major `[rows, width]` with a stride of its own, `width`
/// a multiple of [`COLUMNS`]; `add` keeps what `result` holds.
///
/// `FUSED` rounds a product and its sum once.
#[inline(always)]
pub(crate) fn multiply<const FUSED: bool>(
    [rows, inner, width]: [usize; 3],
    left: Left<'_>,
    right: Right<'_>,
    (result, stride): (&mut [f32], usize),
    add: bool,
) {
    let whole = rows - rows % ROWS;
    for row in (0..whole).step_by(ROWS) {
        let result = &mut result[row * stride..];
        block_row::<ROWS, FUSED>(row, [inner, width], left, right, (result, stride), add);
    }
    for row in whole..rows {
        let result = &mut result[row * stride..];
        block_row::<1, FUSED>(row, [inner, width], left, right, (result, stride), add);
    }
}

#[inline(always)]
fn block_row<const M: usize, const FUSED: bool>(
    row: usize,
    [inner, width]: [usize; 2],
    left: Left<'_>,
    right: Right<'_>,
    (result, stride): (&mut [f32], usize),
    add: bool,
) {
    let mut column = 0;
    while column + 2 * COLUMNS <= width {
        let result = (&mut result[column..], stride);
        block::<M, { 2 * COLUMNS }, FUSED>([row, column], inner, left, right, result, add);
        column += 2 * COLUMNS;
    }
    if column < width {
        let result = (&mut result[column..], stride);
        block::<M, COLUMNS, FUSED>([row, column], inner, left, right, result, add);
    }
}

/// `M` rows and `N` columns of the result, kept in registers.
#[inline(always)]
fn block<const M: usize, const N: usize, const FUSED: bool>(
    [row, column]: [usize; 2],
    inner: usize,
    left: Left<'_>,
    right: Right<'_>,
    (result, stride): (&mut [f32], usize),
    add: bool,
) {
    let mut sums = [[0.0_f32; N]; M];
    let rights = right.values.chunks(right.stride).take(inner);
    let rights = rights.filter_map(|right| right.get(column..)?.first_chunk::<N>());
    if left.transposed {
        for (right, left) in rights.zip(left.values.chunks(left.stride)) {
            let Some(factors) = left[row..].first_chunk::<M>() else {
                break;
            };
            accumulate::<M, N, FUSED>(&mut sums, factors, right);
        }
    } else {
        let lefts: [&[f32]; M] = std::array::from_fn(|i| {
            let start = (row + i) * left.stride;
            &left.values[start..start + inner]
        });
        for (index, right) in rights.enumerate() {
            let factors = std::array::from_fn(|i| lefts[i][index]);
            accumulate::<M, N, FUSED>(&mut sums, &factors, right);
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let start = i * stride;
        for (result, sum) in result[start..start + N].iter_mut().zip(sums) {
            *result = if add { *result + sum } else { *sum };
        }
    }
}

#[inline(always)]
fn accumulate<const M: usize, const N: usize, const FUSED: bool>(
    sums: &mut [[f32; N]; M],
    factors: &[f32; M],
    right: &[f32; N],
) {
    for i in 0..M {
        for j in 0..N {
            sums[i][j] = if FUSED {
                factors[i].mul_add(right[j], sums[i][j])
            } else {
                factors[i] * right[j] + sums[i][j]
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::has_fused_multiply_add;
    use macerator::Simd;

    #[macerator::with_simd]
    fn product<'a, S: Simd, const FUSED: bool>(
        dims: [usize; 3],
        left: Left<'a>,
        right: Right<'a>,
        result: &mut [f32],
        add: bool,
    ) {
        let width = dims[2];
        multiply::<FUSED>(dims, left, right, (result, width), add);
    }

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0)
            .collect()
    }

    #[test]
    fn agrees_with_three_loops_for_every_shape() {
        for [rows, inner, width] in [
            [1, 1, 16],
            [4, 3, 32],
            [7, 5, 48],
            [9, 16, 80],
            [3, 0, 16],
            [0, 3, 16],
        ] {
            let right = values(inner * width, 2);
            for transposed in [false, true] {
                let left = values(rows * inner, 1);
                let at = |row: usize, index: usize| {
                    left[if transposed {
                        index * rows + row
                    } else {
                        row * inner + index
                    }]
                };
                for add in [false, true] {
                    let mut expected = values(rows * width, 3);
                    let mut result = expected.clone();
                    for row in 0..rows {
                        for column in 0..width {
                            let sum: f32 = (0..inner)
                                .map(|index| at(row, index) * right[index * width + column])
                                .sum();
                            let place = &mut expected[row * width + column];
                            *place = sum + if add { *place } else { 0.0 };
                        }
                    }
                    let left = Left {
                        values: &left,
                        stride: if transposed { rows } else { inner },
                        transposed,
                    };
                    let right = Right {
                        values: &right,
                        stride: width,
                    };
                    let dims = [rows, inner, width];
                    product::<false>(dims, left, right, &mut result, add);
                    assert_eq!(result, expected, "{dims:?} {transposed} {add}");
                    if has_fused_multiply_add() && !add {
                        product::<true>(dims, left, right, &mut result, add);
                        assert_eq!(result, expected, "{dims:?} {transposed}");
                    }
                }
            }
        }
    }
}
