//! What a stage leaves behind, and how it answers questions.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use sesqui_distill::latent::Padding;
use sesqui_distill::{
    Align, Curriculum, Halt, Joint, LatentConfig, Shortcut, ShortcutStageConfig, Supervised,
};
use sesqui_eval::{EvaluationConfig, LatentMethod, Method, Task, TokenDecoding};
use sesqui_model::latent::{LatentTransformer, Source};
use sesqui_model::{Continuation, LatentOrder, Precision, Transformer};
use sesqui_reason::{Decoding, HaltConfig, TokenExit};
use sesqui_shortcut::{
    EntryPosition, ExitRule, HostRouter, HostStepHead, KeyValueRule, Landing, ShortcutConfig,
    Shortcuts, StepHead,
};
use sesqui_trainer::checkpoint::{load_model, load_state};

use crate::experiment::{Objective, Stage};
use crate::halting;
use crate::preparation::Prepared;
use crate::reasoning::ReasoningConfig;
use crate::token_exit;

/// File of a latent checkpoint that holds its [`LatentSettings`].
pub const LATENTS: &str = "latents.json";

/// A trained model.
#[derive(Clone)]
pub enum Trained {
    /// Reasons in words, or not at all.
    Tokens(Box<Words>),
    /// Reasons in latent steps.
    Latent(Box<Latent>),
}

/// A model that reasons in words, or not at all.
#[derive(Clone)]
pub struct Words {
    /// The model.
    pub backbone: Transformer,
    /// After how many layers it chooses a token.
    pub exit: TokenExit,
}

/// A model that reasons in latent steps.
#[derive(Clone)]
pub struct Latent {
    /// The student.
    pub model: LatentTransformer,
    /// Routers and adapters, after stage 2.
    pub shortcuts: Option<Shortcuts>,
    /// What it was trained with.
    pub settings: LatentSettings,
    /// What is done to its latents before they are fed; as they come where there is nothing.
    pub refined: Option<Prepared>,
    /// The head that says how many latent steps a question needs, after a `halt` stage.
    pub head: Option<StepHead>,
    /// When its reasoning stops before the last latent step.
    pub halted: HaltConfig,
    hosts: Vec<HostRouter>,
    host_head: Option<HostStepHead>,
}

/// What has to be known of a latent model beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSettings {
    /// How the chain of thought became latent steps.
    pub latents: LatentConfig,
    /// How many there were, settled.
    pub count: usize,
    /// What is seen of a latent step in layers that it did not run.
    pub key_values: KeyValueRule,
    /// Where a latent step goes on after one that left early.
    pub landing: Landing,
    /// Whether it is given its learned position there; `None` in files that are older than the setting.
    #[serde(default)]
    pub entry_position: Option<EntryPosition>,
    /// Shapes of routers and adapters, of a `halt` stage that has some: its own objective does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortcuts: Option<ShortcutConfig>,
    /// What follows the latent steps.
    #[serde(default, skip_serializing_if = "is_answer")]
    pub continuation: Continuation,
    /// In which order latent steps are computed.
    #[serde(default, skip_serializing_if = "LatentOrder::is_sequential")]
    pub order: LatentOrder,
    /// Of a curriculum: from which update on, counted from 0, there were how many latent steps, ascending;
    /// empty where there were always as many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<(u64, usize)>,
}

fn is_answer(continuation: &Continuation) -> bool {
    *continuation == Continuation::Answer
}

impl LatentSettings {
    /// The same for a model after `updates` updates, which knows as many latent steps as it had by then.
    pub fn after(mut self, updates: u64) -> Self {
        let begun = |(from, _): &&(u64, usize)| *from < updates;
        if let Some((_, steps)) = self.growth.iter().rev().find(begun) {
            self.count = *steps;
        }
        self
    }

    /// Latent steps behind which the answer stands also where fewer are taken. Without padding it was
    /// trained right after the steps of each problem.
    pub fn kept(&self) -> usize {
        match self.latents.padding {
            Padding::Answer => self.count,
            Padding::None => 0,
        }
    }

    /// The same with what stage 2 settles.
    pub fn with_shortcuts(&self, config: &ShortcutStageConfig) -> Self {
        Self {
            key_values: config.key_values,
            landing: config.landing,
            entry_position: Some(config.entry_position()),
            ..self.clone()
        }
    }

