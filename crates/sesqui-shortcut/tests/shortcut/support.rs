//! Helpers that all suites share.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use sesqui_model::{Family, Feedback, LatentTransformer, ModelConfig, Transformer};
use sesqui_shortcut::{
    Adapter, AdapterConfig, Router, RouterConfig, ShortcutConfig, Shortcuts, StaircaseInputs,
};

pub const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];

/// Width of the models here.
pub const D_MODEL: usize = 16;

/// `alpha / rank` of the adapters here.
pub const ADAPTER_SCALE: f64 = 0.5;

/// Allowed where two routes of the same 32-bit arithmetic sum in another order. Values here are at
/// most 6, whose spacing is 5e-7, and a handful of roundings meet; measured 1.3e-6 at worst.
pub const CLOSE: f64 = 1e-5;

/// The CPU.
pub fn plain() -> Device {
    Device::flex()
}

/// The CPU with gradients.
pub fn tracked() -> Device {
    Device::flex().autodiff()
}

/// Draws from a fixed seed: SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.between(-1.0, 1.0)).collect()
    }
}

/// A small model and its shortcuts; no parameter is zero or one, which would hide a gain, a bias
/// or an adapter that is not applied.
pub struct Setup {
    pub model: LatentTransformer,
    pub shortcuts: Shortcuts,
}

impl Setup {
    pub fn new(family: Family, layers: usize, router_width: usize, device: &Device) -> Self {
        let config = ModelConfig {
            family,
            layers,
            d_model: D_MODEL,
            heads: 2,
            key_value_heads: if family == Family::Llama { 1 } else { 0 },
            d_feed_forward: 27,
            context: 64,
            ..ModelConfig::default()
        };
        let backbone = Transformer::new(&config, 11, 1, device).unwrap();
        let model = LatentTransformer::new(backbone, &Feedback::default(), 0, device);
        let shortcuts = Shortcuts::new(&shortcut_config(router_width), &config, 2, device);
        Self {
            model: model.map(&mut Shake(Random(3))),
            shortcuts: shortcuts.map(&mut Shake(Random(4))),
        }
    }

    pub fn layers(&self) -> usize {
        self.model.backbone.layers.len()
    }

    /// All gates shut: `sigmoid(-200)` is zero in 32 bits.
    pub fn shut(mut self) -> Self {
        for router in &mut self.shortcuts.routers {
            let shut = router.output.clone();
            router.output.weight = shut.weight.map(|weight| weight.zeros_like());
            router.output.bias = shut
                .bias
                .map(|bias| bias.map(|bias| bias.full_like(-200.0)));
        }
        self
    }
}

pub fn shortcut_config(router_width: usize) -> ShortcutConfig {
    ShortcutConfig {
        router: RouterConfig {
            hidden: router_width,
            ..RouterConfig::default()
        },
        adapter: AdapterConfig {
            rank: 4,
            alpha: 4.0 * ADAPTER_SCALE,
            ..AdapterConfig::default()
        },
    }
}

struct Shake(Random);

impl ModuleMapper for Shake {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (random, asked) = (&mut self.0, param.is_require_grad());
        param.map(|tensor| {
            let (shape, device) = (tensor.dims(), tensor.device());
            let noise = random.values(shape.iter().product());
            let noise = Tensor::from_data(TensorData::new(noise, shape), &device);
            (tensor.detach() + noise.mul_scalar(0.3))
                .detach()
                .set_require_grad(asked)
        })
    }
}

/// Sequences in one rectangle, `[pads | question | slots | answer | pads]`.
#[derive(Clone)]
pub struct Batch {
    pub shape: [usize; 2],
    pub embedded: Vec<f32>,
    pub positions: Vec<i64>,
    pub real: Vec<bool>,
    pub first_slot: usize,
    pub slots: usize,
}

impl Batch {
    /// Questions of up to 4 and answers of up to 3 columns; the first row has neither pad, and with
    /// `even` no row has.
    pub fn new(rows: usize, slots: usize, even: bool, random: &mut Random) -> Self {
        let seq = 4 + slots + 3;
        let mut batch = Self {
            shape: [rows, seq],
            embedded: random.values(rows * seq * D_MODEL),
            positions: Vec::new(),
            real: Vec::new(),
            first_slot: 4,
            slots,
        };
        for row in 0..rows {
            let (before, after) = match even || row == 0 {
                true => (0, 0),
                false => (random.below(4), random.below(3)),
            };
            for column in 0..seq {
                let real = (before..seq - after).contains(&column);
                // Latent steps jump, as the ids of result tokens do.
                let jump = 2 * column.saturating_sub(batch.first_slot).min(slots);
                batch.real.push(real);
                batch.positions.push(if real {
                    (column - before + jump) as i64
                } else {
                    0
                });
            }
        }
        batch
    }

