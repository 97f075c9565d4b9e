//! Losses after layers below the last: what they weigh when, who skips which layer, and what comes of it.

use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainStep};
use sesqui_dataset::batch::{BatchConfig, SequenceBatch};
use sesqui_dataset::encode::{Supervision, sequence};
use sesqui_distill::batches::words;
use sesqui_distill::early_exit::{ExitCurriculum, ExitWeights};
use sesqui_distill::{
    EarlyExit, EarlyExitBatch, EarlyExitBatches, EarlyExitConfig, SequenceBatches, Supervised,
};
use sesqui_model::{Family, ModelConfig, Transformer, Visibility};
use sesqui_trainer::Batches;

use crate::support::{
    CLOSE, Data, LAYERS, assert_close, gradients, plain, shaken, tracked, values,
};

fn config(weights: ExitWeights, curriculum: ExitCurriculum, layer_dropout: f64) -> EarlyExitConfig {
    EarlyExitConfig {
        weights,
        curriculum,
        layer_dropout,
    }
}

fn even(below: f64) -> ExitWeights {
    ExitWeights::Even { below }
}

/// A batch of three problems of different lengths, in words.
fn three(data: &Data) -> SequenceBatch {
    let rows = [1, 6, 11].map(|row: usize| data.encoded[row].clone());
    words(&rows, data.layout, data.tokenizer.pad_id()).unwrap()
}

#[test]
fn weights_are_those_of_the_papers() {
    use ExitCurriculum::{Gradual, None, Rotational};
    let layer_skip = ExitWeights::LayerSkip { scale: 0.5 };
    // Sums over layers: 0, 1, 3 times a half, and 3 + (0 + 1 + 3 - 1) / 2 for the last.
    let all = [0.0, 0.5, 1.5, 4.5].map(|weight| weight / 6.5);
    let cases: [(ExitWeights, ExitCurriculum, u64, [f64; 4]); 13] = [
        (layer_skip, None, 7, all),
        (
            layer_skip,
            Rotational { every: 2 },
            0,
            [0.0, 0.0, 1.5 / 6.0, 4.5 / 6.0],
        ),
        (
            layer_skip,
            Rotational { every: 2 },
            3,
            [0.0, 0.5 / 5.0, 0.0, 4.5 / 5.0],
        ),
        (layer_skip, Rotational { every: 4 }, 3, [0.0, 0.0, 0.0, 1.0]),
        (even(0.6), None, 3, [0.2, 0.2, 0.2, 1.0]),
        (even(0.6), Rotational { every: 1 }, 3, [0.2, 0.2, 0.2, 1.0]),
        (even(0.6), Rotational { every: 3 }, 4, [0.0, 0.2, 0.0, 1.0]),
        (even(0.6), Rotational { every: 2 }, 6, [0.2, 0.0, 0.2, 1.0]),
        // 32 updates, a layer more every 32 / (2 4).
        (even(0.6), Gradual, 3, [0.0, 0.0, 0.0, 1.0]),
        (even(0.6), Gradual, 4, [0.0, 0.0, 0.2, 1.0]),
        (even(0.6), Gradual, 8, [0.0, 0.2, 0.2, 1.0]),
        (even(0.6), Gradual, 12, [0.2, 0.2, 0.2, 1.0]),
        (even(0.6), Gradual, 31, [0.2, 0.2, 0.2, 1.0]),
    ];
    for (weights, curriculum, update, expected) in cases {
        let plan = config(weights, curriculum, 0.0).plan(4, 32);
        let found = plan.weights(update);
        for (found, expected) in found.iter().zip(expected) {
            let what = format!("{weights:?}, {curriculum:?}, update {update}: {found:?}");
            assert!((found - expected).abs() < 1e-12, "{what}");
        }
        assert_eq!(found.len(), 4);
    }
    // Validation has all of them whatever the curriculum.
    let plan = config(layer_skip, Rotational { every: 2 }, 0.0).plan(4, 32);
    assert_eq!(plan.all_weights(), all);
    for weights in [layer_skip, even(0.5)] {
        assert_eq!(
            config(weights, None, 0.9).plan(1, 8).all_weights(),
            [1.0],
            "a model of one layer"
        );
    }
}

