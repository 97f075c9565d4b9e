//! Narrow products: close to wide ones, by as much as their rounding explains, with wide weights and gradients; and
//! gradients where the way back computes again what it did not keep.
//!
//! A bf16 has 8 bits of significand, so rounding moves a value by at most 1/512 of it, and an f16 has 11: 1/4096. Four
//! half-layers of rounded products and states add up to some ten times that of the largest value; one product alone
//! stays within twice that.

use burn::tensor::{DType, Device, Tensor, bf16, f16};
use sesqui_model::{Family, Precision, Transformer, Visibility};

use crate::support::{
    CLOSE, FAMILIES, Random, assert_close, difference, gradients, integers, parameters, plain,
    row_positions, shaken, tiny, tracked, values, whole,
};

const VOCABULARY: usize = 19;
const LENGTH: usize = 11;

/// Each narrow float, and by what share of a value its rounding moves it.
const NARROW: [(Precision, f64); 2] = [
    (Precision::Bf16, 1.0 / 512.0),
    (Precision::F16, 1.0 / 4096.0),
];

/// How many roundings all together may come to, as a share of the largest value.
const ROUNDINGS: f64 = 25.0;

fn model(family: Family, device: &Device) -> Transformer {
    shaken(&tiny(family), VOCABULARY, 3, device)
}

/// Every family with every narrow float.
fn each() -> impl Iterator<Item = (Family, (Precision, f64))> {
    let families = FAMILIES.into_iter();
    families.flat_map(|family| NARROW.map(|narrow| (family, narrow)))
}

fn largest(values: &[f32]) -> f64 {
    values
        .iter()
        .fold(0.0, |most: f64, value| most.max(f64::from(value.abs())))
}

#[test]
fn narrow_products_move_logits_by_their_rounding() {
    for (family, (precision, rounding)) in each() {
        let wide = model(family, &plain());
        let narrow = wide.clone().with_precision(precision);
        let ids = Random::new(5).ids(LENGTH, VOCABULARY);
        let (expected, found) = (whole(&wide, &ids), whole(&narrow, &ids));
        let moved = difference(&found, &expected);
        let most = ROUNDINGS * rounding * largest(&expected);
        assert!(
            moved > 0.0 && moved <= most,
            "{family:?} {precision:?}: {moved}, {most}"
        );
    }
}

/// The head by hand: both factors rounded, their products summed in wide floats, the sum rounded.
#[test]
fn both_factors_of_a_product_are_rounded() {
    for (family, (precision, rounding)) in each() {
        let rounded = |value: f32| match precision {
            Precision::F32 => value,
            Precision::Bf16 => bf16::from_f32(value).to_f32(),
            Precision::F16 => f16::from_f32(value).to_f32(),
        };
        let model = model(family, &plain()).with_precision(precision);
        let d_model = model.config().d_model;
        let states = Random::new(6).tensor([1, 2, d_model], &plain());
        let logits = model.head(states.clone());
        assert_eq!(logits.dtype(), DType::F32);
        let states = values(states);
        let weights = values(match &model.head {
            Some(head) => head.weight.val(),
            None => model.token_embedding.weight.val().transpose(),
        });
        let expected: Vec<f32> = (0..2 * VOCABULARY)
            .map(|cell| {
                let (row, token) = (cell / VOCABULARY, cell % VOCABULARY);
                let terms = (0..d_model).map(|i| {
                    let weight = weights[i * VOCABULARY + token];
                    rounded(states[row * d_model + i]) * rounded(weight)
                });
                terms.sum()
            })
            .collect();
        let most = 2.0 * rounding * largest(&expected);
        assert_close(
            &format!("{family:?} {precision:?}"),
            &values(logits),
            &expected,
            most,
        );
    }
}

#[test]
fn a_narrow_cache_continues_like_the_whole_sequence_in_half_the_memory() {
    for (family, (precision, rounding)) in each() {
        let model = model(family, &plain()).with_precision(precision);
        let ids = Random::new(7).ids(LENGTH, VOCABULARY);
        let expected = whole(&model, &ids);
        let mut cache = model.cache(1, LENGTH);
        let wide = model.clone().with_precision(Precision::F32);
        assert_eq!(2 * cache.bytes(), wide.cache(1, LENGTH).bytes());
        let mut found = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let positions = row_positions(at, at + 1, &plain());
            let hidden = model.embed(integers(&[*id], [1, 1], &plain()), positions.clone());
            let layers = 0..model.layers.len();
            let hidden = model.run_layers_cached(layers, hidden, positions, &[true], &mut cache);
            found.extend(values(model.head(model.final_norm(hidden))));
        }
        let most = ROUNDINGS * rounding * largest(&expected);
        assert_close(
            &format!("{family:?} {precision:?}"),
            &found,
            &expected,
            most,
        );
    }
}

/// Of a loss weighed with `weight`, and divided by it again.
fn slopes_of(model: &Transformer, weight: f64) -> Vec<f32> {
    let device = model.device();
    let ids = integers(
        &Random::new(8).ids(LENGTH, VOCABULARY),
        [1, LENGTH],
        &device,
    );
    let positions = row_positions(0, LENGTH, &device);
    let logits = model.forward(ids, positions, Visibility::causal(LENGTH, &device));
    let loss: Tensor<1> = logits.powi_scalar(2).mean().mul_scalar(weight);
    let found = gradients(model, &loss.backward());
    assert_eq!(found.len(), parameters(model).len());
    let found = found.into_values().flatten();
    found
        .map(|slope| (f64::from(slope) / weight) as f32)
        .collect()
}

fn slopes(model: &Transformer) -> Vec<f32> {
    slopes_of(model, 1.0)
}

#[test]
fn gradients_of_narrow_products_are_wide_and_point_the_same_way() {
    for (family, (precision, rounding)) in each() {
        let wide = model(family, &tracked());
        let narrow = wide.clone().with_precision(precision);
        let expected = slopes(&wide);
        let dot =
            |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
        // A mean over many rows has small derivatives.
        for weight in [1.0, 1e-3] {
            let found = slopes_of(&narrow, weight);
            let lengths = (dot(&expected, &expected) * dot(&found, &found)).sqrt();
            let apart = 1.0 - dot(&expected, &found) / lengths;
            // Of directions that differ by a small angle; its square.
            let most = (ROUNDINGS * rounding).powi(2);
            let what = format!("{family:?} {precision:?} {weight}");
            println!("{what}: 1 - cosine {apart:.1e}, at most {most:.1e}");
            assert!(apart < most && found != expected, "{what}: {apart}");
        }
    }
}

#[test]
fn computing_again_instead_of_keeping_leaves_gradients_as_they_are() {
    for family in FAMILIES {
        let expected = slopes(&model(family, &tracked()));
        let again = model(family, &tracked().gradient_checkpointing());
        assert_close(&format!("{family:?}"), &slopes(&again), &expected, CLOSE);
    }
}
