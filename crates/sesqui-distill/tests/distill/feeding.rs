//! Where latent steps get their inputs: the walk and the parallel pass agree, rows are independent,
//! and corrections are made where the head is wrong.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::InferenceStep;
use sesqui_distill::align::AlignConfig;
use sesqui_distill::latent::{Correction, Padding, SlotLabel};
use sesqui_distill::loss::hidden_states;
use sesqui_distill::rollout::Leaves;
use sesqui_distill::student::{Lesson, Staircase, own_inputs, staircase_inputs};
use sesqui_distill::{Align, LatentBatch, Rollout};
use sesqui_model::LatentTransformer;
use sesqui_shortcut::walk::ExitRule;
use sesqui_shortcut::{EntryPosition, ExitPlan, KeyValueRule, Landing, Shortcuts, staircase_pass};

use crate::support::{CLOSE, D_MODEL, Data, LAYERS, assert_close, plain, shaken, values};

const FORCED: Rollout = Rollout::TeacherForced;

struct Setup {
    data: Data,
    student: LatentTransformer,
    shortcuts: Shortcuts,
    lesson: Lesson,
    batch: LatentBatch,
}

impl Setup {
    fn new() -> Self {
        let (data, device) = (Data::new(), plain());
        let teacher = data.teacher(1, &device);
        let batch = data.mixed(FORCED);
        let chain = hidden_states(&teacher, &batch.teacher);
        Self {
            student: data.student(&teacher, &device),
            shortcuts: shaken(data.shortcuts(&teacher, &device), 8),
            lesson: Lesson::new(&teacher, chain, &batch, &device),
            batch,
            data,
        }
    }

    fn own(&self, batch: &LatentBatch, corrected: Option<&Lesson>) -> Vec<f32> {
        let staircase = Staircase::default();
        values(own_inputs(&self.student, batch, ExitRule::Full, staircase, corrected).0)
    }

    fn walk(&self, batch: &LatentBatch, exits: &Exits<'_>) -> Walked {
        let (rows, slots) = (batch.batch, batch.slots);
        let leaves = |row: usize, slot: usize, boundary: usize| {
            let leaves = exits.leaves.as_ref();
            leaves.is_some_and(|leaves| leaves.leaves(row, slot, boundary))
        };
        let rule = match exits.leaves {
            None => ExitRule::Full,
            Some(_) => ExitRule::Plan {
                shortcuts: exits.shortcuts,
                leaves: &leaves,
            },
        };
        let (key_values, landing) = (exits.key_values, exits.landing);
        let staircase = Staircase {
            key_values,
            landing,
            entry_position: exits.entry_position,
        };
        let (fed, traces) = own_inputs(&self.student, batch, rule, staircase, None);
        let plan = ExitPlan::from_exits(rows, slots, LAYERS, landing, leaves)
            .with_entry_position(exits.entry_position);
        for (row, traces) in traces.iter().enumerate() {
            for (slot, trace) in traces.iter().enumerate() {
                let planned = plan.slot(row, slot);
                assert_eq!((trace.enter, trace.leave), (planned.enter, planned.leave));
            }
        }
        let inputs = staircase_inputs(&self.student, batch, fed.clone());
        let pass = staircase_pass(&self.student, exits.shortcuts, inputs, &plan, key_values);
        Walked {
            fed: values(fed),
            states: values(self.student.backbone.final_norm(pass.hidden)),
            plan,
        }
    }
}

struct Exits<'a> {
    leaves: Option<Leaves>,
    shortcuts: Option<&'a Shortcuts>,
    key_values: KeyValueRule,
    landing: Landing,
    entry_position: EntryPosition,
}

struct Walked {
    /// `[batch, slots, d_model]`.
    fed: Vec<f32>,
    /// `[batch, seq, d_model]` after the final norm.
    states: Vec<f32>,
    plan: ExitPlan,
}

