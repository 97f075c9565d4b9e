//! Latent reasoning in batches against the same written out for one row.

use sesqui_model::{Family, LatentTransformer};
use sesqui_reason::{Decoding, LatentDecoded, LatentDecoding, Prompt, PromptError, latent};
use sesqui_shortcut::{EntryPosition, ExitRule, HostRouter, KeyValueRule, Landing, Shortcuts};

use crate::alone::{Alone, LAYERS, Leave, alone, decoding, latent_model};
use crate::support::{FAMILIES, Questions, VOCABULARY, plain, prompt, questions, values};

/// States after the final norm are of size 1; two routes differ by rounding, about 1e-6 at a step, which
/// the steps after it carry on: 1.3e-5 after five.
const CLOSE: f32 = 3e-5;
const KEY_VALUES: [KeyValueRule; 2] = [KeyValueRule::Holes, KeyValueRule::Fill];
const LANDINGS: [Landing; 2] = [Landing::SameBoundary, Landing::NextBoundary];

/// Where a slot goes on after an exit, and whether it is given its position there.
const ENTRIES: [(Landing, EntryPosition); 4] = [
    (Landing::SameBoundary, EntryPosition::EveryEntry),
    (Landing::NextBoundary, EntryPosition::EveryEntry),
    (Landing::SameBoundary, EntryPosition::CycleStart),
    (Landing::NextBoundary, EntryPosition::CycleStart),
];

/// Five questions, most of them with pads before them when together.
fn five() -> Questions {
    questions(&[1, 9, 4, 5, 2], &[0, 0, 0, 3, 6])
}

fn starts(questions: &Questions) -> Vec<i32> {
    let ends = questions.iter().map(|(_, positions)| positions.last());
    ends.map(|last| last.unwrap() + 1).collect()
}

/// What is under test, with all that it reads.
struct Subject<'a> {
    model: &'a LatentTransformer,
    shortcuts: &'a Shortcuts,
    hosts: &'a [HostRouter],
    key_values: KeyValueRule,
    landing: Landing,
    entry_position: EntryPosition,
    answer_start: &'a [u32],
    steps: usize,
}

/// Leaving early at random, differently in every row.
fn told(row: usize, slot: usize, boundary: usize) -> bool {
    (row * 7 + slot * 5 + boundary * 3 + row * slot * boundary) % 5 < 2
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Full,
    Above(f64),
    Told { adapters: bool },
}

impl Subject<'_> {
    /// All of `questions` together, in `width` columns; `names` are what the plan calls the rows.
    fn run(
        &self,
        rule: Rule,
        questions: &Questions,
        width: usize,
        names: &[usize],
    ) -> LatentDecoded {
        let leaves = |row: usize, slot: usize, boundary: usize| told(names[row], slot, boundary);
        let rule = match rule {
            Rule::Full => ExitRule::Full,
            Rule::Above(threshold) => ExitRule::Routers {
                shortcuts: self.shortcuts,
                hosts: self.hosts,
                threshold,
            },
            Rule::Told { adapters } => ExitRule::Plan {
                shortcuts: adapters.then_some(self.shortcuts),
                leaves: &leaves,
            },
        };
        let prompt = prompt(questions, width, 3);
        latent(
            self.model,
            rule,
            self.key_values,
            &prompt,
            &self.plan(questions),
            &plain(),
        )
        .unwrap()
    }

    fn plan(&self, questions: &Questions) -> LatentDecoding<'_> {
        LatentDecoding {
            entry_position: self.entry_position,
            ..decoding(
                self.steps,
                &starts(questions),
                self.answer_start,
                self.landing,
            )
        }
    }

    fn alone(&self, rule: Rule, questions: &Questions, row: usize) -> Alone {
        let told = |slot: usize, boundary: usize| told(row, slot, boundary);
        let (leave, shortcuts) = match rule {
            Rule::Full => (Leave::Never, None),
            Rule::Above(threshold) => (Leave::Above(threshold), Some(self.shortcuts)),
            Rule::Told { adapters } => (Leave::Told(&told), adapters.then_some(self.shortcuts)),
        };
        alone(
            self.model,
            shortcuts,
            (leave, self.key_values),
            &questions[row],
            &self.plan(questions),
            row,
        )
    }
}

