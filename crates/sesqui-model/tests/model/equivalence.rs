//! The same result by different routes: cached or not, padded or not, layer by layer or at once.
//!
//! Two tolerances. Zero (`same bits`) where both routes do the same arithmetic on what counts:
//! hidden scores have an exponential of exactly zero, and zero times a finite value adds exactly
//! nothing. `CLOSE` where shapes differ, so that kernels may sum in another order: values here are
//! of order one to ten, sums have at most a few hundred terms, so 32-bit rounding leaves about 1e-6;
//! seeing one wrong key changes results by 1e-2 and more.

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sesqui_model::{Family, KvCache, ModelConfig, Transformer, Visibility};

use crate::plain_loops::{PlainCache, PlainLoops};
use crate::support::{
    Padded, Random, Side, assert_close, integers, plain, row_positions, shaken, tiny, tracked,
    values,
};

const CLOSE: f64 = 1e-5;
const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];
const VOCABULARY: usize = 19;

#[test]
fn a_filled_cache_continues_like_the_whole_sequence() {
    check_cases(12, (shape(), prop::collection::vec(1usize..6, 1..5), any::<u64>()), |case| {
        let (config, chunks, seed) = case;
        let model = shaken(&config, VOCABULARY, seed, &plain());
        let length = chunks.iter().sum();
        let ids = Random::new(seed).ids(length, VOCABULARY);
        let expected = whole(&model, &ids);
        for chunks in [chunks, vec![length], vec![1; length]] {
            let mut cache = KvCache::new(&config, 1, length, &plain());
            let mut found = Vec::new();
            for chunk in &chunks {
                let part = found.len() / VOCABULARY..found.len() / VOCABULARY + chunk;
                let positions = row_positions(part.start, part.end, &plain());
                let tokens = integers(&ids[part], [1, *chunk], &plain());
                let hidden = model.embed(tokens, positions.clone());
                let real = vec![true; *chunk];
                let layers = 0..config.layers;
                let hidden = model.run_layers_cached(layers, hidden, positions, &real, &mut cache);
                found.extend(values(model.head(model.final_norm(hidden))));
            }
            assert_close(&format!("{config:?} in {chunks:?}"), &found, &expected, CLOSE);
            assert_eq!(cache.lengths(), vec![length; config.layers]);
        }
    });
}

#[test]
fn padding_changes_no_row() {
    let rows = prop::collection::vec(1usize..9, 1..5);
    let side = prop_oneof![Just(Side::Left), Just(Side::Right)];
    check_cases(16, (shape(), rows, side, 0usize..3, any::<u64>()), |case| {
        let (config, lengths, side, extra, seed) = case;
        let model = shaken(&config, VOCABULARY, seed, &plain());
        let mut random = Random::new(seed);
        let rows: Vec<Vec<i64>> =
            lengths.iter().map(|&length| random.ids(length, VOCABULARY)).collect();
        let width = lengths.iter().max().unwrap() + extra;
        let batch = Padded::new(&rows, width, side, random.below(VOCABULARY) as i64);
        let mut visibilities =
            vec![Visibility::causal_padded(&batch.real, batch.shape, &plain())];
        if side == Side::Right {
            visibilities.push(Visibility::causal(width, &plain()));
        }
        for visibility in visibilities {
            let logits =
                values(model.forward(batch.ids(&plain()), batch.positions(&plain()), visibility));
            for (index, row) in rows.iter().enumerate() {
                let found = real_cells(&batch, &logits, index);
                let what = format!("{config:?}, {lengths:?} in {width}, {side:?}, row {index}");
                assert_close(&what, &found, &whole(&model, row), CLOSE);
            }
        }
    });
}