    pub fn inputs(&self, device: &Device) -> StaircaseInputs {
        let [rows, seq] = self.shape;
        let embedded = TensorData::new(self.embedded.clone(), [rows, seq, D_MODEL]);
        let positions = TensorData::new(self.positions.clone(), [rows, seq]);
        StaircaseInputs {
            embedded: Tensor::from_data(embedded, device),
            positions: Tensor::from_data(positions, device),
            real: self.real.clone(),
            first_slot: self.first_slot,
        }
    }

    /// One row without its pads.
    pub fn row(&self, row: usize) -> Self {
        let columns = self.columns(row);
        let seq = self.shape[1];
        let cells = || columns.iter().map(|column| row * seq + column);
        Self {
            shape: [1, columns.len()],
            embedded: cells()
                .flat_map(|cell| self.embedded[cell * D_MODEL..][..D_MODEL].to_vec())
                .collect(),
            positions: cells().map(|cell| self.positions[cell]).collect(),
            real: vec![true; columns.len()],
            first_slot: self.first_slot - columns[0],
            slots: self.slots,
        }
    }

    /// Columns of `row` that are no pads.
    pub fn columns(&self, row: usize) -> Vec<usize> {
        (0..self.shape[1])
            .filter(|column| self.real[row * self.shape[1] + column])
            .collect()
    }

    /// Values of `states` `[batch, seq, d_model]`, row-major, in the columns of `row` that are no
    /// pads.
    pub fn of_row(&self, states: &[f32], row: usize) -> Vec<f32> {
        self.columns(row)
            .into_iter()
            .flat_map(|column| {
                states[(row * self.shape[1] + column) * D_MODEL..][..D_MODEL].to_vec()
            })
            .collect()
    }
}

/// `g(h)` in 64-bit loops.
pub fn plain_adapter(adapter: &Adapter, state: &[f64]) -> Vec<f64> {
    let low = product(&adapter.down.weight, state);
    let update = product(&adapter.up.weight, &low);
    let pairs = state.iter().zip(update);
    pairs.map(|(x, u)| x + ADAPTER_SCALE * u).collect()
}

/// The logit of `R(h)` in 64-bit loops.
pub fn plain_router(router: &Router, state: &[f64]) -> f64 {
    let n = state.len() as f64;
    let mean = state.iter().sum::<f64>() / n;
    let variance = state.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let mut features: Vec<f64> = state
        .iter()
        .map(|x| (x - mean) / (variance + 1e-5).sqrt())
        .collect();
    if let Some(hidden) = &router.hidden {
        let bias = values(hidden.bias.as_ref().unwrap().val());
        let sums = product(&hidden.weight, &features).into_iter().zip(bias);
        features = sums.map(|(x, b)| (x + f64::from(b)).max(0.0)).collect();
    }
    let bias = values(router.output.bias.as_ref().unwrap().val())[0];
    product(&router.output.weight, &features)[0] + f64::from(bias)
}

pub fn plain_sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// `weight` is `[inputs, outputs]`.
fn product(weight: &Param<Tensor<2>>, input: &[f64]) -> Vec<f64> {
    let [_, outputs] = weight.dims();
    let weight = values(weight.val());
    (0..outputs)
        .map(|output| {
            let column = weight.iter().skip(output).step_by(outputs);
            let pairs = input.iter().zip(column);
            pairs.map(|(x, &w)| x * f64::from(w)).sum()
        })
        .collect()
}

/// All values, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Fails where two sequences differ by more than `tolerance`; not a number differs from everything.
pub fn assert_close<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    what: &str,
    found: &[A],
    expected: &[B],
    tolerance: f64,
) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let mut worst = 0.0f64;
    for (&found, &expected) in found.iter().zip(expected) {
        let difference = (found.into() - expected.into()).abs();
        worst = if difference.is_nan() {
            f64::INFINITY
        } else {
            worst.max(difference)
        };
    }
    measured(what, worst);
    assert!(
        worst <= tolerance,
        "{what}: differs by {worst:e}, allowed {tolerance:e}"
    );
}

/// Prints a measured difference, for whoever wants to know how far a tolerance is from the truth
/// (`cargo test -- --nocapture`).
#[expect(clippy::print_stderr, reason = "shown on demand only")]
pub fn measured(what: &str, difference: f64) {
    eprintln!("{what}: {difference:.1e}");
}

/// Greatest absolute gradient of each parameter by path; a parameter without one counts as zero.
pub fn greatest_gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<(String, f32)> {
    struct Collect<'a> {
        path: Vec<String>,
        gradients: &'a Gradients,
        found: Vec<(String, f32)>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let greatest = param.val().grad(self.gradients).map_or(0.0, |gradient| {
                values(gradient)
                    .into_iter()
                    .fold(0.0f32, |greatest, x| greatest.max(x.abs()))
            });
            self.found.push((self.path.join("."), greatest));
        }
    }
    let mut visitor = Collect {
        path: Vec::new(),
        gradients,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}
