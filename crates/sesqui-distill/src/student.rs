//! What stages 1 and 2 share: the teacher's states, the student's rollouts, the losses over both.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_kernels::cross_entropy;
use sesqui_model::Transformer;
use sesqui_model::latent::LatentTransformer;
use sesqui_shortcut::walk::{ExitRule, Last, SlotTrace, Walk};
use sesqui_shortcut::{EntryPosition, KeyValueRule, Landing, StaircaseInputs, StaircasePass};

use crate::latent::{LatentBatch, SlotLabel};
use crate::loss::hidden_states;

/// A `[rows, columns]` list of integers on a device.
fn upload(values: Vec<i32>, shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// `hidden` `[batch, seq, d_model]` at `cells` of its first two dimensions: `[cells, d_model]`.
pub fn gather(hidden: Tensor<3>, cells: &[i32]) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let device = hidden.device();
    let cells =
        Tensor::<1, Int>::from_data(TensorData::new(cells.to_vec(), [cells.len()]), &device);
    hidden.reshape([batch * seq, d_model]).select(0, cells)
}

/// `tensor` where `like` is: on the autodiff tape as a constant, or off it.
pub fn constant_like<const D: usize>(tensor: Tensor<D>, like: &Device) -> Tensor<D> {
    match (tensor.is_autodiff(), like.is_autodiff()) {
        (false, true) => {
            let tensor = Tensor::from_inner(tensor);
            // What the way back keeps is a property of every tensor, and those of one operation must agree.
            match like.gradient_checkpointing_strategy() {
                Some(strategy) => tensor.with_gradient_checkpointing_strategy(strategy),
                None => tensor,
            }
        }
        (true, false) => tensor.inner(),
        (true, true) => tensor.detach(),
        (false, false) => tensor,
    }
}

/// What the teacher says about a batch, as constants for the student.
pub struct Lesson {
    /// States to be matched, after the final norm, `[batch, slots + 1, d_model]`.
    pub outputs: Tensor<3>,
    /// States to be matched in the answer, `[answer cells, d_model]`.
    pub answer: Tensor<2>,
}

impl Lesson {
    /// What `teacher`, off the autodiff tape, has said about `batch` or says now, as constants on `like`.
    pub fn of(teacher: &Transformer, batch: &LatentBatch, like: &Device) -> Self {
        match &batch.lesson {
            Some(kept) => kept.lesson(like),
            None => Self::new(teacher, hidden_states(teacher, &batch.teacher), batch, like),
        }
    }

    /// From the teacher's states before its final norm.
    pub fn new(
        teacher: &Transformer,
        chain: Tensor<3>,
        batch: &LatentBatch,
        like: &Device,
    ) -> Self {
        let normed = |cells: &[i32]| {
            let picked = gather(chain.clone(), cells).unsqueeze_dim(0);
            constant_like(teacher.final_norm(picked), like)
        };
        let d_model = chain.dims()[2];
        let (rows, outputs) = (batch.batch, batch.slots + 1);
        Self {
            outputs: normed(&batch.target_cells).reshape([rows, outputs, d_model]),
            answer: normed(&batch.answer_target_cells).squeeze_dim(0),
        }
    }

    /// Inputs of the latent steps under teacher forcing, `[batch, slots, d_model]`.
    pub fn forced(&self) -> Tensor<3> {
        let slots = self.outputs.dims()[1] - 1;
        self.outputs.clone().narrow(1, 0, slots)
    }
}

