use burn::tensor::Device;
use proptest::prelude::*;
use sesqui_kernels::cross_entropy;

use crate::reference;
use crate::support::{assert_close, composed, differences, fused, numbers, tensor, values, wide};

const TOLERANCE: f64 = 1e-6;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agrees(
        n in 1_usize..7,
        width in 1_usize..40,
        uniform in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let logits: Vec<f32> = numbers(n * width, seed).into_iter().map(|x| 9.0 * x).collect();
        let targets: Vec<i32> = (0..n).map(|row| ((row as u64 ^ seed) % width as u64) as i32).collect();
        // Some rows count nothing, the first always does.
        let weights: Vec<f32> = (0..n)
            .map(|row| if uniform { 1.0 } else { ((row + 2) % 3) as f32 * 0.5 })
            .collect();
        let loss = |logits: &[f64]| reference::cross_entropy(logits, &targets, &wide(&weights));
        let expected = loss(&wide(&logits));
        let derivatives = differences(&wide(&logits), loss);
        let plain = cross_entropy(tensor(&logits, [n, width], &Device::flex()), &targets, &weights);
        assert_close("plain", &values(plain), &[expected], TOLERANCE);
        for device in [fused(), composed()] {
            let input = tensor(&logits, [n, width], &device).require_grad();
            let found = cross_entropy(input.clone(), &targets, &weights);
            assert_close("value", &values(found.clone()), &[expected], TOLERANCE);
            let gradients = found.mul_scalar(3.0).backward();
            let found = values(input.grad(&gradients).unwrap());
            let expected: Vec<f64> = derivatives.iter().map(|d| 3.0 * d).collect();
            assert_close("derivative", &found, &expected, TOLERANCE);
        }
    }
}

/// Logits whose exponentials are no 32-bit floats.
#[test]
fn large_logits_stay_finite() {
    let logits = tensor(&[500.0, -500.0, 499.0, 500.0], [2, 2], &fused()).require_grad();
    let loss = cross_entropy(logits.clone(), &[1, 0], &[1.0, 1.0]);
    assert_close(
        "loss",
        &values(loss.clone()),
        &[500.0 + 0.5 * 1.0_f64.exp().ln_1p()],
        1e-6,
    );
    let gradients = loss.backward();
    let found = values(logits.grad(&gradients).unwrap());
    assert!(found.iter().all(|x| x.is_finite()), "{found:?}");
}

#[test]
#[should_panic(expected = "a target is none of 2 classes")]
fn a_target_out_of_range_is_refused() {
    cross_entropy(tensor(&[0.0, 1.0], [1, 2], &fused()), &[2], &[1.0]);
}

#[test]
#[should_panic(expected = "1 rows, 2 targets, 1 weights")]
fn lengths_must_agree() {
    cross_entropy(tensor(&[0.0, 1.0], [1, 2], &fused()), &[0, 0], &[1.0]);
}
