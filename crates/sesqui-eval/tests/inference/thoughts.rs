//! Models that write on by themselves after their thoughts: what they say is what a whole pass over it
//! says, and the text before the answer counts as reasoning. No latent step at all.

use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::tensor::Tensor;
use burn::train::TrainStep;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_distill::curriculum::{Replaced, Thought, thought_pass};
use sesqui_distill::{Curriculum, CurriculumConfig, ThoughtBatch, ThoughtProblem};
use sesqui_eval::{LatentMethod, Method};
use sesqui_model::flops::Flops;
use sesqui_model::latent::{Continuation, LatentOrder, SlotPositions};
use sesqui_model::{Family, LatentTransformer, ModelConfig, Transformer};
use sesqui_reason::{Decoding, HaltConfig};
use sesqui_shortcut::{EntryPosition, ExitRule, KeyValueRule, Landing};

use crate::support::{Exercises, FAMILIES, plain, tracked, values};

const THOUGHTS: [Thought; 5] = [
    Thought::State,
    Thought::Linear { scale: 0.25 },
    Thought::Projection { width: 8 },
    Thought::Pause,
    Thought::FirstState,
];
const SEQUENTIAL: LatentOrder = LatentOrder::Sequential;
const LAYERS: usize = 2;
const STRIDED: SlotPositions = SlotPositions::Strided {
    offset: 5,
    stride: 7,
};

fn problems(encoded: &[EncodedProblem]) -> Vec<ThoughtProblem> {
    let of = |problem: &EncodedProblem| {
        ThoughtProblem::new(problem.clone(), PositionLayout::Contiguous).unwrap()
    };
    encoded.iter().map(of).collect()
}

/// A student that has learned a little of going on after one thought.
fn trained(exercises: &Exercises, family: Family, thought: Thought) -> LatentTransformer {
    let config = ModelConfig {
        family,
        layers: LAYERS,
        d_model: 32,
        heads: 4,
        context: 64,
        ..ModelConfig::default()
    };
    let device = tracked();
    let vocabulary = exercises.tokenizer.vocab_size();
    let backbone = Transformer::new(&config, vocabulary, 3, &device).unwrap();
    let feedback = thought.feedback().unwrap();
    let student = LatentTransformer::new(backbone, &feedback, 0, &device);
    let (mut model, mut optimizer) = (
        Curriculum::new(student, &CurriculumConfig::default()),
        AdamWConfig::new().init(),
    );
    let problems = problems(&exercises.encoded);
    let pad = exercises.tokenizer.pad_id();
    for update in 0..25 {
        let replaced = Replaced {
            steps: 1 + update % 2,
            thoughts: 1 + update % 2,
        };
        let rows: Vec<_> = (0..8).map(|row| (row, replaced)).collect();
        let batch = ThoughtBatch::collate(&problems, &rows, &STRIDED, pad).unwrap();
        let output = TrainStep::step(&model, batch);
        model = optimizer.step(0.01, model, output.grads);
    }
    model.valid().student
}

fn method<'a>(
    model: &'a LatentTransformer,
    device: &'a burn::tensor::Device,
    exercises: &'a Exercises,
    latent_steps: usize,
    continuation: Continuation,
) -> LatentMethod<'a> {
    LatentMethod {
        model,
        device,
        latent_steps,
        order: SEQUENTIAL,
        trained_latents: 0,
        positions: STRIDED,
        rule: ExitRule::Full,
        key_values: KeyValueRule::Holes,
        landing: Landing::SameBoundary,
        entry_position: EntryPosition::EveryEntry,
        refinement: None,
        halt: (&HaltConfig::Never, None),
        continuation,
        answer_start: &exercises.encoded[0].answer_start,
        decoding: Decoding {
            stop: exercises.tokenizer.eos_id(),
            max_tokens: 12,
        },
    }
}

/// The likeliest token at every cell where a token of the text is due, over one pass of the whole row.
fn likeliest(model: &LatentTransformer, batch: &ThoughtBatch, order: LatentOrder) -> Vec<i32> {
    let hidden = thought_pass(model, batch, order).hidden;
    let [rows, seq, d_model] = hidden.dims();
    let backbone = &model.backbone;
    let logits = values(backbone.head(backbone.final_norm(hidden)));
    let vocabulary = backbone.vocabulary();
    assert_eq!(logits.len(), rows * seq * vocabulary, "{d_model}");
    let cells = batch.loss_cells.iter().map(|cell| {
        let logits = &logits[*cell as usize * vocabulary..][..vocabulary];
        let best = (0..vocabulary).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        best.unwrap() as i32
    });
    cells.collect()
}

