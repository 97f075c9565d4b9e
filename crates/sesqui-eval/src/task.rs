//! Problems ready to be asked.

use sesqui_dataset::batch::PromptBatch;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, TextFormat};
use sesqui_dataset::tokenizer::Tokenizer;
use sesqui_dataset::{DatasetError, Problem};
use sesqui_reason::Prompt;

/// One split of a data set with everything needed to ask and score it.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Name of the data set.
    pub dataset: &'a str,
    /// Name of the split.
    pub split: &'a str,
    /// The problems.
    pub problems: &'a [Problem],
    /// Their encoding, one for one.
    pub encoded: &'a [EncodedProblem],
    /// Turns generated ids into text.
    pub tokenizer: &'a Tokenizer,
    /// Where the answer begins in generated text.
    pub format: &'a TextFormat,
    /// Position ids.
    pub layout: PositionLayout,
}

impl Task<'_> {
    /// The prompt of problems `rows`, padded on the left.
    ///
    /// # Errors
    ///
    /// When a question does not fit the position layout.
    pub fn prompt(&self, rows: std::ops::Range<usize>) -> Result<Prompt, DatasetError> {
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        let batch =
            PromptBatch::collate(self.encoded, &rows, self.layout, self.tokenizer.pad_id())?;
        Ok(Prompt {
            batch: batch.batch,
            seq: batch.seq,
            ids: batch.input_ids,
            positions: batch.position_ids,
            real: batch.real,
            next_position: batch.next_position,
        })
    }
}