fn assert_states(what: &str, decoded: &LatentDecoded, row: usize, expected: &[Vec<f32>]) {
    assert_eq!(decoded.states.len(), expected.len(), "{what}");
    for (step, (found, expected)) in decoded.states.iter().zip(expected).enumerate() {
        let d_model = expected.len();
        let found = values(found.clone());
        for (found, expected) in found[row * d_model..].iter().zip(expected) {
            let near = (found - expected).abs() <= CLOSE;
            assert!(near, "{what}, after {step} slots: {found} and {expected}");
        }
    }
}

fn ranges(decoded: &LatentDecoded, row: usize) -> Vec<[usize; 2]> {
    let slots = decoded.rows[row].slots.iter();
    slots.map(|slot| [slot.enter, slot.leave]).collect()
}

/// Every question together with others, alone, with more pads, and by hand: one answer.
fn check(subject: &Subject<'_>, rule: Rule) -> LatentDecoded {
    let questions = five();
    let names: Vec<usize> = (0..questions.len()).collect();
    let together = subject.run(rule, &questions, 9, &names);
    let wider = subject.run(rule, &questions, 12, &names);
    for row in 0..questions.len() {
        let what = format!(
            "{:?}, {rule:?}, {:?}, {:?}, {:?}, row {row}",
            subject.model.backbone.config().family,
            subject.key_values,
            subject.landing,
            subject.entry_position
        );
        let expected = subject.alone(rule, &questions, row);
        let single = vec![questions[row].clone()];
        let one = subject.run(rule, &single, single[0].0.len(), &[row]);
        for (decoded, row) in [(&together, row), (&wider, row), (&one, 0)] {
            assert_eq!(ranges(decoded, row), expected.slots, "{what}");
            assert_eq!(decoded.rows[row].tokens, expected.tokens, "{what}");
            assert_states(&what, decoded, row, &expected.states);
        }
    }
    together
}

/// The kinds of slots that a staircase can have, counted.
#[derive(Debug, Default)]
struct Kinds {
    early: usize,
    no_layer: usize,
    finished_above_the_bottom: usize,
    in_full: usize,
}

impl Kinds {
    fn count(&mut self, decoded: &LatentDecoded) {
        for slot in decoded.rows.iter().flat_map(|row| &row.slots) {
            self.early += usize::from(slot.leave < LAYERS);
            self.no_layer += usize::from(slot.leave == slot.enter);
            self.finished_above_the_bottom += usize::from(slot.leave == LAYERS && slot.enter > 0);
            self.in_full += usize::from(slot.leave == LAYERS && slot.enter == 0);
        }
    }

    fn assert_all(&self) {
        let Self {
            early,
            no_layer,
            finished_above_the_bottom,
            in_full,
        } = self;
        for count in [early, no_layer, finished_above_the_bottom, in_full] {
            assert!(*count > 5, "{self:?}");
        }
    }
}

/// All rules with all ways of holding keys, of going on and of standing there.
fn check_all(rules: &[Rule]) {
    let mut kinds = Kinds::default();
    let mut tokens = Vec::new();
    for family in FAMILIES {
        for hidden in [0, 6] {
            let (model, shortcuts) = latent_model(family, 3, hidden);
            let hosts = shortcuts.routers_on_host();
            for key_values in KEY_VALUES {
                for (landing, entry_position) in ENTRIES {
                    let subject = Subject {
                        model: &model,
                        shortcuts: &shortcuts,
                        hosts: &hosts,
                        key_values,
                        landing,
                        entry_position,
                        answer_start: &[11, 4],
                        steps: 5,
                    };
                    for &rule in rules {
                        let decoded = check(&subject, rule);
                        kinds.count(&decoded);
                        tokens.extend(decoded.rows.into_iter().flat_map(|row| row.tokens));
                    }
                }
            }
        }
    }
    kinds.assert_all();
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 8, "a model that says one thing: {tokens:?}");
}

#[test]
fn routers_together_alone_and_by_hand() {
    check_all(&[
        Rule::Above(0.2),
        Rule::Above(0.5),
        Rule::Above(0.6),
        Rule::Above(0.8),
    ]);
}

#[test]
fn plans_together_alone_and_by_hand() {
    check_all(&[
        Rule::Told { adapters: true },
        Rule::Told { adapters: false },
    ]);
}