impl Walked {
    /// What was fed, and the states of the pass one column before, wherever that column finished.
    fn compared(&self, batch: &LatentBatch) -> (Vec<f32>, Vec<f32>) {
        let (mut fed, mut states) = (Vec::new(), Vec::new());
        for row in 0..batch.batch {
            for slot in 0..batch.slots {
                let finished = slot == 0 || self.plan.slot(row, slot - 1).leave == LAYERS;
                let column = batch.first_slot + slot - 1;
                // A row without this latent step feeds it to nobody.
                if finished && batch.real[row * batch.seq + column + 1] {
                    fed.extend(&self.fed[(row * batch.slots + slot) * D_MODEL..][..D_MODEL]);
                    states.extend(&self.states[(row * batch.seq + column) * D_MODEL..][..D_MODEL]);
                }
            }
        }
        (fed, states)
    }

    /// States of the answer of `row`.
    fn answer(&self, batch: &LatentBatch, row: usize) -> Vec<f32> {
        let cells = batch.answer_cells.iter().map(|cell| *cell as usize);
        let cells = cells.filter(|cell| cell / batch.seq == row);
        cells
            .flat_map(|cell| self.states[cell * D_MODEL..][..D_MODEL].to_vec())
            .collect()
    }
}

fn easy(label: Option<SlotLabel>) -> Option<usize> {
    (label?.critical() == Some(false)).then_some(1)
}

/// A seed under which every independent step leaves; its first draw is above one half, whatever
/// the batch.
fn sure_seed(batch: &LatentBatch) -> u64 {
    let all = Leaves::new(batch, easy);
    (0..64)
        .find(|seed| Leaves::dropout(batch, *seed, 1.0) == all)
        .unwrap()
}

