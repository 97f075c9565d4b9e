//! Stepwise internalization: which tokens go, when, and how many more by chance.

use sesqui_dataset::batch::BatchConfig;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_distill::curriculum::ResetOptimizer;
use sesqui_distill::icot::{MOST_OFFSET, Removed, Side};
use sesqui_distill::{CutBatches, Cuts, IcotConfig};
use sesqui_trainer::Batches;

/// Steps of two, one and three tokens.
fn problem() -> EncodedProblem {
    EncodedProblem {
        id: "a".to_owned(),
        question: vec![10, 11, 2],
        question_end: 1,
        steps: vec![vec![20, 21], vec![22], vec![23, 24, 25]],
        answer_start: vec![5],
        answer: vec![9, 1],
        critical: vec![Some(false), None, Some(true)],
    }
}

fn config(side: Side) -> IcotConfig {
    IcotConfig {
        side,
        remove_per: 2,
        updates: 3,
        removal_smoothing: f64::INFINITY,
        ..IcotConfig::default()
    }
}

#[test]
fn exactly_the_tokens_of_one_side_go() {
    let (left, right) = (config(Side::Left), config(Side::Right));
    let (left, right) = (left.plan([&problem()]), right.plan([&problem()]));
    let chain: Vec<u32> = problem().steps.concat();
    for gone in 0..8 {
        let removed = Removed::Tokens(gone);
        let kept = chain.len().saturating_sub(gone);
        let found = left.cut(&problem(), removed);
        assert_eq!(found.steps.concat(), chain[chain.len() - kept..], "{gone}");
        let found = right.cut(&problem(), removed);
        assert_eq!(found.steps.concat(), chain[..kept], "{gone}");
    }
    let found = left.cut(&problem(), Removed::Tokens(3));
    let expected = EncodedProblem {
        steps: vec![vec![23, 24, 25]],
        critical: vec![Some(true)],
        ..problem()
    };
    assert_eq!(found, expected);
    let found = right.cut(&problem(), Removed::Tokens(4));
    let expected = EncodedProblem {
        steps: vec![vec![20, 21]],
        critical: vec![Some(false)],
        ..problem()
    };
    assert_eq!(found, expected);
    let found = left.cut(&problem(), Removed::Tokens(1));
    assert_eq!(found.steps, [vec![21], vec![22], vec![23, 24, 25]]);
    assert_eq!(found.critical, problem().critical);
    let nothing = EncodedProblem {
        steps: Vec::new(),
        critical: Vec::new(),
        ..problem()
    };
    for plan in [left, right] {
        assert_eq!(plan.cut(&problem(), Removed::All), nothing);
        assert_eq!(plan.cut(&problem(), Removed::Tokens(0)), problem());
    }
}

#[test]
fn more_go_with_time_until_all_are_gone() {
    use Removed::{All, Tokens};
    let plan = config(Side::Left).plan([&problem()]);
    let removed: Vec<Removed> = (0..12).map(|update| plan.removed(update)).collect();
    // Two every three updates, and the chain has six.
    let expected = [Tokens(0), Tokens(2), Tokens(4), All].map(|removed| [removed; 3]);
    assert_eq!(removed, expected.concat());
    let done = [0, 3, 4, 10].map(|updates| plan.tokens_after(updates));
    assert_eq!(done, [0, 0, 2, 6]);
    let resets: Vec<u64> = (0..40).filter(|update| plan.resets(*update)).collect();
    assert_eq!(resets, [3, 6, 9]);
    let early = IcotConfig {
        remove_all_beyond: 4,
        ..config(Side::Left)
    };
    let early = early.plan([&problem()]);
    assert_eq!([5, 6].map(|update| early.removed(update)), [Tokens(2), All]);
    let late = IcotConfig {
        remove_all_beyond: 9,
        reset_optimizer: ResetOptimizer::Never,
        ..config(Side::Left)
    };
    let late = late.plan([&problem()]);
    assert_eq!(late.removed(9), Tokens(6));
    assert!(!(0..40).any(|update| late.resets(update)));
}

