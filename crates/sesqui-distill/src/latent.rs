//! From a chain of thought to latent steps: which state of the teacher stands for which latent step,
//! and the rectangles that teacher and student read.

use serde::{Deserialize, Serialize};
use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, Sequence, Supervision, sequence};
use sesqui_model::latent::{Feedback, SlotPositions};

use crate::lessons::Kept;

/// How a chain of thought becomes latent steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatentConfig {
    /// What one latent step stands for.
    pub granularity: Granularity,
    /// Latent steps; 0: as many as the longest chain of thought of the training split needs.
    pub count: usize,
    /// What the latent steps beyond a problem's own are for.
    pub padding: Padding,
    /// Position ids of latent steps.
    pub positions: SlotPositions,
    /// How a state becomes the next input.
    pub feedback: Feedback,
}

/// What one latent step stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Granularity {
    /// One reasoning step, by the teacher's state at its last occurrence of `marker`, which is about
    /// to say the step's result; at the step's last token where there is no such token or `marker` is
    /// empty.
    Step {
        /// A text that is one token.
        marker: String,
    },
    /// One token (arXiv 2505.18962, section 2.2 as printed).
    Token,
}

impl Default for Granularity {
    fn default() -> Self {
        Self::Step {
            marker: "=".to_owned(),
        }
    }
}

/// What the latent steps beyond a problem's own are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Holding the answer ready: the teacher's state before the answer.
    #[default]
    Answer,
    /// There are none: every problem has as many latent steps as it needs, at least 1, in training.
    None,
}

/// What a latent step's output is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotLabel {
    /// A step that uses an earlier result, `c = 1`.
    Critical,
    /// A step that uses none, `c = 0`.
    Independent,
    /// A step that nobody labelled.
    Unlabelled,
    /// No step: the answer is ready.
    Padding,
}

impl SlotLabel {
    /// All labels, in the order of tables.
    pub const ALL: [Self; 4] = [
        Self::Critical,
        Self::Independent,
        Self::Unlabelled,
        Self::Padding,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Independent => "independent",
            Self::Unlabelled => "unlabelled",
            Self::Padding => "padding",
        }
    }

    /// The criticality `c` that losses use; the answer being ready counts as not critical.
    pub fn critical(self) -> Option<bool> {
        match self {
            Self::Critical => Some(true),
            Self::Independent | Self::Padding => Some(false),
            Self::Unlabelled => None,
        }
    }

    fn of(critical: Option<bool>) -> Self {
        match critical {
            Some(true) => Self::Critical,
            Some(false) => Self::Independent,
            None => Self::Unlabelled,
        }
    }
}

/// One output that the student has to learn: that of the question's last token, or of a latent step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index into the teacher's sequence of the state to be matched.
    pub index: usize,
    /// What it is about.
    pub label: SlotLabel,
}

/// A problem seen by teacher and student.
#[derive(Clone, Debug)]
pub struct LatentProblem {
    /// Question, steps and answer.
    pub sequence: Sequence,
    /// Tokens of the question.
    pub question: usize,
    /// Tokens of the marker before the answer.
    pub answer_start: usize,
    /// What the question's last token and each latent step must come to: one more than there are
    /// latent steps.
    pub targets: Vec<Target>,
    /// Position of the first token after the question.
    pub start: i32,
}

impl LatentConfig {
    /// Latent steps that a problem needs.
    pub fn needed(&self, problem: &EncodedProblem) -> usize {
        match self.granularity {
            Granularity::Step { .. } => problem.steps.len(),
            Granularity::Token => problem.steps.iter().map(Vec::len).sum(),
        }
    }

