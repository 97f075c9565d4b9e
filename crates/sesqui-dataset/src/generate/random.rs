//! Seeded randomness from integers only.
//!
//! Every draw is arithmetic on the 64-bit words of ChaCha with 8 rounds, so a generated data set
//! depends on neither the platform nor the version of a random-number library.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// One named stream of random integers.
///
/// The key of a stream is the SHA-256 of seed, index and label. Streams with different names have
/// nothing in common, so that adding a generator, or drawing more from one, never shifts another.
#[derive(Clone, Debug)]
pub struct Random {
    words: ChaCha8Rng,
}

impl Random {
    /// The stream that `seed`, `label` and `index` name; the index is for families of streams, one
    /// per length, row or epoch.
    pub fn stream(seed: u64, label: &str, index: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(index.to_le_bytes());
        hash.update(label.as_bytes());
        Self {
            words: ChaCha8Rng::from_seed(hash.finalize().into()),
        }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.words.next_u64()
    }

    /// An integer in `0..bound`, all equally likely; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // Lemire's multiplication method: the few words that would favour small results are redrawn.
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            if product as u64 >= unfair {
                return (product >> 64) as u64;
            }
        }
    }

    /// A position in `0..length`; 0 for an empty range.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// An integer in `low..=high`; `low` when `high` is below it.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        if high <= low {
            return low;
        }
        // As unsigned words, so that no pair of bounds overflows.
        let offset = match (high.wrapping_sub(low) as u64).checked_add(1) {
            Some(width) => self.below(width),
            None => self.bits(),
        };
        low.wrapping_add(offset as i64)
    }

    /// True in `numerator` of `denominator` draws.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A position drawn in proportion to integer weights; `None` when they are all zero.
    pub fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        if total == 0 {
            return None;
        }
        let mut ticket = self.below(total);
        for (position, &weight) in weights.iter().enumerate() {
            match ticket.checked_sub(u64::from(weight)) {
                Some(rest) => ticket = rest,
                None => return Some(position),
            }
        }
        None
    }

    /// One item, all equally likely; `None` out of nothing.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.index(items.len()))
    }

    /// Puts the items in random order (Fisher-Yates, from the back).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned_and_independent() {
        let first = |seed, label, index| Random::stream(seed, label, index).bits();
        // Frozen: a change here changes every generated data set.
        assert_eq!(first(1, "arith-dag/train", 2), PINNED);
        let all = [
            first(1, "a", 0),
            first(2, "a", 0),
            first(1, "b", 0),
            first(1, "a", 1),
        ];
        for (position, value) in all.iter().enumerate() {
            assert!(!all[..position].contains(value), "two streams start alike");
        }
    }

    const PINNED: u64 = 4_908_795_565_875_696_954;

    #[test]
    fn draws_are_even_and_in_range() {
        let mut random = Random::stream(7, "test", 0);
        let mut counts = [0u32; 10];
        for _ in 0..20_000 {
            counts[random.index(10)] += 1;
        }
        // Five standard deviations of a binomial with n = 20,000 and p = 1/10 are 212.
        assert!(
            counts.iter().all(|&count| count.abs_diff(2_000) < 212),
            "{counts:?}"
        );
        let mut weighted = [0u32; 3];
        for _ in 0..20_000 {
            weighted[random.weighted(&[50, 0, 150]).unwrap()] += 1;
        }
        assert!(
            weighted[1] == 0 && weighted[0].abs_diff(5_000) < 307,
            "{weighted:?}"
        );
        assert!((0..1_000).all(|_| (-3..=4).contains(&random.between(-3, 4))));
        assert_eq!(
            (
                random.weighted(&[0, 0]),
                random.below(0),
                random.between(5, 5)
            ),
            (None, 0, 5)
        );
        random.between(i64::MIN, i64::MAX);
    }

    #[test]
    fn shuffle_reaches_every_order() {
        let mut random = Random::stream(3, "test", 1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6_000 {
            let mut items = [0, 1, 2];
            random.shuffle(&mut items);
            *counts.entry(items).or_insert(0u32) += 1;
        }
        assert!(counts.len() == 6 && counts.values().all(|&count| count.abs_diff(1_000) < 145));
    }
}
