//! The next-token loss.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::{Segment, Sequence, Supervision};
use sesqui_distill::loss::{hidden_states, next_token_loss};
use sesqui_model::{Transformer, Visibility};

use crate::support::{Exercises, FAMILIES, VOCABULARY, integers, model, plain, tracked, values};

/// Two 32-bit routes to a mean of logarithms of order three: some 1e-6 measured, a factor of ten on
/// top. A wrong target, weight or cell shows at 1e-2.
const CLOSE: f64 = 1e-5;
const CONTEXT: usize = 32;
const PAD: u32 = 19;

/// Questions of `questions[r]` tokens with `rest[r]` tokens to learn behind them.
fn sequences(questions: &[usize], rest: &[usize]) -> Vec<Sequence> {
    questions
        .iter()
        .zip(rest)
        .enumerate()
        .map(|(row, (&question, &rest))| {
            let length = question + rest;
            Sequence {
                ids: (0..length)
                    .map(|at| ((row * 5 + at * at * 3 + at + 2) % 19) as u32)
                    .collect(),
                positions: (0..length as u32).collect(),
                segments: (0..length)
                    .map(|at| {
                        if at < question {
                            Segment::Question
                        } else {
                            Segment::Answer
                        }
                    })
                    .collect(),
            }
        })
        .collect()
}

fn batch() -> SequenceBatch {
    SequenceBatch::collate(&sequences(&[3, 5, 1], &[4, 6, 2]), &[0, 1, 2], PAD).unwrap()
}

fn loss(model: &Transformer, batch: &SequenceBatch) -> f64 {
    let losses = values(next_token_loss(model, hidden_states(model, batch), batch));
    assert_eq!(losses.len(), 1);
    losses[0].into()
}

/// From the logits of the whole batch, in 64 bits.
fn reference(model: &Transformer, batch: &SequenceBatch) -> f64 {
    let shape = [batch.batch, batch.seq];
    let logits = values(model.forward(
        integers(&batch.input_ids, shape, &plain()),
        integers(&batch.position_ids, shape, &plain()),
        Visibility::causal(batch.seq, &plain()),
    ));
    let (mut sum, mut total) = (0.0, 0.0);
    for (cell, row) in logits.chunks_exact(VOCABULARY).enumerate() {
        let partition: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        let target = f64::from(row[batch.target_ids[cell] as usize]);
        let weight = f64::from(batch.loss_weights[cell]);
        sum += weight * (partition.ln() - target);
        total += weight;
    }
    sum / total
}

fn assert_close(found: f64, expected: f64, what: &str) {
    let off = (found - expected).abs();
    assert!(
        off <= CLOSE,
        "{what}: {found} is not {expected}, off by {off:e}"
    );
}

#[test]
fn equals_the_mean_over_full_logits() {
    for family in FAMILIES {
        let (here, there) = (
            model(family, CONTEXT, 5, &plain()),
            model(family, CONTEXT, 5, &tracked()),
        );
        let mut uneven = batch();
        for (cell, weight) in uneven.loss_weights.iter_mut().enumerate() {
            *weight *= 0.25 + (cell % 4) as f32;
        }
        for (what, batch) in [("even weights", batch()), ("uneven weights", uneven)] {
            let expected = reference(&here, &batch);
            assert!(expected > 1.0, "an untrained model is not sure: {expected}");
            assert_close(loss(&here, &batch), expected, what);
            assert_close(loss(&there, &batch), expected, what);
        }
    }
}

#[test]
fn padding_changes_nothing() {
    for family in FAMILIES {
        let model = model(family, CONTEXT, 5, &plain());
        let batch = batch();
        let expected = loss(&model, &batch);

        let mut other = batch.clone();
        for cell in 0..other.real.len() {
            if !other.real[cell] {
                (other.input_ids[cell], other.target_ids[cell]) = (4, 11);
                other.position_ids[cell] = 9;
            }
        }
        assert_close(loss(&model, &other), expected, "what stands at pads");

        let (columns, rows) = (batch.seq + 3, batch.batch + 2);
        let mut wider = SequenceBatch {
            batch: rows,
            seq: columns,
            ..batch.clone()
        };
        let cells = rows * columns;
        wider.input_ids = vec![PAD as i32; cells];
        wider.target_ids = vec![PAD as i32; cells];
        wider.position_ids = vec![0; cells];
        wider.real = vec![false; cells];
        wider.loss_weights = vec![0.0; cells];
        for row in 0..batch.batch {
            for column in 0..batch.seq {
                let (to, from) = (row * columns + column, row * batch.seq + column);
                wider.input_ids[to] = batch.input_ids[from];
                wider.target_ids[to] = batch.target_ids[from];
                wider.position_ids[to] = batch.position_ids[from];
                wider.real[to] = batch.real[from];
                wider.loss_weights[to] = batch.loss_weights[from];
            }
        }
        assert_close(loss(&model, &wider), expected, "rows and columns of pads");
    }
}

#[test]
fn a_batch_is_the_weighted_mean_of_its_rows() {
    let rest = [4, 6, 2];
    let all = sequences(&[3, 5, 1], &rest);
    for family in FAMILIES {
        let model = model(family, CONTEXT, 6, &plain());
        let alone: Vec<f64> = (0..3)
            .map(|row| SequenceBatch::collate(&all, &[row], PAD).unwrap())
            .map(|batch| loss(&model, &batch))
            .collect();
        for rows in [vec![0, 1, 2], vec![2, 0], vec![1, 1, 0]] {
            let batch = SequenceBatch::collate(&all, &rows, PAD).unwrap();
            let (mut sum, mut total) = (0.0, 0.0);
            for &row in &rows {
                sum += alone[row as usize] * rest[row as usize] as f64;
                total += rest[row as usize] as f64;
            }
            assert_close(loss(&model, &batch), sum / total, &format!("{rows:?}"));
        }
    }
}

