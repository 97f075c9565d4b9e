//! Against plain loops over 64-bit floats.

use burn::tensor::{Tensor, TensorData};
use sesqui_model::{Family, Initialization, ModelConfig, RopeScaling, Transformer, Visibility};

use crate::plain_loops::{PlainLoops, gelu_tanh};
use crate::support::{
    self, Padded, Random, Side, assert_close, plain, row_positions, shaken, tiny,
};

/// Logits here are of order one to ten and go through sums of at most a few hundred 32-bit products:
/// errors of 1e-6 to 1e-5 (at most 3.5e-6 was seen). A gain, bias, epsilon, scale or angle that is left out changes them by
/// more than 1e-2.
const TOLERANCE: f64 = 1e-4;

/// (name, shape, vocabulary)
fn shapes() -> Vec<(&'static str, ModelConfig, usize)> {
    let (gpt2, llama) = (tiny(Family::Gpt2), tiny(Family::Llama));
    let scaling = |original_context| RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context,
    };
    vec![
        ("GPT-2", gpt2.clone(), 19),
        (
            "GPT-2, default widths",
            ModelConfig {
                d_feed_forward: 0,
                ..gpt2.clone()
            },
            19,
        ),
        (
            "GPT-2, one head",
            ModelConfig {
                heads: 1,
                layers: 1,
                ..gpt2.clone()
            },
            7,
        ),
        (
            "GPT-2, odd heads",
            ModelConfig {
                d_model: 15,
                heads: 3,
                ..gpt2.clone()
            },
            11,
        ),
        (
            "GPT-2, untied",
            ModelConfig {
                tied_head: false,
                ..gpt2.clone()
            },
            23,
        ),
        (
            "GPT-2, large epsilon",
            ModelConfig {
                norm_epsilon: 0.5,
                ..gpt2.clone()
            },
            19,
        ),
        ("Llama, two shared heads", llama.clone(), 19),
        (
            "Llama, default widths",
            ModelConfig {
                d_feed_forward: 0,
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, one shared head",
            ModelConfig {
                key_value_heads: 1,
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, nothing shared",
            ModelConfig {
                key_value_heads: 0,
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, three per group",
            ModelConfig {
                d_model: 24,
                heads: 6,
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, untied",
            ModelConfig {
                tied_head: false,
                ..llama.clone()
            },
            23,
        ),
        (
            "Llama, large epsilon",
            ModelConfig {
                norm_epsilon: 0.5,
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, other base",
            ModelConfig {
                rope_theta: 50.0,
                ..llama.clone()
            },
            19,
        ),
        // Wavelengths of one head of width 16 are 2 pi 10000^(i/8): 6 to 20 000. With 512 positions
        // the first three are short, the fourth and fifth are blended, the rest are long.
        (
            "Llama, scaled angles",
            ModelConfig {
                d_model: 32,
                heads: 2,
                rope_scaling: scaling(512),
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, scaled angles, all long",
            ModelConfig {
                rope_scaling: scaling(4),
                ..llama.clone()
            },
            19,
        ),
        (
            "Llama, fixed initial deviation",
            ModelConfig {
                initialization: Initialization::Fixed {
                    standard_deviation: 0.02,
                },
                ..llama
            },
            19,
        ),
    ]
}

#[test]
fn logits_are_those_of_plain_loops() {
    let shapes = shapes();
    for (seed, (name, config, vocabulary)) in shapes.iter().enumerate() {
        let seed = seed as u64;
        let model = shaken(config, *vocabulary, seed, &plain());
        let reference = PlainLoops::new(&model);
        let mut random = Random::new(seed);
        let rows: Vec<Vec<i64>> = [13, 1, 8]
            .map(|length| random.ids(length, *vocabulary))
            .to_vec();
        let batch = Padded::new(&rows, 13, Side::Right, 0);
        let logits = model.forward(
            batch.ids(&plain()),
            batch.positions(&plain()),
            Visibility::causal(13, &plain()),
        );
        let logits = support::values(logits);
        for (index, row) in rows.iter().enumerate() {
            let positions: Vec<i64> = (0..row.len() as i64).collect();
            let expected = reference.logits(row, &positions).concat();
            let start = index * 13 * vocabulary;
            let found = &logits[start..start + expected.len()];
            assert_close(&format!("{name}, row {index}"), found, &expected, TOLERANCE);
        }
    }
}

/// Up to 8 in size and a handful of roundings of 6e-8 each. The constant 0.0447 in place of 0.044715
/// would be 1e-5 away, too little for whole models to show.
#[test]
fn gelu_has_its_tanh_form() {
    let x: Vec<f32> = (-800..=800).map(|index| index as f32 / 100.0).collect();
    let expected: Vec<f64> = x.iter().map(|&x| gelu_tanh(x.into())).collect();
    let shape = [1, 1, x.len()];
    let x: Tensor<3> = Tensor::from_data(TensorData::new(x, shape), &plain());
    let found = support::values(sesqui_model::layer::gelu_tanh(x));
    assert_close("GELU", &found, &expected, 3e-6);
}

#[test]
fn positions_need_not_be_consecutive() {
    for family in [Family::Gpt2, Family::Llama] {
        let model = shaken(&tiny(family), 19, 4, &plain());
        let ids = Random::new(4).ids(6, 19);
        let positions = [0, 1, 5, 6, 7, 40];
        let logits = model.forward(
            support::integers(&ids, [1, 6], &plain()),
            support::integers(&positions, [1, 6], &plain()),
            Visibility::causal(6, &plain()),
        );
        let expected = PlainLoops::new(&model).logits(&ids, &positions).concat();
        let what = format!("{family:?}, positions {positions:?}");
        assert_close(&what, &support::values(logits), &expected, TOLERANCE);
    }
}

#[test]
fn states_fed_back_are_those_of_plain_loops() {
    for family in [Family::Gpt2, Family::Llama] {
        let model = shaken(&tiny(family), 19, 5, &plain());
        let ids = Random::new(5).ids(7, 19);
        let (found, expected) = (feed_back(&model, &ids), feed_back_plainly(&model, &ids));
        assert_close(
            &format!("{family:?}, states fed back"),
            &found,
            &expected,
            TOLERANCE,
        );
    }
}

/// Four states, each the input of the next, after a prompt.
fn feed_back(model: &Transformer, ids: &[i64]) -> Vec<f32> {
    let mut inputs = model.token_embeddings(support::integers(ids, [1, ids.len()], &plain()));
    let mut fed = Vec::new();
    for length in ids.len()..ids.len() + 4 {
        let positions = row_positions(0, length, &plain());
        let context = model.context(positions.clone(), Visibility::causal(length, &plain()));
        let state = model.states(model.with_positions(inputs.clone(), positions), &context);
        let state = state.narrow(1, length - 1, 1);
        fed.extend(support::values(state.clone()));
        inputs = Tensor::cat(vec![inputs, state], 1);
    }
    fed
}

fn feed_back_plainly(model: &Transformer, ids: &[i64]) -> Vec<f64> {
    let (reference, layers) = (PlainLoops::new(model), model.layers.len());
    let mut cache = reference.cache();
    let positions: Vec<i64> = (0..ids.len() as i64).collect();
    let mut state = reference.states(ids, &positions, &mut cache).pop().unwrap();
    let mut fed = state.clone();
    for position in ids.len()..ids.len() + 3 {
        let position = position as i64;
        let input = reference.with_position(&state, position);
        state = reference.final_norm(&reference.run(0..layers, &input, position, &mut cache));
        fed.extend(&state);
    }
    fed
}
