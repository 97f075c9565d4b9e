//! Stage 2: routers and adapters over a student whose weights do not move (arXiv 2505.18962, section
//! 2.2, Eq. 10 to 13).

use burn::module::Module;
use burn::tensor::activation::softplus;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};
use sesqui_model::Transformer;
use sesqui_model::latent::LatentTransformer;
use sesqui_shortcut::early_exit::{Composed, EarlyExitConfig, compute_term, early_exit_loss};
use sesqui_shortcut::plan::Slot;
use sesqui_shortcut::soft::{SoftConfig, local_composition, slot_states, soft_pass};
use sesqui_shortcut::walk::{ExitRule, SlotTrace};
use sesqui_shortcut::{
    ExitPlan, KeyValueRule, Landing, ShortcutConfig, Shortcuts, StaircasePass, staircase_pass,
};
use sesqui_trainer::StepOutput;

use crate::align::{learned, with_total};
use crate::dropout::adapter_masks;
use crate::latent::{LatentBatch, SlotLabel};
use crate::loss::hidden_states;
use crate::rollout::{Leaves, generator, uniform};
use crate::student::{
    Lesson, Outcome, Staircase, constant_like, own_inputs, slot_label, staircase_inputs,
};

/// Stage 2 as a setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShortcutStageConfig {
    /// Shapes of routers and adapters.
    pub shortcuts: ShortcutConfig,
    /// What is seen of a latent step in layers that it did not run.
    pub key_values: KeyValueRule,
    /// Where a latent step goes on after one that left early (D1).
    pub landing: Landing,
    /// Which weights move.
    pub trains: Trains,
    /// What is minimised.
    pub loss: ShortcutLoss,
}

/// Which weights move in stage 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trains {
    /// Routers and adapters; the student stays as it is, bit for bit.
    #[default]
    Shortcuts,
    /// Everything (the full-parameter ablation of the paper's Fig. 3).
    Everything,
}

/// What stage 2 minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ShortcutLoss {
    /// The hard path that inference takes, with exits drawn at random, and routers that learn the
    /// criticality labels. An extension of the paper.
    Staircase(StaircaseConfig),
    /// The soft composition of Eq. 5 under Eq. 10 and 12, as printed.
    Composition(CompositionConfig),
}

impl Default for ShortcutLoss {
    fn default() -> Self {
        Self::Staircase(StaircaseConfig::default())
    }
}

/// Training on the hard path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaircaseConfig {
    /// Weight of the answer's cross-entropy.
    pub answer: f64,
    /// Weight of the squared difference to the teacher, at finished latent steps and in the answer.
    pub alignment: f64,
    /// Weight of the routers' binary cross-entropy against `1 - c`.
    pub routers: f64,
    /// Share of batches in which every step that is not critical leaves at boundary 1.
    pub non_critical: f64,
    /// Share of batches with random exits at random boundaries; in the rest the routers decide.
    pub random: f64,
    /// Exit thresholds that are drawn from where the routers decide.
    pub thresholds: Vec<f64>,
}

impl Default for StaircaseConfig {
    fn default() -> Self {
        Self {
            answer: 1.0,
            alignment: 1.0,
            routers: 1.0,
            non_critical: 0.5,
            random: 0.35,
            thresholds: vec![0.3, 0.5, 0.6, 0.8],
        }
    }
}

/// Training on the soft composition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompositionConfig {
    /// How layer and shortcuts are mixed (Eq. 1 to 5, D9).
    pub composition: SoftConfig,
    /// The early-exit loss (Eq. 10, D11, D12, D14).
    pub early_exit: EarlyExitConfig,
    /// Weight of the early-exit loss: `beta` of Eq. 13.
    pub beta: f64,
    /// Weight of the compute term, which rewards leaving, of padding too (D13). An extension: 0 as
    /// printed.
    pub gamma: f64,
    /// Whose states are fed to the latent steps (D19).
    pub inputs: StudentInputs,
}

impl Default for CompositionConfig {
    fn default() -> Self {
        Self {
            composition: SoftConfig::default(),
            early_exit: EarlyExitConfig::default(),
            beta: 1.0,
            gamma: 0.0,
            inputs: StudentInputs::default(),
        }
    }
}

/// Whose states are fed to the latent steps of the composed model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudentInputs {
    /// The student's outputs in a pass that was fed the teacher's states.
    #[default]
    TeacherForced,
    /// The student's outputs when it feeds itself.
    FreeRunning,
}