#[test]
fn padding_of_a_cached_prompt_changes_no_row() {
    let rows = prop::collection::vec(1usize..7, 2..5);
    let side = prop_oneof![Just(Side::Left), Just(Side::Right)];
    check_cases(12, (shape(), rows, side, 1usize..4, any::<u64>()), |case| {
        let (config, lengths, side, more, seed) = case;
        let model = shaken(&config, VOCABULARY, seed, &plain());
        let mut random = Random::new(seed);
        let rows: Vec<Vec<i64>> =
            lengths.iter().map(|&length| random.ids(length + more, VOCABULARY)).collect();
        let prompts: Vec<Vec<i64>> =
            rows.iter().zip(&lengths).map(|(row, &length)| row[..length].to_vec()).collect();
        let width = *lengths.iter().max().unwrap();
        let batch = Padded::new(&prompts, width, side, 3);
        let mut cache = KvCache::new(&config, rows.len(), width + more, &plain());
        let mut found = vec![Vec::new(); rows.len()];
        let (ids, positions) = (batch.ids(&plain()), batch.positions(&plain()));
        let hidden = model.embed(ids, positions.clone());
        let layers = 0..config.layers;
        let hidden =
            model.run_layers_cached(layers.clone(), hidden, positions, &batch.real, &mut cache);
        let logits = values(model.head(model.final_norm(hidden)));
        for (index, found) in found.iter_mut().enumerate() {
            found.extend(real_cells(&batch, &logits, index));
        }
        for step in 0..more {
            let at: Vec<usize> = lengths.iter().map(|length| length + step).collect();
            let ids: Vec<i64> = rows.iter().zip(&at).map(|(row, &at)| row[at]).collect();
            let at: Vec<i64> = at.into_iter().map(|at| at as i64).collect();
            let shape = [rows.len(), 1];
            let positions = integers(&at, shape, &plain());
            let hidden = model.embed(integers(&ids, shape, &plain()), positions.clone());
            let real = vec![true; rows.len()];
            let hidden =
                model.run_layers_cached(layers.clone(), hidden, positions, &real, &mut cache);
            let logits = values(model.head(model.final_norm(hidden)));
            for (found, logits) in found.iter_mut().zip(logits.chunks(VOCABULARY)) {
                found.extend_from_slice(logits);
            }
        }
        for (index, (row, found)) in rows.iter().zip(&found).enumerate() {
            let what = format!("{config:?}, {lengths:?} + {more}, {side:?}, row {index}");
            assert_close(&what, found, &whole(&model, row), CLOSE);
        }
    });
}

#[test]
fn layers_in_two_halves_are_all_layers_bit_for_bit() {
    for family in FAMILIES {
        let (config, device) = (tiny(family), plain());
        let model = shaken(&config, VOCABULARY, 1, &device);
        let hidden = Random::new(1).tensor([2, 7, config.d_model], &device);
        let positions = integers(&[[0, 1, 2, 3, 4, 5, 6]; 2].concat(), [2, 7], &device);
        let context = model.context(positions.clone(), Visibility::causal(7, &device));
        let mut whole_cache = KvCache::new(&config, 2, 7, &device);
        let real = [true; 14];
        let cached = |range, hidden, cache: &mut KvCache| {
            model.run_layers_cached(range, hidden, positions.clone(), &real, cache)
        };
        let expected = values(model.run_layers(0..3, hidden.clone(), &context));
        let expected_cached = values(cached(0..3, hidden.clone(), &mut whole_cache));
        assert_close("cached prefill", &expected_cached, &expected, CLOSE);
        for middle in 0..=3 {
            let first = model.run_layers(0..middle, hidden.clone(), &context);
            let both = values(model.run_layers(middle..3, first, &context));
            assert_eq!(both, expected, "{family:?}, layers 0..{middle}..3");

            let mut cache = KvCache::new(&config, 2, 7, &device);
            let first = cached(0..middle, hidden.clone(), &mut cache);
            let lengths = cache.lengths();
            assert_eq!(lengths, [[7; 3].split_at(middle).0, [0; 3].split_at(middle).1].concat());
            let both = values(cached(middle..3, first, &mut cache));
            assert_eq!(both, expected_cached, "{family:?}, layers 0..{middle}..3, cached");
        }
    }
}

