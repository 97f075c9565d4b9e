//! Problems, models and comparisons that all suites share.

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, Positions, TextFormat, encode_all};
use sesqui_dataset::generate::arith_dag::ArithDag;
use sesqui_dataset::read::BadRows;
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_distill::latent::Padding;
use sesqui_distill::{LatentBatch, LatentConfig, LatentProblem, Rollout};
use sesqui_model::latent::SlotPositions;
use sesqui_model::{Feedback, LatentTransformer, ModelConfig, Transformer};
use sesqui_shortcut::{ShortcutConfig, Shortcuts};

pub const LAYERS: usize = 3;
pub const D_MODEL: usize = 16;

/// Allowed where two routes of the same 32-bit arithmetic sum in another order: states after the
/// final norm are at most 4, whose spacing is 5e-7, and a handful of roundings meet.
pub const CLOSE: f64 = 1e-5;

/// The positions of the teacher's result tokens, seven tokens a step.
pub const RESULTS: SlotPositions = SlotPositions::Strided {
    offset: 5,
    stride: 7,
};

/// The CPU.
pub fn plain() -> Device {
    Device::flex()
}

/// The CPU with gradients.
pub fn tracked() -> Device {
    Device::flex().autodiff()
}

/// Four problems of each of two, three and four steps, shortest first.
pub struct Data {
    pub tokenizer: Tokenizer,
    pub encoded: Vec<EncodedProblem>,
    pub layout: PositionLayout,
}

impl Data {
    pub fn new() -> Self {
        let config = DatasetConfig::ArithDag(ArithDag {
            max_steps: 4,
            train_per_length: 4,
            validation_per_length: 1,
            test_per_length: 1,
            ..ArithDag::default()
        });
        let problems = config.load(None, 5, BadRows::Fail).unwrap().train;
        let format = TextFormat::default();
        let texts = problems
            .iter()
            .flat_map(|problem| [&problem.question, &problem.answer])
            .map(String::as_str)
            .chain(format.markers())
            .chain(["<<0123456789+-*=>>"]);
        let tokenizer =
            Tokenizer::from_config(&TokenizerConfig::default(), Path::new(""), texts).unwrap();
        let encoded = encode_all(&tokenizer, &format, &problems).unwrap();
        assert_eq!(encoded.len(), 12);
        Self {
            layout: Positions::Aligned.resolve(&encoded),
            tokenizer,
            encoded,
        }
    }

    /// The id of a text that is one token.
    pub fn token(&self, text: &str) -> u32 {
        let ids = self.tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), 1, "{text}");
        ids[0]
    }

    pub fn problems(&self, padding: Padding) -> Vec<LatentProblem> {
        let config = LatentConfig {
            padding,
            ..LatentConfig::default()
        };
        let (count, marker) = (config.resolve(&self.encoded), Some(self.token("=")));
        assert_eq!(count, 4);
        self.encoded
            .iter()
            .map(|problem| {
                LatentProblem::new(problem, &config, count, marker, self.layout).unwrap()
            })
            .collect()
    }

    pub fn batch(&self, padding: Padding, rows: &[u32], rollout: Rollout) -> LatentBatch {
        let pad = self.tokenizer.pad_id();
        LatentBatch::collate(&self.problems(padding), rows, &RESULTS, pad, rollout).unwrap()
    }

    /// One problem of each length.
    pub fn mixed(&self, rollout: Rollout) -> LatentBatch {
        self.batch(Padding::Answer, &[1, 6, 11], rollout)
    }

    pub fn teacher(&self, seed: u64, device: &Device) -> Transformer {
        let config = ModelConfig {
            layers: LAYERS,
            d_model: D_MODEL,
            heads: 2,
            context: 64,
            ..ModelConfig::default()
        };
        let teacher = Transformer::new(&config, self.tokenizer.vocab_size(), seed, device).unwrap();
        shaken(teacher, seed)
    }

    /// A student that has left its teacher behind but shares parameter ids with it, as in training.
    pub fn student(&self, teacher: &Transformer, device: &Device) -> LatentTransformer {
        let student = LatentTransformer::new(teacher.clone(), &Feedback::default(), 0, device);
        shaken(student, 2)
    }

    pub fn shortcuts(&self, teacher: &Transformer, device: &Device) -> Shortcuts {
        Shortcuts::new(&ShortcutConfig::default(), teacher.config(), 4, device)
    }
}

