//! The curriculum of Coconut and its controls: which steps a stage takes away, what is learned, what
//! thoughts are fed, and that the gradient goes back through them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainStep};
use sesqui_dataset::batch::{BatchConfig, SequenceBatch};
use sesqui_dataset::encode::{PositionLayout, Supervision, sequence};
use sesqui_distill::curriculum::{
    Remainder, Replaced, ResetOptimizer, StageSchedule, Thought, ThoughtPadding, thought_pass,
};
use sesqui_distill::{
    Curriculum, CurriculumConfig, CutBatches, Cuts, ThoughtBatch, ThoughtBatches, ThoughtProblem,
};
use sesqui_model::latent::{LatentOrder, SlotPositions, Source};
use sesqui_model::{Family, LatentTransformer, ModelConfig, Transformer, Visibility};
use sesqui_trainer::Batches;

use crate::support::{
    CLOSE, Data, RESULTS, assert_close, gradients, measured, parameters, plain, shaken, tracked,
    two, values,
};

const SEQUENTIAL: LatentOrder = LatentOrder::Sequential;

const FED: [Thought; 4] = [
    Thought::State,
    Thought::Linear { scale: 0.5 },
    Thought::Pause,
    Thought::FirstState,
];

const WHOLE: Supervision = Supervision::ChainOfThought;
const ALIGNED: PositionLayout = PositionLayout::Aligned { question_length: 3 };

/// Two thoughts for each of two steps at most, of chains of three.
fn config(padding: ThoughtPadding) -> CurriculumConfig {
    CurriculumConfig {
        stages: 2,
        thoughts_per_step: 2,
        padding,
        ..CurriculumConfig::default()
    }
}

/// Both problems in `stage`.
fn laid_out(config: &CurriculumConfig, stage: usize) -> ThoughtBatch {
    let plan = config.plan(&two(), 100);
    let problems = two().map(|problem| ThoughtProblem::new(problem, ALIGNED).unwrap());
    let replaced = |row: usize| plan.replaced(stage, problems[row].steps());
    let rows = [(0, replaced(0)), (1, replaced(1))];
    ThoughtBatch::collate(&problems, &rows, &config.positions, 0).unwrap()
}

