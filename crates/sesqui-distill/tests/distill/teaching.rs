//! What teaches thoughts beside the text: states on the chain of thought (CODI), a decoder that says steps
//! (SIM-CoT); and thoughts that are computed all at once (PCCoT).

use burn::module::{Module, Param};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::{InferenceStep, TrainStep};
use sesqui_dataset::encode::PositionLayout;
use sesqui_distill::curriculum::{
    Distillation, StageSchedule, StateScale, StepSupervision, Thought, dictated, distillation_loss,
    thought_pass,
};
use sesqui_distill::loss::{layer_states, next_token_loss};
use sesqui_distill::{Curriculum, CurriculumConfig, ThoughtBatch, ThoughtProblem};
use sesqui_model::latent::LatentOrder;
use sesqui_model::{Family, LatentTransformer, ModelConfig, Transformer, Visibility};

use crate::support::{
    CLOSE, assert_close, gradients, measured, moved, parameters, plain, shaken, tracked, two,
    values,
};

const RECURRENT: [Thought; 3] = [
    Thought::State,
    Thought::Linear { scale: 0.5 },
    Thought::Projection { width: 8 },
];
const LAYERS: usize = 3;
const D_MODEL: usize = 16;

fn batch(config: &CurriculumConfig, stage: usize) -> ThoughtBatch {
    let layout = PositionLayout::Contiguous;
    let plan = config.plan(&two(), 100);
    let problems = two().map(|problem| ThoughtProblem::new(problem, layout).unwrap());
    let replaced = |row: usize| plan.replaced(stage, problems[row].steps());
    let rows = [(0, replaced(0)), (1, replaced(1))];
    ThoughtBatch::collate(&problems, &rows, &config.positions, 0).unwrap()
}

/// All steps are thoughts.
fn last(thoughts_per_step: usize) -> CurriculumConfig {
    CurriculumConfig {
        schedule: StageSchedule::Last,
        thoughts_per_step,
        ..CurriculumConfig::default()
    }
}

fn codi(teacher: f64, states: f64, scale: StateScale) -> Distillation {
    Distillation::Codi {
        teacher,
        states,
        scale,
    }
}

fn student(family: Family, thought: Thought, device: &Device) -> LatentTransformer {
    let config = ModelConfig {
        family,
        layers: LAYERS,
        d_model: D_MODEL,
        heads: 2,
        context: 32,
        ..ModelConfig::default()
    };
    let backbone = Transformer::new(&config, 30, 5, device).unwrap();
    let feedback = thought.feedback().unwrap();
    shaken(LatentTransformer::new(backbone, &feedback, 3, device), 6)
}

fn named(model: &Curriculum, batch: ThoughtBatch) -> Vec<(&'static str, f64)> {
    let output = InferenceStep::step(&model.valid(), batch);
    let losses = values(output.losses).into_iter().map(f64::from);
    output.names.iter().copied().zip(losses).collect()
}