/// Layers that fall behind and catch up in chunks of another size give the same.
#[test]
fn late_layers_may_lag_behind_and_catch_up() {
    for family in FAMILIES {
        let (config, device) = (tiny(family), plain());
        let model = shaken(&config, VOCABULARY, 2, &device);
        let ids = Random::new(2).ids(6, VOCABULARY);
        let mut cache = KvCache::new(&config, 1, 6, &device);
        let mut waiting = Vec::new();
        for (position, &id) in ids.iter().enumerate() {
            let positions = row_positions(position, position + 1, &device);
            let hidden = model.embed(integers(&[id], [1, 1], &device), positions.clone());
            waiting.push(model.run_layers_cached(0..1, hidden, positions, &[true], &mut cache));
        }
        assert_eq!(cache.lengths(), [6, 0, 0]);
        let mut found = Vec::new();
        for chunk in [0..4, 4..6] {
            let hidden = Tensor::cat(waiting[chunk.clone()].to_vec(), 1);
            let positions = row_positions(chunk.start, chunk.end, &device);
            let real = vec![true; chunk.len()];
            let hidden = model.run_layers_cached(1..3, hidden, positions, &real, &mut cache);
            found.extend(values(model.head(model.final_norm(hidden))));
        }
        assert_close(&format!("{family:?}, lagging"), &found, &whole(&model, &ids), CLOSE);
    }
}

/// Random staircases: after a prompt every position runs layers `resume..exit` only, on a hidden
/// state of its own, and a layer holds exactly the positions that ran it.
#[test]
fn skipped_layers_hold_nothing() {
    let stairs = prop::collection::vec((0usize..4, 0usize..4), 1..6);
    check_cases(12, (family(), stairs, any::<u64>()), |(family, stairs, seed)| {
        let (config, device) = (tiny(family), plain());
        let model = shaken(&config, VOCABULARY, seed, &device);
        let mut random = Random::new(seed);
        let prompt = random.ids(4, VOCABULARY);
        let (reference, mut plain_cache) = after_prompt(&model, &prompt);
        let mut cache = KvCache::new(&config, 1, 4 + stairs.len(), &device);
        let positions = row_positions(0, 4, &device);
        let hidden = model.embed(integers(&prompt, [1, 4], &device), positions.clone());
        model.run_layers_cached(0..3, hidden, positions, &[true; 4], &mut cache);
        let mut lengths = [4; 3];
        for (step, &(a, b)) in stairs.iter().enumerate() {
            let (range, position) = (a.min(b)..a.max(b), 4 + step);
            let input = random.tensor([1, 1, config.d_model], &device);
            let hidden: Vec<f64> = values(input.clone()).into_iter().map(f64::from).collect();
            let positions = row_positions(position, position + 1, &device);
            let found =
                model.run_layers_cached(range.clone(), input, positions, &[true], &mut cache);
            let expected =
                reference.run(range.clone(), &hidden, position as i64, &mut plain_cache);
            // Against 64-bit floats: the tolerance of the comparison with plain loops.
            assert_close(&format!("{family:?}, {stairs:?}"), &values(found), &expected, 1e-4);
            lengths[range].iter_mut().for_each(|length| *length += 1);
            assert_eq!(cache.lengths(), lengths);
        }
    });
}