#[test]
fn a_stage_replaces_exactly_its_steps() {
    let (no, yes) = (false, true);
    let chains = two().map(|problem| sequence(&problem, WHOLE, ALIGNED).unwrap());
    let chain = SequenceBatch::collate(&chains, &[0, 1], 0).unwrap();
    assert_eq!((chain.seq, &chain.input_ids[8..10]), (10, &[5, 9][..]));
    // One step gone of each, two thoughts in its place.
    let expected = ThoughtBatch {
        batch: 2,
        seq: 10,
        first_slot: 3,
        slots: 2,
        ids: [
            [10, 11, 2, 0, 0, 22, 23, 24, 5, 9],
            [0, 12, 2, 0, 0, 5, 9, 0, 0, 0],
        ]
        .concat(),
        positions: [
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            [0, 0, 2, 3, 4, 5, 6, 0, 0, 0],
        ]
        .concat(),
        real: [[yes; 10], [no, yes, yes, yes, yes, yes, yes, no, no, no]].concat(),
        // The last thought says the first token.
        loss_cells: vec![4, 5, 6, 7, 8, 9, 14, 15, 16],
        targets: vec![22, 23, 24, 5, 9, 1, 5, 9, 1],
        // After the marker.
        answer_cells: vec![8, 15],
        chain_answer_cells: vec![8, 14],
        thoughts: vec![2, 2],
        gone: vec![vec![vec![20, 21]], vec![vec![25, 26]]],
        chain: chain.clone(),
        tokens: 16,
    };
    for padding in [ThoughtPadding::Maximum, ThoughtPadding::None] {
        assert_eq!(laid_out(&config(padding), 1), expected, "{padding:?}");
    }

    // Two gone: the second problem has but one, and its thoughts as well where nothing is padded.
    let unpadded = ThoughtBatch {
        batch: 2,
        seq: 11,
        first_slot: 3,
        slots: 4,
        ids: [
            [10, 11, 2, 0, 0, 0, 0, 23, 24, 5, 9],
            [0, 12, 2, 0, 0, 0, 0, 5, 9, 0, 0],
        ]
        .concat(),
        positions: [
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            [0, 0, 2, 3, 4, 0, 0, 5, 6, 0, 0],
        ]
        .concat(),
        real: [
            [yes; 11],
            [no, yes, yes, yes, yes, no, no, yes, yes, no, no],
        ]
        .concat(),
        loss_cells: vec![6, 7, 8, 9, 10, 15, 18, 19],
        targets: vec![23, 24, 5, 9, 1, 5, 9, 1],
        answer_cells: vec![9, 18],
        thoughts: vec![4, 2],
        gone: vec![vec![vec![20, 21], vec![22]], vec![vec![25, 26]]],
        tokens: 17,
        ..expected
    };
    assert_eq!(laid_out(&config(ThoughtPadding::None), 2), unpadded);
    let padded = laid_out(&config(ThoughtPadding::Maximum), 2);
    let cells = |list: &[i32]| list[11..].to_vec();
    assert_eq!(cells(&padded.ids), cells(&unpadded.ids));
    assert_eq!(cells(&padded.positions), [0, 0, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
    assert_eq!(
        padded.real[11..],
        [no, yes, yes, yes, yes, yes, yes, yes, yes, no, no]
    );
    assert_eq!(padded.loss_cells[5..], [17, 18, 19]);
    assert_eq!(padded.targets, unpadded.targets);

    // The stage after the last takes the rest, without further thoughts.
    let last = laid_out(&config(ThoughtPadding::Maximum), 3);
    assert_eq!((last.slots, last.seq), (4, 9));
    assert_eq!(last.ids[..9], [10, 11, 2, 0, 0, 0, 0, 5, 9]);
    assert_eq!(last.targets, [5, 9, 1, 5, 9, 1]);
    // The first has the whole chain of thought, whose first token the question says.
    let first = laid_out(&config(ThoughtPadding::Maximum), 0);
    assert_eq!((first.slots, first.seq), (0, 10));
    assert_eq!(first.ids[..10], [10, 11, 2, 20, 21, 22, 23, 24, 5, 9]);
    assert_eq!(first.loss_cells[..8], [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(first.targets[..8], [20, 21, 22, 23, 24, 5, 9, 1]);
    assert_eq!(first.targets[8..], [25, 26, 5, 9, 1]);

    // Thoughts and text stand where the steps that are gone leave room for them.
    let strided = CurriculumConfig {
        positions: SlotPositions::Strided {
            offset: 1,
            stride: 3,
        },
        ..config(ThoughtPadding::Maximum)
    };
    let strided = laid_out(&strided, 1);
    assert_eq!(strided.positions[..10], [0, 1, 2, 4, 7, 9, 10, 11, 12, 13]);
    assert_eq!(strided.positions[10..], [0, 0, 2, 4, 7, 9, 10, 0, 0, 0]);
    assert_eq!(strided.loss_cells, expected.loss_cells);
}

#[test]
fn the_stage_is_a_function_of_the_update() {
    let staged = |first, updates| CurriculumConfig {
        schedule: StageSchedule::Staged { first, updates },
        ..config(ThoughtPadding::Maximum)
    };
    let stages = |config: &CurriculumConfig, updates: u64| -> Vec<usize> {
        let plan = config.plan(&two(), updates);
        (0..updates).map(|update| plan.stage_of(update)).collect()
    };
    assert_eq!(stages(&staged(1, 2), 8), [1, 1, 2, 2, 3, 3, 3, 3]);
    assert_eq!(stages(&staged(0, 1), 6), [0, 1, 2, 3, 3, 3]);
    // Divided evenly, what is over goes to the last.
    assert_eq!(stages(&staged(1, 0), 8), [1, 1, 2, 2, 3, 3, 3, 3]);
    assert_eq!(stages(&staged(0, 0), 3), [0, 1, 2]);
    let kept = CurriculumConfig {
        remainder: Remainder::Kept,
        ..staged(1, 1)
    };
    assert_eq!(stages(&kept, 4), [1, 2, 2, 2]);
    let at_once = CurriculumConfig {
        schedule: StageSchedule::Last,
        ..kept.clone()
    };
    assert_eq!(stages(&at_once, 3), [2, 2, 2]);
    // As many stages as the longest chain: nothing is left for one more.
    let all = CurriculumConfig {
        stages: 0,
        ..staged(1, 1)
    };
    let plan = all.plan(&two(), 9);
    assert_eq!((plan.last(), plan.most_thoughts()), (3, 6));
    assert_eq!(plan.growth(), [(0, 2), (1, 4), (2, 6)]);

    let plan = staged(1, 2).plan(&two(), 8);
    // The stage after the last has no thought more.
    assert_eq!(plan.growth(), [(0, 2), (2, 4)]);
    assert_eq!(
        [1, 2, 3, 5].map(|done| plan.stage_after(done)),
        [1, 1, 2, 3]
    );
    assert_eq!((plan.visited(), plan.most_thoughts()), (1..=3, 4));
    let resets: Vec<u64> = (0..8).filter(|update| plan.resets(*update)).collect();
    assert_eq!(resets, [2, 4]);
    let never = CurriculumConfig {
        reset_optimizer: ResetOptimizer::Never,
        ..staged(1, 2)
    };
    let never = never.plan(&two(), 8);
    assert!(!(0..8).any(|update| never.resets(update)));
    // Steps go, and nothing takes their place.
    let none = CurriculumConfig {
        thought: Thought::None,
        ..staged(1, 2)
    };
    let none = none.plan(&two(), 8);
    let gone = |steps| Replaced { steps, thoughts: 0 };
    assert_eq!(none.replaced(2, 3), gone(2));
    assert_eq!(none.replaced(3, 3), gone(3));
    assert_eq!(none.most_thoughts(), 0);
}

#[test]
fn a_share_of_rows_is_drawn_from_all_stages() {
    let mixed = |uniform_probability| {
        let config = CurriculumConfig {
            uniform_probability,
            schedule: StageSchedule::Staged {
                first: 2,
                updates: 1_000,
            },
            ..config(ThoughtPadding::Maximum)
        };
        config.plan(&two(), 1_000)
    };
    let counts = |share: f64| {
        let plan = mixed(share);
        let mut counts = [0.0f64; 4];
        for update in 0..100 {
            for stage in plan.stages_of_rows(3, update, 40) {
                counts[stage] += 1.0 / 4_000.0;
            }
        }
        counts
    };
    assert!(counts(0.0)[2] > 0.999);
    // Standard deviation of a share of 4,000 draws is at most 0.008.
    for (share, expected) in [(0.4, [0.1, 0.1, 0.7, 0.1]), (1.0, [0.25; 4])] {
        for (found, expected) in counts(share).into_iter().zip(expected) {
            assert!((found - expected).abs() < 0.035, "{share}: {found}");
        }
    }
    let plan = mixed(0.4);
    assert_eq!(plan.visited(), 0..=3);
    let drawn = |seed| plan.stages_of_rows(seed, 5, 40);
    assert_eq!(drawn(3), drawn(3));
    assert_ne!(drawn(3), drawn(4));
    // A row draws the same whatever comes after it.
    assert_eq!(drawn(3)[..7], plan.stages_of_rows(3, 5, 7));
}

/// Stages are drawn for a step's rows, however many parts they are computed in.
#[test]
fn parts_of_a_step_share_its_stages() {
    let data = Data::new();
    let config = CurriculumConfig {
        uniform_probability: 0.5,
        positions: RESULTS,
        ..CurriculumConfig::default()
    };
    let plan = config.plan(&data.encoded, 40);
    let rows = BatchConfig {
        batch_size: 6,
        ..BatchConfig::default()
    };
    let problems = data.encoded.iter().cloned();
    let problems: Vec<ThoughtProblem> = problems
        .map(|problem| ThoughtProblem::new(problem, data.layout).unwrap())
        .collect();
    let thoughts = |parts: u64| {
        let pad = data.tokenizer.pad_id();
        let (problems, plan) = (problems.clone(), plan.clone());
        let batches = ThoughtBatches::new(problems, &rows, parts, 8, plan, RESULTS, pad).unwrap();
        let of_batch = |index: u64| {
            let batch = batches.batch(index).unwrap();
            let slots = batch.first_slot..batch.first_slot + batch.slots;
            let real = batch.columns(&batch.real, slots);
            let each = real.chunks(batch.slots.max(1));
            let count = |row: &[bool]| row.iter().filter(|real| **real).count();
            let named = batches.rows(index);
            let counts: Vec<usize> = match batch.slots {
                0 => vec![0; batch.batch],
                _ => each.map(count).collect(),
            };
            let names: Vec<String> = named.split(", ").map(str::to_owned).collect();
            names.into_iter().zip(counts).collect::<Vec<_>>()
        };
        (0..10 * parts).flat_map(of_batch).collect::<Vec<_>>()
    };
    assert_eq!(thoughts(1), thoughts(3));
    assert_eq!(thoughts(1).len(), 60);
}

/// Without thoughts the rows are those of supervised fine-tuning on what is left.
#[test]
fn without_thoughts_text_follows_the_question() {
    let config = CurriculumConfig {
        thought: Thought::None,
        ..config(ThoughtPadding::Maximum)
    };
    let plan = CurriculumConfig {
        schedule: StageSchedule::Staged {
            first: 1,
            updates: 1,
        },
        ..config
    }
    .plan(&two(), 3);
    let rows = BatchConfig {
        batch_size: 2,
        ..BatchConfig::default()
    };
    let cuts = Cuts::Steps(plan);
    let batches = CutBatches::new(two().to_vec(), &rows, 1, 1, cuts, ALIGNED, 0).unwrap();
    let left: [&[i32]; 3] = [&[22, 23, 24, 5, 9], &[23, 24, 5, 9], &[5, 9]];
    for (index, left) in (0..).zip(left) {
        let batch = batches.batch(index).unwrap();
        let row = batch.problems.iter().position(|row| *row == 0).unwrap();
        let cells = row * batch.seq..(row + 1) * batch.seq;
        let ids = &batch.input_ids[cells.clone()];
        assert_eq!(ids[..3], [10, 11, 2]);
        assert_eq!(ids[3..3 + left.len()], *left, "update {index}");
        let at = &batch.position_ids[cells.clone()];
        assert_eq!(at[3..5], [3, 4]);
        let weights = &batch.loss_weights[cells];
        assert_eq!(weights[..2], [0.0, 0.0]);
        assert!(
            weights[2..3 + left.len()]
                .iter()
                .all(|weight| *weight == 1.0)
        );
        assert_eq!(batches.rows(index).split(", ").count(), 2);
    }
}

/// A model of either family, shaken, whose thoughts are fed as `thought` says.
fn student(family: Family, thought: Thought, device: &Device) -> LatentTransformer {
    let config = ModelConfig {
        family,
        layers: 3,
        d_model: 16,
        heads: 2,
        context: 32,
        ..ModelConfig::default()
    };
    let backbone = Transformer::new(&config, 30, 5, device).unwrap();
    let feedback = thought.feedback().unwrap();
    shaken(LatentTransformer::new(backbone, &feedback, 0, device), 6)
}

/// States before the final norm of one row, each column computed anew over all before it: no cache, no
/// pads, no other row.
fn alone(student: &LatentTransformer, batch: &ThoughtBatch, row: usize) -> Vec<(usize, Vec<f32>)> {
    let (device, backbone) = (plain(), &student.backbone);
    let integers = |list: &[i32]| {
        let data = TensorData::new(list.to_vec(), [1, list.len()]);
        Tensor::<2, Int>::from_data(data, &device)
    };
    let run = |inputs: Tensor<3>, at: &[i32]| {
        let (seq, at) = (at.len(), integers(at));
        let context = backbone.context(at.clone(), Visibility::causal(seq, &device));
        let embedded = backbone.with_positions(inputs, at);
        backbone.run_layers(0..backbone.layers.len(), embedded, &context)
    };
    let last = |hidden: Tensor<3>| {
        let seq = hidden.dims()[1];
        backbone.final_norm(hidden.narrow(1, seq - 1, 1))
    };
    let thoughts = batch.first_slot..batch.first_slot + batch.slots;
    let real = |column: &usize| batch.real[row * batch.seq + column];
    let columns: Vec<usize> = (0..batch.seq).filter(real).collect();
    let mut at = Vec::new();
    let mut inputs: Option<Tensor<3>> = None;
    let mut first = None;
    for &column in &columns {
        let cell = row * batch.seq + column;
        let input = match thoughts.contains(&column) {
            false => backbone.token_embeddings(integers(&[batch.ids[cell]])),
            true => {
                let state = last(run(inputs.clone().unwrap(), &at));
                let first = first.get_or_insert_with(|| state.clone()).clone();
                let fed = match student.source() {
                    Source::First => first,
                    _ => state,
                };
                student.latent_embeddings(fed)
            }
        };
        inputs = Some(match inputs {
            Some(before) => Tensor::cat(vec![before, input], 1),
            None => input,
        });
        at.push(batch.positions[cell]);
    }
    let hidden = values(run(inputs.unwrap(), &at));
    let d_model = backbone.config().d_model;
    let cells = columns.iter().map(|column| row * batch.seq + column);
    cells
        .zip(hidden.chunks(d_model).map(<[f32]>::to_vec))
        .collect()
}

/// Thoughts are fed what they should be, whoever stands beside them, on the tape and off it.
#[test]
fn thoughts_are_fed_as_by_hand() {
    for family in [Family::Gpt2, Family::Llama] {
        for thought in FED {
            for (padding, stage) in [
                (ThoughtPadding::Maximum, 1),
                (ThoughtPadding::None, 2),
                (ThoughtPadding::Maximum, 0),
            ] {
                let batch = laid_out(&config(padding), stage);
                let model = student(family, thought, &plain());
                let on_tape = student(family, thought, &tracked());
                for (model, what) in [(&model, "plain"), (&on_tape, "tracked")] {
                    let hidden = values(thought_pass(model, &batch, SEQUENTIAL).hidden);
                    for row in 0..2 {
                        for (cell, expected) in
                            alone(&student(family, thought, &plain()), &batch, row)
                        {
                            let what = format!("{family:?}, {thought:?}, {stage}, {what}, {cell}");
                            let found = &hidden[cell * 16..(cell + 1) * 16];
                            assert_close(&what, found, &expected, 2.0 * CLOSE);
                        }
                    }
                }
            }
        }
    }
}

/// A pause is a token that the vocabulary does not have: with a token's embedding as its vector, thoughts
/// are that token.
#[test]
fn a_pause_is_a_token_of_its_own() {
    let mut model = student(Family::Gpt2, Thought::Pause, &plain());
    let embeddings = values(model.backbone.token_embedding.weight.val());
    let mean: Vec<f32> = (0..16)
        .map(|column| embeddings.iter().skip(column).step_by(16).sum::<f32>() / 30.0)
        .collect();
    let fresh = LatentTransformer::new(
        model.backbone.clone(),
        &Thought::Pause.feedback().unwrap(),
        0,
        &plain(),
    );
    assert_close("mean", &values(fresh.pause.unwrap().val()), &mean, 1e-6);

    let token = 17;
    let vector = TensorData::new(embeddings[token * 16..(token + 1) * 16].to_vec(), [16]);
    model.pause = Some(Param::from_data(vector, &plain()));
    let batch = laid_out(&config(ThoughtPadding::Maximum), 2);
    let mut said = batch.clone();
    for row in 0..2 {
        let first = row * batch.seq + batch.first_slot;
        said.ids[first..first + batch.slots].fill(token as i32);
    }
    // The same columns, read as text.
    said.first_slot += said.slots;
    said.slots = 0;
    let (found, expected) = (
        thought_pass(&model, &batch, SEQUENTIAL).hidden,
        thought_pass(&model, &said, SEQUENTIAL).hidden,
    );
    assert_close("a token", &values(found), &values(expected), 1e-6);
}

/// The derivative of the loss by what the first thought is made of: it gets to the loss through all that
/// come after.
#[test]
fn the_gradient_goes_through_all_thoughts() {
    const STEP: f64 = 4e-3;
    let batch = || laid_out(&config(ThoughtPadding::None), 2);
    for thought in FED {
        let model = Curriculum::new(
            student(Family::Gpt2, thought, &tracked()),
            &CurriculumConfig::default(),
        );
        let output = TrainStep::step(&model, batch());
        let found = gradients(&model, &output.grads);
        assert_eq!(found.len(), parameters(&model).len(), "{thought:?}");
        let loss = |model: &Curriculum| {
            let losses = InferenceStep::step(&model.valid(), batch()).losses;
            f64::from(values(losses)[0])
        };
        type Weight = fn(&mut Curriculum) -> Option<&mut Param<Tensor<2>>>;
        // Position 3 is that of the first thought, of both rows, and of nothing else.
        let choices: [(&str, Weight, std::ops::Range<usize>); 3] = [
            (
                "position of the first thought",
                |model| {
                    let table = &mut model.student.backbone.position_embedding;
                    table.as_mut().map(|table| &mut table.weight)
                },
                3 * 16..4 * 16,
            ),
            (
                "the question's first token",
                |model| Some(&mut model.student.backbone.token_embedding.weight),
                10 * 16..11 * 16,
            ),
            (
                "feedback",
                |model| {
                    let map = &mut model.student.feedback;
                    map.as_mut().map(|map| &mut map.weight)
                },
                0..16 * 16,
            ),
        ];
        for (name, weight, places) in choices {
            let mut moved = model.clone();
            let Some(param) = weight(&mut moved).map(|param| param.clone()) else {
                continue;
            };
            let gradient = values(output.grads.get::<2>(param.id).unwrap());
            let at = places
                .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                .unwrap();
            let mut moved_by = |by: f64| {
                let mut data = values(param.val());
                data[at] += by as f32;
                let data = TensorData::new(data, param.val().dims());
                let replaced = param
                    .clone()
                    .map(|tensor| Tensor::from_data(data, &tensor.device()));
                *weight(&mut moved).unwrap() = replaced;
                loss(&moved)
            };
            let quotient = (moved_by(STEP) - moved_by(-STEP)) / (2.0 * STEP);
            let expected = f64::from(gradient[at]);
            measured(
                &format!("{thought:?}, {name}: {expected:.4}, difference quotient off by"),
                (quotient - expected).abs(),
            );
            // Rounding of a loss of about 4, 1e-6, over 8e-3, and truncation.
            assert!(
                (quotient - expected).abs() < 1e-3 + 1e-2 * expected.abs(),
                "{thought:?}, {name}: {quotient} for {expected}"
            );
            assert!(
                expected.abs() > 5e-3,
                "{thought:?}, {name}: {expected} says little"
            );
        }
        let pause = found.iter().find(|(path, _)| path.ends_with("pause"));
        assert_eq!(pause.is_some(), thought == Thought::Pause);
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let good = CurriculumConfig::default();
    assert_eq!(good.problem(), None);
    let strided = SlotPositions::Strided {
        offset: 0,
        stride: 0,
    };
    let none = Thought::None;
    for (bad, key) in [
        (
            CurriculumConfig {
                thoughts_per_step: 0,
                ..good.clone()
            },
            "thoughts_per_step",
        ),
        (
            CurriculumConfig {
                uniform_probability: 1.5,
                ..good.clone()
            },
            "uniform_probability",
        ),
        (
            CurriculumConfig {
                positions: strided,
                ..good.clone()
            },
            "positions",
        ),
        (
            CurriculumConfig {
                positions: RESULTS,
                thought: none,
                ..good.clone()
            },
            "positions",
        ),
        (
            CurriculumConfig {
                continuation: sesqui_model::Continuation::Answer,
                thought: none,
                ..good.clone()
            },
            "continuation",
        ),
        (
            CurriculumConfig {
                thought: Thought::Linear { scale: f64::NAN },
                ..good.clone()
            },
            "thought.scale",
        ),
        (
            CurriculumConfig {
                stages: 2,
                schedule: StageSchedule::Staged {
                    first: 3,
                    updates: 1,
                },
                ..good.clone()
            },
            "schedule.first",
        ),
    ] {
        assert_eq!(bad.problem().unwrap().0, key);
    }
}
