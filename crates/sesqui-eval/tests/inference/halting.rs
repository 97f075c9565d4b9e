//! Stopping before the last latent step: where it must change nothing, what it costs, and that a row does
//! not depend on those beside it.

use burn::tensor::Tensor;
use sesqui_dataset::AnswerKind;
use sesqui_eval::{EvaluationConfig, LatentMethod, Method, Response, enumerate, evaluate};
use sesqui_model::latent::{Continuation, SlotPositions};
use sesqui_model::{Family, Feedback, KvCache, LatentTransformer, Transformer, Visibility};
use sesqui_reason::halt::{EntropyRule, Gain, LearnedRule, Over, Pick, Probe, SamplesRule};
use sesqui_reason::{
    Decoding, HaltConfig, HaltTrace, LatentDecoded, Prompt, PromptError, Refinement,
};
use sesqui_shortcut::{
    EntryPosition, ExitRule, HostRouter, KeyValueRule, Landing, Shortcuts, StepHead,
};

use crate::alone::{LAYERS, latent_model};
use crate::by_hand::{bits, search};
use crate::support::{
    Exercises, FAMILIES, Questions, VOCABULARY, integers, plain, prompt, questions, shape, values,
};

const STEPS: usize = 5;
const OPENING: &[u32] = &[11, 4];
const POSITIONS: SlotPositions = SlotPositions::Strided {
    offset: 1,
    stride: 2,
};

fn five() -> Questions {
    questions(&[1, 9, 4, 5, 2], &[0, 0, 0, 3, 6])
}

fn asked() -> Prompt {
    prompt(&five(), 9, 3)
}

/// A model with all that it may be asked with.
struct Subject {
    model: LatentTransformer,
    shortcuts: Shortcuts,
    hosts: Vec<HostRouter>,
    device: burn::tensor::Device,
}

impl Subject {
    fn new(family: Family, seed: u64) -> Self {
        let (model, shortcuts) = latent_model(family, seed, 0);
        Self {
            model,
            hosts: shortcuts.routers_on_host(),
            shortcuts,
            device: plain(),
        }
    }

    fn rules(&self) -> [ExitRule<'_>; 3] {
        let routers = |threshold| ExitRule::Routers {
            shortcuts: &self.shortcuts,
            hosts: &self.hosts,
            threshold,
        };
        [ExitRule::Full, routers(0.55), routers(1.0)]
    }

    fn method<'a>(&'a self, rule: ExitRule<'a>, halt: &'a HaltConfig) -> LatentMethod<'a> {
        LatentMethod {
            model: &self.model,
            device: &self.device,
            latent_steps: STEPS,
            order: sesqui_model::LatentOrder::Sequential,
            trained_latents: 0,
            positions: POSITIONS,
            rule,
            key_values: KeyValueRule::Holes,
            landing: Landing::SameBoundary,
            entry_position: EntryPosition::EveryEntry,
            refinement: None,
            halt: (halt, None),
            continuation: Continuation::Answer,
            answer_start: OPENING,
            decoding: Decoding {
                stop: 7,
                max_tokens: 4,
            },
        }
    }
}

fn entropy(threshold: f64) -> HaltConfig {
    HaltConfig::Entropy(EntropyRule {
        threshold,
        ..EntropyRule::default()
    })
}

fn samples(samples: usize, noise: f64, threshold: f64) -> HaltConfig {
    HaltConfig::Samples(SamplesRule {
        samples,
        noise,
        threshold,
        ..SamplesRule::default()
    })
}

fn probes(decoded: &LatentDecoded, row: usize) -> &[Probe] {
    match &decoded.rows[row].halt {
        HaltTrace::Probes(probes) => probes,
        other => panic!("{other:?}"),
    }
}

fn ranges(decoded: &LatentDecoded, row: usize) -> Vec<[usize; 2]> {
    let slots = decoded.rows[row].slots.iter();
    slots.map(|slot| [slot.enter, slot.leave]).collect()
}

/// Operations of one layer for one position that sees `keys` keys, and of the head.
fn layer(family: Family, keys: usize) -> f64 {
    let (joint, width, matrices) = match family {
        Family::Gpt2 => (48, 64, 2),
        Family::Llama => (32, 48, 3),
    };
    let maps = 2 * 16 * joint + 2 * 16 * 16 + matrices * 2 * 16 * width;
    (maps + 4 * 16 * keys) as f64
}

