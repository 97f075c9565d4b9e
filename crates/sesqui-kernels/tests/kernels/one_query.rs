use burn::tensor::{Device, Tensor};
use proptest::prelude::*;
use sesqui_kernels::attention_of_one;

use crate::reference::softmax;
use crate::support::{assert_close, fused, numbers, tensor, values, wide};

/// Sums of up to 40 products of 32-bit numbers below 1, through an exponential.
const TOLERANCE: f64 = 3e-6;

/// `[batch, heads, d_head]`.
fn reference(
    [query, key, value]: [&[f64]; 3],
    bias: &[f64],
    [batch, heads, key_heads, length, d_head]: [usize; 5],
) -> Vec<f64> {
    let mut result = vec![0.0; batch * heads * d_head];
    for row in 0..batch {
        for head in 0..heads {
            let query = &query[(row * heads + head) * d_head..][..d_head];
            let shared = row * key_heads + head / (heads / key_heads);
            let at = |position: usize| (shared * length + position) * d_head;
            let scores: Vec<f64> = (0..length)
                .map(|position| {
                    let key = &key[at(position)..][..d_head];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    dot / (d_head as f64).sqrt() + bias[row * length + position]
                })
                .collect();
            for (position, probability) in softmax(&scores).into_iter().enumerate() {
                for index in 0..d_head {
                    result[(row * heads + head) * d_head + index] +=
                        probability * value[at(position) + index];
                }
            }
        }
    }
    result
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_at_the_front_of_a_larger_cache(
        batch in 1_usize..4,
        key_heads in 1_usize..3,
        group in 1_usize..3,
        length in 1_usize..40,
        spare in 0_usize..3,
        d_head in 1_usize..40,
        biased in 0_usize..3,
        seed in any::<u64>(),
    ) {
        let heads = key_heads * group;
        let device = Device::flex();
        let query = numbers(batch * heads * d_head, seed);
        let stored = [key_heads, length + spare, d_head];
        let cache = |seed| -> Tensor<4> {
            let n = batch * stored.iter().product::<usize>();
            let [heads, capacity, width] = stored;
            tensor(&numbers(n, seed), [batch, heads, capacity, width], &device)
                .narrow(2, 0, length)
        };
        let (key, value) = (cache(seed ^ 1), cache(seed ^ 2));
        let rows = if biased == 1 { 1 } else { batch };
        let bias: Vec<f32> = (0..rows * length)
            .map(|cell| match (biased, cell % 3) {
                (0, _) => 0.0,
                (_, 1) => -1e30,
                _ => 0.3,
            })
            .collect();
        let bias_there = tensor(&bias, [rows, 1, 1, length], &device);
        // As the joint projection leaves it: position before head.
        let query_there: Tensor<4> =
            tensor(&query, [batch, 1, heads, d_head], &device).swap_dims(1, 2);
        let found = attention_of_one(
            &query_there,
            &key,
            &value,
            (biased > 0).then_some(&bias_there),
        )
        .unwrap();
        let (key, value) = (wide(&values(key)), wide(&values(value)));
        let bias = wide(&bias).repeat(batch / rows);
        let expected = reference(
            [&wide(&query), &key, &value],
            &bias,
            [batch, heads, key_heads, length, d_head],
        );
        assert_eq!(found.dims(), [batch, heads, 1, d_head]);
        assert_close("attention", &values(found), &expected, TOLERANCE);
    }
}

#[test]
fn elsewhere_there_is_none() {
    let one = |seq: usize, device: &Device| -> Tensor<4> {
        tensor(&numbers(seq * 2, 1), [1, 1, seq, 2], device)
    };
    let (plain, watched) = (Device::flex(), fused());
    let key = one(3, &plain);
    assert!(attention_of_one(&one(2, &plain), &key, &key, None).is_none());
    let key = one(3, &watched);
    assert!(attention_of_one(&one(1, &watched), &key, &key, None).is_none());
}
