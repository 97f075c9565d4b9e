//! Batches and rollouts as functions of seed and step.

use sesqui_dataset::batch::BatchConfig;
use sesqui_distill::batches::StepOrder;
use sesqui_distill::latent::{Correction, Padding};
use sesqui_distill::rollout::{ExitDropout, Feeding, exits_drawn, rollout};
use sesqui_distill::{LatentBatches, Rollout};
use sesqui_trainer::Batches;

use crate::support::{Data, RESULTS};

#[test]
fn parts_of_a_step_partition_its_rows() {
    let config = BatchConfig {
        batch_size: 7,
        ..BatchConfig::default()
    };
    let lengths: Vec<usize> = (0..23).map(|row| 10 + row % 5).collect();
    let order = |parts| StepOrder::new(&config, 9, lengths.clone(), parts).unwrap();
    let whole = order(1);
    for parts in [1, 2, 3, 7] {
        let order = order(parts);
        assert_eq!(order.per_epoch(), whole.per_epoch() * parts);
        for step in 0..8 {
            let of = |part| order.rows(step * parts + part);
            let rows: Vec<Vec<u32>> = (0..parts).map(of).collect();
            assert_eq!(
                rows.concat(),
                whole.rows(step),
                "{parts} parts, step {step}"
            );
            let sizes = rows.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            assert_eq!(order.place(step * parts + parts - 1), (step, parts - 1));
        }
    }
    let refused = StepOrder::new(&config, 9, lengths, 8)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("7 rows") && refused.contains("8 parts"),
        "{refused}"
    );
}

#[test]
fn parts_of_a_step_share_a_rollout_and_not_their_exits() {
    let data = Data::new();
    let config = BatchConfig {
        batch_size: 4,
        ..BatchConfig::default()
    };
    let names: Vec<String> = data
        .encoded
        .iter()
        .map(|problem| problem.id.clone())
        .collect();
    let problems = data.problems(Padding::Answer);
    let rollout = |step| exits_drawn(5, step);
    let batches = LatentBatches::new(problems, names, &config, 2, 9, RESULTS, 0, rollout).unwrap();
    let exits = |index| match batches.batch(index).unwrap().rollout {
        Rollout::Student {
            correction: Correction::Never,
            exits,
        } => exits.unwrap(),
        other => panic!("{other:?}"),
    };
    for step in 0..3 {
        assert_eq!(exits(2 * step + 1), exits(2 * step).wrapping_add(1));
    }
    assert_ne!(exits(0), exits(2));
    assert_eq!(batches.rows(0).split(", ").count(), 2);
}

const STEPS: u64 = 10_000;

/// Of the steps in `range`, the shares that are the student's, corrected, and with exits.
fn shares(feeding: Feeding, exits: ExitDropout, range: std::ops::Range<u64>) -> [f64; 3] {
    let count = (range.end - range.start) as f64;
    let mut found = [0.0; 3];
    for step in range {
        let drawn = rollout(feeding, exits, 7, step, STEPS);
        assert_eq!(drawn, rollout(feeding, exits, 7, step, STEPS));
        if let Rollout::Student { correction, exits } = drawn {
            found[0] += 1.0 / count;
            found[1] += f64::from(u8::from(correction == Correction::WhereWrong)) / count;
            found[2] += f64::from(u8::from(exits.is_some())) / count;
        }
    }
    found
}

/// Five standard deviations of a share of 1,000 draws.
const SPREAD: f64 = 0.08;

fn assert_shares(found: [f64; 3], expected: [f64; 3]) {
    for (found, expected) in found.into_iter().zip(expected) {
        // Whole shares are certain, but for the rounding of a sum.
        let allowed = if expected == 0.0 || expected == 1.0 {
            1e-9
        } else {
            SPREAD
        };
        assert!(
            (found - expected).abs() <= allowed,
            "{found} for {expected}"
        );
    }
}

#[test]
fn a_ramp_rises_linearly_from_teacher_to_student() {
    let ramp = Feeding::Ramp {
        start: 0.2,
        end: 0.8,
    };
    let never = ExitDropout::Never;
    assert_shares(shares(ramp, never, 0..2_000), [0.0; 3]);
    for (begin, share) in [(2_500, 1.0 / 6.0), (4_500, 0.5), (6_500, 5.0 / 6.0)] {
        assert_shares(shares(ramp, never, begin..begin + 1_000), [share, 0.0, 0.0]);
    }
    assert_shares(shares(ramp, never, 8_000..STEPS), [1.0, 0.0, 0.0]);
    assert_shares(shares(Feeding::TeacherForced, never, 0..STEPS), [0.0; 3]);
    assert_shares(
        shares(Feeding::FreeRunning, never, 0..STEPS),
        [1.0, 0.0, 0.0],
    );
    // Equal ends make a switch.
    let switch = Feeding::Ramp {
        start: 0.5,
        end: 0.5,
    };
    assert_shares(shares(switch, never, 0..5_000), [0.0; 3]);
    assert_shares(shares(switch, never, 5_000..STEPS), [1.0, 0.0, 0.0]);
}

#[test]
fn corrections_end_and_exits_begin_at_their_fractions() {
    let corrected = Feeding::Corrected { until: 0.7 };
    let late = ExitDropout::Late {
        start: 0.75,
        share: 0.3,
        independent: 0.5,
    };
    assert_shares(shares(corrected, late, 0..7_000), [1.0, 1.0, 0.0]);
    assert_shares(shares(corrected, late, 7_000..7_500), [1.0, 0.0, 0.0]);
    assert_shares(shares(corrected, late, 7_500..STEPS), [1.0, 0.0, 0.3]);
    // Exits are for batches in which the student feeds itself, whoever they are.
    let ramp = Feeding::Ramp {
        start: 0.0,
        end: 1.0,
    };
    let early = ExitDropout::Late {
        start: 0.0,
        share: 0.5,
        independent: 0.0,
    };
    assert_shares(shares(ramp, early, 4_500..5_500), [0.5, 0.0, 0.25]);
    let other = (0..STEPS).filter(|step| {
        rollout(ramp, early, 7, *step, STEPS) != rollout(ramp, early, 8, *step, STEPS)
    });
    assert!(other.count() > 4_000, "another seed, other rollouts");
}
