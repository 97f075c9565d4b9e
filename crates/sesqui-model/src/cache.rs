//! Keys and values of past positions, per layer.
//!
//! Layers fill independently: a layer that a position skipped simply holds one entry fewer (batch
//! of one), or holds an entry that this row may not see (several rows, one of which skipped it).
//! Such an entry is a hole, which a later position of the row may take. Order within a layer is the order of appending; positions are already inside the keys (rotary)
//! or the hidden states (learned), so no layer needs to know which positions it holds.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor};

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
    /// Whose they are.
    pub entries: Entries<'a>,
}

/// Whose new positions a layer takes.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// One or more of every row. Row-major `[batch, queries]`: `false` marks an entry that its row
    /// will never see (a pad, or a cell that the row skipped).
    All(&'a [bool]),
    /// One of each of these rows, ascending, for which [`LayerCache::reserve`] made room.
    Rows(&'a [usize]),
}

impl KvCache {
    /// An empty cache for `batch` rows of up to `capacity` entries in each layer, in 32-bit floats.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        Self::with_dtype(config, batch, capacity, device, DType::F32)
    }

    /// As [`KvCache::new`], for keys and values of `dtype`.
    pub fn with_dtype(
        config: &ModelConfig,
        batch: usize,
        capacity: usize,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let shape = [batch, config.key_value_heads(), capacity, config.d_head()];
        let zeros = || Tensor::zeros(shape, (device, dtype));
        let layers = (0..config.layers)
            .map(|_| LayerCache {
                stored: Some((zeros(), zeros())),
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

    /// Bytes of keys and values at full capacity, all layers.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .filter_map(|layer| layer.stored.as_ref())
            .map(|(keys, _)| 2 * keys.dtype().size() * keys.shape().num_elements())
            .sum()
    }

    /// Entries that `row` sees, in each layer.
    pub fn visible(&self, row: usize) -> Vec<usize> {
        let seen = |layer: &LayerCache| layer.visible[row].iter().filter(|&&seen| seen).count();
        self.layers.iter().map(seen).collect()
    }

    /// A copy of `rows`, in this order, the same row more than once where it is named so, with room for
    /// `more` entries in each layer. Whatever is stored in it leaves this cache as it is.
    ///
    /// # Panics
    ///
    /// If there are no rows, or one that is not there.
    pub fn fork(&self, rows: &[usize], more: usize, device: &Device) -> Self {
        let layers = self.layers.iter();
        Self {
            layers: layers.map(|layer| layer.fork(rows, more, device)).collect(),
        }
    }

    /// Makes `entries` of `row`, in every layer, holes that it never sees again.
    ///
    /// # Panics
    ///
    /// If a layer does not hold them.
    pub fn forget(&mut self, row: usize, entries: Range<usize>) {
        for layer in &mut self.layers {
            layer.visible[row][entries.clone()].fill(false);
        }
    }

    /// Drops the last entries of each layer that no row sees, so that others can take their place.
    pub fn trim(&mut self) {
        for layer in &mut self.layers {
            let seen = |row: &Vec<bool>| row.iter().rposition(|&seen| seen).map_or(0, |at| at + 1);
            let length = layer.visible.iter().map(seen).max().unwrap_or(0);
            layer
                .visible
                .iter_mut()
                .for_each(|row| row.truncate(length));
        }
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.visible.len())
    }

    /// What new positions may see in each layer of `range`; `real` as in [`Entries::All`]. Layers
    /// that hold the same share one bias.
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

    fn fork(&self, rows: &[usize], more: usize, device: &Device) -> Self {
        let length = self.len();
        let all = rows.iter().copied().eq(0..self.visible.len());
        let order: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let copy = |stored: &Tensor<4>| {
            // Rows before columns, as in `entries`.
            let taken = match all {
                true => stored.clone(),
                false => {
                    let order = Tensor::<1, Int>::from_data(order.as_slice(), device);
                    stored.clone().select(0, order)
                }
            };
            let [batch, heads, _, d_head] = taken.dims();
            let held = taken.narrow(2, 0, length);
            if more == 0 {
                return held;
            }
            let free = Tensor::zeros([batch, heads, more, d_head], (device, stored.dtype()));
            Tensor::cat(vec![held, free], 2)
        };
        let stored = self.stored.as_ref();
        Self {
            stored: stored.map(|(keys, values)| (copy(keys), copy(values))),
            capacity: length + more,
            visible: rows.iter().map(|&row| self.visible[row].clone()).collect(),
        }
    }

    fn visibility(&self, real: &[bool], device: &Device) -> Visibility {
        let batch = self.visible.len();
        let cached: Vec<bool> = self.visible.iter().flatten().copied().collect();
        let shape = [batch, self.len(), real.len() / batch];
        Visibility::after_cache(&cached, real, shape, device)
    }

    /// Makes room for one entry of each of `rows`, ascending, and returns what they see: their
    /// entries and, in the last column, the new one.
    ///
    /// The order of entries carries no meaning, so the last column serves again where it is a hole
    /// for all of `rows`: rows that pass a layer at different times share a column.
    ///
    /// # Panics
    ///
    /// If the capacity is exceeded, as for [`Admission`].
    pub(crate) fn reserve(&mut self, rows: &[usize], device: &Device) -> Visibility {
        let shared = !self.is_empty()
            && rows
                .iter()
                .all(|&row| self.visible[row].last() == Some(&false));
        if !shared {
            self.check_capacity(self.len() + 1);
            self.visible.iter_mut().for_each(|row| row.push(false));
        }
        let past = self.len() - 1;
        let mut cached = Vec::with_capacity(rows.len() * past);
        for &row in rows {
            self.visible[row][past] = true;
            cached.extend_from_slice(&self.visible[row][..past]);
        }
        let shape = [rows.len(), past, 1];
        Visibility::after_cache(&cached, &vec![true; rows.len()], shape, device)
    }

    /// Stores `key` and `value` `[rows, key_value_heads, 1, d_head]` where [`LayerCache::reserve`]
    /// made room for `rows`.
    pub(crate) fn fill(&mut self, rows: &[usize], key: Tensor<4>, value: Tensor<4>) {
        let (Some(&first), Some(&last)) = (rows.first(), rows.last()) else {
            return;
        };
        let [_, heads, _, d_head] = key.dims();
        let column = self.len() - 1;
        let place = [first..last + 1, 0..heads, column..column + 1, 0..d_head];
        // Rows between the first and the last keep what they hold: one write instead of one per
        // run of neighbours, of a single column.
        let order = (last + 1 - first > rows.len()).then(|| {
            let mut order: Vec<i32> = (0..(last + 1 - first) as i32).collect();
            for (new, &row) in (order.len() as i32..).zip(rows) {
                order[row - first] = new;
            }
            Tensor::<1, Int>::from_data(order.as_slice(), &key.device())
        });
        let write = |stored: Tensor<4>, fresh: Tensor<4>| {
            let fresh = match &order {
                None => fresh,
                Some(order) => {
                    let held = stored.clone().slice(place.clone());
                    Tensor::cat(vec![held, fresh], 0).select(0, order.clone())
                }
            };
            stored.slice_assign(place.clone(), fresh)
        };
        self.update(|keys, values| (write(keys, key), write(values, value)));
    }

    /// All entries of `rows`, ascending: `[rows, key_value_heads, length, d_head]`. Costs a copy
    /// unless the rows are neighbours.
    fn entries(&self, rows: &[usize]) -> (Tensor<4>, Tensor<4>) {
        let Some((keys, values)) = &self.stored else {
            unreachable!("the cache is whole between calls");
        };
        let (first, end) = (rows[0], rows[rows.len() - 1] + 1);
        let select = (end - first > rows.len()).then(|| {
            let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            Tensor::<1, Int>::from_data(rows.as_slice(), &keys.device())
        });
        let take = |stored: &Tensor<4>| {
            let stored = stored.clone();
            // Rows before columns: gathering from a narrowed tensor copies all of it on the CPU.
            let rows = match &select {
                Some(rows) => stored.select(0, rows.clone()),
                None if end - first == self.visible.len() => stored,
                None => stored.narrow(0, first, end - first),
            };
            rows.narrow(2, 0, self.len())
        };
        (take(keys), take(values))
    }

    fn update(&mut self, change: impl FnOnce(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>)) {
        self.stored = self
            .stored
            .take()
            .map(|(keys, values)| change(keys, values));
    }

    fn check_capacity(&self, end: usize) {
        assert!(
            end <= self.capacity,
            "cache of {} entries asked for {end}",
            self.capacity
        );
    }
}

impl Admission<'_> {
    /// Stores `key` and `value` `[rows, key_value_heads, queries, d_head]` and returns all entries
    /// of these rows `[rows, key_value_heads, length, d_head]`.
    ///
    /// # Panics
    ///
    /// If the capacity is exceeded: whoever makes the cache sizes it from prompt and limits.
    pub(crate) fn append(self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let cache = self.cache;
        let real = match self.entries {
            Entries::All(real) => real,
            Entries::Rows(rows) => {
                cache.fill(rows, key, value);
                return cache.entries(rows);
            }
        };
        let [batch, heads, queries, d_head] = key.dims();
        let (start, end) = (cache.len(), cache.len() + queries);
        cache.check_capacity(end);
        for (row, fresh) in cache.visible.iter_mut().zip(real.chunks_exact(queries)) {
            row.extend_from_slice(fresh);
        }
        let place = [0..batch, 0..heads, start..end, 0..d_head];
        cache.update(|keys, values| {
            (
                keys.slice_assign(place.clone(), key),
                values.slice_assign(place, value),
            )
        });
        let rows: Vec<usize> = (0..batch).collect();
        cache.entries(&rows)
    }
}