/// The same with several rows at once: a row that skips a layer leaves an entry there that it never
/// sees, whatever it holds.
#[test]
fn skipped_layers_in_a_batch_hold_entries_that_count_for_nothing() {
    let stairs = prop::collection::vec([(0usize..4, 0usize..4), (0..4, 0..4), (0..4, 0..4)], 1..5);
    check_cases(10, (family(), stairs, any::<u64>()), |(family, stairs, seed)| {
        let (config, device) = (tiny(family), plain());
        let (d, rows) = (config.d_model, 3);
        let model = shaken(&config, VOCABULARY, seed, &device);
        let mut random = Random::new(seed);
        let prompts = [2, 4, 3].map(|length| random.ids(length, VOCABULARY));
        let batch = Padded::new(&prompts, 4, Side::Left, 0);
        let mut cache = KvCache::new(&config, rows, 4 + stairs.len(), &device);
        let (ids, positions) = (batch.ids(&device), batch.positions(&device));
        let hidden = model.embed(ids, positions.clone());
        model.run_layers_cached(0..3, hidden, positions, &batch.real, &mut cache);
        let mut alone: Vec<(PlainLoops, PlainCache)> =
            prompts.iter().map(|prompt| after_prompt(&model, prompt)).collect();

        for (step, stairs) in stairs.iter().enumerate() {
            let at: Vec<i64> = prompts.iter().map(|prompt| (prompt.len() + step) as i64).collect();
            let positions = integers(&at, [rows, 1], &device);
            let inputs = values(random.tensor([rows, 1, d], &device));
            let ranges = stairs.map(|(a, b)| a.min(b)..a.max(b));
            let mut states = inputs.clone();
            for layer in 0..3 {
                let real = ranges.clone().map(|range| range.contains(&layer));
                let mut mixed = states.clone();
                for row in (0..rows).filter(|&row| !real[row]) {
                    mixed[row * d..(row + 1) * d].fill(1e3 * (1 + row) as f32);
                }
                let hidden = Tensor::from_data(TensorData::new(mixed, [rows, 1, d]), &device);
                let ran = values(model.run_layers_cached(
                    layer..layer + 1,
                    hidden,
                    positions.clone(),
                    &real,
                    &mut cache,
                ));
                for row in (0..rows).filter(|&row| real[row]) {
                    states[row * d..(row + 1) * d].copy_from_slice(&ran[row * d..(row + 1) * d]);
                }
            }
            for (row, (reference, plain_cache)) in alone.iter_mut().enumerate() {
                let cells = row * d..(row + 1) * d;
                let hidden: Vec<f64> = inputs[cells.clone()].iter().map(|&x| x.into()).collect();
                let expected = reference.run(ranges[row].clone(), &hidden, at[row], plain_cache);
                let what = format!("{family:?}, {stairs:?}, row {row}");
                assert_close(&what, &states[cells], &expected, 1e-4);
            }
        }
        assert_eq!(cache.lengths(), [4 + stairs.len(); 3]);
    });
}

#[test]
fn hidden_entries_do_not_count_bit_for_bit() {
    for family in FAMILIES {
        let (config, device) = (tiny(family), plain());
        let model = shaken(&config, VOCABULARY, 3, &device);
        let rows = [vec![4, 5, 6], vec![7, 8, 9, 10, 11]];
        for side in [Side::Left, Side::Right] {
            let results = [0, 17].map(|pad| {
                let batch = Padded::new(&rows, 6, side, pad);
                let mut cache = KvCache::new(&config, 2, 8, &device);
                let (ids, positions) = (batch.ids(&device), batch.positions(&device));
                let hidden = model.embed(ids, positions.clone());
                let first =
                    model.run_layers_cached(0..3, hidden, positions, &batch.real, &mut cache);
                let first = values(first);
                let mut seen: Vec<f32> =
                    [0, 1].iter().flat_map(|&row| real_cells(&batch, &first, row)).collect();
                // Row 0 skips this position, row 1 the next.
                for (step, real) in [[false, true], [true, false]].into_iter().enumerate() {
                    let mut hidden = vec![0.25; 2 * config.d_model];
                    let skipped = step * config.d_model;
                    hidden[skipped..skipped + config.d_model].fill(pad as f32 * 100.0);
                    let shape = [2, 1, config.d_model];
                    let hidden = Tensor::from_data(TensorData::new(hidden, shape), &device);
                    let positions = integers(&[3 + step as i64, 5 + step as i64], [2, 1], &device);
                    let states =
                        model.run_layers_cached(0..3, hidden, positions, &real, &mut cache);
                    let kept = (1 - step) * config.d_model;
                    seen.extend(&values(states)[kept..kept + config.d_model]);
                }
                let uncached = values(model.forward(
                    batch.ids(&device),
                    batch.positions(&device),
                    Visibility::causal_padded(&batch.real, batch.shape, &device),
                ));
                seen.extend([0, 1].iter().flat_map(|&row| real_cells(&batch, &uncached, row)));
                seen
            });
            assert_eq!(results[0], results[1], "{family:?}, {side:?}");
        }
    }
}