#[test]
fn targets_in_the_question_are_not_learned() {
    let model = model(FAMILIES[0], CONTEXT, 5, &tracked());
    let batch = batch();
    let mut other = batch.clone();
    for cell in 0..other.target_ids.len() {
        if other.loss_weights[cell] == 0.0 {
            other.target_ids[cell] = (other.target_ids[cell] + 7) % 19;
        }
    }
    assert_ne!(batch.target_ids, other.target_ids);
    let run = |batch: &SequenceBatch| {
        let loss = next_token_loss(&model, hidden_states(&model, batch), batch);
        let gradients = loss.backward();
        (values(loss.inner()), all_gradients(&model, &gradients))
    };
    assert_eq!(run(&batch), run(&other), "to the last bit");
    // The other way round: what is asked does matter.
    let mut asked = batch.clone();
    asked.input_ids[0] = (asked.input_ids[0] + 7) % 19;
    assert_ne!(run(&batch).0, run(&asked).0);
}

#[test]
fn data_sets_give_the_weights_they_promise() {
    let exercises = Exercises::new(6);
    for (supervision, first_target) in [
        (Supervision::ChainOfThought, "<<"),
        (Supervision::AnswerOnly, "####"),
    ] {
        let sequences = exercises.sequences(supervision);
        let batch = SequenceBatch::collate(&sequences, &[0, 3, 5], PAD).unwrap();
        for (row, &problem) in [0usize, 3, 5].iter().enumerate() {
            let cells = row * batch.seq..(row + 1) * batch.seq;
            let learned: Vec<u32> = cells
                .filter(|&cell| batch.loss_weights[cell] > 0.0)
                .map(|cell| batch.target_ids[cell] as u32)
                .collect();
            let encoded = &exercises.encoded[problem];
            assert_eq!(learned, sequences[problem].ids[encoded.question.len()..]);
            let tokenizer = &exercises.tokenizer;
            assert!(
                tokenizer
                    .decode(&learned)
                    .unwrap()
                    .starts_with(first_target)
            );
            assert_eq!(*learned.last().unwrap(), tokenizer.eos_id());
        }
    }
}

/// Slopes by the loss at two points against the gradient. With a distance of 1e-2 the curvature's
/// share is some 1e-5 and the rounding of two losses of order three, 2e-7 each, gives 4e-5.
#[test]
fn the_gradient_is_the_slope() {
    const DISTANCE: f32 = 1e-2;
    for family in FAMILIES {
        let model = model(family, CONTEXT, 5, &tracked());
        let mut batch = batch();
        batch
            .loss_weights
            .iter_mut()
            .step_by(3)
            .for_each(|weight| *weight *= 2.0);
        let gradients = next_token_loss(&model, hidden_states(&model, &batch), &batch).backward();
        let mut steep = 0;
        for path in [
            "token_embedding.weight",
            "head.weight",
            "layers.0.attention.query_key_value.weight",
        ] {
            let gradient = all_gradients(&model, &gradients)
                .into_iter()
                .find(|(name, _)| name == path)
                .unwrap_or_else(|| panic!("no gradient of {path}"))
                .1;
            // The steepest coordinate, and some anywhere.
            let steepest = (0..gradient.len())
                .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                .unwrap();
            for at in [steepest, 3, gradient.len() / 2] {
                let ahead = loss(&nudged(&model, path, at, DISTANCE), &batch);
                let behind = loss(&nudged(&model, path, at, -DISTANCE), &batch);
                let slope = (ahead - behind) / f64::from(2.0 * DISTANCE);
                let found = f64::from(gradient[at]);
                let allowed = 2e-4 + 5e-3 * slope.abs();
                assert!(
                    (found - slope).abs() <= allowed,
                    "{path} {at}: {found} is not {slope}"
                );
                steep += usize::from(slope.abs() > 1e-2);
            }
        }
        assert!(
            steep >= 3,
            "only {steep} coordinates with a slope worth the name"
        );
    }
}

/// Every gradient by path, in the order of the parameters.
fn all_gradients(model: &Transformer, gradients: &Gradients) -> Vec<(String, Vec<f32>)> {
    struct Visitor<'a> {
        path: Vec<String>,
        gradients: &'a Gradients,
        found: Vec<(String, Vec<f32>)>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                self.found.push((self.path.join("."), values(gradient)));
            }
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        gradients,
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// The model with one coordinate of one parameter moved.
fn nudged(model: &Transformer, path: &str, at: usize, by: f32) -> Transformer {
    struct Mapper<'a> {
        path: Vec<String>,
        wanted: &'a str,
        at: usize,
        by: f32,
        hits: usize,
    }
    impl ModuleMapper for Mapper<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.path.join(".") != self.wanted {
                return param;
            }
            self.hits += 1;
            param.map(|tensor| {
                let (shape, device) = (tensor.dims(), tensor.device());
                let mut moved = values(tensor);
                moved[self.at] += self.by;
                Tensor::from_data(TensorData::new(moved, shape), &device).require_grad()
            })
        }
    }
    let mut mapper = Mapper {
        path: Vec::new(),
        wanted: path,
        at,
        by,
        hits: 0,
    };
    let model = model.clone().map(&mut mapper);
    assert_eq!(mapper.hits, 1, "parameters at {path}");
    model
}