const HEAD: f64 = (2 * 16 * VOCABULARY) as f64;

/// What running `fed` tokens after `steps` steps costs where every step ran all layers.
fn tokens_after(family: Family, question: usize, steps: usize, fed: usize) -> f64 {
    let keys = (1..=fed).map(|token| question + steps + token);
    keys.map(|keys| LAYERS as f64 * layer(family, keys)).sum()
}

#[test]
fn looking_without_stopping_changes_no_bit_and_costs_what_it_ran() {
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        for rule in subject.rules() {
            let never = HaltConfig::Never;
            let usual = subject.method(rule, &never);
            let expected = usual.decode(&asked()).unwrap();
            for halt in [
                entropy(-1.0),
                HaltConfig::Entropy(EntropyRule {
                    threshold: 0.0,
                    over: Over::Top { tokens: 5 },
                    gain: Gain::Below {
                        min_gain: -50.0,
                        patience: 1,
                    },
                    start: 1,
                }),
            ] {
                let method = subject.method(rule, &halt);
                let found = method.decode(&asked()).unwrap();
                assert_eq!(bits(&found.states), bits(&expected.states));
                let costs = |method: &LatentMethod<'_>, decoded: &LatentDecoded| -> Vec<Response> {
                    method.responses(&asked(), decoded.clone()).rows
                };
                let before = costs(&usual, &expected);
                let after = costs(&method, &found);
                for row in 0..5 {
                    let (found_row, expected_row) = (&found.rows[row], &expected.rows[row]);
                    assert_eq!(found_row.tokens, expected_row.tokens);
                    assert_eq!(found_row.slots, expected_row.slots);
                    // A look after every step but the last that came to the top.
                    let tops = (1..STEPS).filter(|step| found_row.slots[step - 1].leave == LAYERS);
                    let looks: Vec<usize> = probes(&found, row).iter().map(|p| p.after).collect();
                    assert_eq!(looks, tops.collect::<Vec<_>>());

                    let (before, after) = (&before[row], &after[row]);
                    let calls = looks.len() * OPENING.len() * LAYERS;
                    assert_eq!(after.probe_layer_calls, calls);
                    assert_eq!(after.layer_calls, before.layer_calls + calls);
                    assert_eq!(after.latent_steps, STEPS);
                    assert_eq!(after.flops - before.flops, after.probe_flops);
                    if matches!(rule, ExitRule::Full) {
                        let question = five()[row].0.len();
                        let run =
                            |&steps: &usize| tokens_after(family, question, steps, OPENING.len());
                        let layers: f64 = looks.iter().map(run).sum();
                        assert_eq!(after.reason_flops - before.reason_flops, layers);
                        assert_eq!(after.probe_flops, layers + 4.0 * HEAD);
                    }
                }
            }
        }
    }
}

#[test]
fn whoever_is_sure_at_once_takes_one_step() {
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        let never = HaltConfig::Never;
        for (trained, start) in [(0, 1), (STEPS, 1), (STEPS, 3)] {
            let halt = HaltConfig::Entropy(EntropyRule {
                threshold: f64::INFINITY,
                start,
                ..EntropyRule::default()
            });
            let with = |steps: usize, halt| LatentMethod {
                latent_steps: steps,
                order: sesqui_model::LatentOrder::Sequential,
                trained_latents: trained,
                ..subject.method(ExitRule::Full, halt)
            };
            let (short, halting) = (with(start, &never), with(STEPS, &halt));
            let expected = short.respond(&asked()).unwrap();
            let found = halting.respond(&asked()).unwrap();
            for (found, expected) in found.rows.iter().zip(&expected.rows) {
                assert_eq!(found.tokens, expected.tokens);
                assert_eq!(found.latent_steps, start);
                let look = OPENING.len() * LAYERS;
                assert_eq!(found.layer_calls, expected.layer_calls + look);
                assert_eq!(found.flops, expected.flops + found.probe_flops);
            }
        }
    }
}

