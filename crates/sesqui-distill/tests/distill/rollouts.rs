//! Latent steps one after another over a cache against the same written out, against one masked
//! pass, and against the same rows in other company.

use sesqui_distill::Rollout;
use sesqui_distill::latent::{Correction, LatentBatch, Padding};
use sesqui_distill::loss::hidden_states;
use sesqui_distill::rollout::{Leaves, generator, uniform};
use sesqui_distill::student::{Lesson, Staircase, own_inputs, staircase_inputs};
use sesqui_shortcut::plan::Slot;
use sesqui_shortcut::walk::{ExitRule, SlotTrace};
use sesqui_shortcut::{EntryPosition, ExitPlan, KeyValueRule, Landing, staircase_pass};

use crate::by_hand::{COUNT, FAMILIES, Models, VOCABULARY, all, batch, problems, read};
use crate::support::{CLOSE, D_MODEL, LAYERS, assert_close, plain, values};

const OWN: Rollout = Rollout::Student {
    correction: Correction::Never,
    exits: None,
};

/// Who decides about exits.
#[derive(Clone, Copy, Debug)]
enum Who {
    Nobody,
    /// Draws that depend on row, slot and boundary.
    Drawn(u64),
    /// The routers at this threshold; about half of their weights lie above it.
    Routers(f64),
}

/// Inputs and final states of a batch, on the host.
struct Played {
    traces: Vec<Vec<SlotTrace>>,
    /// What slot `[row][slot]` was fed.
    inputs: Vec<Vec<Vec<f32>>>,
    /// States after the final norm from one pass over all columns, `[row][column]`.
    passed: Vec<Vec<Vec<f32>>>,
}

/// Plays `batch`, whose rows are `rows` of a greater one, step by step, and passes what came out of
/// it through all columns at once.
fn play(
    models: &Models,
    batch: &LatentBatch,
    rows: &[u32],
    who: Who,
    with: Option<Staircase>,
) -> Played {
    let (staircase, shortcuts) = match with {
        Some(staircase) => (staircase, Some(&models.shortcuts)),
        None => (Staircase::default(), None),
    };
    let hosts = models.shortcuts.routers_on_host();
    let leaves = |row: usize, slot: usize, boundary: usize| {
        let Who::Drawn(seed) = who else {
            return false;
        };
        let place = 100 * u64::from(rows[row]) + 10 * slot as u64 + boundary as u64;
        uniform(&mut generator(seed, place, b"in tests")) < 0.5
    };
    let rule = match who {
        Who::Nobody => ExitRule::Full,
        Who::Drawn(_) => ExitRule::Plan {
            shortcuts,
            leaves: &leaves,
        },
        Who::Routers(threshold) => ExitRule::Routers {
            shortcuts: &models.shortcuts,
            hosts: &hosts,
            threshold,
        },
    };
    let (inputs, traces) = own_inputs(&models.student, batch, rule, staircase, None);
    let plan = traces.iter().map(|row| {
        let slots = row.iter().map(|trace| Slot {
            enter: trace.enter,
            leave: trace.leave,
        });
        slots.collect()
    });
    let plan = ExitPlan::from_rows(plan.collect(), LAYERS, staircase.landing)
        .unwrap()
        .with_entry_position(staircase.entry_position);
    let cut = |all: Vec<f32>, columns: usize| -> Vec<Vec<Vec<f32>>> {
        let rows = all.chunks(columns * D_MODEL);
        rows.map(|row| row.chunks(D_MODEL).map(<[f32]>::to_vec).collect())
            .collect()
    };
    let fed = staircase_inputs(&models.student, batch, inputs.clone());
    let pass = staircase_pass(&models.student, shortcuts, fed, &plan, staircase.key_values);
    let passed = models.student.backbone.final_norm(pass.hidden);
    Played {
        traces,
        inputs: cut(values(inputs), batch.slots),
        passed: cut(values(passed), batch.seq),
    }
}

impl Played {
    fn finished(&self, row: usize, slot: usize) -> bool {
        self.traces[row][slot].leave == LAYERS
    }

    /// Of all rows, slots that are fed a state: the one of the column before, which has finished.
    fn fed(&self) -> Vec<(usize, usize)> {
        let rows = self.traces.len();
        let slots =
            (0..rows).flat_map(|row| (0..self.traces[row].len()).map(move |slot| (row, slot)));
        slots
            .filter(|&(row, slot)| slot == 0 || self.finished(row, slot - 1))
            .collect()
    }