#[test]
fn what_is_written_after_thoughts_is_what_a_whole_pass_says() {
    let (exercises, device) = (Exercises::new(8), plain());
    for family in FAMILIES {
        for thought in THOUGHTS {
            let model = trained(&exercises, family, thought);
            let asked = [(0, SEQUENTIAL), (1, SEQUENTIAL), (3, SEQUENTIAL)];
            let at_once = [1, 2, 3, 4].map(|iterations| (3, LatentOrder::Jacobi { iterations }));
            let at_once = at_once.into_iter().filter(|_| thought.is_recurrent());
            for (steps, order) in asked.into_iter().chain(at_once) {
                let method = LatentMethod {
                    order,
                    ..method(&model, &device, &exercises, steps, Continuation::Text)
                };
                let passes = order.passes(steps);
                let task = exercises.task();
                let prompt = task.prompt(0..8).unwrap();
                let found = method.respond(&prompt).unwrap();
                for (row, response) in found.rows.iter().enumerate() {
                    let what =
                        format!("{family:?}, {thought:?}, {steps} steps, {order:?}, row {row}");
                    // What was said, as if it were the answer.
                    let said = EncodedProblem {
                        steps: Vec::new(),
                        answer_start: Vec::new(),
                        answer: response.tokens.clone(),
                        critical: Vec::new(),
                        ..exercises.encoded[row].clone()
                    };
                    let replaced = Replaced {
                        steps: 0,
                        thoughts: steps,
                    };
                    let problems = problems(&[said]);
                    let batch =
                        ThoughtBatch::collate(&problems, &[(0, replaced)], &STRIDED, 0).unwrap();
                    assert_eq!(likeliest(&model, &batch, order), batch.targets, "{what}");
                    assert_eq!(response.latent_steps, steps, "{what}");

                    let marker = &exercises.encoded[0].answer_start;
                    let opens = response.tokens.windows(marker.len());
                    let words = opens.clone().position(|window| window == marker);
                    let words = words.unwrap_or(response.tokens.len());
                    let run = passes * steps + words;
                    assert_eq!(response.layer_calls, run * LAYERS, "{what}");
                    let asked = exercises.encoded[row].question.len();
                    let backbone = &model.backbone;
                    let flops = Flops::new(backbone.config(), backbone.vocabulary());
                    let again = (passes - 1) as f64 * flops.layers(asked, asked + steps);
                    let reasoned = again + flops.layers(asked, asked + steps + words);
                    assert_eq!(response.reason_flops, reasoned, "{what}");
                    let all = response.tokens.len();
                    let maps = match thought {
                        Thought::Linear { .. } => 2 * 32 * 32,
                        Thought::Projection { width } => 2 * 2 * 32 * width,
                        _ => 0,
                    };
                    let maps = (passes * steps * maps) as f64;
                    let heads = flops.head() * (all + 1) as f64;
                    let whole = flops.layers(0, asked + steps + all);
                    assert_eq!(response.flops, whole + again + heads + maps, "{what}");
                }
            }
        }
    }
}

/// Without a latent step the marker follows the question; the answer does not depend on what thoughts
/// would have been fed.
#[test]
fn no_latent_step_is_an_answer_right_away() {
    let (exercises, device) = (Exercises::new(8), plain());
    let model = trained(&exercises, FAMILIES[0], Thought::Linear { scale: 0.25 });
    let mut other = model.clone();
    other.feedback = None;
    let task = exercises.task();
    let prompt = task.prompt(0..8).unwrap();
    let ask = |model, steps| {
        let method = method(model, &device, &exercises, steps, Continuation::Answer);
        method.respond(&prompt).unwrap().rows
    };
    let marker = &exercises.encoded[0].answer_start;
    for (found, other) in ask(&model, 0).iter().zip(&ask(&other, 0)) {
        assert_eq!(found.tokens, other.tokens);
        assert_eq!(found.tokens[..marker.len()], **marker);
        // Unless the model opens the answer once more, nothing of it is reasoning.
        let opened = found.tokens.windows(marker.len());
        if opened.filter(|window| *window == &marker[..]).count() == 1 {
            assert_eq!((found.latent_steps, found.layer_calls), (0, 0));
            assert_eq!(found.reason_flops.to_bits(), 0);
        }
        assert!(found.slots.is_empty());
    }
    // By hand: the marker right after the question.
    for (row, found) in ask(&model, 0).iter().enumerate() {
        let problem = &exercises.encoded[row];
        let said = EncodedProblem {
            steps: Vec::new(),
            answer: found.tokens[marker.len()..].to_vec(),
            critical: Vec::new(),
            ..problem.clone()
        };
        let none = Replaced {
            steps: 0,
            thoughts: 0,
        };
        let problems = problems(&[said]);
        let batch = ThoughtBatch::collate(&problems, &[(0, none)], &STRIDED, 0).unwrap();
        let expected = likeliest(&model, &batch, SEQUENTIAL);
        assert_eq!(expected[marker.len()..], batch.targets[marker.len()..]);
    }
    // There is nothing to stop before.
    let never = method(&model, &device, &exercises, 0, Continuation::Answer);
    let halting = LatentMethod {
        halt: (&HaltConfig::Entropy(Default::default()), None),
        ..never
    };
    let refused = halting.respond(&prompt).unwrap_err().to_string();
    assert!(
        refused.contains("no latent step to stop before"),
        "{refused}"
    );
}