/// Together, wider and alone: the same steps, the same answers, what was seen but for rounding; rows that
/// stop early beside rows that go on.
#[test]
fn a_row_stops_by_itself() {
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        for rule in subject.rules() {
            let looking = entropy(-1.0);
            let seen = subject.method(rule, &looking).decode(&asked()).unwrap();
            let mut all: Vec<f64> = (0..5)
                .flat_map(|row| probes(&seen, row).iter().map(|probe| probe.entropy))
                .collect();
            all.sort_by(f64::total_cmp);
            // Between two values, so that rounding decides nothing.
            let middle = all.len() / 3;
            let halt = entropy((all[middle] + all[middle + 1]) / 2.0);
            assert!(
                all[middle + 1] - all[middle] > 1e-4,
                "another place: {all:?}"
            );
            let method = subject.method(rule, &halt);
            let together = method.decode(&asked()).unwrap();
            let wider = method.decode(&prompt(&five(), 12, 3)).unwrap();
            let mut counts = Vec::new();
            for row in 0..5 {
                let single = vec![five()[row].clone()];
                let one = method
                    .decode(&prompt(&single, single[0].0.len(), 3))
                    .unwrap();
                for (other, place) in [(&wider, row), (&one, 0)] {
                    assert_eq!(ranges(&together, row), ranges(other, place));
                    assert_eq!(together.rows[row].tokens, other.rows[place].tokens);
                    let pairs = probes(&together, row).iter().zip(probes(other, place));
                    for (here, there) in pairs {
                        assert_eq!(here.after, there.after);
                        assert!((here.entropy - there.entropy).abs() < 1e-4);
                    }
                }
                counts.push(together.rows[row].slots.len());
                // Nobody stops inside the layers.
                assert_eq!(ranges(&together, row).last().unwrap()[1], LAYERS);
                // Until it stops it does what it does without stopping.
                let usual = ranges(&seen, row);
                assert_eq!(ranges(&together, row), usual[..counts[row]]);
            }
            assert!(counts.iter().any(|&n| n < STEPS), "{counts:?}");
            assert!(counts.iter().any(|n| *n != counts[0]), "{counts:?}");
        }
    }
}

/// Question, latents as they were fed, and the tokens that open the answer, in one pass without a cache.
#[test]
fn entropies_are_those_of_the_whole_sequence() {
    for family in FAMILIES {
        let subject = Subject::new(family, 5);
        let halt = entropy(-1.0);
        let found = subject
            .method(ExitRule::Full, &halt)
            .decode(&asked())
            .unwrap();
        let backbone = &subject.model.backbone;
        for (row, (ids, at)) in five().iter().enumerate() {
            let start = at.last().unwrap() + 1;
            for probe in probes(&found, row) {
                let embed = |ids: &[i32]| {
                    backbone.token_embeddings(integers(ids, [1, ids.len()], &plain()))
                };
                let mut inputs = vec![embed(ids)];
                let mut positions = at.clone();
                for slot in 0..probe.after {
                    let fed = found.states[slot].clone().narrow(0, row, 1);
                    inputs.push(subject.model.latent_embeddings(fed));
                    positions.push(POSITIONS.slot_position(start, slot));
                }
                inputs.push(embed(&[11, 4]));
                let first = POSITIONS.answer_position(start, probe.after);
                positions.extend([first, first + 1]);
                let length = positions.len();
                let logits = backbone.forward_embeddings(
                    Tensor::cat(inputs, 1),
                    integers(&positions, [1, length], &plain()),
                    Visibility::causal(length, &plain()),
                );
                let logits = values(logits.narrow(1, length - 1, 1));
                let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let terms = weights.iter().map(|weight| weight / sum);
                let expected: f64 = terms.map(|share| -share * share.ln()).sum();
                assert!(
                    (probe.entropy - expected).abs() < 1e-4,
                    "{probe:?}: {expected}"
                );
            }
        }
    }
}

/// A head that says something else for every question.
fn head(steps: usize) -> StepHead {
    let config = crate::alone::deep(Family::Gpt2);
    let mut head = StepHead::new(6, steps, &config, 2, &plain());
    head.output.weight = head.output.weight.map(|weight| {
        let shape = weight.dims();
        let noise = (0..shape[0] * shape[1])
            .map(|i| ((i as f32 * 12.9898).sin() * 43_758.547).fract() * 2.0);
        let data = burn::tensor::TensorData::new(noise.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, &plain())
    });
    head
}

