//! Numbers and comparisons.

use burn::tensor::{Device, Tensor, TensorData};

/// Step of central differences over 64-bit loops: wrong by some 1e-10.
const STEP: f64 = 1e-5;

/// Numbers in -1..1 that look random, the same for the same seed.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A tensor of `values`.
pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Where operations are fused under autodiff.
pub fn fused() -> Device {
    Device::flex().autodiff()
}

/// Where they are not: this autodiff recomputes, so everything is made of tensor operations.
pub fn composed() -> Device {
    Device::flex().autodiff().gradient_checkpointing()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Derivatives of `function` by each of `x`.
pub fn differences(x: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|index| {
            let before = x[index];
            x[index] = before + STEP;
            let above = function(&x);
            x[index] = before - STEP;
            let below = function(&x);
            x[index] = before;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// Each value within `tolerance` of the largest expected size, or of 1 if that is smaller.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected
        .iter()
        .fold(1.0, |scale: f64, x| scale.max(x.abs()));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "{what} [{index}]: {found} instead of {expected}, off by {error:e}"
        );
    }
}

/// Sum of `weights` times `values`.
pub fn weighted(values: &[f64], weights: &[f64]) -> f64 {
    values.iter().zip(weights).map(|(x, w)| x * w).sum()
}