/// The distance between two lists of states, in plain loops and 64 bits.
fn distance(found: &[f32], wanted: &[f32], scale: StateScale) -> f64 {
    let n = found.len() as f64;
    let pairs = found.iter().zip(wanted);
    let sum: f64 = pairs
        .map(|(a, b)| f64::from(a - b).abs())
        .map(|off| {
            if off < 1.0 {
                0.5 * off * off
            } else {
                off - 0.5
            }
        })
        .sum();
    let mean = wanted.iter().copied().map(f64::from).sum::<f64>() / n;
    let squares = wanted
        .iter()
        .map(|value| (f64::from(*value) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / (n - 1.0)).sqrt();
    match scale {
        StateScale::One => sum / n,
        StateScale::StandardDeviation => sum / n / deviation,
    }
}

/// The states that are compared are those of the token before the answer, here and in the chain of thought,
/// layer by layer.
#[test]
fn states_before_the_answer_are_compared_in_every_layer() {
    for family in [Family::Gpt2, Family::Llama] {
        for scale in [StateScale::StandardDeviation, StateScale::One] {
            let config = CurriculumConfig {
                distillation: codi(0.7, 2.0, scale),
                ..last(1)
            };
            let batch = batch(&config, 3);
            // After the marker, which is 5 in every row.
            let after_marker = |ids: &[i32], cells: &[i32]| {
                assert!(cells.iter().all(|&cell| ids[cell as usize] == 5));
            };
            after_marker(&batch.ids, &batch.answer_cells);
            after_marker(&batch.chain.input_ids, &batch.chain_answer_cells);

            let model = student(family, RECURRENT[0], &plain());
            let backbone = &model.backbone;
            let states = thought_pass(&model, &batch, LatentOrder::Sequential);
            let chain = layer_states(backbone, &batch.chain);
            assert_eq!((states.text.len(), chain.len()), (LAYERS, LAYERS));
            let at = |hidden: &Tensor<3>, cells: &[i32], skipped: usize, seq: usize| -> Vec<f32> {
                let all = values(hidden.clone());
                let cell = |cell: &i32| {
                    let (row, column) = (*cell as usize / seq, *cell as usize % seq);
                    let cell = row * (seq - skipped) + column - skipped;
                    all[cell * D_MODEL..(cell + 1) * D_MODEL].to_vec()
                };
                cells.iter().flat_map(cell).collect()
            };
            let mut sum = 0.0;
            for (layer, (own, taught)) in states.text.iter().zip(&chain).enumerate() {
                let last = layer + 1 == LAYERS;
                let normed = |hidden: &Tensor<3>| match last {
                    true => backbone.final_norm(hidden.clone()),
                    false => hidden.clone(),
                };
                let after = batch.first_slot + batch.slots;
                let found = at(&normed(own), &batch.answer_cells, after, batch.seq);
                let cells = &batch.chain_answer_cells;
                let wanted = at(&normed(taught), cells, 0, batch.chain.seq);
                sum += distance(&found, &wanted, scale);
            }
            let expected = sum / LAYERS as f64;
            let found = distillation_loss(backbone, &states, &chain, &batch, scale);
            let what = format!("{family:?}, {scale:?}");
            assert_close(&what, &values(found), &[expected as f32], 3.0 * CLOSE);

            let model = Curriculum::new(student(family, RECURRENT[0], &tracked()), &config);
            let parts = named(&model, batch.clone());
            let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["loss", "text", "teacher", "states"]);
            let own = next_token_loss(backbone, chain[LAYERS - 1].clone(), &batch.chain);
            assert_close("teacher", &[parts[2].1 as f32], &values(own), CLOSE);
            let total = parts[1].1 + 0.7 * parts[2].1 + 2.0 * parts[3].1;
            assert!((parts[0].1 - total).abs() < 1e-5, "{parts:?}");
        }
    }
}

/// A teacher that is not trained for itself gets no gradient: it is what it would be if its states were
/// numbers.
#[test]
fn no_gradient_reaches_the_teacher_through_the_states() {
    for thought in RECURRENT {
        let config = CurriculumConfig {
            distillation: codi(0.0, 3.0, StateScale::StandardDeviation),
            ..last(1)
        };
        let batch = batch(&config, 3);
        let start = student(Family::Gpt2, thought, &tracked());
        let model = Curriculum::new(start.clone(), &config);
        let output = TrainStep::step(&model, batch.clone());
        let found = gradients(&model, &output.grads);

        // The same by hand, the teacher's states as numbers.
        let off = start.valid();
        let constants = layer_states(&off.backbone, &batch.chain);
        let constants: Vec<_> = constants.into_iter().map(Tensor::from_inner).collect();
        let states = thought_pass(&start, &batch, LatentOrder::Sequential);
        let scale = StateScale::StandardDeviation;
        let distance = distillation_loss(&start.backbone, &states, &constants, &batch, scale);
        let plainly = Curriculum::new(start.clone(), &last(1));
        let text = TrainStep::step(&plainly, batch.clone());
        let text = gradients(&plainly, &text.grads);
        let distilled = burn::optim::GradientsParams::from_grads(distance.backward(), &plainly);
        let distilled = gradients(&plainly, &distilled);
        let of = |list: &[(String, Vec<f32>)], path: &str, n: usize| {
            let found = list.iter().find(|(other, _)| other == path);
            found.map_or(vec![0.0; n], |(_, gradient)| gradient.clone())
        };
        for (path, gradient) in &found {
            let n = gradient.len();
            let (text, distilled) = (of(&text, path, n), of(&distilled, path, n));
            let sum: Vec<f32> = text
                .iter()
                .zip(&distilled)
                .map(|(a, b)| a + 3.0 * b)
                .collect();
            assert_close(&format!("{thought:?}: {path}"), gradient, &sum, 3.0 * CLOSE);
        }
        // Its own loss does reach it.
        let config = CurriculumConfig {
            distillation: codi(1.0, 3.0, StateScale::StandardDeviation),
            ..last(1)
        };
        let trained = Curriculum::new(start, &config);
        let output = TrainStep::step(&trained, batch);
        let trained = gradients(&trained, &output.grads);
        assert!(!moved(&found, &trained).is_empty());
    }
}

