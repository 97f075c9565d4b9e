//! Refinement of latents against the same written out for one row, and where it must change no bit.

use sesqui_model::{Family, KvCache};
use sesqui_reason::refine::{AuxiliaryWork, Context, Direction, Norm, Search};
use sesqui_reason::{Calibration, LatentDecoded, RefineConfig, Refinement, latent, latent_refined};
use sesqui_shortcut::{ExitRule, KeyValueRule};

use crate::alone::{Alone, Leave, alone_refined, latent_model};
use crate::by_hand::{
    ByHand, CLOSE, STEPS, WIDTH, basis, bits, blend, plan, references, search, sight, three, told,
    variants,
};
use crate::support::{FAMILIES, Questions, plain, prompt, values};

/// Whether a row's states are those found by hand.
fn same_states(decoded: &LatentDecoded, row: usize, expected: &Alone) -> Result<(), String> {
    for (step, (found, expected)) in decoded.states.iter().zip(&expected.states).enumerate() {
        let found = values(found.clone());
        for (found, expected) in found[row * WIDTH..].iter().zip(expected) {
            if (found - expected).abs() > CLOSE {
                return Err(format!("after {step} slots: {found} and {expected}"));
            }
        }
    }
    Ok(())
}

/// Together, wider and alone against by hand; with and without exits.
#[test]
fn together_alone_and_by_hand() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 3, 0);
        let references = references(family, 21, 22);
        let questions = three();
        let plan_of = |questions: &Questions| plan(questions, STEPS);
        for (config, calibration) in &variants() {
            for exits in [false, true] {
                let run = |questions: &Questions, width: usize, names: &[usize]| {
                    let leaves =
                        |row: usize, slot: usize, boundary: usize| told(names[row], slot, boundary);
                    let rule = match exits {
                        false => ExitRule::Full,
                        true => ExitRule::Plan {
                            shortcuts: Some(&shortcuts),
                            leaves: &leaves,
                        },
                    };
                    let refinement = Refinement {
                        config,
                        references: Some(&references),
                        calibration: calibration.as_ref(),
                    };
                    latent_refined(
                        &model,
                        rule,
                        KeyValueRule::Holes,
                        &prompt(questions, width, 3),
                        &plan_of(questions),
                        &refinement,
                        &plain(),
                    )
                    .unwrap()
                };
                let names: Vec<usize> = (0..questions.len()).collect();
                let together = run(&questions, 7, &names);
                let wider = run(&questions, 10, &names);
                for (row, question) in questions.iter().enumerate() {
                    let what = format!("{family:?}, {config:?}, exits {exits}, row {row}");
                    let told = |slot: usize, boundary: usize| told(row, slot, boundary);
                    let (leave, used) = match exits {
                        false => (Leave::Never, None),
                        true => (Leave::Told(&told), Some(&shortcuts)),
                    };
                    let by_hand = |keeps_raw: bool| {
                        let mut hand = ByHand::new(&model, &references, config, question);
                        hand.calibration = calibration.as_ref();
                        hand.keeps_raw = keeps_raw;
                        let mut refine = |slot, at, latent, cache: &KvCache| {
                            hand.refine(slot, at, latent, cache)
                        };
                        let rule = (leave, KeyValueRule::Holes);
                        let plan = plan_of(&questions);
                        let found =
                            alone_refined(&model, used, rule, question, &plan, row, &mut refine);
                        (found, hand.work)
                    };
                    let (expected, work) = by_hand(false);
                    let single = vec![question.clone()];
                    let one = run(&single, question.0.len(), &[row]);
                    for (decoded, row) in [(&together, row), (&wider, row), (&one, 0)] {
                        same_states(decoded, row, &expected)
                            .unwrap_or_else(|reason| panic!("{what}: {reason}"));
                        assert_eq!(decoded.rows[row].tokens, expected.tokens, "{what}");
                        let slots = decoded.rows[row].slots.iter();
                        let slots: Vec<_> = slots.map(|slot| [slot.enter, slot.leave]).collect();
                        assert_eq!(slots, expected.slots, "{what}");
                        assert_eq!(decoded.rows[row].auxiliary, work, "{what}");
                    }
                    // The two models see refined latents, and it makes a difference.
                    if config.needs_references() && sight(config) == Context::Own && !exits {
                        let (raw, _) = by_hand(true);
                        assert!(same_states(&together, row, &raw).is_err(), "{what}");
                    }
                }
            }
        }
    }
}