#[test]
fn a_head_picks_the_number_of_steps() {
    let mut counts = Vec::new();
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        let (never, head) = (HaltConfig::Never, head(STEPS));
        let host = head.on_host();
        for rule in subject.rules() {
            for pick in [Pick::Likeliest, Pick::Cumulative { probability: 0.7 }] {
                let halt = HaltConfig::Learned(LearnedRule { pick });
                let method = LatentMethod {
                    halt: (&halt, Some(&host)),
                    ..subject.method(rule, &never)
                };
                let decoded = method.decode(&asked()).unwrap();
                let found = method.responses(&asked(), decoded.clone()).rows;
                // On tensors, from the state of the question's last token.
                let logits = head.logits(decoded.states[0].clone());
                let expected = values(burn::tensor::activation::softmax(logits, 2));
                for row in 0..5 {
                    let HaltTrace::Predicted {
                        steps,
                        probabilities,
                    } = &decoded.rows[row].halt
                    else {
                        panic!("{:?}", decoded.rows[row].halt);
                    };
                    for (one, other) in probabilities.iter().zip(&expected[row * STEPS..]) {
                        assert!((one - f64::from(*other)).abs() < 1e-5);
                    }
                    assert_eq!(*steps, pick.steps(probabilities));
                    counts.push(*steps);
                    let fixed = LatentMethod {
                        latent_steps: *steps,
                        ..subject.method(rule, &never)
                    };
                    let expected = &fixed.respond(&asked()).unwrap().rows[row];
                    assert_eq!(found[row].tokens, expected.tokens);
                    assert_eq!(found[row].latent_steps, *steps);
                    assert_eq!(found[row].layer_calls, expected.layer_calls);
                    let around = 2.0 * (16.0 * 6.0 + 6.0 * STEPS as f64);
                    assert_eq!(found[row].probe_flops, around);
                    assert_eq!(found[row].flops, expected.flops + around);
                }
                // No more than there are.
                let few = LatentMethod {
                    latent_steps: 1,
                    ..method
                };
                let few = few.respond(&asked()).unwrap();
                assert!(few.rows.iter().all(|row| row.latent_steps == 1));
            }
        }
    }
    assert!(counts.iter().any(|n| *n != counts[0]), "{counts:?}");
}

#[test]
fn samples_without_noise_are_the_plain_answer_several_times() {
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        let never = HaltConfig::Never;
        for rule in subject.rules() {
            // They always agree, so that only a threshold below 0 lets them go on.
            for (threshold, steps) in [(-1.0, STEPS), (0.0, 1)] {
                let halt = samples(3, 0.0, threshold);
                let method = subject.method(rule, &halt);
                let decoded = method.decode(&asked()).unwrap();
                let found = method.responses(&asked(), decoded.clone()).rows;
                let plain = LatentMethod {
                    latent_steps: steps,
                    ..subject.method(rule, &never)
                };
                let expected = plain.respond(&asked()).unwrap().rows;
                for row in 0..5 {
                    let HaltTrace::Samples(trace) = &decoded.rows[row].halt else {
                        panic!("{:?}", decoded.rows[row].halt);
                    };
                    assert!(trace.rounds.iter().all(|round| round.entropy == 0.0));
                    assert_eq!(trace.winner, 0);
                    if steps == 1 && !matches!(rule, ExitRule::Full) {
                        // A last step runs to the top, one that is not may leave.
                        continue;
                    }
                    assert_eq!(found[row].tokens, expected[row].tokens);
                    assert_eq!(found[row].latent_steps, 3 * steps);
                    let asked: usize = trace
                        .rounds
                        .iter()
                        .filter(|round| round.decides)
                        .map(|round| 3 * LAYERS * round.answers[0].tokens.len())
                        .sum();
                    assert_eq!(found[row].probe_layer_calls, asked);
                    let walked = 3 * expected[row].layer_calls;
                    assert_eq!(found[row].layer_calls, walked + asked);
                    if steps == STEPS {
                        // One question, three trajectories, three answers.
                        let question = five()[row].0.len();
                        let read: f64 = (1..=question)
                            .map(|keys| LAYERS as f64 * layer(family, keys))
                            .sum();
                        let rest = 3.0 * (expected[row].flops - read);
                        assert_eq!(found[row].flops, read + rest + found[row].probe_flops);
                    }
                }
            }
        }
    }
}