    /// Reads what stage 2, trained as `config` says, left beside a checkpoint's weights.
    fn read_with(checkpoint: &Path, config: &ShortcutStageConfig) -> Result<Self> {
        let mut settings = Self::read(checkpoint)?;
        settings
            .entry_position
            .get_or_insert(config.entry_position());
        Ok(settings)
    }

    /// Reads the settings beside a checkpoint's weights.
    ///
    /// # Errors
    ///
    /// When there is no such file or it cannot be parsed.
    pub fn read(checkpoint: &Path) -> Result<Self> {
        let path = checkpoint.join(LATENTS);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

impl Latent {
    /// A model ready to be asked.
    pub fn new(
        model: LatentTransformer,
        shortcuts: Option<Shortcuts>,
        settings: LatentSettings,
    ) -> Self {
        Self {
            hosts: shortcuts
                .as_ref()
                .map_or_else(Vec::new, Shortcuts::routers_on_host),
            model,
            shortcuts,
            settings,
            refined: None,
            head: None,
            halted: HaltConfig::Never,
            host_head: None,
        }
    }

    /// The same with a head that says how many latent steps a question needs.
    pub fn with_head(self, head: StepHead) -> Self {
        Self {
            host_head: Some(head.on_host()),
            head: Some(head),
            ..self
        }
    }

    /// When its steps leave early.
    pub fn rule(&self, exit_threshold: f64) -> ExitRule<'_> {
        match &self.shortcuts {
            Some(shortcuts) => ExitRule::Routers {
                shortcuts,
                hosts: &self.hosts,
                threshold: exit_threshold,
            },
            None => ExitRule::Full,
        }
    }

    /// Latent steps to run.
    pub fn steps(&self, reasoning: &ReasoningConfig) -> usize {
        reasoning.latent_steps.settle(self.settings.count)
    }

    /// In which order its latent steps are computed. What is not made of the step before it waits for none,
    /// and a staircase is climbed step by step.
    pub fn order(&self, reasoning: &ReasoningConfig) -> LatentOrder {
        match (&self.shortcuts, self.model.source()) {
            (None, Source::Newest) => reasoning.order.settle(self.settings.order),
            _ => LatentOrder::Sequential,
        }
    }

    /// What follows its latent steps.
    pub fn continuation(&self, reasoning: &ReasoningConfig) -> Continuation {
        reasoning.continuation.settle(self.settings.continuation)
    }

    /// How it answers.
    pub fn method<'a>(
        &'a self,
        device: &'a Device,
        task: &Task<'a>,
        config: &EvaluationConfig,
        reasoning: &ReasoningConfig,
    ) -> LatentMethod<'a> {
        LatentMethod {
            model: &self.model,
            device,
            latent_steps: self.steps(reasoning),
            order: self.order(reasoning),
            trained_latents: self.settings.kept(),
            positions: self.settings.latents.positions,
            rule: self.rule(reasoning.exit_threshold),
            key_values: self.settings.key_values,
            landing: self.settings.landing,
            entry_position: self.settings.entry_position.unwrap_or_default(),
            refinement: self.refined.as_ref().map(Prepared::refinement),
            halt: (&self.halted, self.host_head.as_ref()),
            continuation: self.continuation(reasoning),
            answer_start: answer_start(task),
            decoding: decoding(task, config),
        }
    }
}