impl ShortcutStageConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        if let Some((key, reason)) = self.shortcuts.problem() {
            return Some((format!("shortcuts.{key}"), reason));
        }
        let weights = match &self.loss {
            ShortcutLoss::Staircase(config) => [
                ("loss.answer", config.answer),
                ("loss.alignment", config.alignment),
                ("loss.routers", config.routers),
            ],
            ShortcutLoss::Composition(config) => [
                ("loss.beta", config.beta),
                ("loss.gamma", config.gamma),
                ("loss.gamma", config.gamma),
            ],
        };
        for (key, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                let reason = format!("{weight} is not a weight; give 0 or more");
                return Some((key.to_owned(), reason));
            }
        }
        let ShortcutLoss::Staircase(config) = &self.loss else {
            return None;
        };
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            let reason = "all weights are 0: nothing would be learned".to_owned();
            return Some(("loss".to_owned(), reason));
        }
        if let Some(threshold) = config
            .thresholds
            .iter()
            .find(|threshold| !(0.0..=1.0).contains(*threshold))
        {
            let reason = format!("{threshold} is not in [0, 1]");
            return Some(("loss.thresholds".to_owned(), reason));
        }
        let rest = 1.0 - config.non_critical - config.random;
        // Written so that what is not a number is refused too.
        if !(config.non_critical >= 0.0 && config.random >= 0.0 && rest >= -1e-9) {
            return Some((
                "loss.non_critical".to_owned(),
                "shares of batches lie in [0, 1] and sum to at most 1, with loss.random".to_owned(),
            ));
        }
        if rest > 1e-9 && config.thresholds.is_empty() {
            return Some((
                "loss.thresholds".to_owned(),
                "name at least one, or let the other shares sum to 1".to_owned(),
            ));
        }
        None
    }
}

/// A student under stage 2.
#[derive(Module, Debug)]
pub struct Shortcut {
    /// The student.
    pub student: LatentTransformer,
    /// What is trained.
    pub shortcuts: Shortcuts,
    /// The teacher of stage 1, off the autodiff tape.
    #[module(skip)]
    teacher: Transformer,
    #[module(skip)]
    config: ShortcutStageConfig,
    /// Where the routers decide on a batch that no exits are drawn for.
    #[module(skip)]
    exit_threshold: f64,
}

const STAIRCASE_NAMES: &[&str] = &["loss", "answer", "alignment", "routers"];
const COMPOSITION_NAMES: &[&str] = &["loss", "answer", "early_exit", "compute"];

impl Shortcut {
    /// Shortcuts over `student`; `teacher` is what the student was aligned to. Until
    /// [`Self::asked_at`] says another, the threshold of validation is 1: no latent step leaves.
    pub fn new(
        student: LatentTransformer,
        shortcuts: Shortcuts,
        teacher: &Transformer,
        config: &ShortcutStageConfig,
    ) -> Self {
        Self {
            student: match config.trains {
                Trains::Shortcuts => student.no_grad(),
                Trains::Everything => student,
            },
            shortcuts,
            teacher: teacher.valid(),
            config: config.clone(),
            exit_threshold: 1.0,
        }
    }

    /// Lets the routers decide at `exit_threshold` on batches without a seed for exits, as those of
    /// validation are: at the threshold at which questions are asked.
    pub fn asked_at(self, exit_threshold: f64) -> Self {
        Self {
            exit_threshold,
            ..self
        }
    }

    fn device(&self) -> Device {
        self.shortcuts.routers[0].output.weight.val().device()
    }

    /// The shortcuts as a training batch finds them: with dropout, if there is some.
    fn dropped(&self, batch: &LatentBatch) -> Shortcuts {
        let shortcuts = self.shortcuts.clone();
        let rate = self.config.shortcuts.adapter.dropout;
        match batch.rollout.seed().filter(|_| rate > 0.0) {
            Some(seed) => {
                let adapters = shortcuts.adapters.len();
                let d_model = self.student.backbone.config().d_model;
                let shape = [batch.batch, batch.slots, d_model];
                shortcuts.dropped(adapter_masks(seed, rate, adapters, shape, &self.device()))
            }
            None => shortcuts,
        }
    }

