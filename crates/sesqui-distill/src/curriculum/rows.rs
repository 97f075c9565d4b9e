//! The rows of a curriculum: which steps are gone, where thoughts stand, what is learned.

use std::ops::Range;

use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, Sequence, Supervision, sequence};
use sesqui_model::latent::SlotPositions;

use crate::latent::columns;

/// What a stage makes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// How many of its first steps are gone.
    pub steps: usize,
    /// How many thoughts stand in their place.
    pub thoughts: usize,
}

/// A problem that can be laid out for any stage.
#[derive(Clone, Debug)]
pub struct ThoughtProblem {
    problem: EncodedProblem,
    /// With its whole chain of thought.
    chain: Sequence,
    /// Position ids of the question.
    positions: Vec<i32>,
    /// Position of the first token after the question.
    start: i32,
}

impl ThoughtProblem {
    /// Settles the positions of `problem`.
    ///
    /// # Errors
    ///
    /// When the question is longer than an aligned layout allows.
    pub fn new(problem: EncodedProblem, layout: PositionLayout) -> Result<Self, DatasetError> {
        let positions = layout.question_positions(&problem)?;
        Ok(Self {
            positions: positions.into_iter().map(|at| at as i32).collect(),
            start: layout.reasoning_start(&problem)? as i32,
            chain: sequence(&problem, Supervision::ChainOfThought, layout)?,
            problem,
        })
    }

    /// The problem's id.
    pub fn id(&self) -> &str {
        &self.problem.id
    }

    /// Reasoning steps.
    pub fn steps(&self) -> usize {
        self.problem.steps.len()
    }

    /// Tokens with the whole chain of thought: what batches are ordered by, in every stage alike.
    pub fn length(&self) -> usize {
        self.problem.length(Supervision::ChainOfThought)
    }

    /// Tokens of its longest reasoning step.
    pub fn longest_step(&self) -> usize {
        self.problem.steps.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// One past the greatest position id of its whole chain of thought.
    pub fn end_of_chain(&self) -> i32 {
        let last = self.chain.positions.iter().max();
        last.map_or(0, |&last| last as i32 + 1)
    }

    /// One past the greatest position id that the problem uses.
    pub fn end_position(&self, replaced: Replaced, positions: &SlotPositions) -> i32 {
        let text = i32::try_from(self.text(replaced).len()).unwrap_or(i32::MAX);
        let first = positions.answer_position(self.start, replaced.thoughts);
        let thoughts = replaced.thoughts.checked_sub(1);
        // A thought may stand beyond the text that follows it.
        let last = thoughts.map_or(0, |slot| positions.slot_position(self.start, slot));
        first.saturating_add(text).max(last.saturating_add(1))
    }

    /// The steps that are left, the marker before the answer, and the answer.
    fn text(&self, replaced: Replaced) -> Vec<u32> {
        let EncodedProblem {
            steps,
            answer_start,
            answer,
            ..
        } = &self.problem;
        let left = steps.iter().skip(replaced.steps).flatten();
        left.chain(answer_start).chain(answer).copied().collect()
    }
}

/// A batch of one update. Columns: padding, question, thoughts, text, padding; the first thought stands in
/// the same column in every row.
#[derive(Clone, Debug, PartialEq)]
pub struct ThoughtBatch {
    /// Rows.
    pub batch: usize,
    /// Columns.
    pub seq: usize,
    /// Column of the first thought.
    pub first_slot: usize,
    /// Thoughts, the most of any row.
    pub slots: usize,
    /// `[batch, seq]`; at thoughts and pads the pad id.
    pub ids: Vec<i32>,
    /// `[batch, seq]`.
    pub positions: Vec<i32>,
    /// `[batch, seq]`: false at pads and at thoughts that a row does not have.
    pub real: Vec<bool>,
    /// Cells of `[batch, seq]` after which a token of the text follows: the question's last token or the
    /// last thought, then the text but for its last token.
    pub loss_cells: Vec<i32>,
    /// That token.
    pub targets: Vec<i32>,
    /// For each row its cell of `[batch, seq]` after which the answer's first token follows.
    pub answer_cells: Vec<i32>,
    /// The same problems with their whole chains of thought, padded on the right.
    pub chain: SequenceBatch,
    /// For each row the cell of the chain's `[batch, seq]` after which the answer's first token follows.
    pub chain_answer_cells: Vec<i32>,
    /// For each row its thoughts.
    pub thoughts: Vec<usize>,
    /// For each row the tokens of the steps that are gone.
    pub gone: Vec<Vec<Vec<i32>>>,
    /// Real cells.
    pub tokens: usize,
}

impl ThoughtBatch {
    /// Makes a batch of `problems[row]`, as `replaced` says, for each of `rows`.
    ///
    /// # Errors
    ///
    /// When there are no rows, or one that is not there.
    pub fn collate(
        problems: &[ThoughtProblem],
        rows: &[(u32, Replaced)],
        positions: &SlotPositions,
        pad: u32,
    ) -> Result<Self, DatasetError> {
        if rows.is_empty() {
            let reason = "a batch needs at least one row";
            return Err(DatasetError::Config(reason.to_owned()));
        }
        let mut picked = Vec::with_capacity(rows.len());
        for &(row, replaced) in rows {
            let problem = problems.get(row as usize).ok_or_else(|| {
                DatasetError::Config(format!(
                    "row {row} is not there; there are {}",
                    problems.len()
                ))
            })?;
            picked.push((problem, replaced, problem.text(replaced)));
        }
        let questions = picked.iter().map(|(problem, ..)| problem.positions.len());
        let first_slot = questions.max().unwrap_or(0);
        let thoughts = picked.iter().map(|(_, replaced, _)| replaced.thoughts);
        let slots = thoughts.max().unwrap_or(0);
        let texts = picked.iter().map(|(.., text)| text.len().saturating_sub(1));
        let seq = first_slot + slots + texts.max().unwrap_or(0);
        let cells = picked.len() * seq;
        let chains: Vec<Sequence> = picked
            .iter()
            .map(|(problem, ..)| problem.chain.clone())
            .collect();
        let all: Vec<u32> = (0..chains.len() as u32).collect();
        let chain = SequenceBatch::collate(&chains, &all, pad)?;
        let mut batch = Self {
            batch: picked.len(),
            seq,
            first_slot,
            slots,
            ids: vec![pad as i32; cells],
            positions: vec![0; cells],
            real: vec![false; cells],
            loss_cells: Vec::new(),
            targets: Vec::new(),
            answer_cells: Vec::with_capacity(picked.len()),
            chain_answer_cells: Vec::with_capacity(picked.len()),
            thoughts: Vec::with_capacity(picked.len()),
            gone: Vec::with_capacity(picked.len()),
            tokens: 0,
            chain,
        };
        for (row, (problem, replaced, text)) in picked.iter().enumerate() {
            batch.fill(row, problem, *replaced, text, positions);
        }
        batch.tokens = batch.real.iter().filter(|real| **real).count();
        Ok(batch)
    }

