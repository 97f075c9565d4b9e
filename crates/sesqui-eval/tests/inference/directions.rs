//! Directions of refinement: against finite differences of what they descend, calibrated, counted.

use burn::tensor::{Device, Tensor, TensorData};
use sesqui_eval::{LatentMethod, Method};
use sesqui_model::latent::{Continuation, SlotPositions};
use sesqui_model::{Family, KvCache};
use sesqui_reason::refine::{
    AuxiliaryWork, Context, Direction, LayerRuns, Norm, Scaling, Sign, gated,
};
use sesqui_reason::{
    Calibration, Calibrator, HaltConfig, LatentDecoded, PromptError, References, RefineConfig,
    Refinement, latent_refined, observe,
};
use sesqui_shortcut::{EntryPosition, ExitRule, KeyValueRule, Landing};

use crate::alone::{Leave, alone_refined, latent_model};
use crate::by_hand::{
    ByHand, CLOSE, STEPS, WIDTH, basis, bits, blend, margin, plan, projected, references, row,
    search, slope, three, told, variants,
};
use crate::support::{FAMILIES, plain, prompt, questions, values};

/// A single step of each direction against finite differences of the objective: with constant outputs
/// the closed form, else through both models.
#[test]
fn directions_descend_the_objective() {
    for family in FAMILIES {
        let (model, _) = latent_model(family, 6, 0);
        let references = references(family, 31, 32);
        let questions = questions(&[5], &[0]);
        for context in [Context::Own, Context::Shared, Context::None] {
            for direction in [Direction::Constant, Direction::Differentiated] {
                let config = search(|search| {
                    (search.context, search.direction) = (context, direction);
                });
                let refinement = Refinement {
                    config: &config,
                    references: Some(&references),
                    calibration: None,
                };
                let plan = plan(&questions, 1);
                let found = latent_refined(
                    &model,
                    ExitRule::Full,
                    KeyValueRule::Holes,
                    &prompt(&questions, 5, 0),
                    &plan,
                    &refinement,
                    &plain(),
                )
                .unwrap();
                let hand = ByHand::new(&model, &references, &config, &questions[0]);
                let mut expected = Vec::new();
                let mut constant = Vec::new();
                let mut gap = 0.0;
                let mut look = |_: usize, at: i32, latent: Tensor<3>, cache: &KvCache| {
                    let [strong, weak] = hand.outputs(latent.clone(), at, cache);
                    let here = values(latent.clone());
                    gap = strong
                        .iter()
                        .zip(&weak)
                        .map(|(g, b)| f64::from(g - b).powi(2))
                        .sum();
                    constant = slope(&here, |h| margin(h, &strong, &weak));
                    expected = match direction {
                        Direction::Constant => constant.clone(),
                        _ => hand.slope(&here, at, cache),
                    };
                    latent
                };
                let rule = (Leave::Never, KeyValueRule::Holes);
                alone_refined(&model, None, rule, &questions[0], &plan, 0, &mut look);
                let (before, after) = (&found.unrefined[0], &found.states[0]);
                let moved = values(after.clone() - before.clone());
                // Entries of the direction are of size 1; see `slope`.
                for (moved, expected) in moved.iter().zip(&expected) {
                    let descent = -0.5 * expected;
                    assert!(
                        (moved / 0.3 - descent).abs() < 0.01,
                        "{family:?} {context:?} {direction:?}: {} {descent}",
                        moved / 0.3
                    );
                }
                let apart = expected.iter().zip(&constant).map(|(a, b)| (a - b).abs());
                let apart = apart.fold(0.0, f32::max);
                if direction == Direction::Differentiated {
                    assert!(apart > 0.1, "the two directions are the same: {apart}");
                    continue;
                }
                // The objective is linear in the latent: -step * 2 |g - b|^2 before the mean.
                let hand_margin = |latent: &Tensor<3>| {
                    let latent = values(latent.clone());
                    latent
                        .iter()
                        .zip(&constant)
                        .map(|(h, s)| f64::from(h * s))
                        .sum::<f64>()
                };
                let change = hand_margin(after) - hand_margin(before);
                assert!(
                    (change + 0.3 * 2.0 * gap).abs() < 0.01 * gap,
                    "{change} {gap}"
                );
            }
        }
    }
}