/// The student's own inputs of its latent steps, `[batch, slots, d_model]`: the state after the final
/// norm of the column before each. A row that has not finished that column by then, because it left
/// early, gets a state that its latent step does not use.
///
/// With `corrected`, the teacher's state takes the place of each from which the head does not read the
/// token that follows there in the chain of thought. `student` and whatever `rule` holds must be off the autodiff
/// tape: nothing is propagated back.
pub fn own_inputs(
    student: &LatentTransformer,
    batch: &LatentBatch,
    rule: ExitRule<'_>,
    staircase: Staircase,
    corrected: Option<&Lesson>,
) -> (Tensor<3>, Vec<Vec<SlotTrace>>) {
    let backbone = &student.backbone;
    let device = backbone.device();
    let (rows, question) = (batch.batch, batch.first_slot);
    let capacity = question + batch.slots;
    let mut cache = backbone.cache(rows, capacity);
    let columns = |list: &[i32]| batch.columns(list, 0..question);
    let ids = upload(columns(&batch.ids), [rows, question], &device);
    let positions = upload(columns(&batch.positions), [rows, question], &device);
    let real = batch.columns(&batch.real, 0..question);
    let layers = 0..backbone.layers.len();
    let embedded = backbone.embed(ids, positions.clone());
    let hidden = backbone.run_layers_cached(layers, embedded, positions, &real, &mut cache);
    let state = backbone.final_norm(hidden.narrow(1, question - 1, 1));

    let mut walk = Walk::new(student, cache, state, rule, staircase.key_values)
        .with_landing(staircase.landing)
        .with_entry_position(staircase.entry_position);
    let mut inputs = Vec::with_capacity(batch.slots);
    for slot in 0..batch.slots {
        if let Some(lesson) = corrected {
            walk.replace_states(put_right(student, walk.states(), slot, lesson, batch));
        }
        inputs.push(walk.states());
        // The last step feeds no other; under a staircase its trace is wanted too.
        let positions = batch.column(&batch.positions, question + slot);
        let last: Vec<bool> = (0..rows).map(|row| batch.is_last(row, slot)).collect();
        walk.step(&positions, Last::Rows(&last));
    }
    let traces = walk.slots().to_vec();
    (Tensor::cat(inputs, 1), traces)
}

/// What is settled about a staircase before any step is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staircase {
    /// What is seen of a latent step in layers that it did not run.
    pub key_values: KeyValueRule,
    /// Where a latent step goes on after one that left early.
    pub landing: Landing,
    /// Whether it is given its learned position there.
    pub entry_position: EntryPosition,
}

/// `states` `[batch, 1, d_model]` of output `output`, with the teacher's in place of wrong ones.
fn put_right(
    student: &LatentTransformer,
    states: Tensor<3>,
    output: usize,
    lesson: &Lesson,
    batch: &LatentBatch,
) -> Tensor<3> {
    let device = states.device();
    let [rows, _, d_model] = states.dims();
    let wanted = (0..rows).map(|row| batch.read_out[row * (batch.slots + 1) + output]);
    let wanted = Tensor::<3, Int>::from_data(
        TensorData::new(wanted.collect::<Vec<i32>>(), [rows, 1, 1]),
        &device,
    );
    let read = student.backbone.head(states.clone()).argmax(2);
    let wrong = read.not_equal(wanted).expand([rows, 1, d_model]);
    let right = lesson.outputs.clone().narrow(1, output, 1);
    states.mask_where(wrong, constant_like(right, &device))
}

/// Everything the student reads in one parallel pass; `latents` `[batch, slots, d_model]` are the
/// states fed to its latent steps.
pub fn staircase_inputs(
    student: &LatentTransformer,
    batch: &LatentBatch,
    latents: Tensor<3>,
) -> StaircaseInputs {
    let backbone = &student.backbone;
    let device = backbone.device();
    let (rows, first, slots) = (batch.batch, batch.first_slot, batch.slots);
    let after = first + slots;
    let embed = |range: std::ops::Range<usize>| {
        let shape = [rows, range.len()];
        let ids = upload(batch.columns(&batch.ids, range.clone()), shape, &device);
        let positions = upload(batch.columns(&batch.positions, range), shape, &device);
        backbone.embed(ids, positions)
    };
    let slot_positions = batch.columns(&batch.positions, first..after);
    let slot_positions = upload(slot_positions, [rows, slots], &device);
    let embedded = Tensor::cat(
        vec![
            embed(0..first),
            student.latent_inputs(constant_like(latents, &device), slot_positions),
            embed(after..batch.seq),
        ],
        1,
    );
    StaircaseInputs {
        embedded,
        positions: upload(batch.positions.clone(), [rows, batch.seq], &device),
        real: batch.real.clone(),
        first_slot: first,
    }
}