    /// Losses of a pass through `shortcuts`, which are the model's own or those with dropout. Whatever
    /// is computed without gradients goes through the model's own.
    fn losses(
        &self,
        shortcuts: &Shortcuts,
        batch: &LatentBatch,
    ) -> (&'static [&'static str], Tensor<1>) {
        let (names, losses) = match &self.config.loss {
            ShortcutLoss::Staircase(config) => {
                (STAIRCASE_NAMES, self.staircase(shortcuts, batch, config))
            }
            ShortcutLoss::Composition(config) => (
                COMPOSITION_NAMES,
                self.composition(shortcuts, batch, config),
            ),
        };
        // A batch in which no adapter and no router took part teaches nothing. Burn has no backward
        // pass for that, so its gradient is made zero rather than none.
        let nothing = self.shortcuts.routers[0].output.weight.val().sum();
        (names, losses + nothing.mul_scalar(0.0))
    }

    fn lesson(&self, batch: &LatentBatch) -> Lesson {
        let chain = hidden_states(&self.teacher, &batch.teacher);
        Lesson::new(&self.teacher, chain, batch, &self.device())
    }

    fn staircase(
        &self,
        shortcuts: &Shortcuts,
        batch: &LatentBatch,
        config: &StaircaseConfig,
    ) -> Tensor<1> {
        let layers = self.student.backbone.layers.len();
        let staircase = Staircase {
            key_values: self.config.key_values,
            landing: self.config.landing,
        };
        let (student, walked) = (self.student.valid(), self.shortcuts.valid());
        let hosts = walked.routers_on_host();
        let drawn = Exits::draw(batch, config, layers, self.exit_threshold);
        let planned = |row: usize, slot: usize, boundary: usize| match &drawn {
            Exits::Planned(leaves) => leaves.leaves(row, slot, boundary),
            Exits::Routers { .. } => false,
        };
        let rule = match drawn {
            Exits::Planned(_) => ExitRule::Plan {
                shortcuts: Some(&walked),
                leaves: &planned,
            },
            Exits::Routers { threshold } => ExitRule::Routers {
                shortcuts: &walked,
                hosts: &hosts,
                threshold,
            },
        };
        let (latents, traces) = own_inputs(&student, batch, rule, staircase, None);
        let plan = plan_of(&traces, layers, staircase.landing);
        let inputs = staircase_inputs(&self.student, batch, latents);
        let pass = staircase_pass(
            &self.student,
            Some(shortcuts),
            inputs,
            &plan,
            staircase.key_values,
        );
        let routers = router_loss(&pass, batch, &self.device());
        let lesson = self.lesson(batch);
        let outcome = Outcome::new(&self.student, pass, &lesson, batch, |row, slot| {
            plan.slot(row, slot).leave == layers
        });
        let alignment = outcome.reasoning_alignment() + outcome.answer_alignment(&lesson);
        with_total(vec![
            (config.answer, outcome.answer_loss(&self.student, batch)),
            (config.alignment, alignment),
            (config.routers, routers),
        ])
    }

    fn composition(
        &self,
        shortcuts: &Shortcuts,
        batch: &LatentBatch,
        config: &CompositionConfig,
    ) -> Tensor<1> {
        let device = self.device();
        let student = self.student.valid();
        let lesson = self.lesson(batch);
        let latents = match config.inputs {
            StudentInputs::FreeRunning => {
                own_inputs(&student, batch, ExitRule::Full, Staircase::default(), None).0
            }
            StudentInputs::TeacherForced => {
                let inputs = staircase_inputs(&student, batch, lesson.forced());
                let layers = student.backbone.layers.len();
                let plan = ExitPlan::full(batch.batch, batch.slots, layers);
                let pass = staircase_pass(&student, None, inputs, &plan, KeyValueRule::Holes);
                let before = pass.hidden.narrow(1, batch.first_slot - 1, batch.slots);
                student.backbone.final_norm(before)
            }
        };
        let slots = batch.slots;
        let plain = slot_states(
            &student,
            staircase_inputs(&student, batch, latents.clone()),
            slots,
        );
        let plain: Vec<Tensor<3>> = plain
            .into_iter()
            .map(|states| constant_like(states, &device))
            .collect();
        let pass = soft_pass(
            &self.student,
            shortcuts,
            staircase_inputs(&self.student, batch, latents),
            slots,
            config.composition,
        );
        let (composed, router_weights) = match config.early_exit.composed {
            Composed::Local => {
                let local = local_composition(shortcuts, &plain, config.composition);
                (local.composed, local.router_weights)
            }
            Composed::Propagated => (pass.composed, pass.router_weights),
        };
        let critical = |counts: fn(SlotLabel) -> bool| -> Vec<Option<bool>> {
            (0..batch.batch)
                .flat_map(|row| (0..slots).map(move |slot| (row, slot)))
                .map(|(row, slot)| {
                    slot_label(batch, row, slot)
                        .filter(|label| counts(*label))
                        .and_then(SlotLabel::critical)
                })
                .collect()
        };
        // The answer being ready is no step, and only steps carry a label in Eq. 10; the layers it runs
        // cost as much as those of a step.
        let steps = critical(|label| label != SlotLabel::Padding);
        let early_exit = early_exit_loss(&composed, &plain[1..], &steps, config.early_exit);
        let compute = compute_term(&router_weights, &critical(|_| true));
        let answer = StaircasePass {
            hidden: pass.hidden,
            router_logits: Vec::new(),
            reached: Vec::new(),
        };
        let outcome = Outcome::new(&self.student, answer, &lesson, batch, |_, _| true);
        with_total(vec![
            (1.0, outcome.answer_loss(&self.student, batch)),
            (config.beta, early_exit),
            (config.gamma, compute),
        ])
    }
}

