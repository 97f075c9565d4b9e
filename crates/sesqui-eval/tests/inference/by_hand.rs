//! Refinement of one row's latents as the formulas say it, without caches of the strong and the weak model,
//! and what its tests share.

use burn::tensor::{Tensor, TensorData};
use sesqui_model::{Family, KvCache, LatentTransformer, Transformer, Visibility};
use sesqui_reason::refine::{
    AuxiliaryWork, Context, Contrastive, Direction, LayerRuns, Norm, Order, Residual, Search, Sign,
};
use sesqui_reason::{Calibration, LatentDecoding, References, RefineConfig};
use sesqui_shortcut::Landing;

use crate::alone::{LAYERS, decoding, deep};
use crate::support::{Questions, VOCABULARY, integers, plain, questions, values};

/// Of the states.
pub const WIDTH: usize = 16;
/// Latent steps.
pub const STEPS: usize = 4;

/// States are of size 1 in each of 16 entries. Two routes differ by rounding, about 1e-6, which six
/// steps with directions of size 1 carry on.
pub const CLOSE: f32 = 5e-5;

pub fn references(family: Family, strong: u64, weak: u64) -> References {
    let model = |seed| Transformer::new(&deep(family), VOCABULARY, seed, &plain()).unwrap();
    References {
        strong: model(strong),
        weak: model(weak),
    }
}

pub fn search(change: impl FnOnce(&mut Search)) -> RefineConfig {
    let mut search = Search {
        size: 0.3,
        start: 0,
        ..Search::default()
    };
    change(&mut search);
    RefineConfig {
        contrastive: Contrastive::Search(search),
        ..RefineConfig::default()
    }
}

pub fn blend(alpha: f64, norm: Norm, start: usize) -> Residual {
    Residual::Blend { alpha, norm, start }
}

pub fn three() -> Questions {
    questions(&[2, 7, 4], &[0, 0, 3])
}

pub fn plan(questions: &Questions, steps: usize) -> LatentDecoding<'static> {
    let ends = questions.iter().map(|(_, positions)| positions.last());
    let starts: Vec<i32> = ends.map(|last| last.unwrap() + 1).collect();
    decoding(steps, &starts, &[11, 4], Landing::SameBoundary)
}

/// Every row leaves one slot early, each another, and goes on above the bottom in the next.
pub fn told(row: usize, slot: usize, boundary: usize) -> bool {
    boundary == 2 && (row + slot).is_multiple_of(3)
}

pub fn bits(states: &[Tensor<3>]) -> Vec<u32> {
    let states = states.iter().flat_map(|state| values(state.clone()));
    states.map(f32::to_bits).collect()
}

/// An orthonormal basis of three dimensions: three of the axes, turned.
pub fn basis() -> Tensor<2> {
    let (c, s) = (0.6, 0.8);
    let mut entries = vec![0.0f32; WIDTH * 3];
    for (row, column, value) in [(0, 0, c), (5, 0, s), (0, 1, -s), (5, 1, c), (9, 2, 1.0)] {
        entries[row * 3 + column] = value;
    }
    Tensor::from_data(TensorData::new(entries, [WIDTH, 3]), &plain())
}

/// Everything that can be asked for, with what it is calibrated to.
pub fn variants() -> Vec<(RefineConfig, Option<Calibration>)> {
    let mean: Vec<f32> = (0..WIDTH).map(|i| (i as f32).sin()).collect();
    let mean = Calibration::Mean(Tensor::from_data(mean.as_slice(), &plain()));
    let both = |order| RefineConfig {
        residual: blend(0.3, Norm::Free, 1),
        order,
        ..search(|search| search.start = 1)
    };
    let residual = |residual| RefineConfig {
        residual,
        ..RefineConfig::default()
    };
    let gated = search(|search| search.direction = Direction::Gated { variance: 0.9 });
    vec![
        (residual(blend(0.4, Norm::Free, 1)), None),
        (residual(blend(0.4, Norm::Kept, 2)), None),
        (search(|_| ()), None),
        (search(|search| search.inner_steps = 3), None),
        (search(|search| search.context = Context::Shared), None),
        (search(|search| search.context = Context::None), None),
        (search(|search| search.sign = Sign::Printed), None),
        (both(Order::ResidualFirst), None),
        (both(Order::ContrastiveFirst), None),
        (gated, Some(Calibration::Subspace(basis()))),
        (
            search(|search| search.direction = Direction::Mean),
            Some(mean),
        ),
    ]
}

