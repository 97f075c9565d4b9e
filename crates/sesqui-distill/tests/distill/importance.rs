//! What a step is worth to the answer, against one problem at a time in 64 bits.

use burn::tensor::{Int, Tensor, TensorData};
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_distill::importance::{Importance, Scorer, Walk};
use sesqui_model::{Family, ModelConfig, Transformer, Visibility};

use crate::support::{D_MODEL, Data, LAYERS, measured, plain, shaken, values};

/// A sum of a few log-probabilities of size three, each by two 32-bit routes: measured 2e-6 at worst. A wrong
/// token, position or step shows at 1e-2.
const CLOSE: f64 = 2e-5;

fn model(data: &Data, family: Family) -> Transformer {
    let config = ModelConfig {
        family,
        layers: LAYERS,
        d_model: D_MODEL,
        heads: 2,
        context: 96,
        ..ModelConfig::default()
    };
    let fresh = Transformer::new(&config, data.tokenizer.vocab_size(), 5, &plain()).unwrap();
    shaken(fresh, 3)
}

/// `log p(answer | question, steps)` of one row, token by token from full logits.
fn alone(model: &Transformer, problem: &EncodedProblem, layout: PositionLayout) -> f64 {
    let mut ids: Vec<u32> = problem.question.clone();
    let mut positions = layout.question_positions(problem).unwrap();
    let start = layout.reasoning_start(problem).unwrap();
    ids.extend(problem.steps.iter().flatten());
    ids.extend(&problem.answer_start);
    let first = ids.len();
    ids.extend(&problem.answer);
    positions.extend((start..).take(ids.len() - positions.len()));
    let upload = |values: &[u32]| {
        let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
        let shape = [1, values.len()];
        Tensor::<2, Int>::from_data(TensorData::new(values, shape), &plain())
    };
    let visibility = Visibility::causal(ids.len(), &plain());
    let logits = values(model.forward(upload(&ids), upload(&positions), visibility));
    let rows: Vec<&[f32]> = logits.chunks_exact(model.vocabulary()).collect();
    let token = |index: usize| {
        let row = rows[index - 1];
        let partition: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        f64::from(row[ids[index] as usize]) - partition.ln()
    };
    (first..ids.len()).map(token).sum()
}

/// The problem with the steps that are not `left_out`, made by hand.
fn shorter(problem: &EncodedProblem, left_out: &[usize]) -> EncodedProblem {
    let mut shorter = problem.clone();
    for &step in left_out.iter().rev() {
        shorter.steps.remove(step);
        shorter.critical.remove(step);
    }
    shorter
}

/// The plain loop: one problem, one step, one pass.
fn reference(
    model: &Transformer,
    problem: &EncodedProblem,
    layout: PositionLayout,
    most: Option<usize>,
) -> Importance {
    let score = |left_out: &[usize]| alone(model, &shorter(problem, left_out), layout);
    let with = |gone: &[usize], step: usize| {
        let mut left_out = gone.to_vec();
        left_out.push(step);
        left_out.sort_unstable();
        left_out
    };
    let mut nats = vec![0.0; problem.steps.len()];
    let mut gone: Vec<usize> = Vec::new();
    for (step, worth) in nats.iter_mut().enumerate() {
        *worth = score(&gone) - score(&with(&gone, step));
        if most.is_some_and(|most| gone.len() < most) && *worth <= 0.0 {
            gone.push(step);
        }
    }
    for step in (0..problem.steps.len()).filter(|step| !gone.contains(step)) {
        nats[step] = score(&gone) - score(&with(&gone, step));
    }
    Importance {
        removed: (0..nats.len()).map(|step| gone.contains(&step)).collect(),
        nats,
    }
}

fn assert_same(what: &str, found: &[Importance], expected: &[Importance]) {
    let mut worst: f64 = 0.0;
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.removed, expected.removed, "{what}");
        assert_eq!(found.nats.len(), expected.nats.len(), "{what}");
        for (found, expected) in found.nats.iter().zip(&expected.nats) {
            worst = worst.max((found - expected).abs());
        }
    }
    measured(what, worst);
    assert!(worst < CLOSE, "{what}: off by {worst:e}");
}

