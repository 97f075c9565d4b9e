//! Which keys a query may see.

use burn::tensor::{Device, Tensor, TensorData};

/// Added to a score that must not count. Finite, so that a row in which everything is hidden stays
/// a number; large enough that its exponential is exactly zero beside any visible score.
pub const HIDDEN: f32 = -1e30;

/// Visibility of keys, as a bias on the attention scores.
#[derive(Clone, Debug)]
pub enum Visibility {
    /// Every key may be seen; a single query over a cache without holes.
    All,
    /// The same rule for all rows, `[1, 1, query, key]`.
    Shared(Tensor<4>),
    /// A rule per row, `[batch, 1, query, key]`.
    PerRow(Tensor<4>),
}

impl Visibility {
    /// Query `i` sees keys `0..=i`: right padding needs nothing more, since no real token comes
    /// after a pad.
    pub fn causal(seq: usize, device: &Device) -> Self {
        if seq == 1 {
            return Self::All;
        }
        let bias = (0..seq)
            .flat_map(|query| (0..seq).map(move |key| if key > query { HIDDEN } else { 0.0 }))
            .collect::<Vec<_>>();
        Self::Shared(Tensor::from_data(
            TensorData::new(bias, [1, 1, seq, seq]),
            device,
        ))
    }

    /// Causal, and pads are seen by nobody but themselves. `real` is row-major `[batch, seq]`.
    ///
    /// A pad keeps sight of itself so that its own row of scores is never empty.
    pub fn causal_padded(real: &[bool], [batch, seq]: [usize; 2], device: &Device) -> Self {
        if real.iter().all(|&real| real) {
            return Self::causal(seq, device);
        }
        let mut bias = Vec::with_capacity(batch * seq * seq);
        for row in real.chunks_exact(seq) {
            for query in 0..seq {
                bias.extend((0..seq).map(|key| {
                    if key > query || (!row[key] && key != query) {
                        HIDDEN
                    } else {
                        0.0
                    }
                }));
            }
        }
        Self::PerRow(Tensor::from_data(
            TensorData::new(bias, [batch, 1, seq, seq]),
            device,
        ))
    }

    /// Visibility for `queries` new positions after a cache: all visible cached keys, then causal
    /// among the new ones. `cached` and `fresh` are row-major `[batch, past]` and `[batch, queries]`.
    pub fn after_cache(
        cached: &[bool],
        fresh: &[bool],
        [batch, past, queries]: [usize; 3],
        device: &Device,
    ) -> Self {
        let everything = cached.iter().all(|&seen| seen) && fresh.iter().all(|&seen| seen);
        if everything && queries == 1 {
            return Self::All;
        }
        let rows = if everything { 1 } else { batch };
        let mut bias = Vec::with_capacity(rows * queries * (past + queries));
        for row in 0..rows {
            for query in 0..queries {
                bias.extend((0..past).map(|key| {
                    if everything || cached[row * past + key] {
                        0.0
                    } else {
                        HIDDEN
                    }
                }));
                bias.extend((0..queries).map(|key| {
                    let real = everything || fresh[row * queries + key];
                    if key > query || (!real && key != query) {
                        HIDDEN
                    } else {
                        0.0
                    }
                }));
            }
        }
        let data = TensorData::new(bias, [rows, 1, queries, past + queries]);
        let bias = Tensor::from_data(data, device);
        if rows == 1 {
            Self::Shared(bias)
        } else {
            Self::PerRow(bias)
        }
    }

    /// The bias `[batch or 1, 1, query, key]`, if there is one.
    pub fn bias(&self) -> Option<Tensor<4>> {
        match self {
            Self::All => None,
            Self::Shared(bias) | Self::PerRow(bias) => Some(bias.clone()),
        }
    }
}