/// Refinement of one row as the paper's formulas say it, every output of the two models out of a whole
/// sequence.
pub struct ByHand<'a> {
    model: &'a LatentTransformer,
    references: &'a References,
    config: &'a RefineConfig,
    pub calibration: Option<&'a Calibration>,
    question: &'a (Vec<i32>, Vec<i32>),
    /// Keeps latents as they were before refinement where the two models see them later: what must not
    /// be.
    pub keeps_raw: bool,
    fed: Option<Tensor<3>>,
    kept: Vec<(Tensor<3>, i32)>,
    pub work: AuxiliaryWork,
    pub differences: Vec<Vec<f32>>,
}

impl<'a> ByHand<'a> {
    pub fn new(
        model: &'a LatentTransformer,
        references: &'a References,
        config: &'a RefineConfig,
        question: &'a (Vec<i32>, Vec<i32>),
    ) -> Self {
        let mut work = AuxiliaryWork::default();
        if config.needs_references() && sight(config) == Context::Own {
            for keys in 1..=question.0.len() {
                work.question.calls += 2 * LAYERS;
                work.question.keys += 2 * LAYERS * keys;
            }
        }
        Self {
            model,
            references,
            config,
            calibration: None,
            question,
            keeps_raw: false,
            fed: None,
            kept: Vec::new(),
            work,
            differences: Vec::new(),
        }
    }

    pub fn refine(
        &mut self,
        slot: usize,
        at: i32,
        latent: Tensor<3>,
        cache: &KvCache,
    ) -> Tensor<3> {
        let raw = latent.clone();
        let mut latent = latent;
        let parts = match self.config.order {
            Order::ResidualFirst => ["blend", "search"],
            Order::ContrastiveFirst => ["search", "blend"],
        };
        for part in parts {
            latent = match part {
                "blend" => self.blend(slot, latent),
                _ => self.search(slot, at, latent, cache),
            };
        }
        self.fed = Some(latent.clone());
        if self.config.needs_references() && sight(self.config) == Context::Own && slot + 1 < STEPS
        {
            self.work.mapped += 1;
            self.count(
                &[self.question.0.len() + self.kept.len() + 1; LAYERS],
                false,
            );
        }
        let keep = if self.keeps_raw { raw } else { latent.clone() };
        self.kept.push((keep, at));
        latent
    }

    fn count(&mut self, keys: &[usize], back: bool) {
        let keys: usize = keys.iter().sum();
        let add = |runs: &mut LayerRuns, times: usize| {
            runs.calls += 2 * LAYERS;
            runs.keys += 2 * times * keys;
        };
        add(&mut self.work.latents, 1);
        if back {
            add(&mut self.work.backward, 2);
        }
    }

    fn blend(&self, slot: usize, latent: Tensor<3>) -> Tensor<3> {
        let Residual::Blend { alpha, norm, start } = self.config.residual else {
            return latent;
        };
        let Some(fed) = self.fed.clone().filter(|_| slot >= start) else {
            return latent;
        };
        let (old, new) = (values(fed), values(latent));
        let alpha = alpha as f32;
        let mixed = old
            .iter()
            .zip(&new)
            .map(|(old, new)| alpha * old + (1.0 - alpha) * new);
        let mut mixed: Vec<f32> = mixed.collect();
        if norm == Norm::Kept {
            let scale = length(&new) / length(&mixed);
            mixed.iter_mut().for_each(|x| *x *= scale);
        }
        row(&mixed)
    }

    fn search(&mut self, slot: usize, at: i32, latent: Tensor<3>, cache: &KvCache) -> Tensor<3> {
        let Contrastive::Search(search) = &self.config.contrastive else {
            return latent;
        };
        if slot < search.start {
            return latent;
        }
        let step = search.step(WIDTH) as f32;
        let mut latent = values(latent);
        for _ in 0..search.inner_steps {
            let here = row(&latent);
            let direction = match (search.direction, self.calibration) {
                (Direction::Constant, _) => self.difference(here, at, cache, false),
                (Direction::Gated { .. }, Some(Calibration::Subspace(basis))) => {
                    self.work.projected += basis.dims()[1];
                    projected(
                        &values(basis.clone()),
                        &self.difference(here, at, cache, false),
                    )
                }
                (Direction::Mean, Some(Calibration::Mean(mean))) => values(mean.clone()),
                (Direction::Differentiated, _) => {
                    self.work.mapped += 3;
                    let _counted = self.difference(here, at, cache, true);
                    self.slope(&latent, at, cache)
                        .iter()
                        .map(|x| -0.5 * x)
                        .collect()
                }
                _ => panic!("no calibration"),
            };
            for (x, y) in latent.iter_mut().zip(direction) {
                *x += step * y;
            }
        }
        row(&latent)
    }

