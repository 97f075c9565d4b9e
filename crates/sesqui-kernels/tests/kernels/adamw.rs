use burn::optim::{AdamWConfig, Optimizer};
use burn::tensor::{Device, Tensor};
use sesqui_kernels::AdamW;

use crate::support::{fused, numbers, tensor, values};

/// Forty steps at a changing rate, bit for bit.
#[test]
fn is_burns_own() {
    let (betas, epsilon, decay) = ([0.9, 0.98], 1e-6, 0.03);
    let ours = AdamW::new(betas, epsilon, decay);
    let burns = AdamWConfig::new()
        .with_beta_1(betas[0])
        .with_beta_2(betas[1])
        .with_epsilon(epsilon)
        .with_weight_decay(decay)
        .build();
    let device = Device::flex();
    let start: Tensor<2> = tensor(&numbers(77, 1), [7, 11], &device);
    let (mut found, mut expected) = ((start.clone(), None), (start, None));
    for step in 0..40 {
        let gradient: Tensor<2> = tensor(&numbers(77, step + 2), [7, 11], &device);
        let rate = 1e-2 / (1.0 + step as f64);
        found = ours.step(rate, found.0, gradient.clone(), found.1);
        expected = burns.step(rate, expected.0, gradient, expected.1);
        assert_eq!(
            values(found.0.clone()),
            values(expected.0.clone()),
            "step {step}"
        );
    }
    let (found, expected) = (found.1.unwrap().momentum, expected.1.unwrap().momentum);
    assert_eq!(found.time, expected.time);
    assert_eq!(values(found.moment_1), values(expected.moment_1));
    assert_eq!(values(found.moment_2), values(expected.moment_2));
}

/// What is not plain memory goes to Burn.
#[test]
fn takes_tensors_under_autodiff() {
    let optimizer = AdamW::new([0.9, 0.999], 1e-8, 0.0);
    let one = || -> Tensor<1> { tensor(&[1.0], [1], &fused()) };
    let (value, state) = optimizer.step(0.1, one(), one(), None);
    let (value, _) = optimizer.step(0.1, value, one(), state);
    assert!((values(value)[0] - 0.8).abs() < 1e-5);
}
