//! Refinement of latents after training (arXiv 2506.08552): what a latent step is fed is blended with
//! what the step before it was fed, and moved away from what a weak model makes of it, towards what a
//! strong one does. No parameter changes.
//!
//! Decision 13 says what the two models read and when. With shortcuts, refinement acts where a row
//! enters a step at the bottom. A row that goes on above it after an early exit is fed no latent in
//! that step: nothing is refined for it, the two models do not see the step, and its latent before is
//! the last one that it was fed.

mod auxiliary;
mod calibrate;
mod config;
mod eigen;

use std::mem::take;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use sesqui_kernels::read;
use sesqui_model::LatentTransformer;
use sesqui_shortcut::Walk;

pub use auxiliary::{AuxiliaryWork, LayerRuns, References};
pub(crate) use calibrate::norm;
pub use calibrate::{Calibration, CalibrationError, Calibrator, gated};
pub use config::{
    Context, Contrastive, Direction, Norm, Order, RefineConfig, Residual, Scaling, Search, Sign,
};

use crate::prompt::{Prompt, PromptError};
use auxiliary::{Auxiliary, Pass, Seen};

/// What refines the latents of a student.
#[derive(Clone, Copy, Debug)]
pub struct Refinement<'a> {
    /// What is done.
    pub config: &'a RefineConfig,
    /// The strong and the weak model, without autodiff, where the configuration needs them.
    pub references: Option<&'a References>,
    /// What the direction was calibrated to, where it has to be.
    pub calibration: Option<&'a Calibration>,
}

/// Refinement of one batch under way.
pub(crate) struct Refiner<'a> {
    model: &'a LatentTransformer,
    order: Order,
    residual: Option<Blend>,
    search: Option<Searching<'a>>,
    /// Strong, then weak.
    models: Vec<Auxiliary<'a>>,
    /// What each row was last fed at the bottom, `[batch, 1, d_model]`.
    fed: Option<Tensor<3>>,
    work: Vec<AuxiliaryWork>,
    unrefined: Vec<Tensor<3>>,
    /// Differences `strong - weak`, for rows that entered at the bottom.
    differences: Vec<(Tensor<3>, Vec<bool>)>,
}

#[derive(Clone, Copy)]
struct Blend {
    alpha: f64,
    norm: Norm,
    start: usize,
}

#[derive(Clone, Copy)]
struct Searching<'a> {
    guide: Guide<'a>,
    step: f64,
    context: Context,
    inner_steps: usize,
    start: usize,
}