#[test]
fn signs_and_scalings_move_as_named() {
    let (model, _) = latent_model(Family::Gpt2, 6, 0);
    let references = references(Family::Gpt2, 31, 32);
    let questions = three();
    let run = |config: &RefineConfig| {
        let refinement = Refinement {
            config,
            references: Some(&references),
            calibration: None,
        };
        let (asked, plan) = (prompt(&questions, 7, 0), plan(&questions, 1));
        let holes = KeyValueRule::Holes;
        latent_refined(
            &model,
            ExitRule::Full,
            holes,
            &asked,
            &plan,
            &refinement,
            &plain(),
        )
        .unwrap()
    };
    let intended = run(&search(|_| ()));
    let printed = run(&search(|search| search.sign = Sign::Printed));
    let negative = run(&search(|search| search.size = -0.3));
    assert_eq!(bits(&printed.states), bits(&negative.states));
    let moved = |of: &LatentDecoded| values(of.states[0].clone() - of.unrefined[0].clone());
    for (there, back) in moved(&intended).iter().zip(moved(&printed)) {
        // Each of two sums is rounded.
        assert!((there + back).abs() < 1e-6, "{there} {back}");
    }
    // 2 / 16 of 8 times as much, all powers of two.
    let mean = run(&search(|search| {
        (search.scaling, search.size) = (Scaling::Mean, 8.0 * search.size);
    }));
    assert_eq!(bits(&mean.states), bits(&intended.states));
}

#[test]
fn gates_are_shares_of_a_norm() {
    let mut rows: Vec<f32> = (0..3 * WIDTH).map(|i| (i as f32 * 1.7).sin()).collect();
    // The second row has nothing in the subspace, the third nothing outside.
    for i in 0..WIDTH {
        if [0, 5, 9].contains(&i) {
            rows[WIDTH + i] = 0.0;
        } else {
            rows[2 * WIDTH + i] = 0.0;
        }
    }
    let difference = Tensor::<3>::from_data(TensorData::new(rows.clone(), [3, 1, WIDTH]), &plain());
    let (shift, gates) = gated(&basis(), difference.clone());
    let gates = values(gates);
    assert!(gates[0] > 0.1 && gates[0] < 0.9, "{gates:?}");
    assert_eq!(gates[1], 0.0);
    // The basis is orthonormal up to rounding.
    assert!(gates[2] > 1.0 - 1e-6 && gates[2] <= 1.0, "{gates:?}");
    let shift = values(shift);
    let expected = projected(&values(basis()), &rows[..WIDTH]);
    for (found, expected) in shift.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6);
    }
    // A closed gate leaves a latent as it is, to the bit; so does no difference at all.
    assert!(shift[WIDTH..2 * WIDTH].iter().all(|&x| x == 0.0));
    let (none, gate) = gated(&basis(), difference.zeros_like());
    assert!(values(none).iter().chain(&values(gate)).all(|&x| x == 0.0));
}

