use proptest::prelude::*;
use sesqui_kernels::gelu_tanh;

use crate::reference;
use crate::support::{
    assert_close, composed, differences, fused, numbers, tensor, values, weighted, wide,
};
use burn::tensor::Device;

/// A handful of roundings of 6e-8, of values up to 6.
const VALUE: f64 = 5e-7;
/// The same through the slope of the sigmoid, whose argument reaches 25.
const DERIVATIVE: f64 = 5e-6;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn has_the_values_and_derivatives_of_its_formula(n in 1_usize..70, seed in any::<u64>()) {
        let x: Vec<f32> = numbers(n, seed).into_iter().map(|x| 6.0 * x).collect();
        let weights = numbers(n, seed ^ 1);
        let expected = reference::gelu_tanh(&wide(&x));
        let derivatives = differences(&wide(&x), |x| {
            weighted(&reference::gelu_tanh(x), &wide(&weights))
        });
        let plain = gelu_tanh(tensor(&x, [n], &Device::flex()));
        assert_close("plain", &values(plain), &expected, VALUE);
        for device in [fused(), composed()] {
            let input = tensor(&x, [1, n], &device).require_grad();
            let output = gelu_tanh(input.clone());
            assert_close("value", &values(output.clone()), &expected, VALUE);
            let gradients = (output * tensor(&weights, [1, n], &device)).sum().backward();
            let found = values(input.grad(&gradients).unwrap());
            assert_close("derivative", &found, &derivatives, DERIVATIVE);
        }
    }
}

#[test]
fn is_exact_far_out() {
    let x = [-1e4_f32, -50.0, 0.0, 50.0, 1e4];
    let input = tensor(&x, [5], &fused()).require_grad();
    let output = gelu_tanh(input.clone());
    assert_eq!(
        values(output.clone()).map_sign(),
        [0.0, 0.0, 0.0, 50.0, 1e4]
    );
    let gradients = output.sum().backward();
    assert_eq!(
        values(input.grad(&gradients).unwrap()).map_sign(),
        [0.0, 0.0, 0.5, 1.0, 1.0]
    );
}

/// Without the sign of zero.
trait MapSign {
    fn map_sign(self) -> Vec<f32>;
}

impl MapSign for Vec<f32> {
    fn map_sign(self) -> Vec<f32> {
        self.into_iter().map(|x| x + 0.0).collect()
    }
}

/// What the shape of the memory is makes no difference.
#[test]
fn takes_any_layout() {
    let x = numbers(12, 3);
    let straight = gelu_tanh(tensor(&x, [3, 4], &fused()));
    let turned = gelu_tanh(tensor(&x, [3, 4], &fused()).swap_dims(0, 1)).swap_dims(0, 1);
    assert_eq!(values(straight), values(turned));
}
