//! The whole model, taken apart along the seams that latent reasoning needs.

use std::ops::Range;

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor};
use sesqui_kernels::{against_rows, linear};

use crate::attention::Rotary;
use crate::cache::{Admission, Entries, KvCache};
use crate::config::{Family, ModelConfig, ModelConfigError};
use crate::initialize::{Initializer, Role};
use crate::layer::{Layer, Norm};
use crate::mask::Visibility;
use crate::precision::Precision;

/// A decoder-only transformer.
#[derive(Module, Debug)]
pub struct Transformer {
    /// `[vocab, d_model]`.
    pub token_embedding: Embedding,
    /// `[context, d_model]`, where the family learns positions.
    pub position_embedding: Option<Embedding>,
    /// Layers `f_1..f_L`.
    pub layers: Vec<Layer>,
    /// Applied to the last hidden state before the head, and before a state is fed back.
    pub final_norm: Norm,
    /// `[d_model] -> [vocab]`; absent where the head shares the token embedding.
    pub head: Option<Linear>,
    #[module(skip)]
    config: ModelConfig,
    #[module(skip)]
    precision: Precision,
}

/// What the layers need to know about a set of positions: rotary angles and who sees whom.
#[derive(Clone, Debug)]
pub struct SequenceContext {
    rotary: Option<Rotary>,
    visibility: Visibility,
}

impl Transformer {
    /// A model with initial weights from `seed`.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn new(
        config: &ModelConfig,
        vocabulary: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelConfigError> {
        config.validate()?;
        let mut weights = Initializer::new(config, seed);
        let token_embedding = weights.embedding(vocabulary, config.d_model, device);
        let position_embedding = match config.family {
            Family::Gpt2 => Some(weights.embedding(config.context, config.d_model, device)),
            Family::Llama => None,
        };
        Ok(Self {
            token_embedding,
            position_embedding,
            layers: (0..config.layers)
                .map(|_| Layer::new(config, &mut weights, device))
                .collect(),
            final_norm: Norm::new(config, device),
            head: (!config.tied_head)
                .then(|| weights.linear([config.d_model, vocabulary], false, Role::Input, device)),
            config: config.clone(),
            precision: Precision::F32,
        })
    }

