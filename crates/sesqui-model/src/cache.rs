//! Keys and values of past positions, per layer.
//!
//! Layers fill independently: a layer that a position skipped simply holds one entry fewer (batch
//! of one), or holds an entry that this row may not see (several rows, one of which skipped it).
//! Order within a layer is the order of appending; positions are already inside the keys (rotary)
//! or the hidden states (learned), so no layer needs to know which positions it holds.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use crate::config::ModelConfig;
use crate::mask::Visibility;

/// The cache of a whole model.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// The cache of one layer.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// `[batch, key_value_heads, capacity, d_head]` each; taken out while being written, so that
    /// no second owner forces a copy.
    stored: Option<(Tensor<4>, Tensor<4>)>,
    capacity: usize,
    /// `visible[row][entry]`: whether the row may see the entry.
    visible: Vec<Vec<bool>>,
}

/// New positions on their way into a layer's cache.
pub struct Admission<'a> {
    /// The cache that takes them.
    pub cache: &'a mut LayerCache,
    /// Row-major `[batch, queries]`: `false` marks an entry that its row will never see (a pad, or
    /// a cell that the row skipped).
    pub real: &'a [bool],
}

impl KvCache {
    /// An empty cache for `batch` rows of up to `capacity` entries in each layer.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let shape = [batch, config.key_value_heads(), capacity, config.d_head()];
        let layers = (0..config.layers)
            .map(|_| LayerCache {
                stored: Some((Tensor::zeros(shape, device), Tensor::zeros(shape, device))),
                capacity,
                visible: vec![Vec::with_capacity(capacity); batch],
            })
            .collect();
        Self { layers }
    }

    /// One layer's cache, `0..layers`.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Entries held by each layer, visible or not.
    pub fn lengths(&self) -> Vec<usize> {
        self.layers.iter().map(LayerCache::len).collect()
    }

    /// Bytes of keys and values at full capacity, all layers, in 32-bit floats.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .filter_map(|layer| layer.stored.as_ref())
            .map(|(keys, _)| 2 * size_of::<f32>() * keys.shape().num_elements())
            .sum()
    }

    /// What new positions may see in each layer of `range`; `real` as in [`Admission`]. Layers that
    /// hold the same share one bias.
    pub fn visibility(
        &self,
        range: Range<usize>,
        real: &[bool],
        device: &Device,
    ) -> Vec<Visibility> {
        let mut all: Vec<Visibility> = Vec::with_capacity(range.len());
        for index in range.clone() {
            let same =
                index > range.start && self.layers[index - 1].visible == self.layers[index].visible;
            let visibility = match all.last() {
                Some(previous) if same => previous.clone(),
                _ => self.layers[index].visibility(real, device),
            };
            all.push(visibility);
        }
        all
    }
}

impl LayerCache {
    /// Number of entries, visible or not.
    pub fn len(&self) -> usize {
        self.visible.first().map_or(0, Vec::len)
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn visibility(&self, real: &[bool], device: &Device) -> Visibility {
        let batch = self.visible.len();
        let cached: Vec<bool> = self.visible.iter().flatten().copied().collect();
        let shape = [batch, self.len(), real.len() / batch];
        Visibility::after_cache(&cached, real, shape, device)
    }
}

impl Admission<'_> {
    /// Stores `key` and `value` `[batch, key_value_heads, queries, d_head]` and returns all entries
    /// `[batch, key_value_heads, length, d_head]`.
    ///
    /// # Panics
    ///
    /// If the capacity is exceeded: whoever makes the cache sizes it from prompt and limits.
    pub(crate) fn append(self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, heads, queries, d_head] = key.dims();
        let cache = self.cache;
        let (start, end) = (cache.len(), cache.len() + queries);
        assert!(
            end <= cache.capacity,
            "cache of {} entries asked for {end}",
            cache.capacity
        );
        for (row, fresh) in cache
            .visible
            .iter_mut()
            .zip(self.real.chunks_exact(queries))
        {
            row.extend_from_slice(fresh);
        }
        let place = [0..batch, 0..heads, start..end, 0..d_head];
        let (keys, values) = match cache.stored.take() {
            Some((keys, values)) => (
                keys.slice_assign(place.clone(), key),
                values.slice_assign(place, value),
            ),
            None => unreachable!("the cache is whole between calls"),
        };
        let seen = (
            keys.clone().narrow(2, 0, end),
            values.clone().narrow(2, 0, end),
        );
        cache.stored = Some((keys, values));
        seen
    }
}