/// Which thoughts stand for which step; thoughts of padding, and steps without thoughts, stand for none.
#[test]
fn thoughts_stand_for_the_steps_that_are_gone() {
    let listed = |config: &CurriculumConfig, stage: usize| -> Vec<(usize, usize, Vec<i32>)> {
        let batch = batch(config, stage);
        let steps = dictated(&batch, config.thoughts_per_step).into_iter();
        steps
            .map(|step| (step.row, step.first, step.tokens.to_vec()))
            .collect()
    };
    let two = CurriculumConfig {
        stages: 2,
        ..last(2)
    };
    let first = [(0, 0, vec![20, 21]), (1, 0, vec![25, 26])];
    assert_eq!(listed(&two, 1), first);
    let second = [first[0].clone(), (0, 2, vec![22]), first[1].clone()];
    assert_eq!(listed(&two, 2), second);
    // The stage after the last takes a step away for which there are no thoughts.
    assert_eq!(listed(&two, 3), second);
    assert_eq!(listed(&two, 0), []);
}

/// The decoder says every step alone: its thoughts, then its tokens.
#[test]
fn a_decoder_says_each_step_by_itself() {
    for family in [Family::Gpt2, Family::Llama] {
        for width in [1, 2] {
            let config = CurriculumConfig {
                step_supervision: StepSupervision::Decoder { weight: 0.5 },
                ..last(width)
            };
            let batch = batch(&config, 2);
            let mut model = Curriculum::new(student(family, RECURRENT[1], &plain()), &config);
            model.decoder = model.decoder.map(|decoder| shaken(decoder, 11));
            let decoder = model.decoder.clone().unwrap();
            let fed = thought_pass(&model.student, &batch, LatentOrder::Sequential)
                .fed
                .unwrap();
            let (mut sum, mut tokens) = (0.0, 0.0);
            for step in dictated(&batch, width) {
                let thoughts = fed.clone().slice([
                    step.row..step.row + 1,
                    step.first..step.first + width,
                    0..D_MODEL,
                ]);
                let said = step.tokens;
                let ids = TensorData::new(said.to_vec(), [1, said.len()]);
                let embedded = decoder.token_embeddings(Tensor::from_data(ids, &plain()));
                let seq = width + said.len();
                let at: Vec<i32> = (0..seq as i32).collect();
                let at = Tensor::from_data(TensorData::new(at, [1, seq]), &plain());
                let inputs = Tensor::cat(vec![thoughts, embedded], 1);
                let sees = Visibility::causal(seq, &plain());
                let logits = values(decoder.forward_embeddings(inputs, at, sees));
                for (offset, &token) in said.iter().enumerate() {
                    let logits = &logits[(width - 1 + offset) * 30..][..30];
                    let all: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                    sum += all.ln() - f64::from(logits[token as usize]);
                    tokens += 1.0;
                }
            }
            let parts = values(InferenceStep::step(&model, batch).losses);
            let expected = (sum / tokens) as f32;
            assert_close(
                &format!("{family:?}, {width}"),
                &parts[2..],
                &[expected],
                CLOSE,
            );
            let total = parts[1] + 0.5 * parts[2];
            assert_close("total", &parts[..1], &[total], CLOSE);
        }
    }
}