    /// Latent steps of this setting for a corpus.
    pub fn resolve<'a>(&self, problems: impl IntoIterator<Item = &'a EncodedProblem>) -> usize {
        match self.count {
            0 => problems
                .into_iter()
                .map(|problem| self.needed(problem))
                .max()
                .unwrap_or(0)
                .max(1),
            count => count,
        }
    }

    /// What the output of the question's last token and of each of `count` latent steps is about.
    pub fn labels(&self, problem: &EncodedProblem, count: usize) -> Vec<SlotLabel> {
        let mut labels = Vec::with_capacity(count + 1);
        for (step, critical) in problem.steps.iter().zip(&problem.critical) {
            let times = match self.granularity {
                Granularity::Step { .. } => 1,
                Granularity::Token => step.len(),
            };
            labels.extend(std::iter::repeat_n(SlotLabel::of(*critical), times));
        }
        labels.resize(count + 1, SlotLabel::Padding);
        labels
    }

    /// One past the greatest position id that a problem uses after its question.
    pub fn end_position(&self, start: i32, count: usize, problem: &EncodedProblem) -> i32 {
        let answer = (problem.answer_start.len() + problem.answer.len()) as i32;
        // A latent step may stand beyond the place of the answer.
        let last = count.checked_sub(1);
        let last = last.map_or(start, |slot| self.positions.slot_position(start, slot));
        let end = self.positions.answer_position(start, count);
        end.saturating_add(answer).max(last.saturating_add(1))
    }
}

impl LatentProblem {
    /// Lays `count` latent steps over the problem's chain of thought; `marker` is the token of
    /// [`Granularity::Step`].
    ///
    /// # Errors
    ///
    /// When the problem needs more latent steps, or has no marker before its answer.
    pub fn new(
        problem: &EncodedProblem,
        config: &LatentConfig,
        count: usize,
        marker: Option<u32>,
        layout: PositionLayout,
    ) -> Result<Self, DatasetError> {
        let needed = config.needed(problem);
        if needed > count {
            return Err(DatasetError::Config(format!(
                "problem {} needs {needed} latent steps, there are {count}; raise latents.count, \
                 or set it to 0",
                problem.id
            )));
        }
        if problem.answer_start.is_empty() {
            return Err(DatasetError::Config(
                "format.answer_start is empty; latent reasoning needs a marker where the answer \
                 begins"
                    .to_owned(),
            ));
        }
        let question = problem.question.len();
        let mut targets = Vec::with_capacity(count + 1);
        let mut begin = question;
        for (step, critical) in problem.steps.iter().zip(&problem.critical) {
            let label = SlotLabel::of(*critical);
            match config.granularity {
                Granularity::Step { .. } => {
                    let place = marker
                        .and_then(|marker| step.iter().rposition(|token| *token == marker))
                        .unwrap_or(step.len() - 1);
                    targets.push(Target {
                        index: begin + place,
                        label,
                    });
                }
                // The state that predicts a token stands for it.
                Granularity::Token => targets.extend((0..step.len()).map(|offset| Target {
                    index: begin + offset - 1,
                    label,
                })),
            }
            begin += step.len();
        }
        let ready = Target {
            index: match config.granularity {
                Granularity::Step { .. } => begin + problem.answer_start.len() - 1,
                Granularity::Token => begin - 1,
            },
            label: SlotLabel::Padding,
        };
        let slots = match config.padding {
            Padding::Answer => count,
            Padding::None => needed.max(1),
        };
        targets.resize(slots + 1, ready);
        Ok(Self {
            sequence: sequence(problem, Supervision::ChainOfThought, layout)?,
            question,
            answer_start: problem.answer_start.len(),
            targets,
            start: layout.reasoning_start(problem)? as i32,
        })
    }

    /// Latent steps.
    pub fn slots(&self) -> usize {
        self.targets.len() - 1
    }

    /// Tokens that the student reads, latent steps included.
    pub fn length(&self) -> usize {
        self.question + self.slots() + self.answer()
    }

    /// Tokens of the answer that are read: the marker, and the answer but for its last token.
    pub(crate) fn answer(&self) -> usize {
        let steps = self.sequence.ids.len() - self.answer_begin();
        steps - 1
    }

    /// Where the marker before the answer stands in the sequence.
    pub(crate) fn answer_begin(&self) -> usize {
        use sesqui_dataset::encode::Segment;
        self.sequence
            .segments
            .iter()
            .position(|segment| matches!(segment, Segment::AnswerStart | Segment::Answer))
            .unwrap_or(self.sequence.ids.len())
    }
}

