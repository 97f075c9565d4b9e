//! The losses of stage 1 against plain loops in 64 bits.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::InferenceStep;
use sesqui_distill::align::{AlignConfig, Teacher, TokenScale};
use sesqui_distill::latent::Padding;
use sesqui_distill::loss::hidden_states;
use sesqui_distill::student::{Lesson, staircase_inputs};
use sesqui_distill::{Align, Rollout};
use sesqui_model::Transformer;
use sesqui_shortcut::{ExitPlan, KeyValueRule, staircase_pass};

use crate::support::{D_MODEL, Data, LAYERS, measured, plain, values};

/// States after the final norm, one per cell, in 64 bits.
fn normed(backbone: &Transformer, hidden: Tensor<3>) -> Vec<Vec<f64>> {
    let states = values(backbone.final_norm(hidden));
    let wide = |state: &[f32]| state.iter().copied().map(f64::from).collect();
    states.chunks_exact(D_MODEL).map(wide).collect()
}

/// `-log p(token)` under the head that shares the token embedding.
fn surprise(backbone: &Transformer, state: &[f64], token: i32) -> f64 {
    let table = values(backbone.token_embedding.weight.val());
    let dot = |row: &[f32]| row.iter().zip(state).map(|(w, x)| f64::from(*w) * x).sum();
    let logits: Vec<f64> = table.chunks_exact(D_MODEL).map(dot).collect();
    logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[token as usize]
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn losses_of_alignment_are_those_of_plain_loops() {
    let (data, device) = (Data::new(), plain());
    let base = data.teacher(1, &device);
    let student = data.student(&base, &device);
    for (padding, kind, scale) in [
        (Padding::Answer, Teacher::Frozen, TokenScale::Mean),
        (Padding::None, Teacher::Shared, TokenScale::Mean),
        (Padding::None, Teacher::Shared, TokenScale::Sum),
    ] {
        // Three problems.
        let over_tokens = |values: Vec<f64>| match scale {
            TokenScale::Mean => mean(values.into_iter()),
            TokenScale::Sum => values.into_iter().sum::<f64>() / 3.0,
        };
        let teacher = match kind {
            Teacher::Frozen => base.clone(),
            Teacher::Shared => student.backbone.clone(),
        };
        let mut batch = data.batch(padding, &[1, 6, 11], Rollout::TeacherForced);
        // As if a token of the answer were inside a longer marker.
        batch.answer_weights[2] = 0.0;
        let mut config = AlignConfig {
            teacher: kind,
            ..AlignConfig::default()
        };
        config.weights.scale = scale;
        let model = Align::new(student.clone(), &teacher, &config).valid();
        let found = values(InferenceStep::step(&model, batch.clone()).losses);

        let chain = hidden_states(&teacher, &batch.teacher);
        let lesson = Lesson::new(&teacher, chain.clone(), &batch, &device);
        let inputs = staircase_inputs(&student, &batch, lesson.forced());
        let plan = ExitPlan::full(batch.batch, batch.slots, LAYERS);
        let pass = staircase_pass(&student, None, inputs, &plan, KeyValueRule::Holes);
        let (states, wanted) = (
            normed(&student.backbone, pass.hidden),
            normed(&teacher, chain),
        );

        let said =
            |cell: i32, token: i32| surprise(&student.backbone, &states[cell as usize], token);
        let answers = batch.answer_cells.iter().zip(&batch.answer_targets);
        let answers = answers
            .zip(&batch.answer_weights)
            .filter(|(_, weight)| **weight > 0.0);
        let answer = answers.map(|((cell, token), _)| said(*cell, *token));
        let answer = over_tokens(answer.collect());
        let pairs = batch.answer_cells.iter().zip(&batch.answer_target_cells);
        let apart = |a: usize, b: usize| squared(&states[a], &wanted[b]);
        let answer_alignment = mean(pairs.map(|(a, b)| apart(*a as usize, *b as usize)));
        // Outputs that a row has: its question's last column, then its latent steps.
        let outputs: Vec<(usize, usize)> = (0..batch.labels.len())
            .filter(|index| batch.labels[*index].is_some())
            .map(|index| {
                let (row, output) = (index / (batch.slots + 1), index % (batch.slots + 1));
                (index, row * batch.seq + batch.first_slot - 1 + output)
            })
            .collect();
        let targets = |index: usize| batch.target_cells[index] as usize;
        let reasoning = mean(
            outputs
                .iter()
                .map(|(index, cell)| apart(*cell, targets(*index))),
        );
        let said = |(index, cell): &(usize, usize)| said(*cell as i32, batch.read_out[*index]);
        let read_out = mean(outputs.iter().map(said));
        let mut expected = vec![answer, answer_alignment, reasoning, read_out];
        let mut total = answer + answer_alignment + reasoning + 4.0 * read_out;
        if kind == Teacher::Shared {
            let cells = (0..batch.teacher.real.len())
                .filter(|cell| batch.teacher.loss_weights[*cell] > 0.0);
            let chain =
                cells.map(|cell| surprise(&teacher, &wanted[cell], batch.teacher.target_ids[cell]));
            let chain = over_tokens(chain.collect());
            expected.push(chain);
            total += chain;
        }
        expected.insert(0, total);
        assert_eq!(found.len(), expected.len());
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Means of at most a hundred terms in 32 bits, each within a few roundings of 6e-8.
            let off = (f64::from(*found) - expected).abs() / expected;
            measured(&format!("{kind:?}, loss {number} of {expected:.3}"), off);
            assert!(off < 1e-5, "{kind:?}, loss {number}: {found}, {expected}");
        }
    }
}