/// The decoder starts as a copy, shares nothing with the model it was copied from, and its loss teaches the
/// thoughts.
#[test]
fn a_decoder_is_a_model_of_its_own() {
    let config = CurriculumConfig {
        step_supervision: StepSupervision::Decoder { weight: 1.0 },
        ..last(1)
    };
    let start = student(Family::Gpt2, RECURRENT[0], &tracked());
    let mut model = Curriculum::new(start.clone(), &config);
    let decoder = model.decoder.clone().unwrap();
    assert!(moved(&parameters(&start.backbone), &parameters(&decoder)).is_empty());
    let output = TrainStep::step(&model, batch(&config, 3));
    let found = gradients(&model, &output.grads);
    assert_eq!(found.len(), parameters(&model).len());
    let without = Curriculum::new(start.clone(), &last(1));
    let alone = TrainStep::step(&without, batch(&config, 3));
    let alone = gradients(&without, &alone.grads);
    for (path, gradient) in &alone {
        let taught = found.iter().find(|(other, _)| other == path).unwrap();
        let both = found
            .iter()
            .find(|(other, _)| *other == path.replacen("student.backbone", "decoder", 1));
        assert_ne!(&taught.1, gradient, "{path} learns from the decoder's loss");
        if let Some((_, decoder)) = both.filter(|(other, _)| other != path) {
            assert_ne!(decoder, &taught.1, "{path}");
        }
    }
    let mut optimizer = AdamWConfig::new().init();
    model = optimizer.step(0.01, model, output.grads);
    let after = model.decoder.clone().unwrap();
    assert!(!moved(&parameters(&decoder), &parameters(&after)).is_empty());
    assert!(!moved(&parameters(&after), &parameters(&model.student.backbone)).is_empty());
}

/// With as many iterations as thoughts, thoughts all at once are thoughts one after another; the first
/// iteration feeds all of them the question's state, and each more settles one thought more.
#[test]
fn iterations_settle_one_thought_after_another() {
    let jacobi = |iterations| LatentOrder::Jacobi { iterations };
    for family in [Family::Gpt2, Family::Llama] {
        for thought in RECURRENT {
            for (device, what) in [(plain(), "plain"), (tracked(), "tracked")] {
                let model = student(family, thought, &device);
                let config = last(2);
                let batch = batch(&config, 3);
                assert_eq!(batch.slots, 6);
                let fed = |order| {
                    let states = thought_pass(&model, &batch, order);
                    (values(states.fed.unwrap()), values(states.hidden))
                };
                let (expected, text) = fed(LatentOrder::Sequential);
                for iterations in 1..=7 {
                    let (found, hidden) = fed(jacobi(iterations));
                    let settled = iterations.min(6);
                    for row in 0..2 {
                        let begin = row * 6 * D_MODEL;
                        let of = |list: &[f32]| list[begin..begin + settled * D_MODEL].to_vec();
                        let what = format!("{family:?}, {thought:?}, {what}, {iterations}");
                        assert_close(&what, &of(&found), &of(&expected), 3.0 * CLOSE);
                        // The next is not yet what it will be.
                        if settled < 6 {
                            let next = begin + settled * D_MODEL;
                            let next = next..next + D_MODEL;
                            assert_ne!(found[next.clone()], expected[next]);
                        }
                    }
                    if iterations >= 6 {
                        assert_close("text", &hidden, &text, 4.0 * CLOSE);
                    }
                }
                let (all, _) = fed(jacobi(1));
                for row in all.chunks(6 * D_MODEL) {
                    assert!(row.chunks(D_MODEL).all(|fed| fed == &row[..D_MODEL]));
                }
            }
        }
    }
}