/// How the latent steps of a batch get their inputs, and where they leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rollout {
    /// The teacher's states; every step runs all layers.
    TeacherForced,
    /// The student's own states.
    Student {
        /// Whether wrong ones are put right.
        correction: Correction,
        /// Seed of this batch's exits; without one every step runs all layers.
        exits: Option<u64>,
    },
}

impl Rollout {
    /// Seed of what is drawn for this batch: batches of stage 2 always have one, validation never.
    pub fn seed(self) -> Option<u64> {
        match self {
            Self::TeacherForced => None,
            Self::Student { exits, .. } => exits,
        }
    }

    /// The rollout of part `part` of a step: rows of different parts draw different exits.
    pub fn of_part(self, part: u64) -> Self {
        match self {
            Self::Student {
                correction,
                exits: Some(seed),
            } => Self::Student {
                correction,
                exits: Some(seed.wrapping_add(part)),
            },
            rollout => rollout,
        }
    }
}

/// What happens to a state of the student's own before it is fed to the next latent step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// Nothing.
    Never,
    /// The teacher's takes its place where the head does not read the right next token from it:
    /// what is fed always stands for the right result, in the student's form as soon as it can.
    WhereWrong,
}

/// A batch for teacher and student. Columns of the student: padding, question, latent steps, answer,
/// padding; latent steps stand in the same columns in every row.
#[derive(Clone, Debug)]
pub struct LatentBatch {
    /// What the teacher reads, padded on the right.
    pub teacher: SequenceBatch,
    /// Rows.
    pub batch: usize,
    /// Columns.
    pub seq: usize,
    /// Column of the first latent step.
    pub first_slot: usize,
    /// Latent steps, the most of any row.
    pub slots: usize,
    /// `[batch, seq]`; at latent steps and pads the pad id.
    pub ids: Vec<i32>,
    /// `[batch, seq]`.
    pub positions: Vec<i32>,
    /// `[batch, seq]`: false at pads and at latent steps that a row does not have.
    pub real: Vec<bool>,
    /// `[batch, slots + 1]`: cell of the teacher's `[batch, seq]` that holds the state to be matched.
    pub target_cells: Vec<i32>,
    /// `[batch, slots + 1]`: the token that follows there in the chain of thought.
    pub read_out: Vec<i32>,
    /// `[batch, slots + 1]`; `None` at latent steps that a row does not have.
    pub labels: Vec<Option<SlotLabel>>,
    /// Cells of the student's `[batch, seq]` in the answer.
    pub answer_cells: Vec<i32>,
    /// The teacher's cells for the same tokens.
    pub answer_target_cells: Vec<i32>,
    /// The token after each of them.
    pub answer_targets: Vec<i32>,
    /// 1 where that token belongs to the answer, 0 inside the marker.
    pub answer_weights: Vec<f32>,
    /// What the teacher has said about these rows, where that is kept.
    pub lesson: Option<Kept>,
    /// How the latent steps get their inputs.
    pub rollout: Rollout,
    /// Real cells of the student.
    pub tokens: usize,
}

