//! Dropout in the adapters of stage 2 (arXiv 2505.18962, appendix B), from our own generator: a
//! device's would depend on how many workers share it.

use burn::tensor::{Device, Tensor, TensorData};

use crate::rollout::{generator, uniform};

/// One mask of `shape` `[batch, slots, d_model]` for each of `adapters`: 0 with probability `rate`,
/// else `1 / (1 - rate)`. A function of the batch's seed.
pub fn adapter_masks(
    seed: u64,
    rate: f64,
    adapters: usize,
    shape: [usize; 3],
    device: &Device,
) -> Vec<Tensor<3>> {
    let mut draws = generator(seed, 0, b"adapters");
    let kept = (1.0 / (1.0 - rate)) as f32;
    let mut mask = || {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                if uniform(&mut draws) < rate {
                    0.0
                } else {
                    kept
                }
            })
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    };
    (0..adapters).map(|_| mask()).collect()
}