#[test]
fn the_parallel_pass_repeats_the_walk() {
    let setup = Setup::new();
    for padding in [Padding::Answer, Padding::None] {
        let batch = setup.data.batch(padding, &[1, 6, 11, 8], FORCED);
        let drawn = |seed| Some(Leaves::dropout(&batch, seed, 1.0));
        let random = Leaves::new(&batch, {
            let mut turn = 0;
            move |_| {
                turn += 1;
                [None, Some(1), Some(2), None, Some(1)]
                    .get(turn % 5)
                    .copied()
                    .flatten()
            }
        });
        let all = [
            None,
            drawn(sure_seed(&batch)),
            drawn(1),
            drawn(2),
            Some(random),
        ];
        for (number, leaves) in all.into_iter().enumerate() {
            for shortcuts in [None, Some(&setup.shortcuts)] {
                for key_values in [KeyValueRule::Holes, KeyValueRule::Fill] {
                    for (landing, entry_position) in [
                        (Landing::SameBoundary, EntryPosition::EveryEntry),
                        (Landing::NextBoundary, EntryPosition::EveryEntry),
                        (Landing::SameBoundary, EntryPosition::CycleStart),
                        (Landing::NextBoundary, EntryPosition::CycleStart),
                    ] {
                        let leaves = leaves.clone();
                        let exits = Exits {
                            leaves,
                            shortcuts,
                            key_values,
                            landing,
                            entry_position,
                        };
                        let walked = setup.walk(&batch, &exits);
                        assert_eq!(walked.plan.is_full(), exits.leaves.is_none());
                        let (fed, states) = walked.compared(&batch);
                        assert!(fed.len() >= 4 * D_MODEL);
                        let what = format!(
                            "exits {number}, {key_values:?}, {landing:?}, {entry_position:?}"
                        );
                        assert_close(&what, &states, &fed, CLOSE);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch() {
    let setup = Setup::new();
    for padding in [Padding::Answer, Padding::None] {
        let rows = [1, 6, 11];
        let batch = setup.data.batch(padding, &rows, FORCED);
        let seed = sure_seed(&batch);
        for dropped in [false, true] {
            let walk = |batch: &LatentBatch| {
                let exits = Exits {
                    leaves: dropped.then(|| Leaves::dropout(batch, seed, 1.0)),
                    shortcuts: Some(&setup.shortcuts),
                    key_values: KeyValueRule::Holes,
                    landing: Landing::SameBoundary,
                    entry_position: EntryPosition::EveryEntry,
                };
                setup.walk(batch, &exits)
            };
            let together = walk(&batch);
            for (row, problem) in rows.iter().enumerate() {
                let alone = setup.data.batch(padding, &[*problem], FORCED);
                let (found, expected) = (walk(&alone), together.answer(&batch, row));
                let what = format!("{padding:?}, exits {dropped}, row {row}");
                assert_close(&what, &found.answer(&alone, 0), &expected, CLOSE);
                for slot in 0..alone.slots {
                    assert_eq!(
                        found.plan.slot(0, slot),
                        together.plan.slot(row, slot),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn states_are_put_right_where_the_head_is_wrong() {
    let setup = Setup::new();
    let (rows, outputs) = (setup.batch.batch, setup.batch.slots + 1);
    let own = setup.own(&setup.batch, None);
    let forced = values(setup.lesson.forced());
    assert_eq!(own.len(), forced.len());
    let mut batch = setup.batch.clone();

    // No token has this id, so that everything that is read is wrong.
    batch.read_out.fill(i32::MAX);
    assert_eq!(setup.own(&batch, Some(&setup.lesson)), forced);

    // What the head reads from each of its own states.
    let states = own_inputs(
        &setup.student,
        &batch,
        ExitRule::Full,
        Staircase::default(),
        None,
    )
    .0;
    let read: Tensor<3, burn::tensor::Int> = setup.student.backbone.head(states).argmax(2);
    let read: Vec<i32> = read.into_data().iter::<i32>().collect();
    for row in 0..rows {
        for slot in 0..batch.slots {
            batch.read_out[row * outputs + slot] = read[row * batch.slots + slot];
        }
    }
    assert_eq!(setup.own(&batch, Some(&setup.lesson)), own);

    // One wrong state is replaced, and nothing before it or in other rows.
    let (row, slot) = (1, 2);
    batch.read_out[row * outputs + slot] = i32::MAX;
    let mixed = setup.own(&batch, Some(&setup.lesson));
    let at = (row * batch.slots + slot) * D_MODEL;
    let end = (row + 1) * batch.slots * D_MODEL;
    assert_eq!(mixed[..at], own[..at]);
    assert_eq!(mixed[at..at + D_MODEL], forced[at..at + D_MODEL]);
    assert_ne!(mixed[at..at + D_MODEL], own[at..at + D_MODEL]);
    assert_eq!(mixed[end..], own[end..]);
}

#[test]
fn corrected_feeding_of_a_student_that_is_always_wrong_is_teacher_forcing() {
    let setup = Setup::new();
    let teacher = setup.data.teacher(1, &plain());
    let corrected = Rollout::Student {
        correction: Correction::WhereWrong,
        exits: None,
    };
    let free = Rollout::Student {
        correction: Correction::Never,
        exits: None,
    };
    let mut batch = setup.data.mixed(FORCED);
    // A token that this student reads from none of the states.
    let forced = values(setup.lesson.forced());
    let wrong = (0..setup.data.tokenizer.vocab_size() as i32).find(|token| {
        batch.read_out.fill(*token);
        setup.own(&batch, Some(&setup.lesson)) == forced
    });
    assert!(wrong.is_some());
    let model = Align::new(setup.student.valid(), &teacher, &AlignConfig::default());
    let mut losses = |rollout| {
        batch.rollout = rollout;
        values(InferenceStep::step(&model, batch.clone()).losses)
    };
    let expected = losses(FORCED);
    assert_eq!(losses(corrected), expected);
    assert_ne!(losses(free), expected);
}