/// Zero step sizes, and models that are the same, are plain latents to the bit.
#[test]
fn nothing_to_do_is_plain_decoding_bit_for_bit() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 4, 0);
        let hosts = shortcuts.routers_on_host();
        let questions = three();
        let (asked, plan) = (prompt(&questions, 8, 0), plan(&questions, STEPS));
        let same = references(family, 23, 23);
        let subspace = Calibration::Subspace(basis());
        let nothing = |change: fn(&mut Search)| RefineConfig {
            residual: blend(0.0, Norm::Kept, 1),
            ..search(change)
        };
        let still = [
            RefineConfig::default(),
            nothing(|search| search.size = 0.0),
            nothing(|_| ()),
            nothing(|search| search.inner_steps = 2),
            nothing(|search| search.context = Context::Shared),
            nothing(|search| search.context = Context::None),
            nothing(|search| search.direction = Direction::Differentiated),
            nothing(|search| search.direction = Direction::Gated { variance: 0.5 }),
        ];
        let leaves = |row: usize, slot: usize, boundary: usize| told(row, slot, boundary);
        for rule in [
            ExitRule::Full,
            ExitRule::Routers {
                shortcuts: &shortcuts,
                hosts: &hosts,
                threshold: 0.5,
            },
            ExitRule::Plan {
                shortcuts: None,
                leaves: &leaves,
            },
        ] {
            for key_values in [KeyValueRule::Holes, KeyValueRule::Fill] {
                let usual = latent(&model, rule, key_values, &asked, &plan, &plain()).unwrap();
                assert!(usual.unrefined.is_empty());
                for config in &still {
                    let refinement = Refinement {
                        config,
                        references: Some(&same),
                        calibration: Some(&subspace),
                    };
                    let found = latent_refined(
                        &model,
                        rule,
                        key_values,
                        &asked,
                        &plan,
                        &refinement,
                        &plain(),
                    )
                    .unwrap();
                    assert_eq!(bits(&found.states), bits(&usual.states), "{config:?}");
                    for (found, usual) in found.rows.iter().zip(&usual.rows) {
                        assert_eq!((&found.tokens, &found.slots), (&usual.tokens, &usual.slots));
                        let works = config.search().is_some();
                        assert_eq!(found.auxiliary != AuxiliaryWork::default(), works);
                    }
                }
            }
        }
    }
}

#[test]
fn a_memory_rate_of_one_feeds_one_vector() {
    let (model, _) = latent_model(Family::Llama, 2, 0);
    let questions = three();
    let (asked, plan) = (prompt(&questions, 7, 0), plan(&questions, 5));
    let config = |start| RefineConfig {
        residual: blend(1.0, Norm::Free, start),
        ..RefineConfig::default()
    };
    let run = |config: &RefineConfig| {
        let refinement = Refinement {
            config,
            references: None,
            calibration: None,
        };
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
    let (first, third) = (run(&config(1)), run(&config(3)));
    for slot in 1..5 {
        let one = bits(&first.states[..1]);
        assert_eq!(bits(&first.states[slot..=slot]), one, "{slot}");
        assert_eq!(
            bits(&third.states[slot..=slot]) == bits(&third.states[2..3]),
            slot >= 2
        );
    }
    // The first latent of all is as it came.
    assert_eq!(bits(&first.states[..1]), bits(&first.unrefined[..1]));
}
