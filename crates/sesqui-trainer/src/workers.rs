//! The parts of one step, computed side by side.
//!
//! Burn's multi-device step keeps a thread per worker, each with a copy of the model on its device.
//! Two workers may share a device: on the CPU a worker is a core. Which worker computes a part
//! changes no bit of the result, because parts are summed in their own order.

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use burn::train::train::MultiDevicesTrainStep;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use sesqui_kernels::{is_here, on_one_core};

use crate::objective::{Objective, StepOutput};

/// Where the parts of a step are computed.
pub enum Workers<M: Objective> {
    /// One after another, on the caller's thread.
    Here,
    /// Side by side.
    Threads {
        /// Burn's workers.
        engine: Box<MultiDevicesTrainStep<Numbered<M>>>,
        /// Where their gradients are brought together.
        home: Device,
        /// How many there are.
        count: usize,
    },
}

/// What an objective's step reads.
pub type Batch<M> = <M as TrainStep>::Input;

/// What a part of a step came to.
pub type Part = (StepOutput, GradientsParams);

impl<M: Objective> Workers<M> {
    /// A worker for each of `devices`, no more than there are parts in a step.
    pub fn new(devices: &[Device], parts: usize) -> Self {
        let devices = &devices[..devices.len().min(parts)];
        match devices {
            [] | [_] => Self::Here,
            [home, ..] => Self::Threads {
                engine: Box::new(MultiDevicesTrainStep::new(devices)),
                home: home.clone(),
                count: devices.len(),
            },
        }
    }

    /// Gradients and losses of every batch, in the order given.
    ///
    /// # Errors
    ///
    /// What a worker panicked with.
    pub fn compute(&self, model: &M, batches: Vec<Batch<M>>) -> Result<Vec<Part>, String> {
        match self {
            Self::Here => Ok(batches
                .into_iter()
                .map(|batch| {
                    let output = TrainStep::step(model, batch);
                    (output.item, output.grads)
                })
                .collect()),
            Self::Threads {
                engine,
                home,
                count,
            } => {
                let numbered = Numbered {
                    model: model.clone(),
                    on_one_core: is_here(home),
                };
                let mut parts: Vec<(usize, Part)> = Vec::with_capacity(batches.len());
                let mut waiting = batches.into_iter().enumerate();
                while waiting.len() > 0 {
                    let mut feeds: Vec<Box<dyn DataLoaderIterator<(usize, Batch<M>)>>> =
                        Vec::with_capacity(*count);
                    for _ in 0..*count {
                        feeds.push(Box::new(Feed(waiting.next())));
                    }
                    let (outputs, _) = engine
                        .step(&mut feeds, &numbered)
                        .map_err(|error| error.to_string())?;
                    for output in outputs {
                        let output = output.output;
                        let (number, mut item) = (output.item.number, output.item.output);
                        item.losses = item.losses.to_device(&home.clone().without_autodiff());
                        let gradients = output.grads.to_device(home, model);
                        parts.push((number, (item, gradients)));
                    }
                }
                parts.sort_by_key(|(number, _)| *number);
                Ok(parts.into_iter().map(|(_, part)| part).collect())
            }
        }
    }
}

/// A model whose steps carry the number of their part, since workers answer in any order.
#[derive(Module, Debug)]
pub struct Numbered<M: Module> {
    model: M,
    /// Whether a worker is a core.
    #[module(skip)]
    on_one_core: bool,
}

/// A step's output with the number of its part.
#[derive(Clone, Debug)]
pub struct NumberedOutput {
    number: usize,
    output: StepOutput,
}

impl ItemLazy for NumberedOutput {
    fn sync(self) -> Result<Self, burn_std::ExecutionError> {
        Ok(self)
    }
}

impl<M: Objective> TrainStep for Numbered<M> {
    type Input = (usize, Batch<M>);
    type Output = NumberedOutput;

    fn step(&self, (number, batch): Self::Input) -> TrainOutput<NumberedOutput> {
        // Models need not be shared between threads, but may go from one to another.
        let model = self.model.clone();
        let step = move || TrainStep::step(&model, batch);
        let TrainOutput { grads, item } = match self.on_one_core {
            true => on_one_core(step),
            false => step(),
        };
        let item = NumberedOutput {
            number,
            output: item,
        };
        TrainOutput { grads, item }
    }
}

impl<M: Objective> InferenceStep for Numbered<M> {
    type Input = (usize, Batch<M>);
    type Output = NumberedOutput;

    fn step(&self, (number, batch): Self::Input) -> NumberedOutput {
        NumberedOutput {
            number,
            output: InferenceStep::step(&self.model, batch),
        }
    }
}

/// Hands one batch to one worker.
struct Feed<T>(Option<T>);

impl<T> Iterator for Feed<T> {
    type Item = Result<T, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl<T> DataLoaderIterator<T> for Feed<T> {
    fn progress(&self) -> Progress {
        Progress::new(0, 1, None)
    }
}