    fn fill(
        &mut self,
        row: usize,
        problem: &ThoughtProblem,
        Replaced { steps, thoughts }: Replaced,
        text: &[u32],
        positions: &SlotPositions,
    ) {
        let answer = problem.problem.answer.len();
        let before = problem.chain.ids.len() - answer - 1;
        let before = row * self.chain.seq + before;
        self.chain_answer_cells.push(before as i32);
        let gone = problem.problem.steps.iter().take(steps);
        let gone = gone.map(|step| step.iter().map(|&id| id as i32).collect());
        self.gone.push(gone.collect());
        self.thoughts.push(thoughts);
        let first = row * self.seq + self.first_slot;
        let question = &problem.problem.question;
        let begin = first - question.len();
        for (offset, (&id, &at)) in question.iter().zip(&problem.positions).enumerate() {
            self.place(begin + offset, id as i32, at);
        }
        for slot in 0..thoughts {
            let pad = self.ids[first + slot];
            let at = positions.slot_position(problem.start, slot);
            self.place(first + slot, pad, at);
        }
        let after = first + self.slots;
        let start = positions.answer_position(problem.start, thoughts);
        let mut before = first + thoughts - 1;
        for (offset, &id) in text.iter().enumerate() {
            if offset + answer == text.len() {
                self.answer_cells.push(before as i32);
            }
            self.loss_cells.push(before as i32);
            self.targets.push(id as i32);
            // The last token has nothing to say.
            if offset + 1 < text.len() {
                self.place(after + offset, id as i32, start + offset as i32);
                before = after + offset;
            }
        }
    }

    fn place(&mut self, cell: usize, id: i32, position: i32) {
        self.ids[cell] = id;
        self.positions[cell] = position;
        self.real[cell] = true;
    }

    /// Columns `range` of a row-major `[batch, seq]` list.
    pub fn columns<T: Copy>(&self, list: &[T], range: Range<usize>) -> Vec<T> {
        columns(list, self.seq, range)
    }
}
