//! Which rows make batch number `step`: a pure function of `(seed, step)`.

use std::sync::{Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::BatchConfig;
use crate::error::DatasetError;

/// Which rows share a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// Rows in random order.
    #[default]
    Shuffled,
    /// Rows of equal or nearly equal length: the epoch's rows are sorted by length, ties in random
    /// order, cut into batches, and the batches come in random order. Least padding; the rows of a
    /// batch are less varied.
    ByLength,
}

/// The order of training rows.
///
/// An epoch is a fresh shuffle of all rows, cut into full batches. When the batch size does not
/// divide the number of rows, the `rows % batch_size` last rows of the shuffle sit out that epoch;
/// the next epoch shuffles anew, so every row is equally likely to sit out and no batch is ever
/// short (a short batch would weigh its rows more). A corpus smaller than the batch size gives one
/// batch of the whole corpus per epoch.
///
/// Resuming needs only the step: the order does not depend on which batches were asked for before.
#[derive(Debug)]
pub struct BatchOrder {
    seed: u64,
    batch_size: usize,
    grouping: Grouping,
    lengths: Vec<usize>,
    /// Rows in every epoch before it is cut into batches.
    kept: usize,
    length_exponent: u32,
    /// The last epoch that was asked for and its rows; only a saving of work.
    current: Mutex<Option<(u64, Vec<u32>)>>,
}

impl BatchOrder {
    /// An order over `lengths.len()` rows; `lengths` are tokens per row, used by
    /// [`Grouping::ByLength`] only.
    ///
    /// # Errors
    /// No rows, more rows than 32 bits count, or a batch size of 0.
    pub fn new(config: &BatchConfig, seed: u64, lengths: Vec<usize>) -> Result<Self, DatasetError> {
        if lengths.is_empty() {
            return Err(DatasetError::Config("no rows to make batches of".into()));
        }
        if u32::try_from(lengths.len()).is_err() {
            return Err(DatasetError::Config(format!(
                "{} rows are more than 32 bits can count",
                lengths.len()
            )));
        }
        if config.batch_size == 0 {
            return Err(DatasetError::Config(
                "batch_size is 0; it must be at least 1".into(),
            ));
        }
        let exponent = config.length_exponent;
        if exponent > 16 {
            return Err(DatasetError::Config(format!(
                "length_exponent is {exponent}; above 16 hardly any but the longest rows are left"
            )));
        }
        let kept = (units(&lengths, exponent).iter().sum::<u64>() / UNIT) as usize;
        Ok(Self {
            seed,
            batch_size: config.batch_size.min(kept),
            grouping: config.grouping,
            kept,
            length_exponent: exponent,
            lengths,
            current: Mutex::new(None),
        })
    }

