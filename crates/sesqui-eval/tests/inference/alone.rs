//! Latent reasoning written out for one row: one slot, one layer, one operation after another, over
//! a cache of a single row that holds exactly what the row may see.

use burn::nn::Linear;
use burn::tensor::{Tensor, TensorData};
use sesqui_model::{
    Family, Feedback, Initialization, KvCache, LatentTransformer, ModelConfig, Transformer,
};
use sesqui_reason::{Decoding, LatentDecoding};
use sesqui_shortcut::{
    AdapterConfig, EntryPosition, KeyValueRule, Landing, RouterConfig, ShortcutConfig, Shortcuts,
};

use crate::support::{VOCABULARY, integers, plain, shape, values};

pub const LAYERS: usize = 4;

/// Between a choice and the next best, or between a router and the threshold: far above rounding,
/// so that it cannot fall either way.
const MARGIN: f32 = 1e-5;

/// Four layers, with weights that do not magnify rounding from slot to slot.
pub fn deep(family: Family) -> ModelConfig {
    ModelConfig {
        layers: LAYERS,
        initialization: Initialization::Scaled {
            embedding: 1.0,
            matrix: 1.0,
        },
        ..shape(family, 64)
    }
}

/// A model whose feedback map is no multiple of the identity, and shortcuts that all differ.
pub fn latent_model(family: Family, seed: u64, hidden: usize) -> (LatentTransformer, Shortcuts) {
    let config = deep(family);
    let backbone = Transformer::new(&config, VOCABULARY, seed, &plain()).unwrap();
    let mut model = LatentTransformer::new(backbone, &Feedback::Linear { scale: 0.5 }, 0, &plain());
    let mut random = (1..).map(move |index: u64| {
        let index = (index + 1_000 * seed) as f64;
        ((index * 12.9898).sin() * 43_758.545_3).fract() as f32
    });
    let feedback = model.feedback.take().unwrap();
    model.feedback = Some(shaken(feedback, 0.2, &mut random));
    let config_of = ShortcutConfig {
        router: RouterConfig { hidden, bias: 0.0 },
        adapter: AdapterConfig {
            rank: 3,
            alpha: 6.0,
            ..AdapterConfig::default()
        },
    };
    let mut shortcuts = Shortcuts::new(&config_of, &config, seed, &plain());
    for router in &mut shortcuts.routers {
        router.output = shaken(router.output.clone(), 0.6, &mut random);
    }
    for adapter in &mut shortcuts.adapters {
        adapter.up = shaken(adapter.up.clone(), 0.4, &mut random);
    }
    (model, shortcuts)
}

/// Adds random numbers to all parameters of a map.
fn shaken(mut map: Linear, scale: f32, random: &mut impl Iterator<Item = f32>) -> Linear {
    let mut noise =
        |count: usize| -> Vec<f32> { random.by_ref().take(count).map(|x| x * scale).collect() };
    map.weight = map.weight.map(|weight| {
        let shape = weight.dims();
        let data = TensorData::new(noise(shape[0] * shape[1]), shape);
        weight + Tensor::from_data(data, &plain())
    });
    map.bias = map.bias.map(|bias| {
        bias.map(|bias| {
            let shape = bias.dims();
            let data = TensorData::new(noise(shape[0]), shape);
            bias + Tensor::from_data(data, &plain())
        })
    });
    map
}

/// When the row leaves.
#[derive(Clone, Copy)]
pub enum Leave<'a> {
    /// Never.
    Never,
    /// Where the router, on tensors, says more.
    Above(f64),
    /// Where told, by slot and boundary.
    Told(&'a dyn Fn(usize, usize) -> bool),
}

/// What the row did.
#[derive(Debug, Default)]
pub struct Alone {
    pub tokens: Vec<u32>,
    /// Entering and leaving boundaries.
    pub slots: Vec<[usize; 2]>,
    /// Of the prompt, then after each slot; those of a slot that left early are the ones before it.
    pub states: Vec<Vec<f32>>,
    /// For every layer that ran, its number of visible keys: prompt, slots, answer.
    pub seen: [Vec<usize>; 3],
    /// Layers filled without being run.
    pub filled: usize,
    /// Routers asked, adapters and feedback maps applied, choices made.
    pub asked: usize,
    pub adapted: usize,
    pub fed_back: usize,
    pub chosen: usize,
}

/// One row over its own cache.
struct Row<'a> {
    model: &'a LatentTransformer,
    cache: KvCache,
}

impl Row<'_> {
    fn layer(&mut self, layer: usize, hidden: Tensor<3>, position: i32) -> (Tensor<3>, usize) {
        let at = integers(&[position], [1, 1], &plain());
        let model = &self.model.backbone;
        let hidden =
            model.run_layers_cached(layer..layer + 1, hidden, at, &[true], &mut self.cache);
        (hidden, self.cache.lengths()[layer])
    }

    fn token(&mut self, token: i32, position: i32, seen: &mut Vec<usize>) -> Tensor<3> {
        let at = integers(&[position], [1, 1], &plain());
        let model = self.model;
        let mut hidden = model
            .backbone
            .embed(integers(&[token], [1, 1], &plain()), at);
        for layer in 0..LAYERS {
            let (next, keys) = self.layer(layer, hidden, position);
            hidden = next;
            seen.push(keys);
        }
        model.backbone.final_norm(hidden)
    }
}

/// What happens to a latent that a slot is fed at the bottom: slot, position, latent, and the row's
/// cache before the slot.
pub type Hook<'a> = &'a mut dyn FnMut(usize, i32, Tensor<3>, &KvCache) -> Tensor<3>;