#[test]
fn smoothing_runs_ahead_by_a_geometric_number() {
    let offsets = |lambda: f64, seed: u64| {
        let config = IcotConfig {
            removal_smoothing: lambda,
            remove_all_beyond: 1_000,
            ..config(Side::Left)
        };
        let plan = config.plan([&problem()]);
        let mut offsets = Vec::new();
        for update in 3..103 {
            let Removed::Tokens(scheduled) = plan.removed(update) else {
                panic!("none are gone by then");
            };
            for removed in plan.removed_of_rows(seed, update, 20) {
                let Removed::Tokens(tokens) = removed else {
                    panic!("{removed:?}");
                };
                offsets.push(tokens - scheduled);
            }
        }
        offsets
    };
    assert!(offsets(f64::INFINITY, 1).iter().all(|offset| *offset == 0));
    let found = offsets(1.0, 1);
    assert_eq!(found, offsets(1.0, 1));
    assert_ne!(found, offsets(1.0, 2));
    for offset in 0..4 {
        let expected = (1.0 - (-1.0f64).exp()) * (-(offset as f64)).exp();
        let count = found.iter().filter(|found| **found == offset).count();
        let share = count as f64 / found.len() as f64;
        // Five standard deviations of a share of 2,000 draws.
        assert!((share - expected).abs() < 0.055, "{offset}: {share}");
    }
    // A tail that would not end falls on the last.
    let long = offsets(1e-6, 1);
    assert!(long.iter().all(|offset| *offset <= MOST_OFFSET));
    let last = long.iter().filter(|offset| **offset == MOST_OFFSET).count();
    assert!(last > 1_980, "{last}");
    // Once all are gone there is nothing to run ahead of.
    let plan = IcotConfig {
        removal_smoothing: 0.1,
        ..config(Side::Left)
    };
    let plan = plan.plan([&problem()]);
    assert_eq!(plan.removed_of_rows(1, 9, 5), [Removed::All; 5]);
}

#[test]
fn a_batch_is_what_is_left_and_counts_on_without_a_gap() {
    let cuts = Cuts::Tokens(config(Side::Left).plan([&problem()]));
    let rows = BatchConfig {
        batch_size: 1,
        ..BatchConfig::default()
    };
    let layout = PositionLayout::Contiguous;
    let batches = CutBatches::new(vec![problem()], &rows, 1, 1, cuts.clone(), layout, 0).unwrap();
    let batch = batches.batch(4).unwrap();
    assert_eq!(batch.input_ids, [10, 11, 2, 22, 23, 24, 25, 5, 9]);
    assert_eq!(batch.target_ids, [11, 2, 22, 23, 24, 25, 5, 9, 1]);
    assert_eq!(batch.position_ids, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(batch.loss_weights[..2], [0.0, 0.0]);
    assert_eq!(batch.loss_weights[2..], [1.0; 7]);
    assert_eq!(batches.batch(9).unwrap().input_ids, [10, 11, 2, 5, 9]);
    // Validation after as many updates draws nothing.
    assert_eq!(
        cuts.left_after(5, &problem()).steps,
        [vec![22], vec![23, 24, 25]]
    );
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let good = IcotConfig::default();
    assert_eq!(good.problem(), None);
    for (bad, key) in [
        (
            IcotConfig {
                remove_per: 0,
                ..good.clone()
            },
            "remove_per",
        ),
        (
            IcotConfig {
                updates: 0,
                ..good.clone()
            },
            "updates",
        ),
        (
            IcotConfig {
                removal_smoothing: 0.0,
                ..good.clone()
            },
            "removal_smoothing",
        ),
        (
            IcotConfig {
                removal_smoothing: f64::NAN,
                ..good.clone()
            },
            "removal_smoothing",
        ),
    ] {
        assert_eq!(bad.problem().unwrap().0, key);
    }
}