    /// Rows in every batch: the configured size, or the size of a corpus smaller than that.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Batches in every epoch, at least 1.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.kept / self.batch_size) as u64
    }

    /// The epoch that step `step` belongs to; both count from 0.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.batches_per_epoch()
    }

    /// The rows of batch `step`, counted from 0 over all epochs.
    pub fn batch_at(&self, step: u64) -> Vec<u32> {
        let batches = self.batches_per_epoch();
        self.indices(step / batches, step % batches)
    }

    /// The rows of batch `batch_in_epoch` of `epoch`. Batches beyond the epoch's end are those of
    /// the epochs after it.
    ///
    /// Costs a copy of the rows while the epoch stays the same, else one shuffle of the corpus.
    pub fn indices(&self, epoch: u64, batch_in_epoch: u64) -> Vec<u32> {
        let batches = self.batches_per_epoch();
        let epoch = epoch.wrapping_add(batch_in_epoch / batches);
        let start = (batch_in_epoch % batches) as usize * self.batch_size;
        // The cache is replaced as a whole, so a panic elsewhere cannot leave it half written.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((cached, rows)) if *cached == epoch => rows[start..start + self.batch_size].into(),
            _ => {
                let rows = self.epoch_rows(epoch);
                let batch = rows[start..start + self.batch_size].into();
                *current = Some((epoch, rows));
                batch
            }
        }
    }

    /// Systematic sampling of shuffled rows: a row stays where the running sum of units passes a whole
    /// one.
    fn thinned(&self, rows: &[u32]) -> Vec<u32> {
        let units = units(&self.lengths, self.length_exponent);
        let mut sum = 0;
        let stays = |row: &&u32| {
            let before = sum / UNIT;
            sum += units[**row as usize];
            sum / UNIT > before
        };
        rows.iter().filter(stays).copied().collect()
    }

    /// The rows of an epoch, batch after batch.
    fn epoch_rows(&self, epoch: u64) -> Vec<u32> {
        let mut generator = epoch_generator(self.seed, epoch);
        let mut rows: Vec<u32> = (0..self.lengths.len() as u32).collect();
        shuffle(&mut generator, &mut rows);
        if self.length_exponent > 0 {
            rows = self.thinned(&rows);
        }
        rows.truncate(self.kept / self.batch_size * self.batch_size);
        if self.grouping == Grouping::ByLength {
            // Stable: rows of equal length stay in shuffled order.
            rows.sort_by_key(|row| self.lengths[*row as usize]);
            let mut batches: Vec<&[u32]> = rows.chunks(self.batch_size).collect();
            shuffle(&mut generator, &mut batches);
            rows = batches.concat();
        }
        rows
    }
}

/// What a row of the greatest length counts. Whole numbers, so that their sum does not depend on the
/// order of adding, and every epoch keeps the same number of rows.
const UNIT: u64 = 1 << 32;

/// What each row counts under an exponent, of [`UNIT`]. By repeated multiplication, which is the same
/// on every machine.
fn units(lengths: &[usize], exponent: u32) -> Vec<u64> {
    let greatest = lengths.iter().copied().max().unwrap_or(1).max(1) as f64;
    let unit = |&length: &usize| {
        let share = length as f64 / greatest;
        ((0..exponent).fold(1.0, |power, _| power * share) * UNIT as f64) as u64
    };
    lengths.iter().map(unit).collect()
}

/// A generator of its own for every epoch. The key is written out in full because the expansion of
/// a 64-bit seed is not promised to stay the same between library versions.
fn epoch_generator(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = *b"................batch order, v 1";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates with integer draws only.
fn shuffle<T>(generator: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = draw_below(generator, last as u64 + 1);
        items.swap(last, other as usize);
    }
}