#[test]
fn rows_skip_layers_as_drawn_whatever_the_parts() {
    let layers = 4;
    let plan = config(even(1.0), ExitCurriculum::None, 0.5).plan(layers, 100);
    let (rows, updates) = (40, 100);
    let mut skipped = vec![0; layers];
    for update in 0..updates {
        let runs = plan.runs(7, update, rows);
        assert_eq!(runs.len(), rows * layers);
        for (cell, runs) in runs.iter().enumerate() {
            skipped[cell % layers] += usize::from(!runs);
        }
    }
    assert_ne!(plan.runs(7, 0, rows), plan.runs(7, 1, rows));
    assert_ne!(plan.runs(7, 0, rows), plan.runs(8, 0, rows));
    let drawn = (rows as u64 * updates) as f64;
    for (layer, skipped) in skipped.into_iter().enumerate() {
        let expected = 0.5 * (2f64.powf(layer as f64 / 3.0) - 1.0);
        let found = skipped as f64 / drawn;
        // Of 4000 draws the share has a standard deviation of 0.008 at most.
        assert!((found - expected).abs() < 0.03, "layer {layer}: {found}");
        assert_eq!(skipped == 0, layer == 0);
    }
    let never = config(even(1.0), ExitCurriculum::None, 0.0).plan(layers, 100);
    assert!(never.runs(7, 3, rows).into_iter().all(|runs| runs));

    let data = Data::new();
    let batches = |parts| {
        let sequences = data
            .encoded
            .iter()
            .map(|problem| sequence(problem, Supervision::ChainOfThought, data.layout).unwrap());
        let names = data.encoded.iter().map(|problem| problem.id.clone());
        let batch = BatchConfig {
            batch_size: 6,
            ..BatchConfig::default()
        };
        let (sequences, names) = (sequences.collect(), names.collect());
        let words = SequenceBatches::new(sequences, names, &batch, parts, 3, 0).unwrap();
        let curriculum = ExitCurriculum::Rotational { every: 2 };
        let plan = config(even(1.0), curriculum, 0.5).plan(LAYERS, 100);
        EarlyExitBatches::new(words, plan, 3)
    };
    let whole = batches(1);
    for parts in [2, 3] {
        let cut = batches(parts);
        for step in 0..6 {
            let whole = whole.batch(step).unwrap();
            let cut: Vec<EarlyExitBatch> = (0..parts)
                .map(|part| cut.batch(step * parts + part).unwrap())
                .collect();
            let runs: Vec<bool> = cut.iter().flat_map(|part| part.runs.clone()).collect();
            assert_eq!(runs, whole.runs, "{parts} parts, step {step}");
            let rows = |part: &EarlyExitBatch| part.words.problems.clone();
            assert_eq!(cut.iter().flat_map(rows).collect::<Vec<_>>(), rows(&whole));
            assert!(cut.iter().all(|part| part.weights == whole.weights));
        }
    }
}

fn model(data: &Data, family: Family) -> Transformer {
    let config = ModelConfig {
        family,
        layers: LAYERS,
        d_model: 16,
        heads: 2,
        key_value_heads: usize::from(family == Family::Llama),
        context: 64,
        ..ModelConfig::default()
    };
    let vocabulary = data.tokenizer.vocab_size();
    shaken(
        Transformer::new(&config, vocabulary, 3, &plain()).unwrap(),
        3,
    )
}

/// Cross-entropies of one row, without padding, after each layer, of which it runs some: sums in nats over its
/// targets, one logit after another.
fn by_hand(model: &Transformer, batch: &SequenceBatch, row: usize, runs: &[bool]) -> Vec<f64> {
    let cells = row * batch.seq..(row + 1) * batch.seq;
    let length = batch.real[cells.clone()]
        .iter()
        .filter(|real| **real)
        .count();
    let upload = |list: &[i32]| {
        let row = &list[cells.start..cells.start + length];
        Tensor::<1, burn::tensor::Int>::from_data(row, &plain()).unsqueeze::<2>()
    };
    let positions = upload(&batch.position_ids);
    let context = model.context(positions.clone(), Visibility::causal(length, &plain()));
    let mut hidden = model.embed(upload(&batch.input_ids), positions);
    let mut losses = Vec::new();
    for (layer, runs) in runs.iter().enumerate() {
        if *runs {
            hidden = model.run_layers(layer..layer + 1, hidden, &context);
        }
        let logits = values(model.head(model.final_norm(hidden.clone())));
        let mut sum = 0.0;
        for place in 0..length {
            let weight = f64::from(batch.loss_weights[cells.start + place]);
            let logits = &logits[place * model.vocabulary()..(place + 1) * model.vocabulary()];
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let target = batch.target_ids[cells.start + place] as usize;
            sum += weight * (total.ln() - f64::from(logits[target]));
        }
        losses.push(sum);
    }
    losses
}