/// Answers one question.
pub fn alone(
    model: &LatentTransformer,
    shortcuts: Option<&Shortcuts>,
    rule: (Leave<'_>, KeyValueRule),
    question: &(Vec<i32>, Vec<i32>),
    plan: &LatentDecoding<'_>,
    row: usize,
) -> Alone {
    let as_it_is: Hook<'_> = &mut |_, _, latent, _| latent;
    alone_refined(model, shortcuts, rule, question, plan, row, as_it_is)
}

/// As [`alone`], with latents changed before they are fed.
pub fn alone_refined(
    model: &LatentTransformer,
    shortcuts: Option<&Shortcuts>,
    (leave, key_values): (Leave<'_>, KeyValueRule),
    (ids, positions): &(Vec<i32>, Vec<i32>),
    plan: &LatentDecoding<'_>,
    row: usize,
    refine: Hook<'_>,
) -> Alone {
    let config = model.backbone.config();
    let mut found = Alone::default();
    let mut cells = Row {
        model,
        cache: KvCache::new(config, 1, 64, &plain()),
    };
    let mut z = None;
    for (&id, &position) in ids.iter().zip(positions) {
        z = Some(cells.token(id, position, &mut found.seen[0]));
    }
    let mut z = z.unwrap();
    found.states.push(values(z.clone()));

    let mut waiting: Option<(usize, Tensor<3>)> = None;
    for slot in 0..plan.latent_steps {
        let last = slot + 1 == plan.latent_steps;
        let position = plan.slot_positions[row][slot];
        let at = integers(&[position], [1, 1], &plain());
        let (mut boundary, mut hidden) = match waiting.take() {
            None => {
                found.fed_back += 1;
                z = refine(slot, position, z, &cells.cache);
                *found.states.last_mut().unwrap() = values(z.clone());
                (0, model.latent_inputs(z.clone(), at))
            }
            Some((left, hidden)) => {
                let adapted = match shortcuts {
                    Some(shortcuts) => shortcuts.adapters[left].forward(hidden),
                    None => hidden,
                };
                found.adapted += 1;
                let enter = left + usize::from(plan.landing == Landing::NextBoundary);
                match plan.entry_position {
                    EntryPosition::EveryEntry => {
                        (enter, model.backbone.with_positions(adapted, at))
                    }
                    EntryPosition::CycleStart => (enter, adapted),
                }
            }
        };
        let enter = boundary;
        while boundary < LAYERS {
            let highest = match plan.landing {
                Landing::SameBoundary => LAYERS - 1,
                Landing::NextBoundary => LAYERS - 2,
            };
            if !last && boundary > 0 && boundary <= highest {
                let leaves = match leave {
                    Leave::Never => false,
                    Leave::Told(leaves) => leaves(slot, boundary),
                    Leave::Above(threshold) => {
                        found.asked += 1;
                        let router = &shortcuts.unwrap().routers[boundary];
                        let weight = values(router.forward(hidden.clone()))[0];
                        assert!(
                            (weight - threshold as f32).abs() > MARGIN,
                            "too close; use another seed"
                        );
                        f64::from(weight) > threshold
                    }
                };
                if leaves {
                    break;
                }
            }
            let (next, keys) = cells.layer(boundary, hidden, position);
            hidden = next;
            found.seen[1].push(keys);
            boundary += 1;
        }
        found.slots.push([enter, boundary]);
        if boundary == LAYERS {
            z = model.backbone.final_norm(hidden);
        } else {
            if key_values == KeyValueRule::Fill {
                // Running a layer stores keys and values of its input; what it returns is dropped.
                for layer in boundary..LAYERS {
                    cells.layer(layer, hidden.clone(), position);
                    found.filled += 1;
                }
            }
            waiting = Some((boundary, hidden));
        }
        found.states.push(values(z.clone()));
    }

    let mut position = plan.answer_position[row];
    let mut left = plan.decoding.max_tokens;
    for &token in plan.answer_start {
        z = cells.token(token as i32, position, &mut found.seen[2]);
        found.tokens.push(token);
        position += 1;
    }
    loop {
        found.chosen += 1;
        let token = choose(values(model.backbone.head(z)));
        let full = left == 0 || position as usize >= config.context;
        if token == plan.decoding.stop || full {
            return found;
        }
        z = cells.token(token as i32, position, &mut found.seen[2]);
        found.tokens.push(token);
        position += 1;
        left -= 1;
    }
}

fn choose(logits: Vec<f32>) -> u32 {
    let mut order: Vec<usize> = (0..VOCABULARY).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    assert!(
        logits[order[0]] - logits[order[1]] > MARGIN,
        "too close; use another seed"
    );
    order[0] as u32
}

/// A decoding of `steps` latent steps for rows that go on from `starts`.
pub fn decoding<'a>(
    steps: usize,
    starts: &[i32],
    answer_start: &'a [u32],
    landing: Landing,
) -> LatentDecoding<'a> {
    let slot = |start: i32, slot: usize| start + 2 * slot as i32 + 1;
    LatentDecoding {
        latent_steps: steps,
        order: sesqui_model::LatentOrder::Sequential,
        slot_positions: starts
            .iter()
            .map(|&start| (0..steps).map(|i| slot(start, i)).collect())
            .collect(),
        answer_position: starts.iter().map(|&start| slot(start, steps)).collect(),
        answer_start,
        landing,
        entry_position: EntryPosition::EveryEntry,
        decoding: Decoding {
            stop: 7,
            max_tokens: 6,
        },
    }
}