/// The student's outputs beside the lesson.
pub struct Outcome {
    /// Outputs that have a target, after the final norm, `[picked, d_model]`.
    outputs: Tensor<2>,
    /// Their targets.
    wanted: Tensor<2>,
    /// The tokens that follow there in the chain of thought.
    read_out: Vec<i32>,
    /// Answer states, `[answer cells, d_model]`.
    answer: Tensor<2>,
}

impl Outcome {
    /// Picks from a pass the question's last output and those of latent steps that a row has and
    /// that `finished` (row, slot) ran to the top.
    pub fn new(
        student: &LatentTransformer,
        pass: StaircasePass,
        lesson: &Lesson,
        batch: &LatentBatch,
        finished: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let outputs = batch.slots + 1;
        let mut cells = Vec::new();
        let mut targets = Vec::new();
        let mut read_out = Vec::new();
        for row in 0..batch.batch {
            for output in 0..outputs {
                let index = row * outputs + output;
                let ran = output == 0 || finished(row, output - 1);
                if ran && batch.labels[index].is_some() {
                    cells.push((row * batch.seq + batch.first_slot + output - 1) as i32);
                    targets.push(index as i32);
                    read_out.push(batch.read_out[index]);
                }
            }
        }
        let normed = |cells: &[i32]| -> Tensor<2> {
            let picked = gather(pass.hidden.clone(), cells).unsqueeze_dim(0);
            student.backbone.final_norm(picked).squeeze_dim(0)
        };
        Self {
            outputs: normed(&cells),
            wanted: gather(lesson.outputs.clone(), &targets),
            read_out,
            answer: normed(&batch.answer_cells),
        }
    }

    /// Mean squared difference to the teacher at reasoning positions (D5), `[1]`.
    pub fn reasoning_alignment(&self) -> Tensor<1> {
        (self.outputs.clone() - self.wanted.clone()).square().mean()
    }

    /// Mean squared difference to the teacher at answer positions (Eq. 6), `[1]`.
    pub fn answer_alignment(&self, lesson: &Lesson) -> Tensor<1> {
        (self.answer.clone() - lesson.answer.clone())
            .square()
            .mean()
    }

    /// Cross-entropy of the answer (Eq. 8), mean nats per token, `[1]`.
    pub fn answer_loss(&self, student: &LatentTransformer, batch: &LatentBatch) -> Tensor<1> {
        token_loss(
            student,
            self.answer.clone(),
            &batch.answer_targets,
            &batch.answer_weights,
        )
    }

    /// Cross-entropy of the token that follows where the output is aligned, mean nats,
    /// `[1]`: the latent can be read by the head. An extension of the paper.
    pub fn read_out_loss(&self, student: &LatentTransformer) -> Tensor<1> {
        let weights = vec![1.0; self.read_out.len()];
        token_loss(student, self.outputs.clone(), &self.read_out, &weights)
    }
}

/// Mean cross-entropy in nats of `targets` after `normed` `[targets, d_model]`, states after the final norm,
/// `[1]`.
pub fn token_loss(
    student: &LatentTransformer,
    normed: Tensor<2>,
    targets: &[i32],
    weights: &[f32],
) -> Tensor<1> {
    let n = targets.len();
    let logits = student.backbone.head(normed.unsqueeze_dim(0));
    let vocabulary = logits.dims()[2];
    cross_entropy(logits.reshape([n, vocabulary]), targets, weights)
}

/// Label of the output of latent step `slot` in `row`.
pub fn slot_label(batch: &LatentBatch, row: usize, slot: usize) -> Option<SlotLabel> {
    batch.labels[row * (batch.slots + 1) + slot + 1]
}
