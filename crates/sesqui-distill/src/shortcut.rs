//! Stage 2: routers and adapters over a student whose weights do not move (arXiv 2505.18962, section
//! 2.2, Eq. 10 to 13).

mod config;

use burn::module::Module;
use burn::tensor::activation::softplus;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use rand_chacha::rand_core::Rng;
use sesqui_model::latent::LatentTransformer;
use sesqui_model::{Frozen, Transformer};
use sesqui_shortcut::early_exit::{Composed, compute_term, early_exit_loss};
use sesqui_shortcut::plan::Slot;
use sesqui_shortcut::soft::{local_composition, slot_states, soft_pass};
use sesqui_shortcut::walk::{ExitRule, SlotTrace};
use sesqui_shortcut::{ExitPlan, KeyValueRule, Shortcuts, StaircasePass, staircase_pass};
use sesqui_trainer::StepOutput;

use crate::align::{learned, with_total};
use crate::dropout::adapter_masks;
use crate::latent::{LatentBatch, SlotLabel};
use crate::rollout::{Leaves, generator, uniform};
use crate::student::{
    Lesson, Outcome, Staircase, constant_like, own_inputs, slot_label, staircase_inputs,
};

pub use config::{
    CompositionConfig, EntryPositionChoice, Leaving, ShortcutLoss, ShortcutStageConfig,
    StaircaseConfig, StudentInputs, Trains,
};

/// A student under stage 2.
#[derive(Module, Debug)]
pub struct Shortcut {
    /// The student.
    pub student: LatentTransformer,
    /// What is trained.
    pub shortcuts: Shortcuts,
    #[module(skip)]
    terms: ShortcutTerms,
}

/// What stage 2 minimises, `L_2` of Eq. 13 or its extension, whoever holds student and shortcuts.
#[derive(Clone, Debug)]
pub struct ShortcutTerms {
    /// The teacher of stage 1, off the autodiff tape.
    teacher: Frozen<Transformer>,
    config: ShortcutStageConfig,
    /// Where the routers decide on a batch that no exits are drawn for.
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
            terms: ShortcutTerms::new(teacher, config),
        }
    }

    /// As [`ShortcutTerms::asked_at`].
    pub fn asked_at(self, exit_threshold: f64) -> Self {
        Self {
            terms: self.terms.asked_at(exit_threshold),
            ..self
        }
    }
}

/// The model of stage 2, and the shortcuts that its pass with gradients goes through: its own, or those
/// with dropout. Whatever is computed without gradients goes through its own.
#[derive(Clone, Copy)]
struct Parts<'a> {
    student: &'a LatentTransformer,
    shortcuts: &'a Shortcuts,
    through: &'a Shortcuts,
}

impl<'a> Parts<'a> {
    /// Without dropout.
    fn new(student: &'a LatentTransformer, shortcuts: &'a Shortcuts) -> Self {
        Self {
            student,
            shortcuts,
            through: shortcuts,
        }
    }

    fn device(self) -> Device {
        self.shortcuts.routers[0].output.weight.val().device()
    }
}

