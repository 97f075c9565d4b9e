//! A single position through a matrix: all the time goes into reading the matrix once.

use macerator::Simd;
use rayon::prelude::*;

use crate::simd::sum_of_pairs;

/// Rows of a matrix that are added up before a result is touched again.
const TOGETHER: usize = 8;

/// Values of a matrix from which on several cores read it faster than one; below, waking them takes longer.
const WORTH_SHARING: usize = 1 << 20;

/// `x W + b`: `weight` is `[x.len(), outputs]` row-major, `bias` empty or `[outputs]`.
pub(crate) fn through(x: &[f32], weight: &[f32], bias: &[f32], outputs: usize) -> Vec<f32> {
    let mut y = match bias {
        [] => vec![0.0; outputs],
        bias => bias.to_vec(),
    };
    if outputs == 0 {
        return y;
    }
    let columns = share(weight.len(), outputs);
    if columns >= outputs {
        add(x, weight, outputs, 0, &mut y);
    } else {
        let parts = y.par_chunks_mut(columns).enumerate();
        parts.for_each(|(index, part)| add(x, weight, outputs, index * columns, part));
    }
    y
}

/// `x · t` for every row `t` of `table` `[rows, x.len()]` row-major.
pub(crate) fn against(x: &[f32], table: &[f32], rows: usize) -> Vec<f32> {
    let mut y = vec![0.0; rows];
    let width = x.len();
    let together = share(table.len(), rows);
    if together >= rows || width == 0 {
        dot(x, table, &mut y);
    } else {
        let parts = y.par_chunks_mut(together);
        let parts = parts.zip(table.par_chunks(together * width));
        parts.for_each(|(part, table)| dot(x, table, part));
    }
    y
}

/// Results that one core computes, of `results` that take reading `values`. How they are shared decides no bit: each is
/// computed as if it were alone.
fn share(values: usize, results: usize) -> usize {
    let cores = rayon::current_num_threads();
    if cores == 1 || values < WORTH_SHARING {
        return results.max(1);
    }
    results.div_ceil(cores).next_multiple_of(16)
}

/// Adds to `part` what columns from `first` on get.
#[macerator::with_simd]
fn add<S: Simd>(x: &[f32], weight: &[f32], outputs: usize, first: usize, part: &mut [f32]) {
    let width = part.len();
    let row = |index: usize| {
        let start = index * outputs + first;
        &weight[start..start + width]
    };
    let (groups, rest) = x.as_chunks::<TOGETHER>();
    for (group, x) in groups.iter().enumerate() {
        let rows: [&[f32]; TOGETHER] = std::array::from_fn(|at| row(group * TOGETHER + at));
        for (column, y) in part.iter_mut().enumerate() {
            let mut sum = 0.0;
            for at in 0..TOGETHER {
                sum += x[at] * rows[at][column];
            }
            *y += sum;
        }
    }
    let done = groups.len() * TOGETHER;
    for (at, &x) in rest.iter().enumerate() {
        for (y, w) in part.iter_mut().zip(row(done + at)) {
            *y += x * w;
        }
    }
}

/// Fills `part` with the products of `x` and rows of `table`.
#[macerator::with_simd]
fn dot<S: Simd>(x: &[f32], table: &[f32], part: &mut [f32]) {
    for (y, row) in part.iter_mut().zip(table.chunks_exact(x.len().max(1))) {
        *y = sum_of_pairs(x, row, |x, t| x * t);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 + seed * 31) % 2003) as f32 / 1001.5 - 1.0)
            .collect()
    }

    /// Widths around vectors, groups and the size from which on cores share; by hand in 64 bits.
    #[test]
    fn every_result_is_the_sum_of_its_products() {
        for (inputs, outputs) in [(1, 1), (7, 5), (8, 16), (13, 33), (64, 192), (1030, 1100)] {
            let (x, weight) = (numbers(inputs, 1), numbers(inputs * outputs, 2));
            let bias = numbers(outputs, 3);
            let found = through(&x, &weight, &bias, outputs);
            let without = through(&x, &weight, &[], outputs);
            let turned = against(&x, &numbers(outputs * inputs, 2), outputs);
            for column in 0..outputs {
                let product = |w: f32, x: f32| f64::from(w) * f64::from(x);
                let terms = (0..inputs).map(|i| product(weight[i * outputs + column], x[i]));
                let sum: f64 = terms.sum();
                let tolerance = 1e-6 * inputs as f64;
                let bias = f64::from(bias[column]);
                assert!((f64::from(found[column]) - sum - bias).abs() <= tolerance);
                assert!((f64::from(without[column]) - sum).abs() <= tolerance);
                let terms = (0..inputs).map(|i| product(weight[column * inputs + i], x[i]));
                let sum: f64 = terms.sum();
                assert!((f64::from(turned[column]) - sum).abs() <= tolerance);
            }
        }
        assert!(through(&[], &[], &[], 0).is_empty());
        assert_eq!(against(&[], &[], 2), [0.0, 0.0]);
    }

    #[test]
    fn sharing_changes_no_bit() {
        let (inputs, outputs) = (1030, 1100);
        let (x, weight) = (numbers(inputs, 1), numbers(inputs * outputs, 2));
        let shared = through(&x, &weight, &[], outputs);
        let turned = against(&x, &weight, outputs);
        let (alone, turned_alone) = crate::on_one_core(|| {
            let turned = against(&x, &weight, outputs);
            (through(&x, &weight, &[], outputs), turned)
        });
        assert_eq!(shared, alone);
        assert_eq!(turned, turned_alone);
    }
}
