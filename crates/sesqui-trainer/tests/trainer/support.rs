//! A linear model, its data, and one call that trains it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use burn::train::{InferenceStep, Interrupter, TrainOutput, TrainStep};
use sesqui_run::rows::read_rows;
use sesqui_run::{MetricRow, RowWriter};
use sesqui_trainer::checkpoint::Attachment;
use sesqui_trainer::{
    Batches, CheckpointPolicy, Checkpoints, Fit, FitError, Outcome, Renderer, StepOutput,
    TrainingConfig, Validation, fit,
};

/// Inputs and targets per row.
pub const WIDTHS: [usize; 2] = [3, 2];
/// Rows per batch.
pub const ROWS: usize = 4;
/// Name of the stage in all tests.
pub const STAGE: &str = "linear";

/// Affine maps in a row under a squared loss, with device noise on the inputs.
#[derive(Module, Debug)]
pub struct Regression {
    pub maps: Vec<Linear>,
    noise: f64,
}

impl Regression {
    /// Maps between `widths`; weights are a sine, so that they depend on no generator.
    pub fn new(widths: &[usize], noise: f64) -> Self {
        let device = tracked();
        let wave = |count: usize, phase: usize| -> Vec<f32> {
            (0..count)
                .map(|index| (0.7 * (index + phase) as f32).sin() * 0.5)
                .collect()
        };
        let maps = widths
            .windows(2)
            .enumerate()
            .map(|(layer, pair)| {
                let (inputs, outputs) = (pair[0], pair[1]);
                let weight =
                    TensorData::new(wave(inputs * outputs, 11 * layer + 1), [inputs, outputs]);
                let bias = TensorData::new(wave(outputs, 11 * layer + 8), [outputs]);
                Linear {
                    weight: Param::from_tensor(Tensor::from_data(weight, &device)),
                    bias: Some(Param::from_tensor(Tensor::from_data(bias, &device))),
                }
            })
            .collect();
        Self { maps, noise }
    }

    /// Mean squared and mean absolute error, `[2]`.
    fn losses(&self, batch: &Rows) -> Tensor<1> {
        let device = self.maps[0].weight.val().device();
        let rows = batch.inputs.len() / WIDTHS[0];
        let upload = |values: &[f32], width: usize| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), [rows, width]), &device)
        };
        let mut hidden = upload(&batch.inputs, WIDTHS[0]);
        if self.noise > 0.0 {
            let noise = Tensor::random([rows, WIDTHS[0]], Distribution::Normal(0.0, 1.0), &device);
            hidden = hidden + noise.mul_scalar(self.noise);
        }
        for map in &self.maps {
            hidden = map.forward(hidden);
        }
        let error = hidden - upload(&batch.targets, WIDTHS[1]);
        Tensor::cat(vec![error.clone().square().mean(), error.abs().mean()], 0)
    }

    /// All parameters in order: weight and bias, map by map.
    pub fn values(&self) -> Vec<f32> {
        let read = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();
        self.maps
            .iter()
            .flat_map(|map| {
                let bias = map.bias.as_ref().unwrap().val().into_data();
                [read(map.weight.val().into_data()), read(bias)].concat()
            })
            .collect()
    }
}

fn output(losses: Tensor<1>, batch: &Rows) -> StepOutput {
    StepOutput {
        names: &["loss", "error"],
        losses,
        tokens: batch.inputs.len() / WIDTHS[0],
    }
}

impl TrainStep for Regression {
    type Input = Rows;
    type Output = StepOutput;

    fn step(&self, batch: Rows) -> TrainOutput<StepOutput> {
        let losses = self.losses(&batch);
        let gradients = losses.clone().narrow(0, 0, 1).backward();
        TrainOutput::new(self, gradients, output(losses.inner(), &batch))
    }
}

impl InferenceStep for Regression {
    type Input = Rows;
    type Output = StepOutput;

    fn step(&self, batch: Rows) -> StepOutput {
        output(self.losses(&batch), &batch)
    }
}

/// A batch on the host: inputs `[rows, 3]` and targets `[rows, 2]`.
#[derive(Clone, Debug)]
pub struct Rows {
    pub inputs: Vec<f32>,
    pub targets: Vec<f32>,
}