/// The derivative of the whole loss, through iterations, projection, distillation and decoder.
#[test]
fn gradients_are_derivatives_of_the_whole_loss() {
    const STEP: f64 = 4e-3;
    let config = CurriculumConfig {
        order: LatentOrder::Jacobi { iterations: 2 },
        // The teacher's side of the distance is a constant to the gradient, not to a difference quotient.
        distillation: codi(1.0, 0.0, StateScale::StandardDeviation),
        step_supervision: StepSupervision::Decoder { weight: 0.5 },
        ..last(1)
    };
    let thought = Thought::Projection { width: 8 };
    let model = Curriculum::new(student(Family::Gpt2, thought, &tracked()), &config);
    let output = TrainStep::step(&model, batch(&config, 3));
    type Weight = fn(&mut Curriculum) -> &mut Param<Tensor<2>>;
    let choices: [(&str, Weight); 4] = [
        ("projection, up", |model| {
            &mut model.student.projection.as_mut().unwrap().up.weight
        }),
        ("projection, down", |model| {
            &mut model.student.projection.as_mut().unwrap().down.weight
        }),
        ("decoder", |model| {
            &mut model.decoder.as_mut().unwrap().layers[1]
                .attention
                .output
                .weight
        }),
        ("tokens", |model| {
            &mut model.student.backbone.token_embedding.weight
        }),
    ];
    for (name, weight) in choices {
        let mut moved = model.clone();
        let param = weight(&mut moved).clone();
        let gradient = values(output.grads.get::<2>(param.id).unwrap());
        let at = (0..gradient.len())
            .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
            .unwrap();
        let mut loss = |by: f64| {
            let mut data = values(param.val());
            data[at] += by as f32;
            let data = TensorData::new(data, param.val().dims());
            let param = param.clone();
            *weight(&mut moved) = param.map(|tensor| Tensor::from_data(data, &tensor.device()));
            named(&moved, batch(&config, 3))[0].1
        };
        let quotient = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
        let expected = f64::from(gradient[at]);
        measured(
            &format!("{name}: {expected:.4}, off by"),
            (quotient - expected).abs(),
        );
        assert!(expected.abs() > 5e-3, "{name}: {expected} says little");
        // Rounding of a loss of about 10, 2e-6, over 8e-3, and truncation.
        assert!(
            (quotient - expected).abs() < 2e-3 + 1e-2 * expected.abs(),
            "{name}: {quotient} for {expected}"
        );
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let decoder = StepSupervision::Decoder { weight: 1.0 };
    let nothing = StepSupervision::Decoder { weight: 0.0 };
    let good = CurriculumConfig {
        order: LatentOrder::Jacobi { iterations: 2 },
        distillation: codi(1.0, 1.0, StateScale::One),
        step_supervision: decoder,
        ..last(1)
    };
    assert_eq!(good.problem(), None);
    let with = |change: &dyn Fn(&mut CurriculumConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config.problem().map(|(key, _)| key)
    };
    let refused = |key: &str, change: &dyn Fn(&mut CurriculumConfig)| {
        assert_eq!(with(change).as_deref(), Some(key));
    };
    refused("order.iterations", &|config| {
        config.order = LatentOrder::Jacobi { iterations: 0 };
    });
    refused("order", &|config| config.thought = Thought::Pause);
    refused("step_supervision", &|config| {
        config.order = LatentOrder::Sequential;
        config.thought = Thought::FirstState;
    });
    refused("distillation", &|config| {
        config.order = LatentOrder::Sequential;
        config.thought = Thought::None;
    });
    refused("step_supervision.weight", &|config| {
        config.step_supervision = nothing
    });
    refused("distillation.states", &|config| {
        config.distillation = codi(1.0, -1.0, StateScale::One);
    });
    refused("distillation.teacher", &|config| {
        config.distillation = codi(f64::NAN, 1.0, StateScale::One);
    });
}