/// A uniform draw from `0..bound` (bound > 0): the high half of a 64x64-bit product, with the draws
/// rejected that would favour some values (Lemire, arXiv 1805.10941).
fn draw_below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    let reject_below = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(generator.next_u64()) * u128::from(bound);
        if product as u64 >= reject_below {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn order(rows: usize, batch_size: usize, grouping: Grouping, seed: u64) -> BatchOrder {
        let config = BatchConfig {
            batch_size,
            grouping,
            ..BatchConfig::default()
        };
        let lengths = (0..rows).map(|row| 14 + row * 7919 % 5 * 7).collect();
        BatchOrder::new(&config, seed, lengths).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 48,
            failure_persistence: None,
            rng_seed: prop::test_runner::RngSeed::Fixed(7),
            ..ProptestConfig::default()
        })]

        #[test]
        fn an_epoch_has_each_row_at_most_once_in_full_batches(
            rows in 1usize..200, batch_size in 1usize..40, grouped: bool, seed: u64, epoch in 0u64..9,
        ) {
            let grouping = if grouped { Grouping::ByLength } else { Grouping::Shuffled };
            let order = order(rows, batch_size, grouping, seed);
            let batches = order.batches_per_epoch();
            let mut seen = BTreeSet::new();
            for batch in 0..batches {
                let rows = order.indices(epoch, batch);
                prop_assert_eq!(rows.len(), batch_size.min(order.lengths.len()));
                prop_assert_eq!(&rows, &order.batch_at(epoch * batches + batch));
                seen.extend(rows);
            }
            let full = rows / order.batch_size() * order.batch_size();
            prop_assert_eq!(seen.len(), full);
            prop_assert!(seen.last().is_none_or(|row| (*row as usize) < rows));
        }

        #[test]
        fn batches_depend_on_the_step_alone(
            steps in prop::collection::vec(0u64..100, 1..12), grouped: bool, seed: u64,
        ) {
            let grouping = if grouped { Grouping::ByLength } else { Grouping::Shuffled };
            let used = order(50, 8, grouping, seed);
            for step in steps {
                let fresh = order(50, 8, grouping, seed);
                prop_assert_eq!(used.batch_at(step), fresh.batch_at(step));
            }
        }
    }

    #[test]
    fn the_order_is_pinned() {
        // A changed order would silently break resuming an older run. The rows were worked out with
        // an independent implementation of ChaCha8 and of the rules above.
        let shuffled = order(10, 5, Grouping::Shuffled, 1);
        let grouped = order(10, 5, Grouping::ByLength, 1);
        assert_eq!(shuffled.batch_at(0), [5, 8, 4, 9, 1]);
        assert_eq!(shuffled.batch_at(7), [3, 5, 0, 4, 9]);
        assert_eq!(grouped.batch_at(7), [3, 2, 7, 1, 6]);
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let one = order(64, 64, Grouping::Shuffled, 1);
        let other = order(64, 64, Grouping::Shuffled, 2);
        let orders: BTreeSet<_> = (0..4)
            .flat_map(|step| [one.batch_at(step), other.batch_at(step)])
            .collect();
        assert_eq!(orders.len(), 8);
    }

    #[test]
    fn no_row_sits_out_for_good() {
        for grouping in [Grouping::Shuffled, Grouping::ByLength] {
            let order = order(31, 16, grouping, 3);
            let mut times = [0; 31];
            for epoch in 0..200 {
                for row in order.indices(epoch, 0) {
                    times[row as usize] += 1;
                }
            }
            // 16 of 31 rows take part: 103 times in 200 expected, standard deviation 7.
            assert!(
                times.iter().all(|times| (70..=136).contains(times)),
                "{times:?}"
            );
        }
    }

    #[test]
    fn grouped_batches_mix_few_lengths_and_come_in_random_order() {
        let order = order(1000, 16, Grouping::ByLength, 5);
        let spread = |batch: &[u32]| {
            let lengths: BTreeSet<_> = batch
                .iter()
                .map(|row| order.lengths[*row as usize])
                .collect();
            lengths.len()
        };
        let batches: Vec<_> = (0..order.batches_per_epoch())
            .map(|b| order.batch_at(b))
            .collect();
        // Five lengths: at most four of the batches can hold a change of length.
        assert!(batches.iter().filter(|batch| spread(batch) > 1).count() <= 4);
        let shortest: Vec<_> = batches
            .iter()
            .map(|b| order.lengths[b[0] as usize])
            .collect();
        assert!(!shortest.is_sorted());
    }

    #[test]
    fn draws_are_uniform_at_awkward_bounds() {
        let mut generator = epoch_generator(1, 1);
        let mut low = 0;
        // With a plain modulus the lower third would come up half of the time.
        let bound = u64::MAX / 4 * 3;
        for _ in 0..3000 {
            let value = draw_below(&mut generator, bound);
            assert!(value < bound);
            low += u32::from(value < bound / 3);
        }
        assert!((900..1100).contains(&low), "{low}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let config = |batch_size| BatchConfig {
            batch_size,
            ..BatchConfig::default()
        };
        assert!(BatchOrder::new(&config(0), 1, vec![3]).is_err());
        assert!(BatchOrder::new(&config(4), 1, vec![]).is_err());
    }
}
