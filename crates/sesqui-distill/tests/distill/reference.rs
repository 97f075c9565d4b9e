//! The losses of both stages against one row at a time and against plain loops, in 64 bits.

use burn::module::Module;
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::align::{AlignConfig, AlignWeights, Teacher, TokenScale};
use sesqui_distill::latent::{Correction, LatentBatch, SlotLabel};
use sesqui_distill::loss::hidden_states;
use sesqui_distill::rollout::{ExitDropout, Leaves};
use sesqui_distill::shortcut::{Leaving, ShortcutLoss, StaircaseConfig};
use sesqui_distill::student::{Staircase, own_inputs, staircase_inputs};
use sesqui_distill::{Align, Rollout, Shortcut, ShortcutStageConfig};
use sesqui_shortcut::walk::ExitRule;
use sesqui_shortcut::{ExitPlan, KeyValueRule, Landing, Shortcuts, staircase_pass};

use crate::by_hand::{
    COUNT, FAMILIES, Models, Sum, VOCABULARY, add, all, problems, read, squared, surprise,
};
use crate::support::{D_MODEL, LAYERS, measured, plain, tracked, values};

const WEIGHTS: AlignWeights = AlignWeights {
    answer: 0.7,
    answer_alignment: 1.3,
    reasoning_alignment: 0.9,
    read_out: 2.0,
    teacher: 0.5,
    scale: TokenScale::Mean,
};

/// Means of a few to a few hundred terms, each of which carries some roundings of 6e-8: measured
/// 2e-7 at worst. A wrong cell, target or weight shows at 1e-2.
fn assert_losses(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = found.iter().zip(expected).map(|(found, expected)| {
        assert!(
            found.is_finite() && *expected > 1e-3,
            "{what}: {found}, {expected}"
        );
        (f64::from(*found) - expected).abs() / expected
    });
    let worst = off.fold(0.0, f64::max);
    measured(what, worst);
    assert!(worst < 1e-5, "{what}: {found:?}, {expected:?}");
}

/// Off the autodiff tape some sums run in another order: the last digits may differ.
fn assert_same(trained: &[f32], validated: &[f32]) {
    assert_eq!(trained.len(), validated.len());
    let mut pairs = trained.iter().zip(validated);
    let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
    assert!(pairs.all(same), "{trained:?}, {validated:?}");
}

fn means(sums: &[Sum]) -> Vec<f64> {
    sums.iter().map(|[sum, count]| sum / count).collect()
}

/// Losses of training and of validation, which are the same.
fn of_align(student: &Models, config: &AlignConfig, batch: &LatentBatch) -> Vec<f32> {
    let model = Align::new(student.student.clone(), &student.teacher, config);
    let trained = TrainStep::step(&model, batch.clone()).item;
    let validated = InferenceStep::step(&model.valid(), batch.clone());
    assert!(!validated.losses.is_autodiff() && !trained.losses.is_autodiff());
    assert_eq!(
        (trained.names, trained.tokens),
        (validated.names, batch.tokens)
    );
    let (trained, validated) = (values(trained.losses), values(validated.losses));
    assert_same(&trained, &validated);
    trained
}

/// Whether the student's own state is fed to a latent step.
type Keep = fn(usize, usize) -> bool;