impl Trained {
    /// Loads what `stage` left in the folder `checkpoint`; `fresh` is a backbone of its shape.
    ///
    /// # Errors
    ///
    /// When the weights do not fit.
    pub fn load(
        checkpoint: &Path,
        stage: &Stage,
        fresh: Transformer,
        device: &Device,
    ) -> Result<Self> {
        let words = |fresh: Transformer| {
            let model = load_model(checkpoint, Supervised::new(fresh))?;
            Ok(Self::tokens(model.backbone))
        };
        match &stage.objective {
            Objective::Cot | Objective::NoCot | Objective::Icot(_) | Objective::EarlyExit(_) => {
                words(fresh)
            }
            Objective::Curriculum(config) if config.thought.feedback().is_none() => words(fresh),
            Objective::Curriculum(config) => {
                let updates = load_state(checkpoint)?.step;
                let settings = LatentSettings::read(checkpoint)?.after(updates);
                let student = LatentTransformer::new(fresh, &settings.latents.feedback, 0, device);
                let model = load_model(checkpoint, Curriculum::new(student, config))?;
                Ok(Self::latent(model.student, None, settings))
            }
            Objective::Align(config) => {
                let settings = LatentSettings::read(checkpoint)?;
                let student =
                    LatentTransformer::new(fresh.clone(), &settings.latents.feedback, 0, device);
                let model = load_model(checkpoint, Align::new(student, &fresh, config))?;
                Ok(Self::latent(model.student, None, settings))
            }
            Objective::Shortcut(config) => {
                let settings = LatentSettings::read_with(checkpoint, config)?;
                let shortcuts = Shortcuts::new(&config.shortcuts, fresh.config(), 0, device);
                let student =
                    LatentTransformer::new(fresh.clone(), &settings.latents.feedback, 0, device);
                let model = Shortcut::new(student, shortcuts, &fresh, config);
                let model = load_model(checkpoint, model)?;
                Ok(Self::latent(model.student, Some(model.shortcuts), settings))
            }
            Objective::Joint(config) => {
                let settings = LatentSettings::read_with(checkpoint, &config.shortcut)?;
                let shape = fresh.config();
                let shortcuts = Shortcuts::new(&config.shortcut.shortcuts, shape, 0, device);
                let student =
                    LatentTransformer::new(fresh.clone(), &settings.latents.feedback, 0, device);
                let model = Joint::new(student, shortcuts, &fresh, config);
                let model = load_model(checkpoint, model)?;
                Ok(Self::latent(model.student, Some(model.shortcuts), settings))
            }
            Objective::Halt(config) => {
                let settings = LatentSettings::read(checkpoint)?;
                let shape = fresh.config();
                let shortcuts = settings.shortcuts.as_ref();
                let shortcuts = shortcuts.map(|config| Shortcuts::new(config, shape, 0, device));
                let head = StepHead::new(config.hidden, settings.count, shape, 0, device);
                let student =
                    LatentTransformer::new(fresh.clone(), &settings.latents.feedback, 0, device);
                let model = load_model(checkpoint, Halt::new(student, shortcuts, head))?;
                Ok(Self::halting(model, settings))
            }
        }
    }

    /// A model that reasons in words, or not at all.
    pub fn tokens(backbone: Transformer) -> Self {
        Self::Tokens(Box::new(Words {
            backbone,
            exit: TokenExit::Never,
        }))
    }

    /// A model that reasons in latent steps.
    pub fn latent(
        model: LatentTransformer,
        shortcuts: Option<Shortcuts>,
        settings: LatentSettings,
    ) -> Self {
        Self::Latent(Box::new(Latent::new(model, shortcuts, settings)))
    }

    /// A model that reasons in latent steps and has a head that says how many.
    pub fn halting(model: Halt, settings: LatentSettings) -> Self {
        let latent = Latent::new(model.student, model.shortcuts, settings);
        Self::Latent(Box::new(latent.with_head(model.head)))
    }

    /// The transformer in it.
    pub fn backbone(&self) -> &Transformer {
        match self {
            Self::Tokens(words) => &words.backbone,
            Self::Latent(latent) => &latent.model.backbone,
        }
    }

    /// With products of this precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        let backbone = match &mut self {
            Self::Tokens(words) => &mut words.backbone,
            Self::Latent(latent) => &mut latent.model.backbone,
        };
        *backbone = backbone.clone().with_precision(precision);
        self
    }

    /// From now on refines latents with `refinement`, or feeds them as they come; what tables call the
    /// model of `stage` then. Nothing changes where there are no latents.
    pub fn refine(&mut self, stage: &str, refinement: Option<&Prepared>) -> String {
        match (self, refinement) {
            (Self::Tokens(_), _) => stage.to_owned(),
            (Self::Latent(latent), None) => {
                latent.refined = None;
                stage.to_owned()
            }
            (Self::Latent(latent), Some(refinement)) => {
                latent.refined = Some(refinement.clone());
                format!("{stage}, {}", refinement.label)
            }
        }
    }

    /// The same as it answers with `refinement` and stopping as `halt` says, and what tables call that of
    /// the model of `stage`.
    pub fn asked(
        &self,
        stage: &str,
        refinement: Option<&Prepared>,
        halt: &HaltConfig,
    ) -> (Self, String) {
        let mut model = self.clone();
        let mut name = model.refine(stage, refinement);
        model.halt(halt);
        if !halt.is_never() {
            name.push_str(&format!(", {}", halting::label(halt)));
        }
        (model, name)
    }

    /// From now on stops reasoning as `halt` says. Nothing changes where there are no latents.
    pub fn halt(&mut self, halt: &HaltConfig) {
        if let Self::Latent(latent) = self {
            latent.halted = halt.clone();
        }
    }

    /// The same as it chooses tokens after as many layers as `exit` says, and what tables call that of
    /// `method`. Nothing changes where reasoning is in latent steps.
    pub fn exiting(&self, method: &str, exit: TokenExit) -> (Self, String) {
        let mut model = self.clone();
        match &mut model {
            Self::Tokens(words) if !exit.is_never() => {
                words.exit = exit;
                (model, format!("{method}, {}", token_exit::label(&exit)))
            }
            _ => (model, method.to_owned()),
        }
    }

    /// The same off the autodiff tape.
    pub fn for_inference(self) -> Self {
        match self {
            Self::Tokens(words) => Self::tokens(words.backbone.valid()),
            Self::Latent(latent) => {
                let shortcuts = latent.shortcuts.map(|shortcuts| shortcuts.valid());
                let plain = Latent::new(latent.model.valid(), shortcuts, latent.settings);
                Self::Latent(Box::new(match latent.head {
                    Some(head) => plain.with_head(head.valid()),
                    None => plain,
                }))
            }
        }
    }

    /// How it answers.
    pub fn method<'a>(
        &'a self,
        device: &'a Device,
        task: &Task<'a>,
        config: &EvaluationConfig,
        reasoning: &ReasoningConfig,
    ) -> Box<dyn Method + 'a> {
        match self {
            Self::Tokens(words) => Box::new(token_decoding(words, device, task, config)),
            Self::Latent(latent) => Box::new(latent.method(device, task, config, reasoning)),
        }
    }
}

