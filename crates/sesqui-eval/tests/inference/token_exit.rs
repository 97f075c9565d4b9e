//! Tokens that do not run all layers, against one row at a time without any cache.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use sesqui_eval::{Method, TokenDecoding};
use sesqui_model::{Family, Initialization, ModelConfig, Transformer, Visibility};
use sesqui_reason::token_exit::{Drafts, decode};
use sesqui_reason::{DecodedRow, Decoding, ExitRow, TokenExit, TokenRun, greedy};

use crate::costs::layer as operations;
use crate::support::{
    FAMILIES, Questions, VOCABULARY, integers, plain, prompt, questions, shape, values,
};

const LAYERS: usize = 4;
/// A token that nothing generates.
const NEVER: u32 = 1_000;

/// Four layers, which say the same as those below them now and then.
fn model(family: Family, context: usize, seed: u64) -> Transformer {
    let config = ModelConfig {
        layers: LAYERS,
        initialization: Initialization::Scaled {
            embedding: 1.0,
            matrix: 1.0,
        },
        ..shape(family, context)
    };
    Transformer::new(&config, VOCABULARY, seed, &plain()).unwrap()
}

/// Numbers below `end` (SplitMix64, Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// One row that is decoded without a cache.
struct Alone<'a> {
    model: &'a Transformer,
    question: &'a (Vec<i32>, Vec<i32>),
    decoding: Decoding,
}