#[test]
fn stage_1_is_the_mean_over_rows_alone() {
    let student = |correction| Rollout::Student {
        correction,
        exits: None,
    };
    let cases: [(Rollout, Keep); 3] = [
        (Rollout::TeacherForced, |_, _| false),
        (student(Correction::Never), |_, _| true),
        (student(Correction::WhereWrong), |row, slot| {
            (3 * row + slot) % 4 < 2
        }),
    ];
    for family in FAMILIES {
        for kind in [Teacher::Frozen, Teacher::Shared] {
            let (mut here, mut there) = (
                Models::new(family, &plain()),
                Models::new(family, &tracked()),
            );
            if kind == Teacher::Shared {
                here.teacher = here.student.backbone.clone();
                there.teacher = there.student.backbone.clone();
            }
            let config = AlignConfig {
                teacher: kind,
                weights: WEIGHTS,
                ..AlignConfig::default()
            };
            for (rollout, keep) in cases {
                let mut batch = all(rollout);
                let (mut sums, mut teacher) = ([[0.0; 2]; 4], [0.0; 2]);
                for (row, problem) in problems().iter().enumerate() {
                    let alone = here.alone(problem);
                    let mut read_out = alone.read_out();
                    // The wanted tokens become what makes the student right or wrong as asked.
                    let inputs = alone.inputs(|slot, own| {
                        if matches!(
                            rollout,
                            Rollout::Student {
                                correction: Correction::WhereWrong,
                                ..
                            }
                        ) {
                            let wrong = u32::from(!keep(row, slot));
                            read_out[slot] =
                                (read(&here.student.backbone, own) + wrong) % VOCABULARY as u32;
                        }
                        keep(row, slot)
                    });
                    for (output, token) in read_out.iter().enumerate() {
                        batch.read_out[row * (COUNT + 1) + output] = *token as i32;
                    }
                    for (sum, part) in sums.iter_mut().zip(alone.losses(&inputs, &read_out)) {
                        add(sum, part[0], part[1]);
                    }
                    let part = alone.next_token_loss();
                    add(&mut teacher, part[0], part[1]);
                }
                let mut expected = means(&sums);
                let weights = [0.7, 1.3, 0.9, 2.0];
                let mut total: f64 = expected
                    .iter()
                    .zip(weights)
                    .map(|(x, weight)| weight * x)
                    .sum();
                if kind == Teacher::Shared {
                    expected.extend(means(&[teacher]));
                    total += 0.5 * expected[4];
                }
                expected.insert(0, total);
                let found = of_align(&there, &config, &batch);
                assert_losses(
                    &format!("{family:?}, {kind:?}, {rollout:?}"),
                    &found,
                    &expected,
                );
            }
        }
    }
}

/// Plain means over the cells of `batch` in the states of a pass along `plan`.
struct Loops {
    answer: f64,
    answer_alignment: f64,
    reasoning_alignment: f64,
    read_out: f64,
    /// Binary cross-entropy of routers.
    routers: f64,
    unfinished: usize,
}

impl Loops {
    /// `also` is what routers are to let leave beside padding.
    fn new(
        models: &Models,
        shortcuts: Option<&Shortcuts>,
        batch: &LatentBatch,
        leaves: &Leaves,
        also: Option<SlotLabel>,
    ) -> Self {
        let decide = |row: usize, slot: usize, boundary: usize| leaves.leaves(row, slot, boundary);
        let rule = ExitRule::Plan {
            shortcuts,
            leaves: &decide,
        };
        let student = &models.student;
        let fed = own_inputs(student, batch, rule, Staircase::default(), None).0;
        let plan = ExitPlan::from_exits(
            batch.batch,
            batch.slots,
            LAYERS,
            Landing::SameBoundary,
            decide,
        );
        let inputs = staircase_inputs(student, batch, fed);
        let pass = staircase_pass(student, shortcuts, inputs, &plan, KeyValueRule::Holes);

        let states = values(student.backbone.final_norm(pass.hidden));
        let chain = hidden_states(&models.teacher, &batch.teacher);
        let wanted = values(models.teacher.final_norm(chain));
        let at = |all: &[f32], cell: usize| all[cell * D_MODEL..][..D_MODEL].to_vec();
        let mut sums = [[0.0; 2]; 5];
        let mut unfinished = 0;
        for (index, cell) in batch.answer_cells.iter().enumerate() {
            let state = at(&states, *cell as usize);
            let token = batch.answer_targets[index] as u32;
            if batch.answer_weights[index] > 0.0 {
                add(
                    &mut sums[0],
                    surprise(&student.backbone, &state, token),
                    1.0,
                );
            }
            let wanted = at(&wanted, batch.answer_target_cells[index] as usize);
            add(&mut sums[1], squared(&state, &wanted), D_MODEL as f64);
        }
        for row in 0..batch.batch {
            for output in 0..=batch.slots {
                if output > 0 && plan.slot(row, output - 1).leave < LAYERS {
                    unfinished += 1;
                    continue;
                }
                let index = row * (batch.slots + 1) + output;
                let state = at(&states, row * batch.seq + batch.first_slot + output - 1);
                let wanted = at(&wanted, batch.target_cells[index] as usize);
                add(&mut sums[2], squared(&state, &wanted), D_MODEL as f64);
                let token = batch.read_out[index] as u32;
                add(
                    &mut sums[3],
                    surprise(&student.backbone, &state, token),
                    1.0,
                );
            }
        }
        for (boundary, logits) in &pass.router_logits {
            for (cell, logit) in values(logits.clone()).into_iter().enumerate() {
                let (row, slot) = (cell / batch.slots, cell % batch.slots);
                let stands = plan.slot(row, slot);
                let target = match batch.labels[row * (batch.slots + 1) + slot + 1] {
                    Some(label) if label == SlotLabel::Padding || Some(label) == also => 1.0,
                    Some(SlotLabel::Unlabelled) if also.is_some() => continue,
                    Some(_) => 0.0,
                    None => continue,
                };
                if stands.enter <= *boundary && *boundary <= stands.leave {
                    let w = 1.0 / (1.0 + (-f64::from(logit)).exp());
                    let entropy = -target * w.ln() - (1.0 - target) * (1.0 - w).ln();
                    add(&mut sums[4], entropy, 1.0);
                }
            }
        }
        let [
            answer,
            answer_alignment,
            reasoning_alignment,
            read_out,
            routers,
        ] = sums.map(|[sum, count]| sum / count);
        Self {
            answer,
            answer_alignment,
            reasoning_alignment,
            read_out,
            routers,
            unfinished,
        }
    }
}