#[test]
fn full_steps_together_alone_and_by_hand() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 5, 0);
        for (steps, answer_start) in [(1, &[11, 4, 2][..]), (3, &[9]), (6, &[])] {
            let subject = Subject {
                model: &model,
                shortcuts: &shortcuts,
                hosts: &[],
                key_values: KeyValueRule::Holes,
                landing: Landing::SameBoundary,
                entry_position: EntryPosition::EveryEntry,
                answer_start,
                steps,
            };
            let decoded = check(&subject, Rule::Full);
            for row in &decoded.rows {
                assert_eq!(row.tokens[..answer_start.len()], *answer_start);
                assert!(row.slots.iter().all(|slot| slot.layer_calls() == LAYERS));
            }
        }
    }
}

/// A threshold that no gate exceeds, and a plan in which nobody leaves, are the plain student.
#[test]
fn nobody_leaving_is_the_full_walk_bit_for_bit() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 4, 0);
        let hosts = shortcuts.routers_on_host();
        let questions = five();
        let plan = decoding(4, &starts(&questions), &[11], Landing::SameBoundary);
        let prompt = prompt(&questions, 9, 0);
        for key_values in KEY_VALUES {
            let run = |rule| latent(&model, rule, key_values, &prompt, &plan, &plain()).unwrap();
            let full = run(ExitRule::Full);
            let bits = |decoded: &LatentDecoded| -> Vec<u32> {
                let states = decoded.states.iter();
                let states = states.flat_map(|state| values(state.clone()));
                states.map(f32::to_bits).collect()
            };
            for rule in [
                ExitRule::Routers {
                    shortcuts: &shortcuts,
                    hosts: &hosts,
                    threshold: 1.0,
                },
                ExitRule::Plan {
                    shortcuts: Some(&shortcuts),
                    leaves: &|_, _, _| false,
                },
            ] {
                let found = run(rule);
                assert_eq!(bits(&found), bits(&full));
                // No router was asked either.
                assert_eq!(found.rows, full.rows);
            }
            // Asked at every boundary below the top, by every slot but the last, without effect.
            let asked = run(ExitRule::Routers {
                shortcuts: &shortcuts,
                hosts: &hosts,
                threshold: 0.999_999,
            });
            assert_eq!(bits(&asked), bits(&full));
            for row in &asked.rows {
                let boundaries = |slot: usize| -> Vec<usize> {
                    let weights = row.slots[slot].weights.iter();
                    weights.map(|&(boundary, _)| boundary).collect()
                };
                for slot in 0..3 {
                    assert_eq!(boundaries(slot), [1, 2, 3]);
                }
                assert!(boundaries(3).is_empty());
            }
        }
    }
}

/// Nothing is read from the device before the answer where nobody has to decide; under routers once for
/// each place at which some row stood, however many rows did.
#[test]
fn deciding_costs_one_read_for_each_group_and_nothing_else_is_read() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 4, 0);
        let hosts = shortcuts.routers_on_host();
        let questions = five();
        let steps = 4;
        let plan = decoding(steps, &starts(&questions), &[11], Landing::SameBoundary);
        let prompt = prompt(&questions, 9, 0);
        let run = |rule| {
            let rule_of_keys = KeyValueRule::Holes;
            latent(&model, rule, rule_of_keys, &prompt, &plan, &plain()).unwrap()
        };
        let routers = |threshold: f64| ExitRule::Routers {
            shortcuts: &shortcuts,
            hosts: &hosts,
            threshold,
        };
        let planned = ExitRule::Plan {
            shortcuts: Some(&shortcuts),
            leaves: &told,
        };
        for rule in [ExitRule::Full, planned, routers(1.0)] {
            assert_eq!(run(rule).reads, 0);
        }
        // In step: all five rows stand at every boundary below the top of all but the last slot.
        assert_eq!(run(routers(0.999_999)).reads, (steps - 1) * (LAYERS - 1));
        for threshold in [0.0, 0.2, 0.5, 0.8] {
            let found = run(routers(threshold));
            let mut asked: Vec<(usize, usize)> = found
                .rows
                .iter()
                .flat_map(|row| row.slots.iter().enumerate())
                .flat_map(|(slot, trace)| trace.weights.iter().map(move |&(at, _)| (slot, at)))
                .collect();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(found.reads, asked.len(), "{family:?}, {threshold}");
        }
    }
}