impl Alone<'_> {
    /// Text and positions after the question and `tokens`.
    fn text(&self, tokens: &[u32]) -> (Vec<i32>, Vec<i32>) {
        let (mut ids, mut positions) = self.question.clone();
        let start = positions.last().unwrap() + 1;
        ids.extend(tokens.iter().map(|&token| token as i32));
        positions.extend((0..tokens.len() as i32).map(|place| start + place));
        (ids, positions)
    }

    /// The likeliest token after `tokens`, by the state after the first `layers` layers.
    fn says(&self, layers: usize, tokens: &[u32]) -> u32 {
        let (ids, positions) = self.text(tokens);
        let shape = [1, ids.len()];
        let positions = integers(&positions, shape, &plain());
        let context = self
            .model
            .context(positions.clone(), Visibility::causal(shape[1], &plain()));
        let embedded = self.model.embed(integers(&ids, shape, &plain()), positions);
        let hidden = self.model.run_layers(0..layers, embedded, &context);
        let last = hidden.narrow(1, shape[1] - 1, 1);
        read(self.model, last).0
    }

    fn most(&self) -> usize {
        let start = self.question.1.last().unwrap() + 1;
        let positions = self.model.config().context - start as usize;
        self.decoding.max_tokens.min(positions)
    }

    /// Every token by the first `layers` layers.
    fn fixed(&self, layers: usize) -> DecodedRow {
        let mut row = DecodedRow::default();
        loop {
            let token = self.says(layers, &row.tokens);
            if token == self.decoding.stop {
                row.stopped = true;
            }
            if row.stopped || row.tokens.len() == self.most() {
                return row;
            }
            row.tokens.push(token);
        }
    }

    /// Drafts by the first `layers` layers, at most `drafts` at a time, all of them said again by all layers.
    fn speculative(&self, layers: usize, drafts: usize) -> ExitRow {
        let whole = TokenRun {
            layers: LAYERS,
            filled: 0,
            heads: 1,
        };
        let mut row = ExitRow {
            decoded: DecodedRow::default(),
            question_end: whole,
            runs: Vec::new(),
            chosen_after: vec![0],
            drafts: Drafts::default(),
        };
        let mut next = self.says(LAYERS, &[]);
        for round in 1.. {
            let tokens = &mut row.decoded.tokens;
            if next == self.decoding.stop {
                row.decoded.stopped = true;
            }
            if row.decoded.stopped || tokens.len() == self.most() {
                break;
            }
            tokens.push(next);
            let place = tokens.len() - 1;
            let mut said = tokens.clone();
            let mut drafted = Vec::new();
            while drafted.len() < drafts.min(self.most() - tokens.len()) {
                let draft = self.says(layers, &said);
                drafted.push(draft);
                if draft == self.decoding.stop {
                    break;
                }
                said.push(draft);
            }
            for offset in 0..said.len() - place {
                let heads = 1 + usize::from(offset < drafted.len());
                row.runs.push((place + offset, TokenRun { heads, ..whole }));
            }
            row.drafts.drafted += drafted.len();
            row.chosen_after.push(round);
            next = self.says(LAYERS, tokens);
            for draft in drafted {
                if draft != next {
                    break;
                }
                row.drafts.accepted += 1;
                if draft == self.decoding.stop {
                    break;
                }
                tokens.push(draft);
                row.chosen_after.push(round);
                next = self.says(LAYERS, tokens);
            }
        }
        row
    }

    /// A token leaves after the first layer from `from` on whose likeliest token is likelier than
    /// `threshold`; layers above see the state with which it left as if they had been given it.
    fn confident(&self, threshold: f64, from: usize) -> ExitRow {
        let mut row = ExitRow {
            decoded: DecodedRow::default(),
            question_end: TokenRun::default(),
            runs: Vec::new(),
            chosen_after: vec![0],
            drafts: Drafts::default(),
        };
        // What each layer was given at each position.
        let mut given: Vec<Vec<Tensor<3>>> = vec![Vec::new(); LAYERS];
        let (ids, _) = self.question;
        let mut token = |at: usize, text: &(Vec<i32>, Vec<i32>), asks: bool| {
            let one = |list: &[i32]| integers(&list[at..=at], [1, 1], &plain());
            let mut hidden = self.model.embed(one(&text.0), one(&text.1));
            let mut found: Option<(u32, TokenRun)> = None;
            for layer in 1..=LAYERS {
                given[layer - 1].push(hidden.clone());
                if found.is_some() {
                    continue;
                }
                let all = integers(&text.1[..=at], [1, at + 1], &plain());
                let visible = Visibility::causal(at + 1, &plain());
                let context = self.model.context(all, visible);
                let inputs = Tensor::cat(given[layer - 1].clone(), 1);
                let ran = self.model.run_layers(layer - 1..layer, inputs, &context);
                hidden = ran.narrow(1, at, 1);
                if !asks || layer < from {
                    continue;
                }
                let (token, probability) = read(self.model, hidden.clone());
                assert!(
                    (probability - threshold).abs() > 1e-6,
                    "too close; use another threshold"
                );
                if probability > threshold || layer == LAYERS {
                    let run = TokenRun {
                        layers: layer,
                        filled: LAYERS - layer,
                        heads: layer + 1 - from,
                    };
                    found = Some((token, run));
                }
            }
            found
        };
        for at in 0..ids.len() - 1 {
            token(at, self.question, false);
        }
        let (mut next, run) = token(ids.len() - 1, self.question, true).unwrap();
        row.question_end = run;
        loop {
            let tokens = &mut row.decoded.tokens;
            row.decoded.stopped = next == self.decoding.stop;
            if row.decoded.stopped || tokens.len() == self.most() {
                return row;
            }
            tokens.push(next);
            let text = self.text(tokens);
            let (said, run) = token(text.0.len() - 1, &text, true).unwrap();
            row.runs.push((tokens.len() - 1, run));
            row.chosen_after.push(tokens.len());
            next = said;
        }
    }
}

/// The likeliest token after the only state `[1, 1, d_model]`, and its probability.
fn read(model: &Transformer, hidden: Tensor<3>) -> (u32, f64) {
    let probabilities = values(softmax(model.head(model.final_norm(hidden)), 2));
    let order = |a: &usize, b: &usize| probabilities[*a].total_cmp(&probabilities[*b]);
    let token = (0..VOCABULARY).max_by(order).unwrap();
    (token as u32, f64::from(probabilities[token]))
}