/// Who decides the exits of one batch.
enum Exits {
    /// Drawn beforehand.
    Planned(Leaves),
    /// The routers, at a threshold.
    Routers {
        /// Exit threshold.
        threshold: f64,
    },
}

impl Exits {
    /// As `config` has them, for a batch with a seed; without one the routers decide, at `asked`.
    fn draw(batch: &LatentBatch, config: &StaircaseConfig, layers: usize, asked: f64) -> Self {
        let Some(seed) = batch.rollout.seed() else {
            return Self::Routers { threshold: asked };
        };
        let mut draws = generator(seed, 0, b"stairsss");
        let kind = uniform(&mut draws);
        if kind < config.non_critical {
            return Self::Planned(Leaves::new(batch, |label| {
                (label.and_then(|label| label.critical()) == Some(false)).then_some(1)
            }));
        }
        if kind < config.non_critical + config.random {
            let probability = uniform(&mut draws);
            return Self::Planned(Leaves::new(batch, |_| {
                let (draw, at) = (uniform(&mut draws), draws.next_u64());
                let boundary = 1 + (at % (layers.max(2) as u64 - 1)) as usize;
                (draw < probability).then_some(boundary)
            }));
        }
        let index = draws.next_u64() % config.thresholds.len().max(1) as u64;
        match config.thresholds.get(index as usize) {
            Some(&threshold) => Self::Routers { threshold },
            None => Self::Planned(Leaves::new(batch, |_| None)),
        }
    }
}

/// The plan that a walk turned out to follow.
fn plan_of(traces: &[Vec<SlotTrace>], layers: usize, landing: Landing) -> ExitPlan {
    let rows = traces
        .iter()
        .map(|row| {
            row.iter()
                .map(|trace| Slot {
                    enter: trace.enter,
                    leave: trace.leave,
                })
                .collect()
        })
        .collect();
    match ExitPlan::from_rows(rows, layers, landing) {
        Ok(plan) => plan,
        Err(error) => unreachable!("a walk keeps to the staircase: {error}"),
    }
}

/// Mean binary cross-entropy of the routers against `1 - c`, over the boundaries at which a labelled
/// latent step stood, `[1]`.
fn router_loss(pass: &StaircasePass, batch: &LatentBatch, device: &Device) -> Tensor<1> {
    let cells = batch.batch * batch.slots;
    let mut sum: Option<Tensor<1>> = None;
    let mut count = 0usize;
    for ((_, logits), reached) in pass.router_logits.iter().zip(&pass.reached) {
        let mut targets = vec![0.0f32; cells];
        let mut weights = vec![0.0f32; cells];
        for cell in 0..cells {
            let label = slot_label(batch, cell / batch.slots, cell % batch.slots);
            let critical = label.and_then(|label| label.critical());
            if let (true, Some(critical)) = (reached[cell], critical) {
                weights[cell] = 1.0;
                targets[cell] = if critical { 0.0 } else { 1.0 };
                count += 1;
            }
        }
        let upload = |values: Vec<f32>| -> Tensor<2> {
            Tensor::from_data(TensorData::new(values, [batch.batch, batch.slots]), device)
        };
        let logits = logits.clone();
        let entropy = softplus(logits.clone(), 1.0) - logits * upload(targets);
        let part = (entropy * upload(weights)).sum();
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    match sum {
        Some(sum) => sum.div_scalar(count.max(1) as f64),
        None => Tensor::zeros([1], device),
    }
}

impl TrainStep for Shortcut {
    type Input = LatentBatch;
    type Output = StepOutput;

    fn step(&self, batch: LatentBatch) -> TrainOutput<StepOutput> {
        let (names, losses) = self.losses(&self.dropped(&batch), &batch);
        learned(self, names, losses, batch.tokens)
    }
}

impl InferenceStep for Shortcut {
    type Input = LatentBatch;
    type Output = StepOutput;

    fn step(&self, batch: LatentBatch) -> StepOutput {
        let (names, losses) = self.losses(&self.shortcuts, &batch);
        StepOutput {
            names,
            losses,
            tokens: batch.tokens,
        }
    }
}