/// The states with which rows left are kept, each once and under its row.
#[test]
fn states_that_were_handed_on_are_kept() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 3, 0);
        let questions = five();
        let plan = decoding(4, &starts(&questions), &[11], Landing::SameBoundary);
        let run = |questions: &Questions, names: &[usize]| {
            let leaves = |row: usize, slot: usize, at: usize| told(names[row], slot, at);
            let rule = ExitRule::Plan {
                shortcuts: Some(&shortcuts),
                leaves: &leaves,
            };
            let plan = decoding(4, &starts(questions), &[11], Landing::SameBoundary);
            let prompt = prompt(questions, 9, 0);
            latent(&model, rule, KeyValueRule::Holes, &prompt, &plan, &plain()).unwrap()
        };
        let together = run(&questions, &[0, 1, 2, 3, 4]);
        let mut early = 0;
        for (row, question) in questions.iter().enumerate() {
            let one = run(&vec![question.clone()], &[row]);
            for slot in 0..plan.latent_steps {
                let left = together.rows[row].slots[slot].leave < LAYERS;
                let found = together.handed_on(row, slot).map(values);
                let expected = one.handed_on(0, slot).map(values);
                assert_eq!((found.is_some(), expected.is_some()), (left, left));
                let pairs = found.iter().flatten().zip(expected.iter().flatten());
                for (found, expected) in pairs {
                    // States within the layers are up to ten times as long as normed ones.
                    assert!((found - expected).abs() < 10.0 * CLOSE);
                }
                early += usize::from(left);
            }
        }
        assert!(early > 5, "{early}");
    }
}

/// Slots that hand a state on without running a layer.
#[test]
fn slots_may_run_no_layer() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 6, 0);
        let questions = five();
        let prompt = prompt(&questions, 9, 0);
        let plan = decoding(5, &starts(&questions), &[11], Landing::SameBoundary);
        // Row 0 never leaves; the others all leave at boundary 2 until the last slot.
        let leaves = |row: usize, _: usize, boundary: usize| row > 0 && boundary == 2;
        for key_values in KEY_VALUES {
            let rule = ExitRule::Plan {
                shortcuts: Some(&shortcuts),
                leaves: &leaves,
            };
            let found = latent(&model, rule, key_values, &prompt, &plan, &plain()).unwrap();
            assert_eq!(ranges(&found, 0), [[0, LAYERS]; 5]);
            for (row, question) in questions.iter().enumerate().skip(1) {
                assert_eq!(
                    ranges(&found, row),
                    [[0, 2], [2, 2], [2, 2], [2, 2], [2, 4]]
                );
                let calls = found.rows[row].slots.iter().map(|slot| slot.layer_calls());
                assert_eq!(calls.sum::<usize>(), LAYERS);
                let told = |slot: usize, boundary: usize| leaves(row, slot, boundary);
                let rule = (Leave::Told(&told), key_values);
                let expected = alone(&model, Some(&shortcuts), rule, question, &plan, row);
                assert_eq!(found.rows[row].tokens, expected.tokens);
                assert_states("no layer", &found, row, &expected.states);
            }
        }
    }
}

/// Two slots with one exit between them: one traversal of the layers, one layer less where the
/// adapter stands in for it.
#[test]
fn an_exit_costs_what_its_landing_says() {
    let (model, shortcuts) = latent_model(Family::Gpt2, 2, 0);
    let questions = questions(&[3], &[0]);
    for (landing, calls) in LANDINGS.into_iter().zip([LAYERS, LAYERS - 1]) {
        let plan = decoding(2, &starts(&questions), &[], landing);
        let rule = ExitRule::Plan {
            shortcuts: Some(&shortcuts),
            leaves: &|_, _, boundary| boundary == 1,
        };
        let prompt = prompt(&questions, 3, 0);
        let found = latent(&model, rule, KeyValueRule::Holes, &prompt, &plan, &plain()).unwrap();
        let slots = found.rows[0].slots.iter().map(|slot| slot.layer_calls());
        assert_eq!(slots.sum::<usize>(), calls);
    }
}