/// Rows decoded together.
fn together(
    model: &Transformer,
    questions: &Questions,
    decoding: Decoding,
    exit: TokenExit,
) -> Vec<ExitRow> {
    let widest = questions.iter().map(|(ids, _)| ids.len()).max().unwrap();
    let prompt = prompt(questions, widest, 0);
    let decoded = decode(model, &prompt, decoding, exit, &plain()).unwrap();
    let longest = decoded
        .rows
        .iter()
        .filter_map(|row| row.chosen_after.last());
    assert_eq!(decoded.steps.len(), *longest.max().unwrap());
    for row in &decoded.rows {
        assert_eq!(row.chosen_after.len(), row.decoded.tokens.len() + 1);
    }
    decoded.rows
}

/// Questions of one to nine tokens, a gap before the last now and then, one row to five.
fn asked(random: &mut Random) -> Questions {
    let rows = 1 + random.below(5);
    let lengths: Vec<usize> = (0..rows).map(|_| 1 + random.below(9)).collect();
    let gaps: Vec<i32> = (0..rows).map(|_| random.below(3) as i32).collect();
    let mut asked = questions(&lengths, &gaps);
    for (ids, _) in &mut asked {
        ids.iter_mut()
            .for_each(|id| *id = random.below(VOCABULARY) as i32);
    }
    asked
}

/// The answer is that of greedy decoding, token for token, and what was drafted, verified and rejected on the
/// way is what plain loops draft, verify and reject: over many models, layers, numbers of drafts, ragged
/// batches, stop tokens, limits and ends of the context, all of which fall inside drafts.
#[test]
fn self_speculation_says_what_all_layers_say() {
    let mut random = Random(7);
    let (mut drafted, mut accepted, mut stopped, mut ragged) = (0, 0, 0, 0);
    for case in 0..100 {
        let family = FAMILIES[case % 2];
        let context = [24, 64][random.below(2)];
        let model = model(family, context, random.below(1_000) as u64);
        let questions = asked(&mut random);
        let mut decoding = Decoding {
            stop: NEVER,
            max_tokens: random.below(16),
        };
        // Mostly something that is said somewhere.
        let free = together(&model, &questions, decoding, TokenExit::Never);
        let said = &free[random.below(free.len())].decoded.tokens;
        let place = random.below(said.len() + 3);
        decoding.stop = said.get(place).copied().unwrap_or(NEVER);
        let (layer, drafts) = (1 + random.below(LAYERS), 1 + random.below(6));
        let exit = TokenExit::SelfSpeculative { layer, drafts };
        let found = together(&model, &questions, decoding, exit);
        let widest = questions.iter().map(|(ids, _)| ids.len()).max().unwrap();
        let prompt = prompt(&questions, widest, 0);
        let greedy = greedy(&model, &prompt, decoding, &plain()).unwrap().rows;
        for (row, question) in questions.iter().enumerate() {
            let what = format!("case {case}, row {row}, {exit:?}, {decoding:?}");
            assert_eq!(found[row].decoded, greedy[row], "{what}");
            let alone = Alone {
                model: &model,
                question,
                decoding,
            };
            let expected = alone.speculative(layer, drafts);
            assert_eq!(found[row], expected, "{what}");
            let single = together(&model, &vec![question.clone()], decoding, exit);
            assert_eq!(single[0], expected, "{what}, alone");
            let counts = found[row].drafts;
            if layer == LAYERS {
                assert_eq!(counts.drafted, counts.accepted, "{what}");
            } else {
                drafted += counts.drafted;
                accepted += counts.accepted;
            }
            // The stop came in the same round as a token before it.
            let inside = match found[row].chosen_after[..] {
                [.., before, end] => before == end,
                _ => false,
            };
            stopped += usize::from(found[row].decoded.stopped && inside);
        }
        let rounds = |row: &ExitRow| *row.chosen_after.last().unwrap();
        let tokens = |row: &ExitRow| row.decoded.tokens.len();
        let uneven =
            |of: &dyn Fn(&ExitRow) -> usize| found.iter().any(|row| of(row) != of(&found[0]));
        ragged += usize::from(uneven(&rounds) && uneven(&tokens));
    }
    // Of each there was enough to say something.
    assert!(
        accepted > 50 && drafted - accepted > 50,
        "{accepted} of {drafted}"
    );
    assert!(stopped > 10 && ragged > 10, "{stopped}, {ragged}");
}