    fn early(&self) -> usize {
        let slots = self.traces.iter().flatten();
        slots.filter(|trace| trace.leave < LAYERS).count()
    }
}

fn staircases() -> Vec<Staircase> {
    [KeyValueRule::Holes, KeyValueRule::Fill]
        .into_iter()
        .flat_map(|key_values| {
            [
                (Landing::SameBoundary, EntryPosition::EveryEntry),
                (Landing::NextBoundary, EntryPosition::EveryEntry),
                (Landing::SameBoundary, EntryPosition::CycleStart),
            ]
            .map(|(landing, entry_position)| Staircase {
                key_values,
                landing,
                entry_position,
            })
        })
        .collect()
}

/// Rules with the shortcuts that they need.
fn cases() -> Vec<(Who, Option<Staircase>)> {
    let mut cases = vec![
        (Who::Nobody, None),
        (Who::Drawn(7), None),
        (Who::Drawn(8), None),
    ];
    for staircase in staircases() {
        for who in [Who::Drawn(9), Who::Drawn(10), Who::Routers(0.7)] {
            cases.push((who, Some(staircase)));
        }
    }
    cases
}

/// What training relies on: the constants that the sequential rollout found are what the parallel
/// pass itself computes.
#[test]
fn one_pass_gives_the_states_that_were_fed() {
    let batch = all(OWN);
    let rows = [0, 1, 2];
    for family in FAMILIES {
        let models = Models::new(family, &plain());
        let (mut fed, mut exits) = (0, 0);
        for (who, with) in cases() {
            let played = play(&models, &batch, &rows, who, with);
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            for (row, slot) in played.fed() {
                found.extend(&played.inputs[row][slot]);
                expected.extend(&played.passed[row][batch.first_slot + slot - 1]);
            }
            fed += played.fed().len();
            assert_close(
                &format!("{family:?}, {who:?}, {with:?}"),
                &found,
                &expected,
                CLOSE,
            );
            exits += played.early();
        }
        // Of 180 latent steps, the first three of each case among them.
        assert!(
            fed > 90 && exits > 40,
            "{family:?}: {fed} were fed, {exits} left early"
        );
    }
}

/// Pads, and whoever else leaves where, are nobody's concern; nor is it that others have more latent
/// steps.
#[test]
fn rows_alone_are_rows_in_company() {
    for padding in [Padding::Answer, Padding::None] {
        let together = batch(padding, &[0, 1, 2], OWN);
        for family in FAMILIES {
            let models = Models::new(family, &plain());
            for (who, with) in cases() {
                let company = play(&models, &together, &[0, 1, 2], who, with);
                for row in [0u32, 1, 2] {
                    let single = batch(padding, &[row], OWN);
                    let alone = play(&models, &single, &[row], who, with);
                    let what = format!("{family:?}, {padding:?}, {who:?}, {with:?}, row {row}");
                    same_row(
                        &what,
                        (&single, &alone),
                        (&together, &company),
                        row as usize,
                    );
                }
            }
        }
    }
}

/// The same for exits that a batch draws for itself, where rows differ in their latent steps: the
/// last one that a row has runs to the top, so that the answer never lacks it.
#[test]
fn a_shorter_row_ends_with_a_finished_step() {
    let together = batch(Padding::None, &[0, 1, 2], OWN);
    let leave = |batch: &LatentBatch, models: &Models| {
        let leaves = Leaves::new(batch, |_| Some(1));
        let decide = |row: usize, slot: usize, boundary: usize| leaves.leaves(row, slot, boundary);
        let rule = ExitRule::Plan {
            shortcuts: Some(&models.shortcuts),
            leaves: &decide,
        };
        own_inputs(&models.student, batch, rule, Staircase::default(), None).1
    };
    let models = Models::new(FAMILIES[0], &plain());
    let company = leave(&together, &models);
    for row in [0u32, 1, 2] {
        let single = batch(Padding::None, &[row], OWN);
        let alone = leave(&single, &models);
        assert_eq!(alone[0].last().unwrap().leave, LAYERS);
        assert_eq!(company[row as usize][..single.slots], alone[0], "row {row}");
    }
}