#[test]
fn exit_dropout_leaves_unfinished_steps_without_a_target() {
    for family in FAMILIES {
        let (here, there) = (
            Models::new(family, &plain()),
            Models::new(family, &tracked()),
        );
        let config = AlignConfig {
            weights: WEIGHTS,
            exit_dropout: ExitDropout::Late {
                start: 0.0,
                share: 1.0,
                independent: 1.0,
            },
            ..AlignConfig::default()
        };
        let mut unfinished = Vec::new();
        for seed in 0..12 {
            let batch = all(Rollout::Student {
                correction: Correction::Never,
                exits: Some(seed),
            });
            let leaves = Leaves::dropout(&batch, seed, 1.0);
            let loops = Loops::new(&here, None, &batch, &leaves, None);
            let parts = [
                loops.answer,
                loops.answer_alignment,
                loops.reasoning_alignment,
                loops.read_out,
            ];
            let total = parts
                .iter()
                .zip([0.7, 1.3, 0.9, 2.0])
                .map(|(x, weight)| weight * x)
                .sum();
            let expected = [&[total][..], &parts].concat();
            assert_losses(
                &format!("{family:?}, {seed}"),
                &of_align(&there, &config, &batch),
                &expected,
            );
            unfinished.push(loops.unfinished);
        }
        // But for the last step, padding always leaves: two of the first row and three of the third.
        // With it go some of the two independent steps of the second.
        unfinished.sort_unstable();
        assert_eq!((unfinished[0], unfinished[11]), (5, 7), "{unfinished:?}");
    }
}

#[test]
fn the_staircase_learns_from_what_finished_and_from_labels() {
    let independent = Some(SlotLabel::Independent);
    for (family, leaving, also, unfinished) in FAMILIES.into_iter().flat_map(|family| {
        [
            (family, Leaving::NonCritical, independent, 7),
            (family, Leaving::Padding, None, 5),
        ]
    }) {
        let (here, there) = (
            Models::new(family, &plain()),
            Models::new(family, &tracked()),
        );
        let config = StaircaseConfig {
            answer: 0.6,
            alignment: 1.7,
            routers: 0.8,
            leaving,
            planned: 1.0,
            random: 0.0,
            thresholds: Vec::new(),
        };
        let config = ShortcutStageConfig {
            loss: ShortcutLoss::Staircase(config),
            ..ShortcutStageConfig::default()
        };
        let batch = all(Rollout::Student {
            correction: Correction::Never,
            exits: Some(11),
        });
        let leaves = Leaves::new(&batch, |label| {
            (label == Some(SlotLabel::Padding) || (label.is_some() && label == also)).then_some(1)
        });
        let loops = Loops::new(&here, Some(&here.shortcuts), &batch, &leaves, also);
        let alignment = loops.reasoning_alignment + loops.answer_alignment;
        let total = 0.6 * loops.answer + 1.7 * alignment + 0.8 * loops.routers;
        let model = Shortcut::new(
            there.student.clone(),
            there.shortcuts.clone(),
            &there.teacher,
            &config,
        );
        let trained = values(TrainStep::step(&model, batch.clone()).item.losses);
        let validated = InferenceStep::step(&model.valid(), batch.clone()).losses;
        assert_same(&trained, &values(validated));
        let expected = [total, loops.answer, alignment, loops.routers];
        assert_losses(&format!("{family:?}, {leaving:?}"), &trained, &expected);
        assert_eq!(loops.unfinished, unfinished);
    }
}
