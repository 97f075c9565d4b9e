//! Helpers that all suites share.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sesqui_model::{Family, ModelConfig, Transformer, Visibility};

/// Values of parameters, or of their gradients, by path.
pub type Values = BTreeMap<String, Vec<f32>>;

/// A small shape; the feed-forward width is odd on purpose.
pub fn tiny(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        layers: 3,
        d_model: 16,
        heads: 4,
        key_value_heads: if family == Family::Llama { 2 } else { 0 },
        d_feed_forward: 27,
        context: 48,
        ..ModelConfig::default()
    }
}

/// A model none of whose parameters is zero or one: new models have unit gains and zero biases,
/// which would hide a gain or bias that is not applied.
pub fn shaken(config: &ModelConfig, vocabulary: usize, seed: u64, device: &Device) -> Transformer {
    struct Shake(Random);
    impl ModuleMapper for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (random, tracked) = (&mut self.0, param.is_require_grad());
            param.map(|tensor| {
                let (shape, device) = (tensor.dims(), tensor.device());
                let noise: Vec<f32> = (0..shape.iter().product())
                    .map(|_| random.between(-0.3, 0.3))
                    .collect();
                let noise = Tensor::from_data(TensorData::new(noise, shape), &device);
                (tensor.detach() + noise).detach().set_require_grad(tracked)
            })
        }
    }
    let model = Transformer::new(config, vocabulary, seed, device).unwrap();
    model.map(&mut Shake(Random::new(seed ^ 0x5eed)))
}

/// Draws from a fixed seed.
pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.next_u32() as usize % end
    }

    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    pub fn ids(&mut self, count: usize, vocabulary: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(vocabulary) as i64).collect()
    }

    pub fn tensor(&mut self, shape: [usize; 3], device: &Device) -> Tensor<3> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| self.between(-1.0, 1.0))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// Where the pads of a batch stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// Rows of different lengths in one rectangle.
pub struct Padded {
    pub ids: Vec<i64>,
    pub positions: Vec<i64>,
    pub real: Vec<bool>,
    pub shape: [usize; 2],
}

impl Padded {
    /// Pads hold `pad`; positions count real tokens only.
    pub fn new(rows: &[Vec<i64>], width: usize, side: Side, pad: i64) -> Self {
        let mut padded = Self {
            ids: Vec::new(),
            positions: Vec::new(),
            real: Vec::new(),
            shape: [rows.len(), width],
        };
        for row in rows {
            let pads = width - row.len();
            let before = if side == Side::Left { pads } else { 0 };
            for column in 0..width {
                let token = column.checked_sub(before).and_then(|index| row.get(index));
                padded.ids.push(*token.unwrap_or(&pad));
                padded
                    .positions
                    .push(token.map_or(0, |_| (column - before) as i64));
                padded.real.push(token.is_some());
            }
        }
        padded
    }

    pub fn ids(&self, device: &Device) -> Tensor<2, Int> {
        integers(&self.ids, self.shape, device)
    }

    pub fn positions(&self, device: &Device) -> Tensor<2, Int> {
        integers(&self.positions, self.shape, device)
    }
}

/// An integer matrix from row-major values.
pub fn integers(values: &[i64], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Positions `from..to` of a single row.
pub fn row_positions(from: usize, to: usize, device: &Device) -> Tensor<2, Int> {
    let positions: Vec<i64> = (from..to).map(|position| position as i64).collect();
    integers(&positions, [1, to - from], device)
}

/// All values, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Greatest absolute difference; not a number counts as infinite.
pub fn difference<A: Copy + Into<f64>, B: Copy + Into<f64>>(left: &[A], right: &[B]) -> f64 {
    assert_eq!(left.len(), right.len(), "number of values");
    left.iter()
        .zip(right)
        .fold(0.0, |greatest: f64, (&left, &right)| {
            let difference = (left.into() - right.into()).abs();
            if difference.is_nan() {
                f64::INFINITY
            } else {
                greatest.max(difference)
            }
        })
}

/// Fails where two sequences differ by more than `tolerance`.
pub fn assert_close<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    what: &str,
    found: &[A],
    expected: &[B],
    tolerance: f64,
) {
    let difference = difference(found, expected);
    measured(what, difference);
    assert!(
        difference <= tolerance,
        "{what}: differs by {difference:e}, allowed {tolerance:e}"
    );
}

/// Prints a measured difference, for whoever wants to know how far a tolerance is from the truth
/// (`cargo test -- --nocapture`).
#[expect(clippy::print_stderr, reason = "shown on demand only")]
pub fn measured(what: &str, difference: f64) {
    eprintln!("{what}: {difference:.1e}");
}

/// Every parameter by path.
pub fn parameters(model: &Transformer) -> Values {
    collect(model, None)
}

/// The gradient of every parameter by path; a parameter without one is left out.
pub fn gradients(model: &Transformer, gradients: &Gradients) -> Values {
    collect(model, Some(gradients))
}

fn collect(model: &Transformer, gradients: Option<&Gradients>) -> Values {
    struct Collect<'a> {
        path: Vec<String>,
        gradients: Option<&'a Gradients>,
        values: Values,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let found = match self.gradients {
                Some(gradients) => param.val().grad(gradients),
                None => Some(param.val()),
            };
            if let Some(tensor) = found {
                self.values.insert(self.path.join("."), values(tensor));
            }
        }
    }
    let mut visitor = Collect {
        path: Vec::new(),
        gradients,
        values: Values::new(),
    };
    model.visit(&mut visitor);
    visitor.values
}

/// Whether data that a test needs but the repository does not hold is there. Without it the test
/// is skipped on a developer's machine and fails where `CI` is set.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn available(path: &std::path::Path, variable: &str) -> bool {
    if path.is_dir() {
        return true;
    }
    let message = format!("{} is not there; point {variable} at it", path.display());
    assert!(std::env::var_os("CI").is_none(), "{message}");
    eprintln!("skipped: {message}");
    false
}

/// The CPU.
pub fn plain() -> Device {
    Device::flex()
}

/// The CPU with gradients.
pub fn tracked() -> Device {
    Device::flex().autodiff()
}

/// Allowed where two routes of the same 32-bit arithmetic may sum in another order: see
/// `equivalence.rs`.
pub const CLOSE: f64 = 1e-5;

pub const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];

pub fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Gpt2), Just(Family::Llama)]
}

/// Checks `cases` draws of `strategy`, the same ones every time; a failing one is made smaller.
pub fn check_cases<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, random)
        .run(&strategy, |case| {
            check(case);
            Ok(())
        })
        .unwrap();
}

/// Logits of one row on its own.
pub fn whole(model: &Transformer, ids: &[i64]) -> Vec<f32> {
    let length = ids.len();
    values(model.forward(
        integers(ids, [1, length], &plain()),
        row_positions(0, length, &plain()),
        Visibility::causal(length, &plain()),
    ))
}