#[test]
fn importances_are_those_of_a_plain_loop() {
    let data = Data::new();
    for family in [Family::Gpt2, Family::Llama] {
        let model = model(&data, family);
        for layout in [data.layout, PositionLayout::Contiguous] {
            let scorer = Scorer {
                backbone: &model,
                layout,
                pad: data.tokenizer.pad_id(),
            };
            let expected = |most: &dyn Fn(usize) -> Option<usize>| -> Vec<Importance> {
                let one = |problem: &EncodedProblem| {
                    reference(&model, problem, layout, most(problem.steps.len()))
                };
                data.encoded.iter().map(one).collect()
            };
            let alone = scorer
                .importances(&data.encoded, Walk::LeaveOneOut)
                .unwrap();
            assert_same("leave one out", &alone, &expected(&|_| None));
            let size = alone
                .iter()
                .flat_map(|row| &row.nats)
                .map(|nats| nats.abs());
            assert!(size.fold(0.0, f64::max) > 0.1, "the steps must matter");

            let (half, all) = (0.5, 1.0);
            let walk = |most_removed| Walk::FrontToBack { most_removed };
            let found = scorer.importances(&data.encoded, walk(half)).unwrap();
            assert_same("half", &found, &expected(&|steps| Some(steps / 2)));
            let found = scorer.importances(&data.encoded, walk(all)).unwrap();
            assert_same("all but one", &found, &expected(&|steps| Some(steps - 1)));
            let removed = || found.iter().flat_map(|row| &row.removed);
            assert!(removed().any(|removed| *removed) && removed().any(|removed| !*removed));
            // No removals: the walk is the plain thing.
            let none = scorer.importances(&data.encoded, walk(0.0)).unwrap();
            assert_eq!(none, alone);
        }
    }
}

#[test]
fn problems_without_steps_have_no_importances() {
    let data = Data::new();
    let model = model(&data, Family::Gpt2);
    let scorer = Scorer {
        backbone: &model,
        layout: data.layout,
        pad: data.tokenizer.pad_id(),
    };
    let bare = data.encoded[0].with_steps(|_| false);
    assert!(bare.critical.is_empty());
    let problems = [bare, data.encoded[5].clone()];
    let found = scorer.importances(&problems, Walk::LeaveOneOut).unwrap();
    assert!(found[0].nats.is_empty() && found[0].removed.is_empty());
    assert_same(
        "beside one without",
        &found[1..],
        &[reference(&model, &data.encoded[5], data.layout, None)],
    );
    assert!(
        scorer
            .importances(&[], Walk::LeaveOneOut)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn of_two_equal_steps_one_is_removed_and_the_other_carries_both() {
    let data = Data::new();
    let model = model(&data, Family::Gpt2);
    let scorer = Scorer {
        backbone: &model,
        layout: data.layout,
        pad: data.tokenizer.pad_id(),
    };
    let twice: Vec<EncodedProblem> = data
        .encoded
        .iter()
        .map(|problem| {
            let mut twice = problem.with_steps(|step| step < 2);
            twice.steps[1] = twice.steps[0].clone();
            twice
        })
        .collect();
    let alone = scorer.importances(&twice, Walk::LeaveOneOut).unwrap();
    let walk = Walk::FrontToBack { most_removed: 1.0 };
    let walked = scorer.importances(&twice, walk).unwrap();
    let mut removals = 0;
    for ((problem, alone), walked) in twice.iter().zip(&alone).zip(&walked) {
        // Whichever is left out, the same one is left.
        assert!((alone.nats[0] - alone.nats[1]).abs() < CLOSE);
        if walked.removed == [true, false] {
            removals += 1;
            let left = [
                problem.with_steps(|step| step == 0),
                problem.with_steps(|_| false),
            ];
            let scores = scorer.log_likelihoods(&left).unwrap();
            assert!((walked.nats[1] - (scores[0] - scores[1])).abs() < CLOSE);
            assert!((walked.nats[0] - alone.nats[0]).abs() < CLOSE);
        } else {
            assert!(alone.nats[0] > -CLOSE && walked.nats[0] > -CLOSE);
        }
    }
    assert!(0 < removals && removals < twice.len(), "{removals}");
}