#[test]
fn losses_are_those_of_plain_loops_and_skip_what_is_drawn() {
    let data = Data::new();
    let batch = three(&data);
    let targets: f64 = batch.loss_weights.iter().copied().map(f64::from).sum();
    for family in [Family::Gpt2, Family::Llama] {
        let model = model(&data, family);
        let weights = vec![0.25, 0.0, 0.5];
        // All rows run all; some skip some; a layer that nobody runs.
        for runs in [
            [true; 9],
            [true, false, true, true, true, true, false, true, false],
            [true, false, false, false, false, true, true, false, true],
        ] {
            let mut expected = [0.0; LAYERS];
            for (row, runs) in runs.chunks(LAYERS).enumerate() {
                let found = by_hand(&model, &batch, row, runs);
                let found = found.iter().map(|loss| loss / targets);
                expected
                    .iter_mut()
                    .zip(found)
                    .for_each(|(all, own)| *all += own);
            }
            let below = 0.25 * expected[0];
            let expected = [0.5 * expected[2] + below, expected[2], below];
            let found = InferenceStep::step(
                &EarlyExit::new(model.clone()),
                EarlyExitBatch {
                    words: batch.clone(),
                    weights: weights.clone(),
                    runs: runs.to_vec(),
                },
            );
            assert_eq!(found.names, ["loss", "last", "below"]);
            let what = format!("{family:?}, {runs:?}");
            let expected = expected.map(|loss| loss as f32);
            assert_close(&what, &values(found.losses), &expected, CLOSE);
        }
    }
}

/// Without a loss below and with all layers it is supervised fine-tuning to the last bit. Where all rows skip a
/// layer, it has no gradient; with a loss below, the layers below follow another.
#[test]
fn it_is_supervised_fine_tuning_and_more() {
    let data = Data::new();
    let backbone = data.teacher(3, &tracked());
    let words = three(&data);
    let step = |weights: [f64; LAYERS], skipped: Option<usize>| {
        let runs = (0..words.batch * LAYERS).map(|cell| Some(cell % LAYERS) != skipped);
        let batch = EarlyExitBatch {
            words: words.clone(),
            weights: weights.to_vec(),
            runs: runs.collect(),
        };
        let output = TrainStep::step(&EarlyExit::new(backbone.clone()), batch);
        let gradients = gradients(&backbone, &output.grads);
        (values(output.item.losses), gradients)
    };
    let plain = TrainStep::step(&Supervised::new(backbone.clone()), words.clone());
    let (losses, alone) = step([0.0, 0.0, 1.0], None);
    let loss = values(plain.item.losses)[0];
    assert_eq!(losses, [loss, loss, 0.0]);
    assert_eq!(alone, gradients(&backbone, &plain.grads));

    let (_, both) = step([0.3, 0.3, 1.0], None);
    let moved = alone.iter().zip(&both).filter(|(one, other)| one != other);
    assert!(moved.count() > alone.len() / 2);
    let (_, without) = step([0.3, 0.3, 1.0], Some(1));
    assert!(both.iter().any(|(path, _)| path.starts_with("layers.1.")));
    assert!(
        !without
            .iter()
            .any(|(path, _)| path.starts_with("layers.1."))
    );
    assert!(
        without
            .iter()
            .any(|(path, _)| path.starts_with("layers.2."))
    );
}

#[test]
fn settings_that_cannot_be_are_named() {
    let none = ExitCurriculum::None;
    for (config, part) in [
        (config(even(-1.0), none, 0.0), "weights.below"),
        (config(even(f64::NAN), none, 0.0), "weights.below"),
        (
            config(ExitWeights::LayerSkip { scale: -0.1 }, none, 0.0),
            "weights.scale",
        ),
        (
            config(even(1.0), ExitCurriculum::Rotational { every: 0 }, 0.0),
            "curriculum.every",
        ),
        (config(even(1.0), none, 1.0), "layer_dropout"),
        (config(even(1.0), none, f64::NAN), "layer_dropout"),
    ] {
        assert_eq!(config.problem().unwrap().0, part);
    }
    assert_eq!(EarlyExitConfig::default().problem(), None);
}
