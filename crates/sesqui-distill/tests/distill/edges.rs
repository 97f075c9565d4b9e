//! Edges: which latent steps leave when exits are drawn, problems without steps, settings that make no
//! sense.

use burn::train::InferenceStep;
use sesqui_distill::latent::{Correction, LatentBatch, Padding, SlotLabel};
use sesqui_distill::rollout::{ExitDropout, Feeding, Leaves, exits_drawn};
use sesqui_distill::shortcut::{ShortcutLoss, StaircaseConfig};
use sesqui_distill::{
    Align, AlignConfig, LatentConfig, LatentProblem, Rollout, ShortcutStageConfig,
};

use crate::by_hand::{COUNT, EQUALS, FAMILIES, Models, PAD, all, layout, problems};
use crate::support::{RESULTS, plain, values};

const SEEDS: u64 = 20_000;

/// The first two latent steps of the second problem are independent, padding follows its own steps.
#[test]
fn padding_leaves_always_and_independent_steps_by_lot() {
    let batch = all(Rollout::TeacherForced);
    let independent = 0.8;
    let mut left = [0usize; 2];
    for seed in 0..SEEDS {
        let leaves = Leaves::dropout(&batch, seed, independent);
        assert_eq!(leaves, Leaves::dropout(&batch, seed, independent));
        for (index, label) in batch.labels.iter().enumerate() {
            let (row, output) = (index / (COUNT + 1), index % (COUNT + 1));
            let Some(slot) = output.checked_sub(1) else {
                continue;
            };
            let leaves_at = |boundary| leaves.leaves(row, slot, boundary);
            // Whoever entered above leaves at once.
            assert!(!leaves_at(0) && leaves_at(1) == leaves_at(2));
            match label.unwrap() {
                SlotLabel::Padding => assert_eq!(leaves_at(1), slot + 1 < COUNT),
                SlotLabel::Independent => left[slot] += usize::from(leaves_at(1)),
                SlotLabel::Critical | SlotLabel::Unlabelled => assert!(!leaves_at(1)),
            }
        }
    }
    // The mean of 0.8 min(1, 2u) over u is 0.8 (1/4 + 1/2). Each of the two steps is one draw per seed;
    // four standard errors.
    let (n, p) = (SEEDS as f64, 0.6);
    let allowed = 4.0 * (p * (1.0 - p) / n).sqrt();
    for left in left {
        let share = left as f64 / n;
        assert!(
            (share - p).abs() < allowed,
            "{share} for {p}, allowed {allowed}"
        );
    }
    let never = (0..SEEDS).all(|seed| {
        let leaves = Leaves::dropout(&batch, seed, 0.0);
        !leaves.leaves(1, 0, 1) && !leaves.leaves(1, 1, 1)
    });
    assert!(never);
}

#[test]
fn exits_of_stage_2_are_drawn_anew_in_every_step() {
    let mut seeds: Vec<u64> = (0..SEEDS)
        .flat_map(|step| [exits_drawn(1, step), exits_drawn(2, step)])
        .map(|drawn| match drawn {
            Rollout::Student {
                correction: Correction::Never,
                exits: Some(seed),
            } => seed,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(exits_drawn(1, 5), exits_drawn(1, 5));
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len() as u64, 2 * SEEDS);
}

/// One latent step at the least, where each problem has as many as it needs too.
#[test]
fn problems_without_steps_are_answered_after_one_latent_step() {
    let mut bare = problems()[2].clone();
    bare.steps.clear();
    bare.critical.clear();
    let models = Models::new(FAMILIES[0], &plain());
    let config = AlignConfig::default();
    let model = Align::new(models.student.clone(), &models.teacher, &config);
    let own = Rollout::Student {
        correction: Correction::WhereWrong,
        exits: Some(1),
    };
    for (padding, slots) in [(Padding::Answer, COUNT), (Padding::None, 1)] {
        let config = LatentConfig {
            padding,
            ..LatentConfig::default()
        };
        let problem = LatentProblem::new(&bare, &config, COUNT, Some(EQUALS), layout()).unwrap();
        assert_eq!(problem.slots(), slots);
        let problems = [problem];
        for rollout in [Rollout::TeacherForced, own] {
            let batch = LatentBatch::collate(&problems, &[0], &RESULTS, PAD, rollout).unwrap();
            let losses = values(InferenceStep::step(&model, batch).losses);
            assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let named = |config: AlignConfig| config.problem().map(|(key, _)| key);
    assert_eq!(named(AlignConfig::default()), None);
    let dropout = |start, share, independent| ExitDropout::Late {
        start,
        share,
        independent,
    };
    for feeding in [
        Feeding::Ramp {
            start: 0.6,
            end: 0.5,
        },
        Feeding::Ramp {
            start: -0.1,
            end: 0.5,
        },
        Feeding::Ramp {
            start: 0.5,
            end: f64::NAN,
        },
        Feeding::Corrected { until: 1.1 },
        Feeding::Corrected { until: f64::NAN },
    ] {
        let config = AlignConfig {
            feeding,
            ..AlignConfig::default()
        };
        assert_eq!(named(config).as_deref(), Some("feeding"), "{feeding:?}");
    }
    for exit_dropout in [
        dropout(1.5, 0.5, 0.0),
        dropout(0.5, -0.1, 0.0),
        dropout(0.5, 0.5, f64::NAN),
    ] {
        let config = AlignConfig {
            exit_dropout,
            ..AlignConfig::default()
        };
        assert_eq!(
            named(config).as_deref(),
            Some("exit_dropout"),
            "{exit_dropout:?}"
        );
    }
    let mut config = AlignConfig::default();
    config.weights.read_out = -1.0;
    assert_eq!(named(config.clone()).as_deref(), Some("weights.read_out"));
    // The teacher's own loss teaches the student nothing.
    config.weights.read_out = 0.0;
    config.weights.answer = 0.0;
    config.weights.answer_alignment = 0.0;
    config.weights.reasoning_alignment = 0.0;
    assert_eq!(named(config).as_deref(), Some("weights"));

    let staircase = |staircase: StaircaseConfig| {
        let config = ShortcutStageConfig {
            loss: ShortcutLoss::Staircase(staircase),
            ..ShortcutStageConfig::default()
        };
        config.problem().map(|(key, _)| key)
    };
    let shares = |planned, random, thresholds: &[f64]| StaircaseConfig {
        planned,
        random,
        thresholds: thresholds.to_vec(),
        ..StaircaseConfig::default()
    };
    assert_eq!(staircase(StaircaseConfig::default()), None);
    for share in [f64::NAN, 1.5, -0.1] {
        let found = staircase(shares(share, 0.1, &[0.5]));
        assert_eq!(found.as_deref(), Some("loss.planned"), "{share}");
        let found = staircase(shares(0.1, share, &[0.5]));
        assert_eq!(found.as_deref(), Some("loss.planned"), "{share}");
    }
    assert_eq!(staircase(shares(0.6, 0.4, &[])), None);
    assert_eq!(
        staircase(shares(0.6, 0.5, &[0.5])).as_deref(),
        Some("loss.planned")
    );
    assert_eq!(
        staircase(shares(-0.1, 0.5, &[0.5])).as_deref(),
        Some("loss.planned")
    );
    assert_eq!(
        staircase(shares(0.5, 0.4, &[])).as_deref(),
        Some("loss.thresholds")
    );
}