/// With noise: what a question does is its own, in every batch.
#[test]
fn noisy_samples_are_the_same_in_every_batch() {
    let mut entropies = Vec::new();
    for family in FAMILIES {
        let subject = Subject::new(family, 3);
        for rule in subject.rules() {
            let halt = samples(4, 2.0, 0.3);
            let method = subject.method(rule, &halt);
            let trace = |decoded: &LatentDecoded, row: usize| match &decoded.rows[row].halt {
                HaltTrace::Samples(trace) => trace.clone(),
                other => panic!("{other:?}"),
            };
            let together = method.decode(&asked()).unwrap();
            assert_eq!(
                bits(&together.states),
                bits(&method.decode(&asked()).unwrap().states)
            );
            for row in 0..5 {
                let single = vec![five()[row].clone()];
                let one = method.decode(&prompt(&single, 10, 3)).unwrap();
                assert_eq!(trace(&together, row).rounds, trace(&one, 0).rounds);
                assert_eq!(ranges(&together, row), ranges(&one, 0));
                let found = trace(&together, row);
                let last = found.rounds.last().unwrap();
                assert_eq!(together.rows[row].tokens, last.answers[found.winner].tokens);
                let steps = together.rows[row].slots.len();
                assert_eq!(last.after, steps);
                assert!(last.entropy <= 0.3 || steps == STEPS);
                entropies.extend(found.rounds.iter().map(|round| round.entropy));
            }
        }
    }
    let differing = entropies.iter().any(|entropy| *entropy > 0.0);
    assert!(differing, "noise that changes no answer: {entropies:?}");
}