impl LatentBatch {
    /// Makes a batch of `problems[row]` for each of `rows`.
    ///
    /// # Errors
    ///
    /// When there are no rows, or one that is not there.
    pub fn collate(
        problems: &[LatentProblem],
        rows: &[u32],
        positions: &SlotPositions,
        pad: u32,
        rollout: Rollout,
    ) -> Result<Self, DatasetError> {
        let picked = rows
            .iter()
            .map(|row| {
                problems.get(*row as usize).ok_or_else(|| {
                    DatasetError::Config(format!(
                        "row {row} is not there; there are {}",
                        problems.len()
                    ))
                })
            })
            .collect::<Result<Vec<&LatentProblem>, _>>()?;
        let sequences: Vec<Sequence> = picked
            .iter()
            .map(|problem| problem.sequence.clone())
            .collect();
        let all: Vec<u32> = (0..sequences.len() as u32).collect();
        let teacher = SequenceBatch::collate(&sequences, &all, pad)?;

        let most = |count: fn(&LatentProblem) -> usize| {
            picked
                .iter()
                .map(|problem| count(problem))
                .max()
                .unwrap_or(0)
        };
        let first_slot = most(|problem| problem.question);
        let slots = most(LatentProblem::slots);
        let seq = first_slot + slots + most(LatentProblem::answer);
        let cells = picked.len() * seq;
        let mut batch = Self {
            batch: picked.len(),
            seq,
            first_slot,
            slots,
            ids: vec![pad as i32; cells],
            positions: vec![0; cells],
            real: vec![false; cells],
            target_cells: Vec::with_capacity(picked.len() * (slots + 1)),
            read_out: Vec::with_capacity(picked.len() * (slots + 1)),
            labels: Vec::with_capacity(picked.len() * (slots + 1)),
            answer_cells: Vec::new(),
            answer_target_cells: Vec::new(),
            answer_targets: Vec::new(),
            answer_weights: Vec::new(),
            lesson: None,
            rollout,
            tokens: 0,
            teacher,
        };
        for (row, problem) in picked.iter().enumerate() {
            batch.fill(row, problem, positions);
        }
        batch.tokens = batch.real.iter().filter(|real| **real).count();
        Ok(batch)
    }

    fn fill(&mut self, row: usize, problem: &LatentProblem, positions: &SlotPositions) {
        let sequence = &problem.sequence;
        let begin = row * self.seq;
        let teacher_begin = row * self.teacher.seq;
        let question = begin + self.first_slot - problem.question;
        for index in 0..problem.question {
            self.ids[question + index] = sequence.ids[index] as i32;
            self.positions[question + index] = sequence.positions[index] as i32;
            self.real[question + index] = true;
        }
        for slot in 0..problem.slots() {
            let cell = begin + self.first_slot + slot;
            self.positions[cell] = positions.slot_position(problem.start, slot);
            self.real[cell] = true;
        }
        for output in 0..=self.slots {
            // A row without this latent step gets any target and no label.
            let target = problem.targets.get(output);
            let index = target.map_or(problem.question - 1, |target| target.index);
            self.target_cells.push((teacher_begin + index) as i32);
            self.read_out.push(sequence.ids[index + 1] as i32);
            self.labels.push(target.map(|target| target.label));
        }
        let (from, count) = (problem.answer_begin(), problem.answer());
        let first = positions.answer_position(problem.start, problem.slots());
        for offset in 0..count {
            let cell = begin + self.first_slot + self.slots + offset;
            self.ids[cell] = sequence.ids[from + offset] as i32;
            self.positions[cell] = first + offset as i32;
            self.real[cell] = true;
            self.answer_cells.push(cell as i32);
            self.answer_target_cells
                .push((teacher_begin + from + offset) as i32);
            self.answer_targets
                .push(sequence.ids[from + offset + 1] as i32);
            let inside = offset + 1 < problem.answer_start;
            self.answer_weights.push(if inside { 0.0 } else { 1.0 });
        }
    }

    /// Whether `slot` is the last latent step that `row` has, or one that it does not have: such
    /// steps run to the top, also beside rows that have more.
    pub fn is_last(&self, row: usize, slot: usize) -> bool {
        let outputs = &self.labels[row * (self.slots + 1)..][..self.slots + 1];
        outputs.get(slot + 2).copied().flatten().is_none()
    }

    /// Column `column` of a row-major `[batch, seq]` list.
    pub fn column<T: Copy>(&self, list: &[T], column: usize) -> Vec<T> {
        (0..self.batch)
            .map(|row| list[row * self.seq + column])
            .collect()
    }

    /// Columns `range` of a row-major `[batch, seq]` list.
    pub fn columns<T: Copy>(&self, list: &[T], range: std::ops::Range<usize>) -> Vec<T> {
        columns(list, self.seq, range)
    }
}

/// Columns `range` of a row-major list with `seq` columns.
pub(crate) fn columns<T: Copy>(list: &[T], seq: usize, range: std::ops::Range<usize>) -> Vec<T> {
    list.chunks(seq.max(1))
        .flat_map(|row| row[range.clone()].iter().copied())
        .collect()
}
