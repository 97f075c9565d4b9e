//! The same result by different routes: cached or not, padded or not, layer by layer or at once.
//!
//! Two tolerances. Zero (`same bits`) where both routes do the same arithmetic on what counts:
//! hidden scores have an exponential of exactly zero, and zero times a finite value adds exactly
//! nothing. `CLOSE` where shapes differ, so that kernels may sum in another order: values here are
//! of order one to ten, sums have at most a few hundred terms, so 32-bit rounding leaves about 1e-6
//! (at most 1.4e-6 was seen); seeing one wrong key changes results by 1e-2 and more.

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use sesqui_model::{Family, KvCache, ModelConfig, Visibility};

use crate::support::{
    CLOSE, FAMILIES, Padded, Random, Side, assert_close, check_cases, family, integers, plain,
    row_positions, shaken, tiny, tracked, values, whole,
};

const VOCABULARY: usize = 19;

#[test]
fn a_filled_cache_continues_like_the_whole_sequence() {
    check_cases(
        12,
        (
            shape(),
            prop::collection::vec(1usize..6, 1..5),
            any::<u64>(),
        ),
        |case| {
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
                    let hidden =
                        model.run_layers_cached(layers, hidden, positions, &real, &mut cache);
                    found.extend(values(model.head(model.final_norm(hidden))));
                }
                assert_close(
                    &format!("{config:?} in {chunks:?}"),
                    &found,
                    &expected,
                    CLOSE,
                );
                assert_eq!(cache.lengths(), vec![length; config.layers]);
            }
        },
    );
}

#[test]
fn padding_changes_no_row() {
    let rows = prop::collection::vec(1usize..9, 1..5);
    let side = prop_oneof![Just(Side::Left), Just(Side::Right)];
    check_cases(16, (shape(), rows, side, 0usize..3, any::<u64>()), |case| {
        let (config, lengths, side, extra, seed) = case;
        let model = shaken(&config, VOCABULARY, seed, &plain());
        let mut random = Random::new(seed);
        let rows: Vec<Vec<i64>> = lengths
            .iter()
            .map(|&length| random.ids(length, VOCABULARY))
            .collect();
        let width = lengths.iter().max().unwrap() + extra;
        let batch = Padded::new(&rows, width, side, random.below(VOCABULARY) as i64);
        let mut visibilities = vec![Visibility::causal_padded(
            &batch.real,
            batch.shape,
            &plain(),
        )];
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
        let rows: Vec<Vec<i64>> = lengths
            .iter()
            .map(|&length| random.ids(length + more, VOCABULARY))
            .collect();
        let prompts: Vec<Vec<i64>> = rows
            .iter()
            .zip(&lengths)
            .map(|(row, &length)| row[..length].to_vec())
            .collect();
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
            assert_eq!(
                lengths,
                [[7; 3].split_at(middle).0, [0; 3].split_at(middle).1].concat()
            );
            let both = values(cached(middle..3, first, &mut cache));
            assert_eq!(
                both, expected_cached,
                "{family:?}, layers 0..{middle}..3, cached"
            );
        }
    }
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
                let mut seen: Vec<f32> = [0, 1]
                    .iter()
                    .flat_map(|&row| real_cells(&batch, &first, row))
                    .collect();
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
                seen.extend(
                    [0, 1]
                        .iter()
                        .flat_map(|&row| real_cells(&batch, &uncached, row)),
                );
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
                ids[changed..]
                    .iter_mut()
                    .for_each(|id| *id = (*id + 5) % VOCABULARY as i64);
                let found = logits(&ids);
                let past = changed * VOCABULARY;
                assert_eq!(
                    found[..past],
                    expected[..past],
                    "{family:?}, changed at {changed}"
                );
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
    model.run_layers_cached(
        0..3,
        hidden,
        row_positions(0, 3, &device),
        &[true; 3],
        &mut cache,
    );
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

fn shape() -> impl Strategy<Value = ModelConfig> {
    (
        family(),
        1usize..4,
        0usize..3,
        0usize..3,
        1usize..5,
        any::<bool>(),
    )
        .prop_map(|(family, layers, heads, shared, half_head, tied_head)| {
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
        })
}