impl Rows {
    /// Batch `index`: a fixed map of hashed inputs, with an error that no linear map removes.
    pub fn numbered(index: u64) -> Self {
        let draw = |cell: u64| {
            let mixed = (index * 1_000 + cell).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        };
        let mut rows = Self {
            inputs: Vec::new(),
            targets: Vec::new(),
        };
        for row in 0..ROWS as u64 {
            let x = [draw(8 * row), draw(8 * row + 1), draw(8 * row + 2)];
            rows.inputs.extend(x);
            rows.targets
                .push(x[0] - 0.5 * x[1] + 0.3 * draw(8 * row + 3));
            rows.targets
                .push(0.8 * x[2] + 0.2 + 0.3 * draw(8 * row + 4));
        }
        rows
    }

    /// The rows of several batches in one.
    pub fn joined(indices: std::ops::Range<u64>) -> Self {
        let parts: Vec<Rows> = indices.map(Rows::numbered).collect();
        Self {
            inputs: parts.iter().flat_map(|part| part.inputs.clone()).collect(),
            targets: parts.iter().flat_map(|part| part.targets.clone()).collect(),
        }
    }
}

/// What goes wrong with the data, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flaw {
    None,
    /// This value as an input of this batch.
    Value(u64, f32),
    /// This batch cannot be made.
    Missing(u64),
}

/// Who asks to stop, and during which step (counted from 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stopper {
    Nobody,
    BeforeTheFirst,
    InBatch(u64),
    InValidation(u64),
}

struct Numbered {
    joined: u64,
    flaw: Flaw,
    stop: Option<(u64, Interrupter)>,
}

impl Batches<Rows> for Numbered {
    fn batch(&self, index: u64) -> Result<Rows, String> {
        if let Some((at, interrupter)) = &self.stop
            && *at == index
        {
            interrupter.stop(None);
        }
        let mut rows = Rows::joined(index * self.joined..(index + 1) * self.joined);
        match self.flaw {
            Flaw::Missing(at) if at == index => return Err(format!("batch {index} is lost")),
            Flaw::Value(at, value) if at == index => rows.inputs[1] = value,
            _ => {}
        }
        Ok(rows)
    }

    fn per_epoch(&self) -> u64 {
        10
    }

    fn rows(&self, index: u64) -> String {
        format!("rows of batch {index}")
    }
}

/// A training to be run, once or again.
#[derive(Clone)]
pub struct Setup {
    pub config: TrainingConfig,
    pub seed: u64,
    pub widths: Vec<usize>,
    pub noise: f64,
    /// Maps whose parameters do not train.
    pub frozen: usize,
    /// Workers that share the parts of a step.
    pub workers: usize,
    /// Batches put into one, so that one step sees what accumulation would see.
    pub joined: u64,
    pub flaw: Flaw,
    pub stopper: Stopper,
    /// Whether the optimizer forgets before a step.
    pub resets: fn(u64) -> bool,
    /// Validation accuracy after a step.
    pub accuracy: fn(u64) -> Option<f64>,
}

impl Setup {
    /// Ten steps, validated every three, saved every four.
    pub fn new() -> Self {
        let mut config = TrainingConfig {
            steps: 10,
            validate_every: 3,
            log_every: 2,
            checkpoints: CheckpointPolicy {
                every: 4,
                keep_last: 2,
                keep_at: Vec::new(),
            },
            ..TrainingConfig::default()
        };
        config.learning_rate.warm_up_steps = 3;
        config.learning_rate.peak = 0.05;
        Self {
            config,
            seed: 7,
            widths: vec![WIDTHS[0], 5, 4, WIDTHS[1]],
            noise: 0.0,
            frozen: 0,
            workers: 1,
            joined: 1,
            flaw: Flaw::None,
            stopper: Stopper::Nobody,
            resets: |_| false,
            accuracy: |step| Some(0.01 * step as f64),
        }
    }

    /// As [`Setup::new`], with one map only.
    pub fn one_map() -> Self {
        Self {
            widths: WIDTHS.to_vec(),
            ..Self::new()
        }
    }

