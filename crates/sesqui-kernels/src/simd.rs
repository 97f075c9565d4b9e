//! What the loops of the operations are made of.
//!
//! Loops over slices are compiled once for each instruction set and chosen at run time
//! (`macerator::with_simd`); the compiler makes vectors of them, so everything that they call has to
//! be `#[inline(always)]`. Sums have sixteen running parts whatever the width of a vector, so that
//! AVX2 and AVX-512 give the same bits.

/// Running parts of a sum.
pub(crate) const LANES: usize = 16;

/// Values that are made on the stack before they are appended to a vector.
const BLOCK: usize = 256;

/// Appends `term` of every value. `extend` would be shorter, but the compiler does not always inline it, and
/// what is not inlined is compiled for the smallest processor.
#[inline(always)]
pub(crate) fn append(result: &mut Vec<f32>, x: &[f32], term: impl Fn(f32) -> f32) {
    for x in x.chunks(BLOCK) {
        let mut block = [0.0; BLOCK];
        for (place, &x) in block.iter_mut().zip(x) {
            *place = term(x);
        }
        result.extend_from_slice(&block[..x.len()]);
    }
}

/// Appends `term` of every pair from two slices of the same length.
#[inline(always)]
pub(crate) fn append_pairs(
    result: &mut Vec<f32>,
    x: &[f32],
    y: &[f32],
    term: impl Fn(f32, f32) -> f32,
) {
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let mut block = [0.0; BLOCK];
        for ((place, &x), &y) in block.iter_mut().zip(x).zip(y) {
            *place = term(x, y);
        }
        result.extend_from_slice(&block[..x.len()]);
    }
}

/// Appends `term` of every triple from three slices of the same length.
#[inline(always)]
pub(crate) fn append_triples(
    result: &mut Vec<f32>,
    [x, y, z]: [&[f32]; 3],
    term: impl Fn(f32, f32, f32) -> f32,
) {
    let chunks = x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(z.chunks(BLOCK));
    for ((x, y), z) in chunks {
        let mut block = [0.0; BLOCK];
        for (((place, &x), &y), &z) in block.iter_mut().zip(x).zip(y).zip(z) {
            *place = term(x, y, z);
        }
        result.extend_from_slice(&block[..x.len()]);
    }
}

/// Whether a product and a sum are one instruction here; without it, [`f32::mul_add`] is a slow call.
pub(crate) fn has_fused_multiply_add() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::is_x86_feature_detected!("fma") && std::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    {
        cfg!(target_arch = "aarch64")
    }
}

/// `e^x` with a relative error below 2e-7, and exactly 0 where that would be no normal number
/// (`x < -87.3`). Above 88.3, where it is nearly none either, it is infinite; NaN stays NaN.
///
/// The reduction and the coefficients are those of Cephes `expf` (Moshier 1992).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let exponent = shifted - ROUND;
    let rest = clamped - exponent * LN_2_HIGH - exponent * LN_2_LOW;
    let polynomial = ((((1.987_569_1e-4 * rest + 1.398_2e-3) * rest + 8.333_452e-3) * rest
        + 4.166_579_6e-2)
        * rest
        + 1.666_666_5e-1)
        * rest
        + 5e-1;
    let mantissa = polynomial * rest * rest + rest + 1.0;
    // The low bits of `shifted` are the integer itself.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let result = if x < -87.3 { 0.0 } else { mantissa * power };
    if x > 88.3 { f32::INFINITY } else { result }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn fold(parts: [f32; LANES]) -> f32 {
    let mut parts = parts;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            parts[lane] += parts[lane + width];
        }
        width /= 2;
    }
    parts[0]
}

/// Sum of `term` over a slice.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            parts[lane] += term(chunk[lane]);
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part += term(x);
    }
    fold(parts)
}

/// Sum of `term` over two slices of the same length.
#[inline(always)]
pub(crate) fn sum_of_pairs(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut parts = [0.0; LANES];
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for lane in 0..LANES {
            parts[lane] += term(x[lane], y[lane]);
        }
    }
    for ((part, &x), &y) in parts.iter_mut().zip(x_rest).zip(y_rest) {
        *part += term(x, y);
    }
    fold(parts)
}

/// Largest value of a slice, negative infinity of an empty one.
#[inline(always)]
pub(crate) fn maximum(x: &[f32]) -> f32 {
    let mut parts = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            parts[lane] = if chunk[lane] > parts[lane] {
                chunk[lane]
            } else {
                parts[lane]
            };
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part = if x > *part { x } else { *part };
    }
    parts.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere_and_zero_below() {
        for step in -8730..=8830 {
            let x = step as f32 / 100.0 + 0.003;
            let expected = f64::from(x).exp();
            let found = f64::from(exp(x));
            if x < -87.3 {
                assert_eq!(found, 0.0);
            } else if x > 88.3 {
                assert_eq!(found, f64::INFINITY);
            } else {
                assert!(
                    (found / expected - 1.0).abs() < 2e-7,
                    "{x}: {found} {expected}"
                );
            }
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn whatever_the_length_everything_is_appended_once() {
        for n in [0, 1, 255, 256, 257, 700] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut result = vec![7.0];
            append(&mut result, &x, |x| x + 1.0);
            append_pairs(&mut result, &x, &x, |x, y| x + y);
            append_triples(&mut result, [&x, &x, &x], |x, y, z| x + y + z);
            let expected = x.iter().map(|x| x + 1.0);
            let expected = expected.chain(x.iter().map(|x| 2.0 * x));
            let expected = expected.chain(x.iter().map(|x| 3.0 * x));
            assert_eq!(result[0], 7.0);
            assert!(result[1..].iter().copied().eq(expected), "{n}");
        }
    }

    #[test]
    fn sums_and_maxima_cover_every_length() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| (i * 7 % 13) as f32 - 5.0).collect();
            let sum: f32 = x.iter().sum();
            let squares: f32 = x.iter().map(|x| x * x).sum();
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(sum_of(&x, |x| x), sum);
            assert_eq!(sum_of_pairs(&x, &x, |x, y| x * y), squares);
            assert_eq!(maximum(&x), largest);
        }
    }
}
