use burn::tensor::{Device, Tensor};
use proptest::prelude::*;
use sesqui_kernels::{layer_norm, rms_norm};

use crate::reference;
use crate::support::{
    assert_close, composed, differences, fused, numbers, tensor, values, weighted, wide,
};

const EPSILON: f64 = 1e-3;
/// Of sums over a row, and over rows.
const TOLERANCE: f64 = 3e-6;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layer_norm_agrees(rows in 1_usize..6, width in 1_usize..40, seed in any::<u64>()) {
        let x: Vec<f32> = numbers(rows * width, seed).into_iter().map(|x| 3.0 * x + 1.0).collect();
        let (gain, bias) = (numbers(width, seed ^ 1), numbers(width, seed ^ 2));
        let weights = numbers(rows * width, seed ^ 3);
        let loss = |x: &[f64], gain: &[f64], bias: &[f64]| {
            weighted(&reference::layer_norm(x, gain, bias, EPSILON), &wide(&weights))
        };
        let (wx, wg, wb) = (wide(&x), wide(&gain), wide(&bias));
        let expected = reference::layer_norm(&wx, &wg, &wb, EPSILON);
        let derivatives = [
            differences(&wx, |x| loss(x, &wg, &wb)),
            differences(&wg, |gain| loss(&wx, gain, &wb)),
            differences(&wb, |bias| loss(&wx, &wg, bias)),
        ];
        for device in [Device::flex(), fused(), composed()] {
            let at = |values: &[f32]| tensor(values, [width], &device);
            let input = tensor(&x, [rows, width], &device);
            if !input.is_autodiff() {
                let output = layer_norm(input, at(&gain), at(&bias), EPSILON);
                assert_close("plain", &values(output), &expected, TOLERANCE);
                continue;
            }
            let input = input.require_grad();
            let (gain, bias) = (at(&gain).require_grad(), at(&bias).require_grad());
            let output = layer_norm(input.clone(), gain.clone(), bias.clone(), EPSILON);
            assert_close("value", &values(output.clone()), &expected, TOLERANCE);
            let gradients = (output * tensor(&weights, [rows, width], &device)).sum().backward();
            let found = [
                values(input.grad(&gradients).unwrap()),
                values(gain.grad(&gradients).unwrap()),
                values(bias.grad(&gradients).unwrap()),
            ];
            for (found, expected) in found.iter().zip(&derivatives) {
                assert_close("derivative", found, expected, TOLERANCE);
            }
        }
    }

    #[test]
    fn rms_norm_agrees(rows in 1_usize..6, width in 1_usize..40, seed in any::<u64>()) {
        let x: Vec<f32> = numbers(rows * width, seed).into_iter().map(|x| 3.0 * x + 1.0).collect();
        let gain = numbers(width, seed ^ 1);
        let weights = numbers(rows * width, seed ^ 3);
        let loss = |x: &[f64], gain: &[f64]| {
            weighted(&reference::rms_norm(x, gain, EPSILON), &wide(&weights))
        };
        let (wx, wg) = (wide(&x), wide(&gain));
        let expected = reference::rms_norm(&wx, &wg, EPSILON);
        let derivatives = [
            differences(&wx, |x| loss(x, &wg)),
            differences(&wg, |gain| loss(&wx, gain)),
        ];
        for device in [Device::flex(), fused(), composed()] {
            let input = tensor(&x, [1, rows, width], &device);
            let gain = tensor(&gain, [width], &device);
            if !input.is_autodiff() {
                assert_close("plain", &values(rms_norm(input, gain, EPSILON)), &expected, TOLERANCE);
                continue;
            }
            let (input, gain) = (input.require_grad(), gain.require_grad());
            let output = rms_norm(input.clone(), gain.clone(), EPSILON);
            assert_close("value", &values(output.clone()), &expected, TOLERANCE);
            let weights = tensor(&weights, [1, rows, width], &device);
            let gradients = (output * weights).sum().backward();
            let found = [
                values(input.grad(&gradients).unwrap()),
                values(gain.grad(&gradients).unwrap()),
            ];
            for (found, expected) in found.iter().zip(&derivatives) {
                assert_close("derivative", found, expected, TOLERANCE);
            }
        }
    }
}

/// A frozen norm still passes the derivative on.
#[test]
fn constants_mix_with_what_is_learned() {
    let device = fused();
    let x = numbers(12, 5);
    let input: Tensor<2> = tensor(&x, [3, 4], &device).require_grad();
    let (gain, bias) = (numbers(4, 6), numbers(4, 7));
    let plain = |values: &[f32]| tensor(values, [4], &Device::flex());
    let output = layer_norm(input.clone(), plain(&gain), plain(&bias), EPSILON);
    let gradients = output.powi_scalar(2).sum().backward();
    let found = values(input.grad(&gradients).unwrap());
    let expected = differences(&wide(&x), |x| {
        let output = reference::layer_norm(x, &wide(&gain), &wide(&bias), EPSILON);
        output.iter().map(|y| y * y).sum()
    });
    assert_close("derivative", &found, &expected, TOLERANCE);
}
