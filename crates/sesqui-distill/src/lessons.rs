//! What a frozen teacher says about every problem, computed once.
//!
//! The teacher of stages 1 and 2 does not move, so a problem that training reads ten times is read by the teacher
//! nine times too often.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::Sequence;
use sesqui_kernels::{is_here, read, side_by_side};
use sesqui_model::Transformer;

use crate::latent::LatentProblem;
use crate::loss::hidden_states;
use crate::student::{Lesson, gather};

/// Where the states of a frozen teacher come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TeacherStates {
    /// The teacher reads every batch.
    EachStep,
    /// It reads every problem once, before the first step, and what the student is aligned to is kept in memory:
    /// where training reads a problem twice or more and they take no more room than this; else as `each-step`.
    Kept {
        /// Room for them in MiB.
        most_mebibytes: u64,
    },
}

impl Default for TeacherStates {
    fn default() -> Self {
        Self::Kept {
            most_mebibytes: 1024,
        }
    }
}

impl TeacherStates {
    /// Whether they are kept where training reads `rows_read` rows of `problems`. A function of the setting alone:
    /// training that is gone on with computes what it would have computed.
    pub fn keeps(self, problems: &[LatentProblem], rows_read: u64, d_model: usize) -> bool {
        match self {
            Self::EachStep => false,
            Self::Kept { most_mebibytes } => {
                rows_read >= 2 * problems.len() as u64
                    && Lessons::bytes(problems, d_model) <= most_mebibytes << 20
            }
        }
    }
}

/// The states of a teacher after its final norm that each problem's student is aligned to.
pub struct Lessons {
    d_model: usize,
    /// Of each problem `[targets + answer, d_model]`.
    states: Vec<Vec<f32>>,
}

/// Problems that the teacher reads together. Not a function of the machine: how many rows a matrix product has may
/// decide the last bit of each.
const TOGETHER: usize = 64;

impl Lessons {
    /// Bytes that the lessons of `problems` take.
    pub fn bytes(problems: &[LatentProblem], d_model: usize) -> u64 {
        let states = problems
            .iter()
            .map(|problem| (problem.targets.len() + problem.answer()) as u64);
        states.sum::<u64>() * d_model as u64 * size_of::<f32>() as u64
    }

    /// Lets `teacher`, which must be off the autodiff tape, read `problems`; `goes_on` is asked before every few of
    /// them, told how many, whether somebody still wants it. `None` where nobody did.
    ///
    /// # Errors
    ///
    /// When a problem does not fit a batch.
    pub fn new(
        teacher: &Transformer,
        problems: &[LatentProblem],
        pad: u32,
        goes_on: &(dyn Fn(usize) -> bool + Sync),
    ) -> Result<Option<Self>, DatasetError> {
        // Beside others of their length problems have little padding.
        let mut order: Vec<usize> = (0..problems.len()).collect();
        order.sort_by_key(|&index| problems[index].sequence.ids.len());
        let parts: Vec<&[usize]> = order.chunks(TOGETHER).collect();
        let learn = |part: usize| {
            let part: Vec<&LatentProblem> = parts[part].iter().map(|&row| &problems[row]).collect();
            match goes_on(part.len()) {
                true => read_by(teacher, &part, pad).map(Some),
                false => Ok(None),
            }
        };
        let found: Vec<_> = match is_here(&teacher.device()) {
            true => side_by_side(parts.len(), learn),
            false => (0..parts.len()).map(learn).collect(),
        };
        let mut states = vec![Vec::new(); problems.len()];
        for (part, found) in parts.iter().zip(found) {
            let Some(found) = found? else {
                return Ok(None);
            };
            for (&row, found) in part.iter().zip(found) {
                states[row] = found;
            }
        }
        Ok(Some(Self {
            d_model: teacher.config().d_model,
            states,
        }))
    }

    /// The lesson of `rows`, of which `problems` has the shapes, with `outputs` targets for each.
    pub(crate) fn of(&self, problems: &[LatentProblem], rows: &[u32], outputs: usize) -> Kept {
        let d_model = self.d_model;
        let mut wanted = Vec::with_capacity(rows.len() * outputs * d_model);
        let mut answer = Vec::new();
        for &row in rows {
            let states = &self.states[row as usize];
            let own = problems[row as usize].targets.len() * d_model;
            let (targets, answers) = states.split_at(own);
            wanted.extend_from_slice(targets);
            // A row without these latent steps: any state, which nothing looks at.
            for _ in own / d_model..outputs {
                wanted.extend_from_slice(&targets[..d_model]);
            }
            answer.extend_from_slice(answers);
        }
        Kept(Arc::new(KeptStates {
            d_model,
            rows: rows.len(),
            outputs: wanted,
            answer,
        }))
    }
}

/// States of each of `problems`: of its targets, then of its answer.
fn read_by(
    teacher: &Transformer,
    problems: &[&LatentProblem],
    pad: u32,
) -> Result<Vec<Vec<f32>>, DatasetError> {
    let sequences: Vec<Sequence> = problems
        .iter()
        .map(|problem| problem.sequence.clone())
        .collect();
    let rows: Vec<u32> = (0..sequences.len() as u32).collect();
    let batch = SequenceBatch::collate(&sequences, &rows, pad)?;
    let mut cells = Vec::new();
    for (row, problem) in problems.iter().enumerate() {
        let targets = problem.targets.iter().map(|target| target.index);
        let answer = (0..problem.answer()).map(|offset| problem.answer_begin() + offset);
        cells.extend(
            targets
                .chain(answer)
                .map(|index| (row * batch.seq + index) as i32),
        );
    }
    let picked = gather(hidden_states(teacher, &batch), &cells).unsqueeze_dim(0);
    let states: Tensor<3> = teacher.final_norm(picked);
    let d_model = states.dims()[2];
    let states: Vec<f32> = read(states).iter::<f32>().collect();
    let mut states = states.chunks_exact(d_model);
    Ok(problems
        .iter()
        .map(|problem| {
            let own = problem.targets.len() + problem.answer();
            let mut kept = Vec::with_capacity(own * d_model);
            states
                .by_ref()
                .take(own)
                .for_each(|state| kept.extend_from_slice(state));
            kept
        })
        .collect())
}

/// The kept lesson of a batch, on the host.
#[derive(Clone)]
pub struct Kept(Arc<KeptStates>);

struct KeptStates {
    d_model: usize,
    rows: usize,
    /// `[rows, slots + 1, d_model]`.
    outputs: Vec<f32>,
    /// `[answer cells, d_model]`.
    answer: Vec<f32>,
}

impl Kept {
    /// As constants on `device`.
    pub(crate) fn lesson(&self, device: &Device) -> Lesson {
        let kept = &*self.0;
        let outputs = kept.outputs.len() / (kept.rows * kept.d_model).max(1);
        let shape = [kept.rows, outputs, kept.d_model];
        let answers = kept.answer.len() / kept.d_model.max(1);
        let answer = TensorData::new(kept.answer.clone(), [answers, kept.d_model]);
        Lesson {
            outputs: Tensor::from_data(TensorData::new(kept.outputs.clone(), shape), device),
            answer: Tensor::from_data(answer, device),
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Kept")
    }
}
