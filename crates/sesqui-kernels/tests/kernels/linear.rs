use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{DType, Device};
use sesqui_kernels::{against_rows, linear};

use crate::support::{assert_close, composed, fused, numbers, tensor, values, wide};

/// One matrix of all positions is what Burn makes of them row by row, with its derivatives.
#[test]
fn agrees_with_burns_own() {
    for device in [fused(), composed()] {
        for [batch, seq] in [[3, 32], [2, 5], [1, 4], [4, 1]] {
            let map = LinearConfig::new(6, 10).init(&device);
            let weights = tensor(&numbers(batch * seq * 10, 2), [batch, seq, 10], &device);
            let found = [true, false].map(|folded| {
                let x = numbers(batch * seq * 6, 1);
                let x = tensor(&x, [batch, seq, 6], &device).require_grad();
                let y = if folded {
                    linear(&map, x.clone())
                } else {
                    map.forward(x.clone())
                };
                assert_eq!(y.dims(), [batch, seq, 10]);
                let gradients = (y.clone() * weights.clone()).sum().backward();
                let bias = map.bias.as_ref().unwrap().val();
                [
                    values(y),
                    values(x.grad(&gradients).unwrap()),
                    values(map.weight.val().grad(&gradients).unwrap()),
                    values(bias.grad(&gradients).unwrap()),
                ]
            });
            let [found, expected] = found;
            for (found, expected) in found.iter().zip(expected) {
                assert_close("linear", found, &wide(&expected), 1e-5);
            }
        }
    }
    for bias in [true, false] {
        let plain = LinearConfig::new(6, 10).with_bias(bias);
        let plain = plain.init(&Device::flex()).valid();
        for [batch, seq] in [[2, 3], [1, 1]] {
            let x = numbers(batch * seq * 6, 1);
            let x = tensor(&x, [batch, seq, 6], &Device::flex());
            let expected = wide(&values(plain.forward(x.clone())));
            assert_close("plain", &values(linear(&plain, x)), &expected, 1e-6);
        }
    }
}

/// A single position against every row of a table, and `None` wherever it has to be composed.
#[test]
fn a_single_position_against_rows_is_a_product() {
    let device = Device::flex();
    let table = tensor(&numbers(7 * 6, 3), [7, 6], &device);
    let x = tensor(&numbers(6, 1), [1, 1, 6], &device);
    let expected = x.clone().matmul(table.clone().transpose().unsqueeze());
    let found = against_rows(&x, &table).unwrap();
    assert_eq!(found.dims(), [1, 1, 7]);
    assert_close("rows", &values(found), &wide(&values(expected)), 1e-6);

    let two = tensor(&numbers(12, 1), [1, 2, 6], &device);
    assert!(against_rows(&two, &table).is_none());
    let tracked = tensor(&numbers(6, 1), [1, 1, 6], &fused());
    assert!(against_rows(&tracked, &table).is_none());
    assert!(against_rows(&x, &table.cast(DType::BF16)).is_none());
}