#[test]
fn calibration_sees_what_the_models_disagree_about() {
    let (model, shortcuts) = latent_model(Family::Gpt2, 3, 0);
    let references = references(Family::Gpt2, 21, 22);
    let questions = three();
    let (asked, plan) = (prompt(&questions, 7, 0), plan(&questions, STEPS));
    let config = RefineConfig {
        residual: blend(0.3, Norm::Free, 1),
        ..search(|search| (search.start, search.direction) = (1, Direction::Mean))
    };
    let leaves = |row: usize, slot: usize, boundary: usize| told(row, slot, boundary);
    let rule = ExitRule::Plan {
        shortcuts: Some(&shortcuts),
        leaves: &leaves,
    };
    let mut calibrator = Calibrator::new(WIDTH);
    let holes = KeyValueRule::Holes;
    let with = (&config, &references);
    observe(
        &model,
        rule,
        holes,
        &asked,
        &plan,
        with,
        &mut calibrator,
        &plain(),
    )
    .unwrap();

    // By hand, moving nothing but blending.
    let still = RefineConfig {
        residual: config.residual,
        ..search(|search| (search.start, search.size) = (1, 1e-30))
    };
    let mut expected = Vec::new();
    for (row, question) in questions.iter().enumerate() {
        let mut hand = ByHand::new(&model, &references, &still, question);
        let mut refine = |slot, at, latent, cache: &KvCache| hand.refine(slot, at, latent, cache);
        let told = |slot: usize, boundary: usize| told(row, slot, boundary);
        let rule = (Leave::Told(&told), holes);
        alone_refined(
            &model,
            Some(&shortcuts),
            rule,
            question,
            &plan,
            row,
            &mut refine,
        );
        expected.extend(hand.differences);
    }
    assert_eq!(calibrator.count(), expected.len());
    assert!(
        expected.len() > 3 && expected.len() < 3 * (STEPS - 1),
        "{}",
        expected.len()
    );
    let device = plain();
    let mean = match calibrator.calibrate(Direction::Mean, &device).unwrap() {
        Some(Calibration::Mean(mean)) => values(mean),
        other => panic!("{other:?}"),
    };
    for (entry, mean) in mean.iter().enumerate() {
        let sum: f32 = expected.iter().map(|difference| difference[entry]).sum();
        assert!((mean - sum / expected.len() as f32).abs() < CLOSE);
    }
    // All of the variance: every difference lies in the subspace.
    let whole = calibrator.calibrate(Direction::Gated { variance: 1.0 }, &device);
    let Some(Calibration::Subspace(basis)) = whole.unwrap() else {
        panic!("no subspace");
    };
    assert_eq!(basis.dims(), [WIDTH, expected.len().min(WIDTH)]);
    for difference in &expected {
        let (_, gate) = gated(&basis, row(difference));
        assert!(values(gate)[0] > 0.999);
    }
    // A share of it: as few directions as hold it.
    let part = calibrator.calibrate(Direction::Gated { variance: 0.5 }, &device);
    let rank = part.unwrap().unwrap().rank();
    assert!(rank < expected.len());
    let held = |rank: usize| -> f64 {
        let basis = basis.clone().narrow(1, 0, rank);
        let inside = |difference: &Vec<f32>| -> f64 {
            let product = row(difference).matmul(basis.clone().unsqueeze());
            values(product).iter().map(|x| f64::from(x * x)).sum()
        };
        let whole: f64 = expected.iter().flatten().map(|x| f64::from(x * x)).sum();
        expected.iter().map(inside).sum::<f64>() / whole
    };
    assert!(held(rank) >= 0.5 && (rank == 1 || held(rank - 1) < 0.5));

    let silent = Calibrator::new(WIDTH).calibrate(Direction::Mean, &device);
    assert!(
        silent
            .unwrap_err()
            .to_string()
            .contains("agree on every one of 0")
    );
}