#[test]
fn a_fixed_exit_runs_the_layers_below_it_alone() {
    let questions = questions(&[1, 7, 4, 2], &[0, 0, 3, 1]);
    let decoding = Decoding {
        stop: 3,
        max_tokens: 9,
    };
    for family in FAMILIES {
        let model = model(family, 64, 5);
        let mut answers = Vec::new();
        for layer in 1..=LAYERS {
            let exit = TokenExit::Fixed { layer };
            let found = together(&model, &questions, decoding, exit);
            let run = TokenRun {
                layers: layer,
                filled: 0,
                heads: 1,
            };
            for (row, question) in questions.iter().enumerate() {
                let alone = Alone {
                    model: &model,
                    question,
                    decoding,
                };
                assert_eq!(found[row].decoded, alone.fixed(layer), "{family:?} {layer}");
                assert_eq!(found[row].question_end, run);
                assert!(found[row].runs.iter().all(|(_, found)| *found == run));
            }
            let tokens = |row: &ExitRow| row.decoded.tokens.clone();
            answers.push(found.iter().map(tokens).collect::<Vec<_>>());
            // A probability is always above 0, so all leave after the first layer that is asked.
            let sure = TokenExit::Confidence {
                threshold: 0.0,
                from: layer,
            };
            let sure = together(&model, &questions, decoding, sure);
            let filled = LAYERS - layer;
            for (fixed, sure) in found.iter().zip(&sure) {
                assert_eq!(sure.decoded, fixed.decoded, "{family:?} {layer}");
                assert_eq!(sure.question_end, TokenRun { filled, ..run });
                let run = TokenRun { filled, ..run };
                assert!(sure.runs.iter().all(|(_, found)| *found == run));
            }
        }
        answers.dedup();
        assert_eq!(
            answers.len(),
            LAYERS,
            "layers that say the same show nothing"
        );
        let all = together(&model, &questions, decoding, TokenExit::Never);
        let last = together(
            &model,
            &questions,
            decoding,
            TokenExit::Fixed { layer: LAYERS },
        );
        assert_eq!(all, last);
    }
}

#[test]
fn confident_tokens_leave_one_by_one() {
    let mut random = Random(3);
    let mut left = [0; LAYERS + 1];
    for case in 0..30 {
        let family = FAMILIES[case % 2];
        let model = model(family, 64, random.below(1_000) as u64);
        let questions = asked(&mut random);
        let decoding = Decoding {
            stop: random.below(VOCABULARY) as u32,
            max_tokens: 10,
        };
        let from = 1 + random.below(LAYERS);
        for threshold in [0.15, 0.25, 0.4, 1.0] {
            let exit = TokenExit::Confidence { threshold, from };
            let found = together(&model, &questions, decoding, exit);
            for (row, question) in questions.iter().enumerate() {
                let what = format!("case {case}, row {row}, {exit:?}");
                let alone = Alone {
                    model: &model,
                    question,
                    decoding,
                };
                // 1 is never exceeded, and how close to it nothing.
                let expected = match threshold {
                    1.0 => alone.confident(2.0, from),
                    _ => alone.confident(threshold, from),
                };
                assert_eq!(found[row], expected, "{what}");
                let single = together(&model, &vec![question.clone()], decoding, exit);
                assert_eq!(single[0], expected, "{what}, alone");
                if threshold == 1.0 {
                    assert_eq!(found[row].decoded, alone.fixed(LAYERS), "{what}");
                } else {
                    found[row]
                        .runs
                        .iter()
                        .for_each(|(_, run)| left[run.layers] += 1);
                }
            }
        }
    }
    let [_, used @ ..] = left;
    assert!(used.iter().all(|&count| count > 20), "{left:?}");
}