    /// The model before the first step.
    pub fn model(&self) -> Regression {
        let mut model = Regression::new(&self.widths, self.noise);
        model.maps = std::mem::take(&mut model.maps)
            .into_iter()
            .enumerate()
            .map(|(index, map)| {
                if index < self.frozen {
                    map.no_grad()
                } else {
                    map
                }
            })
            .collect();
        model
    }

    /// The checkpoints in a run folder.
    pub fn checkpoints(&self, folder: &Path) -> Checkpoints {
        let attachment = Attachment {
            name: "config.toml".into(),
            bytes: b"steps = 10\n".into(),
        };
        let policy = self.config.checkpoints.clone();
        Checkpoints::new(folder.join("checkpoints"), policy, vec![attachment])
    }

    /// Trains, resuming from whatever is in `folder`.
    pub fn run(&self, folder: &Path) -> Result<Outcome<Regression>, FitError> {
        self.run_seen(folder, &mut Renderer::none(Box::new(std::io::sink())))
    }

    /// As [`Setup::run`], in front of a person.
    pub fn run_seen(
        &self,
        folder: &Path,
        renderer: &mut Renderer,
    ) -> Result<Outcome<Regression>, FitError> {
        // The CPU's generator is one per process, and every training seeds it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let interrupter = Interrupter::new();
        if self.stopper == Stopper::BeforeTheFirst {
            interrupter.stop(None);
        }
        let stop = match self.stopper {
            Stopper::InBatch(step) => {
                Some((step * self.config.accumulation - 1, interrupter.clone()))
            }
            _ => None,
        };
        let batches = Numbered {
            joined: self.joined,
            flaw: self.flaw,
            stop,
        };
        let (mut metrics, _) = RowWriter::open(&metrics_path(folder)).unwrap();
        let mut validate = |model: &Regression, step: u64| {
            assert!(
                !model.maps[0].weight.val().is_autodiff(),
                "validated on the autodiff tape"
            );
            if self.stopper == Stopper::InValidation(step) {
                interrupter.stop(None);
            }
            let loss = InferenceStep::step(model, Rows::numbered(999)).losses;
            let losses: Vec<f32> = loss.into_data().iter::<f32>().collect();
            Ok(Validation {
                loss: Some(losses[0].into()),
                accuracy: (self.accuracy)(step),
                values: BTreeMap::from([("error".to_owned(), losses[1].into())]),
            })
        };
        let job = Fit {
            stage: STAGE,
            config: &self.config,
            seed: self.seed,
            devices: &vec![tracked(); self.workers],
            batches: &batches,
            resets: &self.resets,
            checkpoints: &self.checkpoints(folder),
            renderer,
            metrics: &mut metrics,
            interrupter: &interrupter,
            validate: &mut validate,
        };
        fit(self.model(), job)
    }
}

/// The CPU with gradients.
pub fn tracked() -> Device {
    Device::flex().autodiff()
}

fn metrics_path(folder: &Path) -> PathBuf {
    folder.join("metrics.jsonl")
}

/// All rows of a run.
pub fn rows(folder: &Path) -> Vec<MetricRow> {
    read_rows(&metrics_path(folder)).unwrap().0
}

/// Rows of training or of validation.
pub fn rows_of(folder: &Path, split: &str) -> Vec<MetricRow> {
    rows(folder)
        .into_iter()
        .filter(|row| row.split == split)
        .collect()
}

/// All rows with what a clock measured left out.
pub fn timeless_rows(folder: &Path) -> Vec<MetricRow> {
    let mut rows = rows(folder);
    for row in &mut rows {
        row.elapsed_seconds = 0.0;
        row.tokens_per_second = None;
    }
    rows
}

/// Every file below `folder` by relative path.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path
                    .strip_prefix(folder)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Fails, naming the file, where two folders differ.
pub fn assert_same_files(left: &Path, right: &Path, what: &str) {
    let (left, right) = (files(left), files(right));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right), "{what}: file names");
    for (name, bytes) in &left {
        assert!(bytes == &right[name], "{what}: {name} differs");
    }
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

/// What was written, still readable by the test.
#[derive(Clone, Default)]
pub struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