/// A learned position is added above the bottom or not; a rotary one is not there to be added.
#[test]
fn a_position_is_added_on_entering_only_where_asked_and_learned() {
    for family in FAMILIES {
        let (model, shortcuts) = latent_model(family, 3, 0);
        let questions = five();
        let leaves = |_: usize, slot: usize, boundary: usize| slot == 1 && boundary == 2;
        let rule = ExitRule::Plan {
            shortcuts: Some(&shortcuts),
            leaves: &leaves,
        };
        let states = [EntryPosition::EveryEntry, EntryPosition::CycleStart].map(|entry_position| {
            let plan = LatentDecoding {
                entry_position,
                ..decoding(3, &starts(&questions), &[11], Landing::SameBoundary)
            };
            let prompt = prompt(&questions, 9, 0);
            let found = latent(&model, rule, KeyValueRule::Holes, &prompt, &plan, &plain());
            let states = found.unwrap().states.into_iter();
            states.map(values).collect::<Vec<_>>()
        });
        // The third slot is the only one that enters above the bottom.
        assert_eq!(states[0][..3], states[1][..3], "{family:?}");
        assert_eq!(states[0][3] != states[1][3], family == Family::Gpt2);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (model, shortcuts) = latent_model(Family::Gpt2, 1, 0);
    let hosts = shortcuts.routers_on_host();
    let questions = questions(&[2, 3], &[0, 0]);
    let asked = prompt(&questions, 3, 0);
    let good = || decoding(3, &starts(&questions), &[1], Landing::SameBoundary);
    let refuse = |rule: ExitRule<'_>, prompt: &Prompt, plan: LatentDecoding<'_>| {
        latent(&model, rule, KeyValueRule::Holes, prompt, &plan, &plain()).unwrap_err()
    };
    type Spoil = fn(&mut LatentDecoding<'_>);
    let plans: [(Spoil, &str); 9] = [
        (
            |plan| plan.latent_steps = 4,
            "3 slot positions where there should be 4",
        ),
        (
            |plan| plan.slot_positions.truncate(1),
            "1 rows of slot positions where there should be 2",
        ),
        (
            |plan| plan.slot_positions[1].truncate(2),
            "2 slot positions where there should be 3",
        ),
        (
            |plan| plan.slot_positions[1][2] = 64,
            "slot position 64 of row 1 is outside 0..64",
        ),
        (
            |plan| plan.slot_positions[0][0] = -1,
            "slot position -1 of row 0",
        ),
        (
            |plan| plan.answer_position.push(3),
            "3 answer positions where there should be 2",
        ),
        (
            |plan| plan.answer_position[1] = 64,
            "answer position 64 of row 1 is outside 0..64",
        ),
        (
            |plan| plan.answer_position[1] = -2,
            "answer position -2 of row 1",
        ),
        (
            |plan| plan.answer_start = &[1, VOCABULARY as u32],
            "token 20",
        ),
    ];
    for (spoil, expected) in plans {
        let mut plan = good();
        spoil(&mut plan);
        let message = refuse(ExitRule::Full, &asked, plan).to_string();
        assert!(message.contains(expected), "{message}");
    }
    let routers = ExitRule::Routers {
        shortcuts: &shortcuts,
        hosts: &hosts[1..],
        threshold: 0.5,
    };
    assert_eq!(
        refuse(routers, &asked, good()),
        PromptError::Length {
            what: "routers",
            found: 3,
            expected: 4
        }
    );
    let mut empty = asked.clone();
    empty.real[..3].fill(false);
    assert_eq!(
        refuse(ExitRule::Full, &empty, good()),
        PromptError::Empty { row: 0 }
    );
}

/// An answer at the end of the context, and one that has no room at all.
#[test]
fn answers_end_with_the_context() {
    let (model, _) = latent_model(Family::Gpt2, 1, 0);
    let questions = questions(&[2, 3, 1], &[0, 0, 0]);
    let asked = prompt(&questions, 3, 0);
    let plan = LatentDecoding {
        answer_position: vec![60, 63, 64],
        decoding: Decoding {
            stop: 1_000,
            max_tokens: 9,
        },
        ..decoding(2, &starts(&questions), &[], Landing::SameBoundary)
    };
    let rule = ExitRule::Full;
    let found = latent(&model, rule, KeyValueRule::Holes, &asked, &plan, &plain()).unwrap();
    let lengths: Vec<usize> = found.rows.iter().map(|row| row.tokens.len()).collect();
    assert_eq!(lengths, [4, 1, 0]);
}
