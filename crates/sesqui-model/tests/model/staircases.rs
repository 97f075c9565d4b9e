//! Positions that run some layers only, and layers that hold some positions only.

use burn::tensor::{Tensor, TensorData};
use proptest::prelude::*;
use sesqui_model::{KvCache, Transformer};

use crate::plain_loops::{PlainCache, PlainLoops};
use crate::support::{
    CLOSE, FAMILIES, Padded, Random, Side, assert_close, check_cases, family, integers, plain,
    row_positions, shaken, tiny, values, whole,
};

/// As argued in `reference.rs`.
const FROM_PLAIN_LOOPS: f64 = 1e-4;
const VOCABULARY: usize = 19;

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
        assert_close(
            &format!("{family:?}, lagging"),
            &found,
            &whole(&model, &ids),
            CLOSE,
        );
    }
}

/// Random staircases: after a prompt every position runs layers `resume..exit` only, on a hidden
/// state of its own, and a layer holds exactly the positions that ran it.
#[test]
fn skipped_layers_hold_nothing() {
    let stairs = prop::collection::vec((0usize..4, 0usize..4), 1..6);
    check_cases(
        12,
        (family(), stairs, any::<u64>()),
        |(family, stairs, seed)| {
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
                assert_close(
                    &format!("{family:?}, {stairs:?}"),
                    &values(found),
                    &expected,
                    FROM_PLAIN_LOOPS,
                );
                lengths[range].iter_mut().for_each(|length| *length += 1);
                assert_eq!(cache.lengths(), lengths);
            }
        },
    );
}

/// The same with several rows at once: a row that skips a layer leaves an entry there that it never
/// sees, whatever it holds.
#[test]
fn skipped_layers_in_a_batch_hold_entries_that_count_for_nothing() {
    let stairs = prop::collection::vec([(0usize..4, 0usize..4), (0..4, 0..4), (0..4, 0..4)], 1..5);
    check_cases(
        10,
        (family(), stairs, any::<u64>()),
        |(family, stairs, seed)| {
            let (config, device) = (tiny(family), plain());
            let (d, rows) = (config.d_model, 3);
            let model = shaken(&config, VOCABULARY, seed, &device);
            let mut random = Random::new(seed);
            let prompts = [2, 4, 3].map(|length| random.ids(length, VOCABULARY));
            let batch = Padded::new(&prompts, 4, Side::Left, 0);
            let mut cache = KvCache::new(&config, rows, 4 + stairs.len() + 1, &device);
            let (ids, positions) = (batch.ids(&device), batch.positions(&device));
            let hidden = model.embed(ids, positions.clone());
            model.run_layers_cached(0..3, hidden, positions, &batch.real, &mut cache);
            let mut alone: Vec<(PlainLoops, PlainCache)> = prompts
                .iter()
                .map(|prompt| after_prompt(&model, prompt))
                .collect();

            for (step, stairs) in stairs.iter().enumerate() {
                let at: Vec<i64> = prompts
                    .iter()
                    .map(|prompt| (prompt.len() + step) as i64)
                    .collect();
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
                        states[row * d..(row + 1) * d]
                            .copy_from_slice(&ran[row * d..(row + 1) * d]);
                    }
                }
                for (row, (reference, plain_cache)) in alone.iter_mut().enumerate() {
                    let cells = row * d..(row + 1) * d;
                    let hidden: Vec<f64> =
                        inputs[cells.clone()].iter().map(|&x| x.into()).collect();
                    let expected =
                        reference.run(ranges[row].clone(), &hidden, at[row], plain_cache);
                    let what = format!("{family:?}, {stairs:?}, row {row}");
                    assert_close(&what, &states[cells], &expected, FROM_PLAIN_LOOPS);
                }
            }
            // Then all layers in one call, each with holes of its own.
            let at: Vec<i64> = prompts
                .iter()
                .map(|prompt| (prompt.len() + stairs.len()) as i64)
                .collect();
            let inputs = random.tensor([rows, 1, d], &device);
            let positions = integers(&at, [rows, 1], &device);
            let real = [true; 3];
            let found = model.run_layers_cached(0..3, inputs.clone(), positions, &real, &mut cache);
            let (found, inputs) = (values(found), values(inputs));
            for (row, (reference, plain_cache)) in alone.iter_mut().enumerate() {
                let cells = row * d..(row + 1) * d;
                let hidden: Vec<f64> = inputs[cells.clone()].iter().map(|&x| x.into()).collect();
                let expected = reference.run(0..3, &hidden, at[row], plain_cache);
                let what = format!("{family:?}, after {stairs:?}, row {row}");
                assert_close(&what, &found[cells], &expected, FROM_PLAIN_LOOPS);
            }
            assert_eq!(cache.lengths(), [4 + stairs.len() + 1; 3]);
        },
    );
}

/// Plain loops that have read a prompt.
fn after_prompt(model: &Transformer, prompt: &[i64]) -> (PlainLoops, PlainCache) {
    let reference = PlainLoops::new(model);
    let mut cache = reference.cache();
    let positions: Vec<i64> = (0..prompt.len() as i64).collect();
    reference.states(prompt, &positions, &mut cache);
    (reference, cache)
}
