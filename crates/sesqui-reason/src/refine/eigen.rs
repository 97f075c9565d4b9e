//! Eigenvectors of symmetric matrices without negative eigenvalues.

/// One direction and how much of the matrix lies along it.
#[derive(Clone, Debug)]
pub(crate) struct Eigen {
    pub(crate) value: f64,
    /// Of length 1.
    pub(crate) vector: Vec<f64>,
}

/// Cosine below which two rows count as orthogonal: what rounding leaves of it.
const ORTHOGONAL: f64 = 1e-14;
/// Product of two rows, as a share of the squared norm of the whole matrix, below which one of them is
/// rounding and has no direction.
const NOTHING: f64 = 1e-22;
/// The angles shrink quadratically once they are small; ten sweeps are many.
const SWEEPS: usize = 40;

/// All eigenvalues above rounding with their eigenvectors, greatest first.
///
/// Rotates pairs of rows until all are orthogonal (one-sided Jacobi, Hestenes 1958): a rotation from the
/// left changes neither `A^T A` nor its eigenvectors, which are those of `A`, and orthogonal rows are
/// eigenvectors times eigenvalues. Takes about `5 n^3` operations a sweep.
pub(crate) fn eigen(mut rows: Vec<Vec<f64>>) -> Vec<Eigen> {
    let n = rows.len();
    let whole: f64 = rows.iter().map(|row| dot(row, row)).sum();
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 1..n {
            let (before, after) = rows.split_at_mut(p);
            let second = &mut after[0];
            for first in before {
                turned |= orthogonalize(first, second, NOTHING * whole);
            }
        }
        if !turned {
            break;
        }
    }
    let mut found: Vec<Eigen> = rows
        .into_iter()
        .map(|mut vector| {
            let value = dot(&vector, &vector).sqrt();
            vector.iter_mut().for_each(|x| *x /= value);
            Eigen { value, vector }
        })
        // What is left of a row without a direction of its own is rounding, and not orthogonal.
        .filter(|eigen| eigen.value > 1e-10 * whole.sqrt())
        .collect();
    found.sort_by(|a, b| b.value.total_cmp(&a.value));
    found
}

/// Rotates two rows in their plane until they are orthogonal; false where they were.
fn orthogonalize(first: &mut [f64], second: &mut [f64], nothing: f64) -> bool {
    let joint = dot(first, second);
    let squares = [dot(first, first), dot(second, second)];
    if joint.abs() <= nothing.max(ORTHOGONAL * (squares[0] * squares[1]).sqrt()) {
        return false;
    }
    let ratio = (squares[1] - squares[0]) / (2.0 * joint);
    let tangent = ratio.signum() / (ratio.abs() + (1.0 + ratio * ratio).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    for (a, b) in first.iter_mut().zip(second) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` numbers in (-1, 1) that look random.
    fn numbers(n: usize, seed: usize) -> Vec<f64> {
        let number = |i: usize| ((1.3 + i as f64 + 57.0 * seed as f64).sin() * 43_758.5).fract();
        (0..n).map(number).collect()
    }

    /// The sum of outer products of `samples`.
    fn moment(samples: &[Vec<f64>], n: usize) -> Vec<Vec<f64>> {
        let entry = |i: usize, j: usize| samples.iter().map(|x| x[i] * x[j]).sum();
        (0..n)
            .map(|i| (0..n).map(|j| entry(i, j)).collect())
            .collect()
    }

    #[test]
    fn every_vector_is_one_and_together_they_are_the_matrix() {
        // Fewer samples than dimensions, as many, and more.
        for (n, count) in [(12, 5), (12, 12), (9, 40), (1, 3)] {
            let samples: Vec<_> = (0..count).map(|seed| numbers(n, seed)).collect();
            let matrix = moment(&samples, n);
            let found = eigen(matrix.clone());
            assert_eq!(found.len(), n.min(count), "{n} {count}");
            for (index, eigen) in found.iter().enumerate() {
                for (row, x) in matrix.iter().zip(&eigen.vector) {
                    // Entries are of size 10 at most; rounding is far below.
                    assert!((dot(row, &eigen.vector) - eigen.value * x).abs() < 1e-9);
                }
                for (other, second) in found.iter().enumerate() {
                    let expected = f64::from(u8::from(index == other));
                    let joint = dot(&eigen.vector, &second.vector);
                    assert!((joint - expected).abs() < 1e-6, "{index} {other}: {joint}");
                }
            }
            let trace: f64 = (0..n).map(|i| matrix[i][i]).sum();
            let sum: f64 = found.iter().map(|eigen| eigen.value).sum();
            assert!((trace - sum).abs() < 1e-9 * trace);
            assert!(found.is_sorted_by(|a, b| a.value >= b.value));
        }
    }

    #[test]
    fn equal_eigenvalues_and_nothing_at_all() {
        let identity: Vec<Vec<f64>> = (0..4)
            .map(|i| (0..4).map(|j| f64::from(u8::from(i == j))).collect())
            .collect();
        assert_eq!(eigen(identity).len(), 4);
        assert!(eigen(vec![vec![0.0; 3]; 3]).is_empty());
    }
}