/// What answers are said to cost against one layer at one position after another.
#[test]
fn costs_are_what_ran() {
    let questions = questions(&[1, 7, 4, 6], &[0, 2, 0, 1]);
    let decoding = Decoding {
        stop: NEVER,
        max_tokens: 8,
    };
    let exits = [
        TokenExit::Never,
        TokenExit::Fixed { layer: 3 },
        TokenExit::Confidence {
            threshold: 0.25,
            from: 2,
        },
        TokenExit::SelfSpeculative {
            layer: 2,
            drafts: 3,
        },
    ];
    for family in FAMILIES {
        let llama = family == Family::Llama;
        let model = model(family, 64, 8);
        for exit in exits {
            let rows = together(&model, &questions, decoding, exit);
            // Any token of an answer may open another.
            let marker = [rows[1].decoded.tokens[4]];
            let method = TokenDecoding {
                model: &model,
                device: &plain(),
                decoding,
                exit,
                answer_start: &marker,
            };
            let found = method.respond(&prompt(&questions, 7, 0)).unwrap();
            for ((row, response), (ids, _)) in rows.iter().zip(&found.rows).zip(&questions) {
                assert_eq!(response.tokens, row.decoded.tokens);
                assert_eq!(response.drafts, row.drafts);
                let opens = response.tokens.iter().position(|token| *token == marker[0]);
                let reasoning = opens.unwrap_or(response.tokens.len());
                let pair = if llama { 2 * 8 } else { 2 * 16 };
                let ran = |run: &TokenRun, keys: usize| {
                    let filled = (run.filled * 2 * 16 * pair) as u64;
                    (0..run.layers)
                        .map(|_| operations(llama, keys))
                        .sum::<u64>()
                        + filled
                };
                let prompt_layers = match exit {
                    TokenExit::Fixed { layer } => layer,
                    _ => LAYERS,
                };
                let mut all = ran(&row.question_end, ids.len());
                for keys in 1..ids.len() {
                    all += prompt_layers as u64 * operations(llama, keys);
                }
                let (mut calls, mut reason) = (0, 0);
                let mut heads = row.question_end.heads;
                for (place, run) in &row.runs {
                    let own = ran(run, ids.len() + place + 1);
                    all += own;
                    heads += run.heads;
                    if *place < reasoning {
                        calls += run.layers;
                        reason += own;
                    }
                }
                all += (heads * 2 * 16 * VOCABULARY) as u64;
                assert_eq!(response.layer_calls, calls, "{family:?} {exit:?}");
                assert_eq!(response.reason_flops, reason as f64);
                assert_eq!(response.flops, all as f64);
            }
        }
    }
}

#[test]
fn exits_that_a_model_does_not_have_are_refused() {
    let model = model(Family::Gpt2, 64, 1);
    let prompt = prompt(&questions(&[3], &[0]), 3, 0);
    let decoding = Decoding {
        stop: NEVER,
        max_tokens: 2,
    };
    let speculative = |layer, drafts| TokenExit::SelfSpeculative { layer, drafts };
    let confidence = |threshold, from| TokenExit::Confidence { threshold, from };
    for (exit, part) in [
        (TokenExit::Fixed { layer: 0 }, "layer: must be at least 1"),
        (
            TokenExit::Fixed { layer: 5 },
            "layer: there is no layer 5; give 1 to 4",
        ),
        (confidence(1.1, 1), "threshold: 1.1 is not in [0, 1]"),
        (confidence(0.5, 5), "from: there is no layer 5"),
        (speculative(5, 1), "layer: there is no layer 5"),
        (speculative(1, 0), "drafts: must be at least 1"),
    ] {
        let refused = decode(&model, &prompt, decoding, exit, &plain());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(part), "{exit:?}: {refused}");
    }
}
