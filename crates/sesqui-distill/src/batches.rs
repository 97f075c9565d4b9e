//! Training batches by number.

use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::{BatchConfig, BatchOrder, SequenceBatch};
use sesqui_dataset::encode::Sequence;
use sesqui_trainer::Batches;

/// Sequences in an order that is a function of `(seed, batch number)`.
#[derive(Debug)]
pub struct SequenceBatches {
    sequences: Vec<Sequence>,
    identities: Vec<String>,
    order: BatchOrder,
    pad: u32,
}

impl SequenceBatches {
    /// Batches of `sequences`; `identities` name their problems in error reports.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of.
    pub fn new(
        sequences: Vec<Sequence>,
        identities: Vec<String>,
        config: &BatchConfig,
        seed: u64,
        pad: u32,
    ) -> Result<Self, DatasetError> {
        let lengths = sequences
            .iter()
            .map(|sequence| sequence.ids.len())
            .collect();
        let order = BatchOrder::new(config, seed, lengths)?;
        Ok(Self {
            sequences,
            identities,
            order,
            pad,
        })
    }
}

impl Batches<SequenceBatch> for SequenceBatches {
    fn batch(&self, index: u64) -> Result<SequenceBatch, String> {
        SequenceBatch::collate(&self.sequences, &self.order.batch_at(index), self.pad)
            .map_err(|error| error.to_string())
    }

    fn per_epoch(&self) -> u64 {
        self.order.batches_per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        let rows = self.order.batch_at(index);
        let names: Vec<&str> = rows
            .iter()
            .filter_map(|&row| self.identities.get(row as usize).map(String::as_str))
            .collect();
        names.join(", ")
    }
}
