//! A rectangle of questions, padded on the left.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Questions to decode from, row-major `[batch, seq]`. Padding is on the left, so that every row's
/// next token comes in the same column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Rows.
    pub batch: usize,
    /// Columns.
    pub seq: usize,
    /// Token ids; at pads any that the model has.
    pub ids: Vec<i32>,
    /// Position ids; at pads any that the model has.
    pub positions: Vec<i32>,
    /// False at pads.
    pub real: Vec<bool>,
    /// Position id of each row's first generated token.
    pub next_position: Vec<i32>,
}

/// Why a prompt cannot be decoded from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The lists do not make a rectangle.
    #[error("a prompt of {batch} x {seq} holds {found} {what}")]
    Shape {
        /// Rows.
        batch: usize,
        /// Columns.
        seq: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
    },
    /// A list that does not go with the prompt or the model.
    #[error("{found} {what} where there should be {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that it should have.
        expected: usize,
    },
    /// Refinement without what its configuration needs, or with a number out of range.
    #[error("refinement of latents: {0}")]
    Refinement(String),
    /// Early stopping without what its configuration needs, or with a number out of range.
    #[error("halting: {0}")]
    Halting(String),
    /// An exit of tokens with a number out of range.
    #[error("token exit: {0}")]
    TokenExit(String),
    /// Latent steps all at once where something has to happen between them.
    #[error(
        "latent steps are to be computed all at once, which takes a model that feeds back its newest \
         states, all layers, no refinement and no halting"
    )]
    Order,
    /// A token or position that the model has no row for.
    #[error("{what} {value} of row {row} is outside 0..{limit}")]
    Range {
        /// Token id, position or next position.
        what: &'static str,
        /// The value.
        value: i32,
        /// The row.
        row: usize,
        /// One past the greatest.
        limit: usize,
    },
    /// Nothing to answer.
    #[error("a prompt of no rows")]
    NoRows,
    /// A row whose last column is padding: its next token would be read off the pad.
    #[error("row {row} ends in padding; pads go on the left")]
    PaddedRight {
        /// The row.
        row: usize,
    },
    /// A row of nothing but padding.
    #[error("row {row} is empty")]
    Empty {
        /// The row.
        row: usize,
    },
}

impl PromptError {
    /// The same of a prompt in which `rows` more stand before those of this one.
    pub fn after(mut self, rows: usize) -> Self {
        if let Self::Range { row, .. } | Self::PaddedRight { row } | Self::Empty { row } = &mut self
        {
            *row += rows;
        }
        self
    }
}

impl Prompt {
    /// Checks shapes and ranges: indices are not checked on GPU backends.
    ///
    /// # Errors
    ///
    /// Names the list, or the row and value, that does not fit.
    pub fn validate(&self, vocabulary: usize, context: usize) -> Result<(), PromptError> {
        self.shapes()?;
        let (batch, seq) = (self.batch, self.seq);
        for row in 0..batch {
            let cells = row * seq..(row + 1) * seq;
            if !self.real[cells.clone()].iter().any(|&real| real) {
                return Err(PromptError::Empty { row });
            }
            if !self.real[cells.end - 1] {
                return Err(PromptError::PaddedRight { row });
            }
            // One past the last position is fine: nothing is generated there.
            let (value, limit) = (self.next_position[row], context + 1);
            if !usize::try_from(value).is_ok_and(|value| value < limit) {
                return Err(PromptError::Range {
                    what: "next position",
                    value,
                    row,
                    limit,
                });
            }
            for cell in cells {
                for (what, value, limit) in [
                    ("token", self.ids[cell], vocabulary),
                    ("position", self.positions[cell], context),
                ] {
                    if usize::try_from(value).is_ok_and(|value| value < limit) {
                        continue;
                    }
                    return Err(PromptError::Range {
                        what,
                        value,
                        row,
                        limit,
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether the lists make a rectangle.
    fn shapes(&self) -> Result<(), PromptError> {
        let (batch, seq) = (self.batch, self.seq);
        if batch == 0 {
            return Err(PromptError::NoRows);
        }
        for (what, found, wanted) in [
            ("ids", self.ids.len(), batch * seq),
            ("positions", self.positions.len(), batch * seq),
            ("pad flags", self.real.len(), batch * seq),
            ("next positions", self.next_position.len(), batch),
        ] {
            if found != wanted {
                return Err(PromptError::Shape {
                    batch,
                    seq,
                    what,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Rows `0..rows`, then the next so many, and so on, as wide as the whole.
    ///
    /// # Errors
    ///
    /// When the lists do not make a rectangle.
    pub fn parts(&self, rows: usize) -> Result<Vec<Self>, PromptError> {
        self.shapes()?;
        let starts = (0..self.batch).step_by(rows.max(1));
        Ok(starts
            .map(|start| {
                let end = (start + rows.max(1)).min(self.batch);
                let cells = start * self.seq..end * self.seq;
                Self {
                    batch: end - start,
                    seq: self.seq,
                    ids: self.ids[cells.clone()].to_vec(),
                    positions: self.positions[cells.clone()].to_vec(),
                    real: self.real[cells].to_vec(),
                    next_position: self.next_position[start..end].to_vec(),
                }
            })
            .collect())
    }

    /// Ids and positions on a device, `[batch, seq]` each.
    pub fn tensors(&self, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let upload = |values: &[i32]| {
            Tensor::from_data(
                TensorData::new(values.to_vec(), [self.batch, self.seq]),
                device,
            )
        };
        (upload(&self.ids), upload(&self.positions))
    }
}