/// A question-dependent pause is the state of the question, not of what came after it.
#[test]
fn a_first_state_is_fed_in_every_step() {
    let (exercises, device) = (Exercises::new(8), plain());
    let model = trained(&exercises, FAMILIES[0], Thought::FirstState);
    let method = method(&model, &device, &exercises, 3, Continuation::Text);
    let task = exercises.task();
    let decoded = method.decode(&task.prompt(0..4).unwrap()).unwrap();
    // Three thoughts at three positions, fed the same: their states differ all the same.
    let states: Vec<Vec<f32>> = decoded.states.iter().cloned().map(values).collect();
    assert_eq!(states.len(), 4);
    assert!(states.windows(2).all(|pair| pair[0] != pair[1]));
    let fed = |first: Tensor<3>, newest: Tensor<3>| values(model.fed(&first, &newest).clone());
    let [first, newest] = [0, 2].map(|index: usize| decoded.states[index].clone());
    assert_eq!(fed(first, newest), states[0]);
}

/// Latent steps all at once: as many iterations as steps are the steps one after another; nothing can come
/// between them.
#[test]
fn as_many_iterations_as_steps_are_steps_one_after_another() {
    let (exercises, device) = (Exercises::new(8), plain());
    let model = trained(&exercises, FAMILIES[0], Thought::Linear { scale: 0.25 });
    let task = exercises.task();
    let prompt = task.prompt(0..8).unwrap();
    let ask = |order| {
        let plain = method(&model, &device, &exercises, 4, Continuation::Answer);
        LatentMethod { order, ..plain }.decode(&prompt).unwrap()
    };
    let expected = ask(SEQUENTIAL);
    let jacobi = |iterations| ask(LatentOrder::Jacobi { iterations });
    let found = jacobi(4);
    assert_eq!(found.rows, expected.rows);
    assert_eq!(found.states.len(), expected.states.len());
    for (found, expected) in found.states.iter().zip(&expected.states) {
        let pairs = values(found.clone())
            .into_iter()
            .zip(values(expected.clone()));
        // Rows of several positions sum in another order than rows of one; states are at most 4.
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 2e-5));
    }
    // What is never asked more often than it helps, and what is not settled yet.
    assert_eq!(jacobi(9).rows, expected.rows);
    let early = values(jacobi(2).states[3].clone());
    assert_ne!(early, values(expected.states[3].clone()));

    let halting = LatentMethod {
        order: LatentOrder::Jacobi { iterations: 2 },
        halt: (&HaltConfig::Entropy(Default::default()), None),
        ..method(&model, &device, &exercises, 4, Continuation::Answer)
    };
    let refused = halting.respond(&prompt).unwrap_err().to_string();
    assert!(refused.contains("all at once"), "{refused}");
    let pauses = trained(&exercises, FAMILIES[0], Thought::Pause);
    let pausing = LatentMethod {
        order: LatentOrder::Jacobi { iterations: 2 },
        ..method(&pauses, &device, &exercises, 4, Continuation::Answer)
    };
    assert!(pausing.respond(&prompt).is_err());
}

/// A model that says more after the marker that it was fed, and opens the answer again, was still reasoning.
#[test]
fn words_after_a_fed_marker_are_reasoning_if_the_answer_opens_again() {
    let (exercises, device) = (Exercises::new(8), plain());
    let model = trained(&exercises, FAMILIES[0], Thought::State);
    let task = exercises.task();
    let prompt = task.prompt(0..1).unwrap();
    let method = method(&model, &device, &exercises, 2, Continuation::Answer);
    let mut decoded = method.decode(&prompt).unwrap();
    let marker = &exercises.encoded[0].answer_start;
    let asked = exercises.encoded[0].question.len();
    let flops = Flops::new(model.backbone.config(), model.backbone.vocabulary());
    for (tokens, words) in [
        ([&marker[..], &[20, 21]].concat(), 0),
        (
            [&marker[..], &[20, 21], marker, &[22]].concat(),
            marker.len() + 2,
        ),
    ] {
        decoded.rows[0].tokens.clone_from(&tokens);
        let found = method.responses(&prompt, decoded.clone()).rows.remove(0);
        assert_eq!(found.layer_calls, (2 + words) * LAYERS, "{tokens:?}");
        let reasoned = flops.layers(asked, asked + 2 + words);
        assert_eq!(found.reason_flops, reasoned, "{tokens:?}");
    }
}