    fn difference(&mut self, latent: Tensor<3>, at: i32, cache: &KvCache, back: bool) -> Vec<f32> {
        let keys: Vec<usize> = match sight(self.config) {
            Context::Own => vec![self.question.0.len() + self.kept.len() + 1; LAYERS],
            Context::Shared => cache.lengths().iter().map(|length| length + 1).collect(),
            Context::None => vec![1; LAYERS],
        };
        self.work.mapped += 1;
        self.count(&keys, back);
        let [strong, weak] = self.outputs(latent, at, cache);
        let difference: Vec<f32> = strong.iter().zip(&weak).map(|(g, b)| g - b).collect();
        self.differences.push(difference.clone());
        difference
    }

    pub fn outputs(&self, latent: Tensor<3>, at: i32, cache: &KvCache) -> [Vec<f32>; 2] {
        [&self.references.strong, &self.references.weak]
            .map(|model| self.output(model, latent.clone(), at, cache))
    }

    /// What `model` makes of `latent`, its state after the final norm.
    fn output(&self, model: &Transformer, latent: Tensor<3>, at: i32, cache: &KvCache) -> Vec<f32> {
        let embedded = self.model.latent_embeddings(latent);
        if sight(self.config) == Context::Shared {
            let at = integers(&[at], [1, 1], &plain());
            let mut cache = cache.clone();
            let hidden = model.with_positions(embedded, at.clone());
            let hidden = model.run_layers_cached(0..LAYERS, hidden, at, &[true], &mut cache);
            return values(model.final_norm(hidden));
        }
        let (mut inputs, mut positions) = (Vec::new(), Vec::new());
        if sight(self.config) == Context::Own {
            let (ids, at) = self.question;
            inputs.push(model.token_embeddings(integers(ids, [1, ids.len()], &plain())));
            positions.extend(at);
            for (latent, at) in &self.kept {
                inputs.push(self.model.latent_embeddings(latent.clone()));
                positions.push(*at);
            }
        }
        inputs.push(embedded);
        positions.push(at);
        let seq = positions.len();
        let positions = integers(&positions, [1, seq], &plain());
        let hidden = model.with_positions(Tensor::cat(inputs, 1), positions.clone());
        let context = model.context(positions, Visibility::causal(seq, &plain()));
        let states = model.states(hidden, &context);
        values(states.narrow(1, seq - 1, 1))
    }

    /// Gradient of `|strong(h) - h|^2 - |weak(h) - h|^2` by central differences.
    pub fn slope(&self, latent: &[f32], at: i32, cache: &KvCache) -> Vec<f32> {
        let objective = |latent: &[f32]| -> f64 {
            let [strong, weak] = self.outputs(row(latent), at, cache);
            margin(latent, &strong, &weak)
        };
        slope(latent, objective)
    }
}

/// `|strong - h|^2 - |weak - h|^2`.
pub fn margin(latent: &[f32], strong: &[f32], weak: &[f32]) -> f64 {
    let entries = latent.iter().zip(strong).zip(weak);
    let entry = |((h, g), b): ((&f32, &f32), &f32)| {
        let (h, g, b) = (f64::from(*h), f64::from(*g), f64::from(*b));
        (g - h).powi(2) - (b - h).powi(2)
    };
    entries.map(entry).sum()
}

pub fn slope(at: &[f32], objective: impl Fn(&[f32]) -> f64) -> Vec<f32> {
    // Rounding of the objective, 1e-6 of about 30, over this: 1e-3; the third derivative times its
    // square: less.
    const STEP: f32 = 0.02;
    let side = |entry: usize, step: f32| {
        let mut at = at.to_vec();
        at[entry] += step;
        objective(&at)
    };
    let entries = 0..at.len();
    let quotient = |entry| (side(entry, STEP) - side(entry, -STEP)) / f64::from(2.0 * STEP);
    entries.map(|entry| quotient(entry) as f32).collect()
}

/// `gamma * P d` one entry after another; `basis` row-major `[16, 3]`.
pub fn projected(basis: &[f32], difference: &[f32]) -> Vec<f32> {
    let rank = basis.len() / WIDTH;
    let mut inside = vec![0.0; WIDTH];
    for of in 0..rank {
        let along: f32 = (0..WIDTH)
            .map(|i| basis[i * rank + of] * difference[i])
            .sum();
        (0..WIDTH).for_each(|i| inside[i] += along * basis[i * rank + of]);
    }
    let gate = length(&inside) / length(difference);
    inside.iter().map(|x| gate * x).collect()
}

fn length(of: &[f32]) -> f32 {
    of.iter().map(|x| x * x).sum::<f32>().sqrt()
}

pub fn row(of: &[f32]) -> Tensor<3> {
    Tensor::from_data(TensorData::new(of.to_vec(), [1, 1, of.len()]), &plain())
}

pub fn sight(config: &RefineConfig) -> Context {
    config
        .search()
        .map_or(Context::None, |search| search.context)
}