/// [`Direction`] with what it needs.
#[derive(Clone, Copy)]
enum Guide<'a> {
    Constant,
    Differentiated,
    Gated(&'a Tensor<2>),
    Mean(&'a Tensor<1>),
    /// As the constant direction, but noted down instead of followed.
    Observed,
}

impl<'a> Refiner<'a> {
    /// Whether it feeds latents as they come.
    pub(crate) fn is_idle(&self) -> bool {
        self.residual.is_none() && self.search.is_none()
    }

    /// Feeds latents as they come.
    pub(crate) fn idle(model: &'a LatentTransformer) -> Self {
        Self {
            model,
            order: Order::default(),
            residual: None,
            search: None,
            models: Vec::new(),
            fed: None,
            work: Vec::new(),
            unrefined: Vec::new(),
            differences: Vec::new(),
        }
    }

    /// Follows `refinement`.
    ///
    /// # Errors
    ///
    /// When a number is out of range, or models or a calibration are missing.
    pub(crate) fn new(
        model: &'a LatentTransformer,
        refinement: &Refinement<'a>,
    ) -> Result<Self, PromptError> {
        let Refinement {
            config,
            references,
            calibration,
        } = *refinement;
        Self::from_parts(model, config, references, calibration)
    }

    /// Notes differences wherever `config` searches, and moves nothing there. It blends.
    pub(crate) fn observing(
        model: &'a LatentTransformer,
        config: &RefineConfig,
        references: &'a References,
    ) -> Result<Self, PromptError> {
        let mut config = config.clone();
        if let Contrastive::Search(search) = &mut config.contrastive {
            search.direction = Direction::Constant;
            search.inner_steps = 1;
        }
        let mut refiner = Self::from_parts(model, &config, Some(references), None)?;
        if let Some(search) = &mut refiner.search {
            search.guide = Guide::Observed;
        }
        Ok(refiner)
    }

    fn from_parts(
        model: &'a LatentTransformer,
        config: &RefineConfig,
        references: Option<&'a References>,
        calibration: Option<&'a Calibration>,
    ) -> Result<Self, PromptError> {
        if let Some((key, reason)) = config.problem() {
            return Err(PromptError::Refinement(format!("{key}: {reason}")));
        }
        let lacking = |what: &str| Err(PromptError::Refinement(format!("it needs {what}")));
        let residual = match config.residual {
            Residual::Blend { alpha, norm, start } if alpha != 0.0 => {
                Some(Blend { alpha, norm, start })
            }
            _ => None,
        };
        let mut refiner = Self {
            order: config.order,
            residual,
            ..Self::idle(model)
        };
        let Some(search) = config.search() else {
            return Ok(refiner);
        };
        let guide = match (search.direction, calibration) {
            (Direction::Constant, _) => Guide::Constant,
            (Direction::Differentiated, _) => Guide::Differentiated,
            (Direction::Gated { .. }, Some(Calibration::Subspace(basis))) => Guide::Gated(basis),
            (Direction::Mean, Some(Calibration::Mean(mean))) => Guide::Mean(mean),
            _ => return lacking("a calibrated direction"),
        };
        if config.needs_references() {
            let Some(References { strong, weak }) = references else {
                return lacking("a strong and a weak model");
            };
            refiner.models = [strong, weak].map(Auxiliary::new).into();
        }
        refiner.search = Some(Searching {
            guide,
            step: search.step(model.backbone.config().d_model),
            context: search.context,
            inner_steps: search.inner_steps,
            start: search.start,
        });
        Ok(refiner)
    }

    /// Checks that the two models can read `prompt`.
    pub(crate) fn validate(&self, prompt: &Prompt) -> Result<(), PromptError> {
        let backbone = &self.model.backbone;
        let mut models = self.models.iter();
        models.try_for_each(|model| model.validate(backbone, prompt))
    }

    /// Lets the two models read the question, before `slots` latent steps.
    pub(crate) fn read_question(&mut self, prompt: &Prompt, slots: usize, device: &Device) {
        self.work = vec![AuxiliaryWork::default(); prompt.batch];
        if self.keeps() {
            for model in &mut self.models {
                model.read_question(prompt, slots, &mut self.work, device);
            }
        }
    }

    /// Refines what step `slot` of `walk`, at `positions`, will feed to the rows that enter it at the
    /// bottom.
    pub(crate) fn refine(
        &mut self,
        walk: &mut Walk<'_>,
        slot: usize,
        positions: &[i32],
        last: bool,
    ) {
        if self.residual.is_none() && self.search.is_none() {
            return;
        }
        let enters = |row: usize| walk.at_top(row) && !walk.has_stopped(row);
        let bottom: Vec<bool> = (0..walk.slots().len()).map(enters).collect();
        let raw = walk.states();
        self.unrefined.push(raw.clone());
        if !bottom.contains(&true) {
            return;
        }
        let seen = Seen {
            context: self.search.map_or(Context::None, |search| search.context),
            student: walk.cache(),
            at: column(positions, &raw.device()),
            bottom: &bottom,
        };
        let state = match self.order {
            Order::ResidualFirst => {
                let blended = self.blend(raw.clone(), slot);
                self.search(blended, slot, &seen)
            }
            Order::ContrastiveFirst => {
                let moved = self.search(raw.clone(), slot, &seen);
                self.blend(moved, slot)
            }
        };
        if self.keeps() && !last {
            let embedded = self.embed(state.clone(), &bottom);
            for model in &mut self.models {
                model.keep(embedded.clone(), &seen, &mut self.work);
            }
        }
        let fed = self.fed.take().unwrap_or_else(|| raw.clone());
        self.fed = Some(replace(fed, &state, &bottom));
        walk.replace_states(replace(raw, &state, &bottom));
    }

    /// Blends `state` with what the rows were fed before (Eq. 4).
    fn blend(&self, state: Tensor<3>, slot: usize) -> Tensor<3> {
        let (Some(blend), Some(fed)) = (self.residual, &self.fed) else {
            return state;
        };
        if slot < blend.start {
            return state;
        }
        let mixed = fed.clone() * blend.alpha + state.clone() * (1.0 - blend.alpha);
        match blend.norm {
            Norm::Free => mixed,
            Norm::Kept => {
                let scale = norm(state) / norm(mixed.clone()).clamp_min(1e-30);
                mixed * scale
            }
        }
    }

    /// Moves `state` (Eq. 3).
    fn search(&mut self, mut state: Tensor<3>, slot: usize, seen: &Seen<'_>) -> Tensor<3> {
        let Some(search) = self.search else {
            return state;
        };
        if slot < search.start {
            return state;
        }
        for _ in 0..search.inner_steps {
            let direction = match search.guide {
                Guide::Constant => self.difference(state.clone(), seen),
                Guide::Differentiated => self.descent(state.clone(), seen),
                Guide::Gated(basis) => {
                    let difference = self.difference(state.clone(), seen);
                    self.each(seen.bottom, |work| work.projected += basis.dims()[1]);
                    gated(basis, difference).0
                }
                Guide::Mean(mean) => mean.clone().unsqueeze::<3>(),
                Guide::Observed => {
                    let difference = self.difference(state.clone(), seen);
                    self.differences.push((difference, seen.bottom.to_vec()));
                    return state;
                }
            };
            state = state + direction * search.step;
        }
        state
    }

    /// `strong - weak`, both as they are for `state` `[batch, 1, d_model]`.
    fn difference(&mut self, state: Tensor<3>, seen: &Seen<'_>) -> Tensor<3> {
        let embedded = self.embed(state, seen.bottom);
        let work = &mut self.work;
        apart(&self.models, |model| {
            model.peek(embedded.clone(), seen, work, Pass::Forward)
        })
    }

    /// Half the descent direction of `|strong - h|^2 - |weak - h|^2` at `h = state`, through both
    /// models: `strong - weak` where they are constant.
    fn descent(&mut self, state: Tensor<3>, seen: &Seen<'_>) -> Tensor<3> {
        // Forwards and backwards, for each of the two.
        self.each(seen.bottom, |work| work.mapped += 4);
        let (student, work) = (self.model, &mut self.work);
        // Apart, so that equal models cancel to the bit.
        let gradient = apart(&self.models, |model| {
            let point = state.clone().autodiff().require_grad();
            let embedded = student.latent_embeddings(point.clone());
            let output = model.peek(embedded, seen, work, Pass::AndBack);
            // Rows do not see each other: the gradient of the sum is that of each row.
            let distance = (output - point.clone()).powi_scalar(2).sum();
            let gradients = distance.backward();
            let gradient = point.grad(&gradients);
            gradient.unwrap_or_else(|| state.zeros_like())
        });
        gradient * -0.5
    }

    /// What a latent step is fed for `state`, without position; counted for rows of `bottom`.
    fn embed(&mut self, state: Tensor<3>, bottom: &[bool]) -> Tensor<3> {
        self.each(bottom, |work| work.mapped += 1);
        self.model.latent_embeddings(state)
    }

    fn each(&mut self, rows: &[bool], mut count: impl FnMut(&mut AuxiliaryWork)) {
        let work = self.work.iter_mut().zip(rows);
        work.filter(|(_, row)| **row)
            .for_each(|(work, _)| count(work));
    }

    /// Whether there are two models with caches of their own.
    fn keeps(&self) -> bool {
        let own = |search: Searching<'_>| search.context == Context::Own;
        !self.models.is_empty() && self.search.is_some_and(own)
    }

    /// What was run for each row, and the states before refinement: of the prompt's last column, then
    /// after each slot but the last; none where nothing is refined.
    pub(crate) fn take_record(&mut self) -> (Vec<AuxiliaryWork>, Vec<Tensor<3>>) {
        (take(&mut self.work), take(&mut self.unrefined))
    }

    /// Gives the differences noted to `calibrator`.
    pub(crate) fn report(&self, calibrator: &mut Calibrator) {
        for (difference, bottom) in &self.differences {
            let d_model = difference.dims()[2];
            let data = read(difference.clone());
            let values: Vec<f32> = data.iter::<f32>().collect();
            let rows = values.chunks_exact(d_model).zip(bottom);
            let values: Vec<f32> = rows
                .filter(|(_, bottom)| **bottom)
                .flat_map(|(row, _)| row.to_vec())
                .collect();
            calibrator.add(&values);
        }
    }
}

/// `of(strong) - of(weak)`.
fn apart(models: &[Auxiliary<'_>], mut of: impl FnMut(&Auxiliary<'_>) -> Tensor<3>) -> Tensor<3> {
    match models {
        [strong, weak] => of(strong) - of(weak),
        _ => unreachable!("a direction out of two models has two models"),
    }
}

/// `states` with the rows of `by` where `rows` says so.
fn replace(states: Tensor<3>, by: &Tensor<3>, rows: &[bool]) -> Tensor<3> {
    if rows.iter().all(|&row| row) {
        return by.clone();
    }
    let mask = TensorData::new(rows.to_vec(), [rows.len(), 1, 1]);
    let mask = Tensor::<3, Bool>::from_data(mask, &states.device()).expand(states.dims());
    states.mask_where(mask, by.clone())
}

/// One position for each row, `[batch, 1]`.
fn column(positions: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(
        TensorData::new(positions.to_vec(), [positions.len(), 1]),
        device,
    )
}