#[test]
fn halting_goes_with_refinement_but_for_samples() {
    let subject = Subject::new(Family::Llama, 3);
    let references = crate::by_hand::references(Family::Llama, 21, 22);
    let config = search(|_| ());
    let refinement = Refinement {
        config: &config,
        references: Some(&references),
        calibration: None,
    };
    let never = HaltConfig::Never;
    let run = |halt: &HaltConfig, steps: usize| {
        let method = LatentMethod {
            latent_steps: steps,
            refinement: Some(refinement),
            ..subject.method(ExitRule::Full, halt)
        };
        method.decode(&asked())
    };
    let expected = run(&never, STEPS).unwrap();
    let found = run(&entropy(-1.0), STEPS).unwrap();
    assert_eq!(bits(&found.states), bits(&expected.states));
    for (found, expected) in found.rows.iter().zip(&expected.rows) {
        assert_eq!(
            (&found.tokens, found.auxiliary),
            (&expected.tokens, expected.auxiliary)
        );
    }
    let short = run(&never, 1).unwrap();
    let stopped = run(&entropy(f64::INFINITY), STEPS).unwrap();
    for (stopped, short) in stopped.rows.iter().zip(&short.rows) {
        assert_eq!((&stopped.tokens, stopped.slots.len()), (&short.tokens, 1));
    }
    let error = run(&samples(2, 0.1, 0.0), STEPS).unwrap_err().to_string();
    assert_eq!(
        error,
        "halting: samples cannot be refined; leave out one of the two"
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let subject = Subject::new(Family::Gpt2, 3);
    let over = |ids: Vec<u32>| {
        HaltConfig::Entropy(EntropyRule {
            over: Over::Tokens { ids },
            ..EntropyRule::default()
        })
    };
    for (halt, expected) in [
        (
            HaltConfig::Learned(LearnedRule::default()),
            "it needs a trained head",
        ),
        (over(vec![3, 20]), "over.ids: the model has no token 20"),
        (samples(0, 0.1, 0.0), "samples: must be at least 1"),
    ] {
        let error = subject.method(ExitRule::Full, &halt).decode(&asked());
        assert_eq!(
            error.unwrap_err(),
            PromptError::Halting(expected.to_owned())
        );
    }
}

/// Every number of steps against a loop of evaluations; some questions are answered rightly by what the
/// model happens to say, one never.
#[test]
fn the_smallest_sufficient_number_of_steps_is_found() {
    let mut exercises = Exercises::new(6);
    let backbone = Transformer::new(
        &crate::alone::deep(Family::Gpt2),
        exercises.tokenizer.vocab_size(),
        4,
        &plain(),
    )
    .unwrap();
    assert_eq!(backbone.config().d_model, shape(Family::Gpt2, 64).d_model);
    let model = LatentTransformer::new(backbone, &Feedback::Linear { scale: 2.0 }, 0, &plain());
    let (device, never) = (plain(), HaltConfig::Never);
    let opening = exercises.encoded[0].answer_start.clone();
    let stop = exercises.tokenizer.eos_id();
    let with = |steps: usize| LatentMethod {
        model: &model,
        device: &device,
        latent_steps: steps,
        order: sesqui_model::LatentOrder::Sequential,
        trained_latents: 0,
        positions: SlotPositions::Contiguous,
        rule: ExitRule::Full,
        key_values: KeyValueRule::Holes,
        landing: Landing::SameBoundary,
        entry_position: EntryPosition::EveryEntry,
        refinement: None,
        halt: (&never, None),
        continuation: Continuation::Answer,
        answer_start: &opening,
        decoding: Decoding {
            stop,
            max_tokens: 3,
        },
    };
    let config = EvaluationConfig {
        batch_size: 4,
        timing_questions: 0,
        ..EvaluationConfig::default()
    };
    for problem in &mut exercises.problems {
        problem.answer_kind = AnswerKind::Choice;
    }
    let said: Vec<Vec<Option<String>>> = (1..=3)
        .map(|steps| {
            let found = evaluate(&with(steps), exercises.task(), &config, &mut |_| ()).unwrap();
            found.rows.into_iter().map(|row| row.predicted).collect()
        })
        .collect();
    for (index, problem) in exercises.problems.iter_mut().enumerate() {
        let answer = said[index % 3][index].clone();
        problem.answer = match index {
            5 => "nothing of the kind".to_owned(),
            _ => answer.unwrap_or_default(),
        };
    }
    let mut smallest = vec![3; 6];
    let mut right = Vec::new();
    for steps in (1..=3).rev() {
        let found = evaluate(&with(steps), exercises.task(), &config, &mut |_| ()).unwrap();
        right.insert(0, found.correct());
        for (row, smallest) in found.rows.iter().zip(&mut smallest) {
            if row.correct {
                *smallest = steps;
            }
        }
    }
    for batch_size in [1, 4, 6] {
        let mut heard = 0;
        let task = exercises.task();
        let method = with(2);
        let found = enumerate(&method, &task, 3, batch_size, &mut |done| heard = done).unwrap();
        assert_eq!((&found.smallest, &found.right), (&smallest, &right));
        assert!(found.unsolved >= 1 && found.smallest[5] == 3);
        assert_eq!(heard, 18);
        let states = with(1).decode(&task.prompt(0..6).unwrap()).unwrap().states;
        for (one, other) in found.states.iter().zip(values(states[0].clone())) {
            assert!((one - other).abs() < 1e-5);
        }
        assert_eq!(found.states.len(), 6 * 16);
    }
    assert!(
        smallest.contains(&2) && smallest.contains(&3),
        "{smallest:?}"
    );
}

/// What is run in a copy of some rows, one of them twice, is what the rows themselves would have run, and
/// the cache goes on as if there had been no copy.
#[test]
fn a_forked_cache_is_the_same_and_leaves_the_other_alone() {
    for family in FAMILIES {
        let model = crate::support::model(family, 64, 3, &plain());
        let layers = || 0..model.layers.len();
        let run = |cache: &mut KvCache, ids: &[i32], at: i32| {
            let batch = ids.len();
            let at = integers(&vec![at; batch], [batch, 1], &plain());
            let hidden = model.embed(integers(ids, [batch, 1], &plain()), at.clone());
            let hidden = model.run_layers_cached(layers(), hidden, at, &vec![true; batch], cache);
            values(hidden)
        };
        let mut cache = KvCache::new(model.config(), 3, 8, &plain());
        run(&mut cache, &[1, 2, 3], 0);
        run(&mut cache, &[4, 5, 6], 1);
        let mut usual = cache.clone();
        let mut fork = cache.fork(&[2, 0, 2], 2, &plain());
        assert_eq!((fork.batch(), fork.lengths()), (3, cache.lengths()));
        let before = cache.lengths();
        let found = run(&mut fork, &[7, 8, 7], 2);
        run(&mut fork, &[9, 9, 9], 3);
        assert_eq!(cache.lengths(), before);
        let expected = run(&mut usual, &[8, 0, 7], 2);
        let width = model.config().d_model;
        for (row, other) in [(0, 2), (1, 0), (2, 2)] {
            let pairs = found[row * width..][..width]
                .iter()
                .zip(&expected[other * width..]);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4));
        }
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(run(&mut cache, &[8, 0, 7], 2)), bits(expected));
        // Without room for more it can still be read.
        assert_eq!(cache.fork(&[1], 0, &plain()).visible(0), [3, 3]);
    }
}