    /// The shape this model was built with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Of the products in layers and head.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same model with products of this precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        for layer in &mut self.layers {
            layer.precision = precision;
        }
        self
    }

    /// An empty cache for `batch` rows of up to `capacity` entries in each layer, where the weights are.
    pub fn cache(&self, batch: usize, capacity: usize) -> KvCache {
        let device = self.device();
        KvCache::with_dtype(
            &self.config,
            batch,
            capacity,
            &device,
            self.precision.dtype(),
        )
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.token_embedding.weight.val().device()
    }

    /// The model of the first `layers` layers, with the same embeddings, final norm and head: what it says
    /// is what this one's head reads after them (LITE, arXiv 2310.18581).
    ///
    /// # Panics
    ///
    /// If it has fewer.
    pub fn first_layers(&self, layers: usize) -> Self {
        assert!(
            layers <= self.layers.len(),
            "{layers} of {} layers",
            self.layers.len()
        );
        let mut model = self.clone();
        model.layers.truncate(layers);
        model.config.layers = layers;
        model
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.token_embedding.weight.shape().dims::<2>()[0]
    }

    /// Token embeddings of `ids` `[batch, seq]`, without positions: `[batch, seq, d_model]`.
    pub fn token_embeddings(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.token_embedding.forward(ids)
    }

    /// Adds learned positions `[batch, seq]` to input embeddings; Llama returns them unchanged.
    pub fn with_positions(&self, inputs: Tensor<3>, positions: Tensor<2, Int>) -> Tensor<3> {
        match &self.position_embedding {
            Some(table) => inputs + table.forward(positions),
            None => inputs,
        }
    }

    /// `H_0`: tokens and positions, `[batch, seq, d_model]`.
    pub fn embed(&self, ids: Tensor<2, Int>, positions: Tensor<2, Int>) -> Tensor<3> {
        self.with_positions(self.token_embeddings(ids), positions)
    }

    /// Prepares running layers over `positions` `[batch, seq]`.
    pub fn context(&self, positions: Tensor<2, Int>, visibility: Visibility) -> SequenceContext {
        SequenceContext {
            rotary: self.rotary(positions),
            visibility,
        }
    }

    fn rotary(&self, positions: Tensor<2, Int>) -> Option<Rotary> {
        match self.config.family {
            Family::Gpt2 => None,
            Family::Llama => Some(Rotary::new(positions, &self.config.rotary_frequencies())),
        }
    }

    /// Runs layers `range` (0-based, half open) on `hidden` `[batch, seq, d_model]`.
    pub fn run_layers(
        &self,
        range: Range<usize>,
        mut hidden: Tensor<3>,
        context: &SequenceContext,
    ) -> Tensor<3> {
        for layer in &self.layers[range] {
            hidden = layer.forward(hidden, context.rotary.as_ref(), &context.visibility, None);
        }
        hidden
    }

    /// Runs layers `range` on new positions, reading and extending the cache of those layers only.
    ///
    /// `hidden` is `[batch, queries, d_model]`, `positions` `[batch, queries]`, `real` row-major
    /// `[batch, queries]`: a `false` entry (a pad, or a cell its row skips) is stored but never seen.
    pub fn run_layers_cached(
        &self,
        range: Range<usize>,
        mut hidden: Tensor<3>,
        positions: Tensor<2, Int>,
        real: &[bool],
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let rotary = self.rotary(positions);
        let visibility = cache.visibility(range.clone(), real, &hidden.device());
        for (index, visibility) in range.zip(&visibility) {
            let admission = Admission {
                cache: cache.layer(index),
                entries: Entries::All(real),
            };
            hidden =
                self.layers[index].forward(hidden, rotary.as_ref(), visibility, Some(admission));
        }
        hidden
    }

    /// Runs layer `index` on one new position of `rows`, ascending rows of the cache's batch, whose
    /// keys and values alone are read and extended; the layer holds nothing new of the other rows.
    ///
    /// `hidden` is `[rows, 1, d_model]`, `positions` `[rows, 1]`. With all rows it is
    /// [`Transformer::run_layers_cached`].
    pub fn run_layer_rows(
        &self,
        index: usize,
        hidden: Tensor<3>,
        positions: Tensor<2, Int>,
        rows: &[usize],
        cache: &mut KvCache,
    ) -> Tensor<3> {
        if rows.len() == cache.batch() {
            let real = vec![true; rows.len()];
            return self.run_layers_cached(index..index + 1, hidden, positions, &real, cache);
        }
        let rotary = self.rotary(positions);
        let cache = cache.layer(index);
        let visibility = cache.reserve(rows, &hidden.device());
        let admission = Admission {
            cache,
            entries: Entries::Rows(rows),
        };
        self.layers[index].forward(hidden, rotary.as_ref(), &visibility, Some(admission))
    }

    /// Gives layers `range` the keys and values of `hidden` `[rows, 1, d_model]` at `positions`
    /// `[rows, 1]` without running them, as if every one of them had received this state
    /// (CALM, arXiv 2207.07061). `rows` as for [`Transformer::run_layer_rows`].
    pub fn fill_rows(
        &self,
        range: Range<usize>,
        hidden: Tensor<3>,
        positions: Tensor<2, Int>,
        rows: &[usize],
        cache: &mut KvCache,
    ) {
        let rotary = self.rotary(positions);
        let config = &self.config;
        let (heads, width) = (config.key_value_heads(), config.d_head());
        for index in range {
            let layer = &self.layers[index];
            let map = &layer.attention.query_key_value;
            let queries = config.heads * width;
            let normed = layer.attention_norm.forward(hidden.clone());
            let normed = self.precision.narrow(normed);
            let narrow = |weight| self.precision.narrow(weight);
            let weight = narrow(map.weight.val()).narrow(1, queries, 2 * heads * width);
            let mut joint = normed.reshape([rows.len(), config.d_model]).matmul(weight);
            if let Some(bias) = &map.bias {
                let bias = self.precision.narrow(bias.val());
                joint = joint + bias.narrow(0, queries, 2 * heads * width).unsqueeze();
            }
            let joint = joint.reshape([rows.len(), 2 * heads, 1, width]);
            let mut key = joint.clone().narrow(1, 0, heads);
            if let Some(rotary) = &rotary {
                key = rotary.rotate(key);
            }
            let cache = cache.layer(index);
            cache.reserve(rows, &hidden.device());
            cache.fill(rows, key, joint.narrow(1, heads, heads));
        }
    }

    /// The norm before the head, `[batch, seq, d_model]` in and out.
    pub fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.final_norm.forward(hidden)
    }

    /// Logits `[batch, seq, vocab]` of normed states `[batch, seq, d_model]`.
    pub fn head(&self, normed: Tensor<3>) -> Tensor<3> {
        let normed = self.precision.narrow(normed);
        let logits = match &self.head {
            Some(head) => linear(head, normed),
            None => {
                let [batch, seq, d_model] = normed.dims();
                let table = self.precision.narrow(self.token_embedding.weight.val());
                if let Some(logits) = against_rows(&normed, &table) {
                    return logits;
                }
                let logits = normed
                    .reshape([batch * seq, d_model])
                    .matmul(table.transpose());
                let vocabulary = logits.dims()[1];
                logits.reshape([batch, seq, vocabulary])
            }
        };
        self.precision.widen(logits)
    }

    /// States after the final norm, `[batch, seq, d_model]`, for input embeddings that already hold
    /// their positions.
    pub fn states(&self, embedded: Tensor<3>, context: &SequenceContext) -> Tensor<3> {
        self.final_norm(self.run_layers(0..self.layers.len(), embedded, context))
    }

    /// Logits `[batch, seq, vocab]` of token ids `[batch, seq]` at `positions` `[batch, seq]`.
    pub fn forward(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        visibility: Visibility,
    ) -> Tensor<3> {
        self.forward_embeddings(self.token_embeddings(ids), positions, visibility)
    }

    /// As [`Transformer::forward`], with inputs `[batch, seq, d_model]` in place of token ids:
    /// embeddings, fed-back states or any mixture. Positions are added here.
    pub fn forward_embeddings(
        &self,
        inputs: Tensor<3>,
        positions: Tensor<2, Int>,
        visibility: Visibility,
    ) -> Tensor<3> {
        let context = self.context(positions.clone(), visibility);
        self.head(self.states(self.with_positions(inputs, positions), &context))
    }
}