/// Greedy decoding for a task.
pub fn token_decoding<'a>(
    words: &'a Words,
    device: &'a Device,
    task: &Task<'a>,
    config: &EvaluationConfig,
) -> TokenDecoding<'a> {
    TokenDecoding {
        model: &words.backbone,
        device,
        decoding: decoding(task, config),
        exit: words.exit,
        answer_start: answer_start(task),
    }
}

fn decoding(task: &Task<'_>, config: &EvaluationConfig) -> Decoding {
    Decoding {
        stop: task.tokenizer.eos_id(),
        max_tokens: config.max_tokens,
    }
}

/// The tokens that open the answer, the same for all problems of a task.
fn answer_start<'a>(task: &Task<'a>) -> &'a [u32] {
    task.encoded
        .first()
        .map_or(&[], |problem| &problem.answer_start)
}

#[cfg(test)]
mod tests {
    use sesqui_distill::shortcut::{CompositionConfig, EntryPositionChoice, ShortcutLoss};

    use super::*;

    /// Files older than the setting take what the loss trained; newer ones hold what was settled.
    #[test]
    fn a_position_above_the_bottom_is_as_the_loss_trained_it() {
        let staircase = ShortcutStageConfig::default();
        let composition = ShortcutStageConfig {
            loss: ShortcutLoss::Composition(CompositionConfig::default()),
            ..ShortcutStageConfig::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let old = LatentSettings {
            latents: LatentConfig::default(),
            count: 3,
            key_values: KeyValueRule::default(),
            landing: Landing::default(),
            entry_position: None,
            shortcuts: None,
            continuation: Continuation::Answer,
            order: LatentOrder::Sequential,
            growth: Vec::new(),
        };
        let write = |settings: &LatentSettings, without: bool| {
            let mut json = serde_json::to_value(settings).unwrap();
            if without {
                json.as_object_mut().unwrap().remove("entry_position");
            }
            std::fs::write(folder.path().join(LATENTS), json.to_string()).unwrap();
        };
        for (config, expected) in [
            (&staircase, EntryPosition::EveryEntry),
            (&composition, EntryPosition::CycleStart),
        ] {
            write(&old, true);
            let read = LatentSettings::read_with(folder.path(), config).unwrap();
            assert_eq!(read.entry_position, Some(expected));
            let settled = old.with_shortcuts(config);
            assert_eq!(settled.entry_position, Some(expected));
            for (choice, expected) in [
                (EntryPositionChoice::EveryEntry, EntryPosition::EveryEntry),
                (EntryPositionChoice::CycleStart, EntryPosition::CycleStart),
            ] {
                let config = ShortcutStageConfig {
                    entry_position: choice,
                    ..config.clone()
                };
                write(&old.with_shortcuts(&config), false);
                // Whatever the configuration says by then.
                let read = LatentSettings::read_with(folder.path(), &composition).unwrap();
                assert_eq!(read.entry_position, Some(expected));
            }
        }
    }
}