impl ShortcutTerms {
    /// `teacher` is what the student was aligned to; the threshold of validation is 1.
    pub fn new(teacher: &Transformer, config: &ShortcutStageConfig) -> Self {
        Self {
            teacher: Frozen::new(teacher, &teacher.device()),
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

    /// Names of the losses, the total first.
    pub fn names(&self) -> &'static [&'static str] {
        match self.config.loss {
            ShortcutLoss::Staircase(_) => STAIRCASE_NAMES,
            ShortcutLoss::Composition(_) => COMPOSITION_NAMES,
        }
    }

    /// The total first, then its parts, `[names]`, with dropout, if there is some.
    pub fn training_losses(
        &self,
        student: &LatentTransformer,
        shortcuts: &Shortcuts,
        batch: &LatentBatch,
    ) -> Tensor<1> {
        let parts = Parts::new(student, shortcuts);
        let rate = self.config.shortcuts.adapter.dropout;
        let Some(seed) = batch.rollout.seed().filter(|_| rate > 0.0) else {
            return self.losses(parts, batch);
        };
        let shape = [batch.batch, batch.slots, student.backbone.config().d_model];
        let adapters = shortcuts.adapters.len();
        let masks = adapter_masks(seed, rate, adapters, shape, &parts.device());
        let through = &shortcuts.clone().dropped(masks);
        self.losses(Parts { through, ..parts }, batch)
    }

    /// The same without dropout.
    pub fn validation_losses(
        &self,
        student: &LatentTransformer,
        shortcuts: &Shortcuts,
        batch: &LatentBatch,
    ) -> Tensor<1> {
        self.losses(Parts::new(student, shortcuts), batch)
    }

    fn losses(&self, parts: Parts<'_>, batch: &LatentBatch) -> Tensor<1> {
        let losses = match &self.config.loss {
            ShortcutLoss::Staircase(config) => self.staircase(parts, batch, config),
            ShortcutLoss::Composition(config) => self.composition(parts, batch, config),
        };
        // A batch in which no adapter and no router took part teaches nothing. Burn has no backward
        // pass for that, so its gradient is made zero rather than none.
        let nothing = parts.shortcuts.routers[0].output.weight.val().sum();
        losses + nothing.mul_scalar(0.0)
    }

    fn lesson(&self, batch: &LatentBatch, like: &Device) -> Lesson {
        Lesson::of(&self.teacher.on(like), batch, like)
    }

    fn staircase(
        &self,
        parts: Parts<'_>,
        batch: &LatentBatch,
        config: &StaircaseConfig,
    ) -> Tensor<1> {
        let layers = parts.student.backbone.layers.len();
        let staircase = self.config.staircase();
        let (student, walked) = (parts.student.valid(), parts.shortcuts.valid());
        let drawn = Exits::draw(batch, config, layers, self.exit_threshold);
        // Each router is a read from the device.
        let hosts = match drawn {
            Exits::Planned(_) => Vec::new(),
            Exits::Routers { .. } => walked.routers_on_host(),
        };
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
        let plan = plan_of(&traces, layers, staircase);
        let inputs = staircase_inputs(parts.student, batch, latents);
        let pass = staircase_pass(
            parts.student,
            Some(parts.through),
            inputs,
            &plan,
            staircase.key_values,
        );
        let routers = router_loss(&pass, batch, config.leaving, &parts.device());
        let lesson = self.lesson(batch, &parts.device());
        let outcome = Outcome::new(parts.student, pass, &lesson, batch, |row, slot| {
            plan.slot(row, slot).leave == layers
        });
        let alignment = outcome.reasoning_alignment() + outcome.answer_alignment(&lesson);
        with_total(vec![
            (config.answer, outcome.answer_loss(parts.student, batch)),
            (config.alignment, alignment),
            (config.routers, routers),
        ])
    }

    fn composition(
        &self,
        parts: Parts<'_>,
        batch: &LatentBatch,
        config: &CompositionConfig,
    ) -> Tensor<1> {
        let device = parts.device();
        let student = parts.student.valid();
        let lesson = self.lesson(batch, &device);
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
            parts.student,
            parts.through,
            staircase_inputs(parts.student, batch, latents),
            slots,
            config.composition,
        );
        let (composed, router_weights) = match config.early_exit.composed {
            Composed::Local => {
                let local = local_composition(parts.through, &plain, config.composition);
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
        let outcome = Outcome::new(parts.student, answer, &lesson, batch, |_, _| true);
        with_total(vec![
            (1.0, outcome.answer_loss(parts.student, batch)),
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
        if kind < config.planned {
            return Self::Planned(Leaves::new(batch, |label| {
                (label.and_then(|label| config.leaving.wants(label)) == Some(true)).then_some(1)
            }));
        }
        if kind < config.planned + config.random {
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
fn plan_of(traces: &[Vec<SlotTrace>], layers: usize, staircase: Staircase) -> ExitPlan {
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
    match ExitPlan::from_rows(rows, layers, staircase.landing) {
        Ok(plan) => plan.with_entry_position(staircase.entry_position),
        Err(error) => unreachable!("a walk keeps to the staircase: {error}"),
    }
}

/// Mean binary cross-entropy of the routers against which steps are to leave, over the boundaries at
/// which such a step stood of which that is known, `[1]`.
fn router_loss(
    pass: &StaircasePass,
    batch: &LatentBatch,
    leaving: Leaving,
    device: &Device,
) -> Tensor<1> {
    let cells = batch.batch * batch.slots;
    let mut sum: Option<Tensor<1>> = None;
    let mut count = 0usize;
    for ((_, logits), reached) in pass.router_logits.iter().zip(&pass.reached) {
        let mut targets = vec![0.0f32; cells];
        let mut weights = vec![0.0f32; cells];
        for cell in 0..cells {
            let label = slot_label(batch, cell / batch.slots, cell % batch.slots);
            let leaves = label.and_then(|label| leaving.wants(label));
            if let (true, Some(leaves)) = (reached[cell], leaves) {
                weights[cell] = 1.0;
                targets[cell] = if leaves { 1.0 } else { 0.0 };
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
        let (student, shortcuts) = (&self.student, &self.shortcuts);
        let losses = self.terms.training_losses(student, shortcuts, &batch);
        learned(self, self.terms.names(), losses, batch.tokens)
    }
}

impl InferenceStep for Shortcut {
    type Input = LatentBatch;
    type Output = StepOutput;

    fn step(&self, batch: LatentBatch) -> StepOutput {
        let (student, shortcuts) = (&self.student, &self.shortcuts);
        StepOutput {
            names: self.terms.names(),
            losses: self.terms.validation_losses(student, shortcuts, &batch),
            tokens: batch.tokens,
        }
    }
}