/// Adds noise to every parameter, so that no gain, bias or adapter is a neutral element.
pub fn shaken<M: Module>(module: M, seed: u64) -> M {
    module.map(&mut Shake(seed))
}

struct Shake(u64);

impl ModuleMapper for Shake {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let asked = param.is_require_grad();
        param.map(|tensor| {
            let (shape, device) = (tensor.dims(), tensor.device());
            let noise: Vec<f32> = (0..shape.iter().product())
                .map(|_| 0.2 * (2.0 * draw(&mut self.0) - 1.0))
                .collect();
            let noise = Tensor::<D>::from_data(TensorData::new(noise, shape), &device);
            (tensor.detach() + noise).detach().set_require_grad(asked)
        })
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014), in [0, 1).
fn draw(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

/// Three steps of two, one and two tokens, and one step of two.
pub fn two() -> [EncodedProblem; 2] {
    let problem = |id: &str, question: &[u32], steps: &[&[u32]]| EncodedProblem {
        id: id.to_owned(),
        question: question.to_vec(),
        question_end: 1,
        steps: steps.iter().map(|step| step.to_vec()).collect(),
        answer_start: vec![5],
        answer: vec![9, 1],
        critical: vec![None; steps.len()],
    };
    [
        problem("a", &[10, 11, 2], &[&[20, 21], &[22], &[23, 24]]),
        problem("b", &[12, 2], &[&[25, 26]]),
    ]
}

/// All values, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Fails where two lists differ by more than `tolerance`; not a number differs from everything.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let worst = found.iter().zip(expected).fold(0.0f64, |worst, (a, b)| {
        let difference = f64::from((a - b).abs());
        if difference.is_nan() {
            f64::INFINITY
        } else {
            worst.max(difference)
        }
    });
    measured(what, worst);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}");
}

/// Prints a difference, for whoever wants to know how far a tolerance is from the truth
/// (`cargo test -- --nocapture`).
#[expect(clippy::print_stderr, reason = "shown on demand only")]
pub fn measured(what: &str, difference: f64) {
    eprintln!("{what}: {difference:.1e}");
}

/// Path and values of every parameter.
pub fn parameters<M: Module>(module: &M) -> Vec<(String, Vec<f32>)> {
    visited(module, None)
}

/// Path and gradient of every parameter that has one.
pub fn gradients<M: Module>(module: &M, gradients: &GradientsParams) -> Vec<(String, Vec<f32>)> {
    visited(module, Some(gradients))
}

fn visited<M: Module>(module: &M, of: Option<&GradientsParams>) -> Vec<(String, Vec<f32>)> {
    struct Collect<'a> {
        path: Vec<String>,
        of: Option<&'a GradientsParams>,
        found: Vec<(String, Vec<f32>)>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = match self.of {
                Some(gradients) => gradients.get::<D>(param.id),
                None => Some(param.val()),
            };
            if let Some(tensor) = tensor {
                self.found.push((self.path.join("."), values(tensor)));
            }
        }
    }
    let mut visitor = Collect {
        path: Vec::new(),
        of,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Paths of the parameters that differ in any bit.
pub fn moved(before: &[(String, Vec<f32>)], after: &[(String, Vec<f32>)]) -> Vec<String> {
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(before.len(), after.len(), "number of parameters");
    let pairs = before.iter().zip(after);
    pairs
        .filter(|(before, after)| bits(&before.1) != bits(&after.1))
        .map(|(before, _)| before.0.clone())
        .collect()
}
