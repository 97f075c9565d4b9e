//! What is timed, ready to be run again and again.

use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::Device;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_distill::Supervised;
use sesqui_eval::{LatentMethod, Method, TokenDecoding};
use sesqui_kernels::AdamW;
use sesqui_model::latent::{Continuation, Feedback, LatentTransformer, SlotPositions};
use sesqui_model::{LatentOrder, ModelConfigError, Transformer};
use sesqui_reason::{Decoding, HaltConfig, Prompt, TokenExit};
use sesqui_shortcut::{
    EntryPosition, ExitRule, HostRouter, KeyValueRule, Landing, ShortcutConfig, Shortcuts,
};
use sesqui_trainer::workers::Workers;

use crate::Shape;

/// Tokens that a prompt of [`Decode`] has where nothing else is said.
pub const PROMPT_TOKENS: usize = 8;

/// Tokens that [`Decode`] writes.
pub const NEW_TOKENS: usize = 64;

/// Tokens that a question of [`Latents`] has where nothing else is said.
pub const QUESTION_TOKENS: usize = 37;

/// Latent steps of [`Latents`].
pub const LATENT_STEPS: usize = 6;

/// Tokens that [`Latents`] writes after them.
pub const ANSWER_TOKENS: usize = 2;

/// Nothing stops early: no token has this id.
const NEVER: u32 = u32::MAX;

/// A model under training.
pub struct Training {
    model: Supervised,
    optimizer: ModuleOptimizer,
    workers: Workers<Supervised>,
    parts: Vec<SequenceBatch>,
}

impl Training {
    /// The batch of `shape`, a part for each of `devices`.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn new(shape: &Shape, devices: &[Device]) -> Result<Self, ModelConfigError> {
        let devices: Vec<Device> = devices
            .iter()
            .map(|device| device.clone().autodiff())
            .collect();
        let parts = devices.len().min(shape.batch);
        Ok(Self {
            model: Supervised::new(shape.transformer(&devices[0])?),
            optimizer: ModuleOptimizer::from(AdamW::new([0.9, 0.999], 1e-5, 0.01)),
            workers: Workers::new(&devices, parts),
            parts: shape.training_parts(parts),
        })
    }

    /// Forward, backward and update; the loss, read on the host.
    ///
    /// # Errors
    ///
    /// What a worker panicked with.
    pub fn step(&mut self) -> Result<f64, String> {
        let mut gradients = GradientsAccumulator::new();
        let mut loss = 0.0;
        let count = self.parts.len() as f64;
        for (output, part) in self.workers.compute(&self.model, self.parts.clone())? {
            gradients.accumulate(&self.model, part);
            let losses: Vec<f64> = output.losses.into_data().iter::<f64>().collect();
            loss += losses[0] / count;
        }
        self.model = self
            .optimizer
            .step(3e-4, self.model.clone(), gradients.grads());
        Ok(loss)
    }
}

/// Greedy decoding of [`NEW_TOKENS`].
pub struct Decode {
    model: Transformer,
    prompt: Prompt,
    device: Device,
}

impl Decode {
    /// `batch` rows at once, after `prompt` tokens.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn new(
        shape: &Shape,
        batch: usize,
        prompt: usize,
        device: &Device,
    ) -> Result<Self, ModelConfigError> {
        Ok(Self {
            model: shape.transformer(device)?.valid(),
            prompt: shape.prompt(batch, prompt),
            device: device.clone(),
        })
    }

    /// Tokens written, all rows together.
    pub fn run(&self) -> usize {
        let method = TokenDecoding {
            model: &self.model,
            device: &self.device,
            decoding: Decoding {
                stop: NEVER,
                max_tokens: NEW_TOKENS,
            },
            exit: TokenExit::Never,
            answer_start: &[],
        };
        match method.respond(&self.prompt) {
            Ok(responses) => responses.rows.iter().map(|row| row.tokens.len()).sum(),
            Err(error) => unreachable!("the prompt fits: {error}"),
        }
    }
}

/// Which layers latent steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exits {
    /// All.
    Full,
    /// A fixed third of (row, step, boundary) leaves, so that rows stand at different layers.
    Staircase,
    /// As routers with a hidden layer of 32 say.
    Routers,
}

impl Exits {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Staircase => "staircase",
            Self::Routers => "routers",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::Full, Self::Staircase, Self::Routers];
}

/// [`LATENT_STEPS`] latent steps and an answer of [`ANSWER_TOKENS`].
pub struct Latents {
    model: LatentTransformer,
    shortcuts: Shortcuts,
    hosts: Vec<HostRouter>,
    exits: Exits,
    steps: usize,
    prompt: Prompt,
    device: Device,
}

impl Latents {
    /// `batch` rows at once, of `prompt` tokens each.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn new(
        shape: &Shape,
        exits: Exits,
        [batch, prompt]: [usize; 2],
        device: &Device,
    ) -> Result<Self, ModelConfigError> {
        let backbone = shape.transformer(device)?;
        let model = LatentTransformer::new(backbone, &Feedback::default(), 0, device);
        let mut config = ShortcutConfig::default();
        config.router.hidden = 32;
        let mut shortcuts = Shortcuts::new(&config, &shape.model, 1, device);
        // Untrained routers say the same of every state; these differ from row to row.
        for (router, adapter) in shortcuts.routers.iter_mut().zip(&shortcuts.adapters) {
            let weight = adapter.down.weight.val().narrow(0, 0, 32).narrow(1, 0, 1);
            router.output.weight = Param::from_tensor(weight);
        }
        Ok(Self {
            model,
            hosts: shortcuts.routers_on_host(),
            shortcuts,
            exits,
            steps: LATENT_STEPS,
            prompt: shape.prompt(batch, prompt),
            device: device.clone(),
        })
    }

    /// The same with `steps` latent steps.
    pub fn with_steps(self, steps: usize) -> Self {
        Self { steps, ..self }
    }

    /// Layer calls made, all rows together.
    pub fn run(&self) -> usize {
        let leaves =
            |row: usize, slot: usize, boundary: usize| (row + slot + boundary).is_multiple_of(3);
        let rule = match self.exits {
            Exits::Full => ExitRule::Full,
            Exits::Staircase => ExitRule::Plan {
                shortcuts: Some(&self.shortcuts),
                leaves: &leaves,
            },
            Exits::Routers => ExitRule::Routers {
                shortcuts: &self.shortcuts,
                hosts: &self.hosts,
                // What they say on average at the start.
                threshold: 0.7,
            },
        };
        let method = LatentMethod {
            model: &self.model,
            device: &self.device,
            latent_steps: self.steps,
            order: LatentOrder::Sequential,
            trained_latents: self.steps,
            positions: SlotPositions::Contiguous,
            rule,
            key_values: KeyValueRule::Holes,
            landing: Landing::SameBoundary,
            entry_position: EntryPosition::EveryEntry,
            refinement: None,
            halt: (&HaltConfig::Never, None),
            continuation: Continuation::Answer,
            answer_start: &[3],
            decoding: Decoding {
                stop: NEVER,
                max_tokens: ANSWER_TOKENS,
            },
        };
        match method.respond(&self.prompt) {
            Ok(responses) => responses.rows.iter().map(|row| row.layer_calls).sum(),
            Err(error) => unreachable!("the prompt fits: {error}"),
        }
    }
}
