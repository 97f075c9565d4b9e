//! Gradients against finite differences.
//!
//! The differences are taken on the plain loops over 64-bit floats, whose values `reference.rs` ties
//! to the model's. Central differences with a step of 1e-4 are then wrong by about 1e-8 (third
//! derivative) and 1e-12 (rounding), so what is compared is the 32-bit backward pass itself:
//! its error is some 1e-6 of the largest entry of the same parameter.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use sesqui_model::{Family, KvCache, ModelConfig, Transformer, Visibility};

use crate::plain_loops::{PlainLoops, cross_entropy};
use crate::support::{
    self, Padded, Random, Side, integers, measured, row_positions, shaken, tiny, tracked, values,
};

const STEP: f64 = 1e-4;
/// Of the largest entry of the same parameter's gradient.
const TOLERANCE: f64 = 1e-4;
const VOCABULARY: usize = 11;

fn shapes() -> [(&'static str, ModelConfig); 4] {
    let two = |family| ModelConfig {
        layers: 2,
        d_model: 8,
        heads: 2,
        ..tiny(family)
    };
    let (gpt2, llama) = (two(Family::Gpt2), two(Family::Llama));
    [
        ("GPT-2", gpt2.clone()),
        (
            "GPT-2, untied",
            ModelConfig {
                tied_head: false,
                ..gpt2
            },
        ),
        (
            "Llama",
            ModelConfig {
                key_value_heads: 1,
                ..llama.clone()
            },
        ),
        (
            "Llama, untied",
            ModelConfig {
                key_value_heads: 1,
                tied_head: false,
                ..llama
            },
        ),
    ]
}

#[test]
fn of_every_parameter() {
    for (name, config) in shapes() {
        let model = shaken(&config, VOCABULARY, 21, &tracked());
        let rows = [vec![1, 2, 3, 4, 5, 6], vec![7, 8, 9], vec![10, 1, 3, 5]];
        // Weight of the prediction made at each token; a row's last token predicts nothing.
        let weights = [
            vec![1.0, 0.5, 0.0, 2.0, 1.0],
            vec![0.7, 1.3],
            vec![0.0, 1.0, 0.2],
        ];
        let batch = Padded::new(&rows, 7, Side::Left, 0);

        let visibility = Visibility::causal_padded(&batch.real, batch.shape, &tracked());
        let logits = model.forward(
            batch.ids(&tracked()),
            batch.positions(&tracked()),
            visibility,
        );
        let loss = weighted_loss(logits, &batch, &weights);
        let plain_loss = |reference: &PlainLoops| {
            let (mut sum, mut total) = (0.0, 0.0);
            for (row, weights) in rows.iter().zip(&weights) {
                let positions: Vec<i64> = (0..row.len() as i64).collect();
                let logits = reference.logits(row, &positions);
                for (index, weight) in weights.iter().enumerate() {
                    sum += weight * cross_entropy(&logits[index], row[index + 1]);
                    total += weight;
                }
            }
            sum / total
        };
        check(name, &model, loss, plain_loss);
    }
}

/// Three states fed back, then the loss on one token: the gradient passes through every step.
#[test]
fn through_states_fed_back() {
    for (name, config) in shapes() {
        let model = shaken(&config, VOCABULARY, 22, &tracked());
        let (ids, target) = ([1, 2, 3, 4], 7);
        let layers = config.layers;
        let plain_loss = |reference: &PlainLoops, inputs: &[f64]| {
            let mut cache = reference.cache();
            let mut state = Vec::new();
            for position in 0..ids.len() + 3 {
                let input = match position.checked_sub(ids.len()) {
                    Some(_) => state.clone(),
                    None => inputs[position * config.d_model..][..config.d_model].to_vec(),
                };
                let input = reference.with_position(&input, position as i64);
                let hidden = reference.run(0..layers, &input, position as i64, &mut cache);
                state = reference.final_norm(&hidden);
            }
            cross_entropy(&reference.head(&state), target)
        };
        let from_ids = |reference: &PlainLoops| {
            let table = &reference.parameters["token_embedding.weight"];
            let inputs: Vec<f64> = ids
                .iter()
                .flat_map(|&id| table[id as usize * config.d_model..][..config.d_model].to_vec())
                .collect();
            plain_loss(reference, &inputs)
        };

        for route in [Route::Whole, Route::Cached] {
            let what = format!("{name}, {route:?}");
            let tokens = integers(&ids, [1, ids.len()], &tracked());
            let loss = fed_back_loss(&model, model.token_embeddings(tokens), target, route);
            check(&what, &model, loss, from_ids);

            // The inputs as a leaf of their own.
            let leaf = Random::new(23).tensor([1, ids.len(), config.d_model], &tracked());
            let leaf = leaf.require_grad();
            let loss = fed_back_loss(&model, leaf.clone(), target, route);
            let gradient = values(leaf.grad(&loss.backward()).unwrap());
            let reference = PlainLoops::new(&model);
            let inputs: Vec<f64> = values(leaf).into_iter().map(f64::from).collect();
            let scale = greatest(&gradient);
            let mut worst = 0.0f64;
            for coordinate in 0..inputs.len() {
                let at = |step: f64| {
                    let mut inputs = inputs.clone();
                    inputs[coordinate] += step;
                    plain_loss(&reference, &inputs)
                };
                let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                worst = worst.max((f64::from(gradient[coordinate]) - expected).abs() / scale);
            }
            measured(&format!("{what}, inputs"), worst);
            assert!(worst <= TOLERANCE, "{what}, inputs: {worst:e} of {scale:e}");
        }
    }
}

/// Pads take no part: their inputs get a gradient of exactly zero.
#[test]
fn of_pads_is_zero() {
    for (name, config) in shapes() {
        let model = shaken(&config, VOCABULARY, 24, &tracked());
        let rows = [vec![1, 2, 3, 4], vec![5, 6]];
        let weights = [vec![1.0; 3], vec![1.0]];
        for side in [Side::Left, Side::Right] {
            let batch = Padded::new(&rows, 5, side, 0);
            let inputs = Random::new(25)
                .tensor([2, 5, config.d_model], &tracked())
                .require_grad();
            let visibility = Visibility::causal_padded(&batch.real, batch.shape, &tracked());
            let logits =
                model.forward_embeddings(inputs.clone(), batch.positions(&tracked()), visibility);
            let gradients = weighted_loss(logits, &batch, &weights).backward();
            let gradient = values(inputs.grad(&gradients).unwrap());
            for (cell, gradient) in gradient.chunks(config.d_model).enumerate() {
                let what = format!("{name}, {side:?}, cell {cell}");
                let predicts = batch.real[cell] && batch.real.get(cell + 1) == Some(&true);
                if !batch.real[cell] {
                    assert!(gradient.iter().all(|&x| x == 0.0), "{what}: {gradient:?}");
                } else if predicts && cell % 5 != 4 {
                    assert!(greatest(gradient) > 0.0, "{what}");
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Route {
    Whole,
    Cached,
}

fn fed_back_loss(model: &Transformer, inputs: Tensor<3>, target: i64, route: Route) -> Tensor<1> {
    let (length, device) = (inputs.dims()[1], tracked());
    let layers = 0..model.layers.len();
    let state = match route {
        Route::Whole => {
            let mut inputs = inputs;
            for seq in length..length + 3 {
                let positions = row_positions(0, seq, &device);
                let context = model.context(positions.clone(), Visibility::causal(seq, &device));
                let state = model.states(model.with_positions(inputs.clone(), positions), &context);
                inputs = Tensor::cat(vec![inputs, state.narrow(1, seq - 1, 1)], 1);
            }
            let seq = length + 3;
            let positions = row_positions(0, seq, &device);
            let context = model.context(positions.clone(), Visibility::causal(seq, &device));
            let states = model.states(model.with_positions(inputs, positions), &context);
            states.narrow(1, seq - 1, 1)
        }
        Route::Cached => {
            let mut cache = KvCache::new(model.config(), 1, length + 3, &device);
            let mut step = |inputs: Tensor<3>, from: usize| {
                let seq = inputs.dims()[1];
                let positions = row_positions(from, from + seq, &device);
                let inputs = model.with_positions(inputs, positions.clone());
                let real = vec![true; seq];
                let hidden =
                    model.run_layers_cached(layers.clone(), inputs, positions, &real, &mut cache);
                model.final_norm(hidden.narrow(1, seq - 1, 1))
            };
            let mut state = step(inputs, 0);
            for position in length..length + 3 {
                state = step(state, position);
            }
            state
        }
    };
    let logits = model.head(state).reshape([1, VOCABULARY]);
    log_softmax(logits, 1)
        .gather(1, integers(&[target], [1, 1], &device))
        .sum()
        .neg()
}

/// Weighted mean of the next-token cross-entropy, weights per row and token.
fn weighted_loss(logits: Tensor<3>, batch: &Padded, weights: &[Vec<f64>]) -> Tensor<1> {
    let [rows, seq] = batch.shape;
    let (mut targets, mut cells) = (vec![0; rows * seq], vec![0.0f32; rows * seq]);
    let mut total = 0.0;
    for (row, weights) in weights.iter().enumerate() {
        let first = (0..seq)
            .find(|column| batch.real[row * seq + column])
            .unwrap();
        for (index, &weight) in weights.iter().enumerate() {
            let cell = row * seq + first + index;
            targets[cell] = batch.ids[cell + 1];
            cells[cell] = weight as f32;
            total += weight;
        }
    }
    let device = logits.device();
    let cells = Tensor::<2>::from_data(TensorData::new(cells, [rows * seq, 1]), &device);
    let targets = integers(&targets, [rows * seq, 1], &device);
    let likelihoods = log_softmax(logits.reshape([rows * seq, VOCABULARY]), 1).gather(1, targets);
    (likelihoods * cells).sum().div_scalar(-total)
}

/// Compares the largest entry and four random ones of every parameter's gradient.
fn check(
    name: &str,
    model: &Transformer,
    loss: Tensor<1>,
    plain_loss: impl Fn(&PlainLoops) -> f64,
) {
    let mut reference = PlainLoops::new(model);
    let found = f64::from(values(loss.clone())[0]);
    support::assert_close(
        &format!("{name}, loss"),
        &[found],
        &[plain_loss(&reference)],
        1e-5,
    );
    let gradients = support::gradients(model, &loss.backward());
    let paths: Vec<String> = reference.parameters.keys().cloned().collect();
    assert_eq!(
        gradients.keys().cloned().collect::<Vec<_>>(),
        paths,
        "{name}"
    );
    let mut random = Random::new(26);
    let mut worst = 0.0f64;
    for (path, gradient) in &gradients {
        let scale = greatest(gradient);
        assert!(scale > 0.0, "{name}: nothing reaches {path}");
        let largest = (0..gradient.len()).find(|&index| f64::from(gradient[index].abs()) == scale);
        let mut coordinates = vec![largest.unwrap()];
        coordinates.extend((0..4).map(|_| random.below(gradient.len())));
        for coordinate in coordinates {
            let mut at = |step: f64| {
                let values = reference.parameters.get_mut(path).unwrap();
                let before = values[coordinate];
                values[coordinate] += step;
                let loss = plain_loss(&reference);
                reference.parameters.get_mut(path).unwrap()[coordinate] = before;
                loss
            };
            let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let difference = (f64::from(gradient[coordinate]) - expected).abs() / scale;
            assert!(
                difference <= TOLERANCE,
                "{name}: {path}[{coordinate}] is {:e}, differences give {expected:e}",
                gradient[coordinate]
            );
            worst = worst.max(difference);
        }
    }
    measured(&format!("{name}, gradients"), worst);
}

fn greatest(values: &[f32]) -> f64 {
    values
        .iter()
        .fold(0.0, |greatest: f64, &x| greatest.max(f64::from(x).abs()))
}