/// The same where routers decide and would always leave. After its own last step a row does nothing
/// but stay legal: `play` makes a plan of the traces.
#[test]
fn routers_are_not_asked_in_the_last_step_of_a_shorter_row() {
    let together = batch(Padding::None, &[0, 1, 2], OWN);
    for family in FAMILIES {
        let models = Models::new(family, &plain());
        for staircase in staircases() {
            // No weight of a router is 0.
            let who = Who::Routers(0.0);
            let played = play(&models, &together, &[0, 1, 2], who, Some(staircase));
            for (row, (traces, own)) in played.traces.iter().zip([2, 4, 1]).enumerate() {
                for (slot, trace) in traces.iter().enumerate() {
                    let what = format!("{family:?}, {staircase:?}, row {row}, slot {slot}");
                    let early = slot + 1 < own && trace.enter + 1 < LAYERS;
                    assert_eq!(trace.leave < LAYERS, early, "{what}: {trace:?}");
                    assert!(slot + 1 < own || trace.weights.is_empty(), "{what}");
                }
            }
        }
    }
}

/// Inputs that are used, and all real states, of one row.
fn same_row(
    what: &str,
    (single, alone): (&LatentBatch, &Played),
    (together, company): (&LatentBatch, &Played),
    row: usize,
) {
    let slots = single.slots;
    assert_eq!(
        alone.traces[0],
        same_decisions(&company.traces[row][..slots], &alone.traces[0]),
        "{what}"
    );
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (_, slot) in alone.fed() {
        found.extend(&company.inputs[row][slot]);
        expected.extend(&alone.inputs[0][slot]);
    }
    let columns = |batch: &LatentBatch, row: usize| -> Vec<usize> {
        let real = &batch.real[row * batch.seq..(row + 1) * batch.seq];
        (0..batch.seq).filter(|&column| real[column]).collect()
    };
    let pairs = columns(together, row).into_iter().zip(columns(single, 0));
    for (there, here) in pairs {
        found.extend(&company.passed[row][there]);
        expected.extend(&alone.passed[0][here]);
    }
    assert_eq!(columns(together, row).len(), columns(single, 0).len());
    assert_close(what, &found, &expected, CLOSE);
}

/// `traces` with the router weights of `like`, which differ in their last digits.
fn same_decisions(traces: &[SlotTrace], like: &[SlotTrace]) -> Vec<SlotTrace> {
    let pairs = traces.iter().zip(like);
    pairs
        .map(|(trace, like)| SlotTrace {
            weights: like.weights.clone(),
            ..trace.clone()
        })
        .collect()
}

/// A batch whose wanted tokens are such that the student reads rightly where `keep` says so of row
/// and slot, and what its latent steps are then fed, `[row][slot]`, one row and one state at a time.
fn corrected(
    models: &Models,
    keep: impl Fn(usize, usize) -> bool,
) -> (LatentBatch, Vec<Vec<Vec<f32>>>) {
    let mut batch = all(Rollout::Student {
        correction: Correction::WhereWrong,
        exits: None,
    });
    let mut inputs = Vec::new();
    for (row, problem) in problems().iter().enumerate() {
        inputs.push(models.alone(problem).inputs(|slot, own| {
            let read = read(&models.student.backbone, own);
            let wanted = read + u32::from(!keep(row, slot));
            batch.read_out[row * (COUNT + 1) + slot] = wanted as i32 % VOCABULARY as i32;
            keep(row, slot)
        }));
    }
    (batch, inputs)
}

fn lesson(models: &Models, batch: &LatentBatch) -> Lesson {
    let chain = hidden_states(&models.teacher, &batch.teacher);
    Lesson::new(&models.teacher, chain, batch, &plain())
}

#[test]
fn states_read_rightly_are_kept_and_others_put_right() {
    for family in FAMILIES {
        let models = Models::new(family, &plain());
        for pattern in 0..4usize {
            let keep = |row: usize, slot: usize| (pattern + 5 * row + 3 * slot) % 4 < 2;
            let (batch, expected) = corrected(&models, keep);
            let lesson = lesson(&models, &batch);
            let rule = ExitRule::Full;
            let (found, _) = own_inputs(
                &models.student,
                &batch,
                rule,
                Staircase::default(),
                Some(&lesson),
            );
            let found = values(found);
            assert_close(
                &format!("{family:?}, {pattern}"),
                &found,
                &expected.concat().concat(),
                CLOSE,
            );
            // A state that is put right is the teacher's to the last bit.
            let forced = values(lesson.forced());
            let cells = found.chunks(D_MODEL).zip(forced.chunks(D_MODEL));
            for (cell, (found, forced)) in cells.enumerate() {
                assert_eq!(
                    found != forced,
                    keep(cell / COUNT, cell % COUNT),
                    "cell {cell}"
                );
            }
        }
    }
}