/// What a response is said to cost: the plain one, and what ran beside.
#[test]
fn costs_are_what_ran() {
    let device: Device = plain();
    let questions = three();
    for family in FAMILIES {
        let (model, _) = latent_model(family, 3, 0);
        let references = references(family, 21, 22);
        let method = |refinement| LatentMethod {
            model: &model,
            device: &device,
            latent_steps: STEPS,
            order: sesqui_model::LatentOrder::Sequential,
            trained_latents: STEPS,
            positions: SlotPositions::Contiguous,
            rule: ExitRule::Full,
            key_values: KeyValueRule::Holes,
            landing: Landing::SameBoundary,
            entry_position: EntryPosition::EveryEntry,
            refinement,
            halt: (&HaltConfig::Never, None),
            continuation: Continuation::Answer,
            answer_start: &[11, 4],
            // Every answer is as long as the other.
            decoding: sesqui_reason::Decoding {
                stop: u32::MAX,
                max_tokens: 3,
            },
        };
        let asked = prompt(&questions, 7, 0);
        let usual = method(None).respond(&asked).unwrap();
        let differentiated = search(|search| search.direction = Direction::Differentiated);
        let mut all = variants();
        all.push((differentiated, None));
        for (config, calibration) in &all {
            let refinement = Refinement {
                config,
                references: Some(&references),
                calibration: calibration.as_ref(),
            };
            let method = method(Some(refinement));
            let decoded = method.decode(&asked).unwrap();
            let found = method.respond(&asked).unwrap();
            for (row, (found, usual)) in found.rows.iter().zip(&usual.rows).enumerate() {
                let work = decoded.rows[row].auxiliary;
                let ran = |runs: LayerRuns| {
                    let maps = match family {
                        Family::Gpt2 => 16 * 48 + 16 * 16 + 2 * 16 * 64,
                        Family::Llama => 16 * 32 + 16 * 16 + 3 * 16 * 48,
                    };
                    // Four heads, each four wide: scores and sums.
                    2 * runs.calls * maps + runs.keys * 4 * 4 * 4
                };
                let inside = (ran(work.latents) + ran(work.backward)) as f64;
                assert_eq!(found.reason_flops - usual.reason_flops, inside);
                let around = ran(work.question)
                    + work.mapped * 2 * WIDTH * WIDTH
                    + work.projected * 4 * WIDTH;
                assert_eq!(found.flops - usual.flops, inside + around as f64);
                assert_eq!(found.layer_calls, usual.layer_calls + work.latents.calls);
                let idle = work == AuxiliaryWork::default();
                assert_eq!(idle, !config.needs_references());
                let back = config
                    .search()
                    .is_some_and(|s| s.direction == Direction::Differentiated);
                assert_eq!(work.backward.calls > 0, back);
            }
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let (model, _) = latent_model(Family::Gpt2, 3, 0);
    let fits = references(Family::Gpt2, 1, 2);
    let other = references(Family::Llama, 1, 2);
    let questions = three();
    let refuse = |config: &RefineConfig, references, calibration| {
        let refinement = Refinement {
            config,
            references,
            calibration,
        };
        let (asked, plan) = (prompt(&questions, 7, 0), plan(&questions, 2));
        let holes = KeyValueRule::Holes;
        latent_refined(
            &model,
            ExitRule::Full,
            holes,
            &asked,
            &plan,
            &refinement,
            &plain(),
        )
        .unwrap_err()
    };
    let mean = search(|search| search.direction = Direction::Mean);
    let gated = search(|search| search.direction = Direction::Gated { variance: 0.9 });
    let wrong = search(|search| search.inner_steps = 0);
    let subspace = Calibration::Subspace(basis());
    let cases: [(
        &RefineConfig,
        Option<&References>,
        Option<&Calibration>,
        &str,
    ); 6] = [
        (
            &search(|_| ()),
            None,
            None,
            "needs a strong and a weak model",
        ),
        (&mean, Some(&fits), None, "needs a calibrated direction"),
        (
            &mean,
            Some(&fits),
            Some(&subspace),
            "needs a calibrated direction",
        ),
        (
            &gated,
            None,
            Some(&subspace),
            "needs a strong and a weak model",
        ),
        (&search(|_| ()), Some(&other), None, "the student's shape"),
        (
            &wrong,
            Some(&fits),
            None,
            "contrastive.inner_steps: must be",
        ),
    ];
    for (config, references, calibration, part) in cases {
        let error: PromptError = refuse(config, references, calibration);
        assert!(error.to_string().contains(part), "{error}");
    }
}