#[test]
fn the_future_does_not_change_the_past_bit_for_bit() {
    for family in FAMILIES {
        for device in [plain(), tracked()] {
            let model = shaken(&tiny(family), VOCABULARY, 6, &device);
            let ids = Random::new(6).ids(9, VOCABULARY);
            let logits = |ids: &[i64]| {
                let positions = row_positions(0, 9, &device);
                let visibility = Visibility::causal(9, &device);
                values(model.forward(integers(ids, [1, 9], &device), positions, visibility))
            };
            let expected = logits(&ids);
            for changed in 1..9 {
                let mut ids = ids.clone();
                ids[changed..].iter_mut().for_each(|id| *id = (*id + 5) % VOCABULARY as i64);
                let found = logits(&ids);
                let past = changed * VOCABULARY;
                assert_eq!(found[..past], expected[..past], "{family:?}, changed at {changed}");
                assert_ne!(found[past..], expected[past..]);
            }
        }
    }
}

/// With gradients the attention is made of other operations than without.
#[test]
fn tracking_gradients_changes_nothing() {
    for family in FAMILIES {
        let rows = [vec![4, 5, 6], vec![7, 8, 9, 10, 11]];
        let batch = Padded::new(&rows, 6, Side::Left, 0);
        let run = |device: &Device| {
            let model = shaken(&tiny(family), VOCABULARY, 7, device);
            let visibility = Visibility::causal_padded(&batch.real, batch.shape, device);
            values(model.forward(batch.ids(device), batch.positions(device), visibility))
        };
        let (with, without) = (run(&tracked()), run(&plain()));
        assert_close(&format!("{family:?}, tracked"), &with, &without, CLOSE);
    }
}

#[test]
#[should_panic(expected = "cache of 2 entries asked for 3")]
fn a_cache_that_is_too_small_is_refused() {
    let (config, device) = (tiny(Family::Gpt2), plain());
    let model = shaken(&config, VOCABULARY, 8, &device);
    let mut cache = KvCache::new(&config, 1, 2, &device);
    let hidden = Random::new(8).tensor([1, 3, config.d_model], &device);
    model.run_layers_cached(0..3, hidden, row_positions(0, 3, &device), &[true; 3], &mut cache);
}

/// Logits of one row on its own.
fn whole(model: &Transformer, ids: &[i64]) -> Vec<f32> {
    let length = ids.len();
    values(model.forward(
        integers(ids, [1, length], &plain()),
        row_positions(0, length, &plain()),
        Visibility::causal(length, &plain()),
    ))
}

/// Plain loops that have read a prompt.
fn after_prompt(model: &Transformer, prompt: &[i64]) -> (PlainLoops, PlainCache) {
    let reference = PlainLoops::new(model);
    let mut cache = reference.cache();
    let positions: Vec<i64> = (0..prompt.len() as i64).collect();
    reference.states(prompt, &positions, &mut cache);
    (reference, cache)
}

/// What `values` `[batch, seq, width]` hold at the real cells of a row.
fn real_cells(batch: &Padded, values: &[f32], row: usize) -> Vec<f32> {
    let [_, seq] = batch.shape;
    let width = values.len() / batch.real.len();
    (row * seq..(row + 1) * seq)
        .filter(|&cell| batch.real[cell])
        .flat_map(|cell| values[cell * width..(cell + 1) * width].to_vec())
        .collect()
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Gpt2), Just(Family::Llama)]
}

fn shape() -> impl Strategy<Value = ModelConfig> {
    (family(), 1usize..4, 0usize..3, 0usize..3, 1usize..5, any::<bool>()).prop_map(
        |(family, layers, heads, shared, half_head, tied_head)| {
            let heads = 1 << heads;
            ModelConfig {
                family,
                layers,
                heads,
                key_value_heads: match family {
                    Family::Gpt2 => 0,
                    Family::Llama => (1 << shared).min(heads),
                },
                d_model: 2 * half_head * heads,
                tied_head,
                ..tiny(family)
            }
        },
    )
}

fn check_cases<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, random)
        .run(&strategy, |case| {
            check(case);
            Ok(())
        })
        .unwrap();
}
