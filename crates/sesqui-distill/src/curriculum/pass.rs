//! A batch of a curriculum through the model: question, thoughts, text.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_model::latent::{LatentOrder, Source};
use sesqui_model::{KvCache, LatentTransformer, Visibility};

use super::ThoughtBatch;

/// What came of a pass.
pub struct ThoughtStates {
    /// States before the final norm of the whole batch, `[batch, seq, d_model]`; at pads, and at thoughts
    /// that a row does not have, anything.
    pub hidden: Tensor<3>,
    /// What the thoughts were fed, without positions, `[batch, slots, d_model]`; none where there are no
    /// thoughts.
    pub fed: Option<Tensor<3>>,
    /// States of the columns of the text after each layer, before the final norm, `[batch, text, d_model]`;
    /// empty where there is no text.
    pub text: Vec<Tensor<3>>,
}

/// Runs a whole batch, its thoughts in `order`.
///
/// Nothing is detached: under autodiff, a loss on the text reaches whatever a thought was made of.
pub fn thought_pass(
    student: &LatentTransformer,
    batch: &ThoughtBatch,
    order: LatentOrder,
) -> ThoughtStates {
    let pass = Pass {
        student,
        batch,
        device: student.backbone.device(),
    };
    match (student.source(), order) {
        _ if batch.slots == 0 => pass.at_once(),
        (Source::Nothing, _) => pass.at_once(),
        (Source::First, _) => pass.in_turns(batch.slots),
        (Source::Newest, LatentOrder::Sequential) => pass.in_turns(1),
        (Source::Newest, LatentOrder::Jacobi { .. }) => pass.iterated(order.passes(batch.slots)),
    }
}

struct Pass<'a> {
    student: &'a LatentTransformer,
    batch: &'a ThoughtBatch,
    device: Device,
}

impl Pass<'_> {
    /// All columns together, where no thought waits for a state.
    fn at_once(&self) -> ThoughtStates {
        let (batch, backbone) = (self.batch, &self.student.backbone);
        let shape = [batch.batch, batch.seq];
        let after = self.after();
        let mut parts = vec![self.text(0..batch.first_slot)];
        let fed = (batch.slots > 0).then(|| {
            let d_model = backbone.config().d_model;
            let nothing = Tensor::zeros([batch.batch, batch.slots, d_model], &self.device);
            self.student.latent_embeddings(nothing)
        });
        if let Some(fed) = &fed {
            parts.push(self.placed(fed.clone(), batch.first_slot..after));
        }
        if after < batch.seq {
            parts.push(self.text(after..batch.seq));
        }
        let visibility = Visibility::causal_padded(&batch.real, shape, &self.device);
        let context = backbone.context(self.upload(&batch.positions, 0..batch.seq), visibility);
        let mut hidden = Tensor::cat(parts, 1);
        let mut text = Vec::new();
        for layer in 0..backbone.layers.len() {
            hidden = backbone.run_layers(layer..layer + 1, hidden, &context);
            if after < batch.seq {
                text.push(hidden.clone().narrow(1, after, batch.seq - after));
            }
        }
        ThoughtStates { hidden, fed, text }
    }

    /// The question, then thoughts, `width` at a time, each fed what came before, then the text, over a
    /// cache on the tape.
    fn in_turns(&self, width: usize) -> ThoughtStates {
        let batch = self.batch;
        let (first, after) = (batch.first_slot, self.after());
        let mut cache = self.cache();
        let question = self.run(self.text(0..first), 0..first, &mut cache);
        let asked = self.state(&question);
        let (mut newest, mut parts) = (asked.clone(), vec![question]);
        let mut fed = Vec::with_capacity(batch.slots);
        for start in (first..after).step_by(width.max(1)) {
            let columns = start..(start + width).min(after);
            let states = self.student.fed(&asked, &newest).clone();
            let [rows, _, d_model] = states.dims();
            let states = states.expand([rows, columns.len(), d_model]);
            let inputs = self.student.latent_embeddings(states);
            fed.push(inputs.clone());
            let hidden = self.run(self.placed(inputs, columns.clone()), columns, &mut cache);
            newest = self.state(&hidden);
            parts.push(hidden);
        }
        self.with_text(parts, fed, cache)
    }

    /// The question, then all thoughts `passes` times over, each fed what the one before it came to the
    /// last time, then the text.
    fn iterated(&self, passes: usize) -> ThoughtStates {
        let batch = self.batch;
        let (first, after) = (batch.first_slot, self.after());
        let mut cache = self.cache();
        let question = self.run(self.text(0..first), 0..first, &mut cache);
        let asked = self.state(&question);
        let [rows, _, d_model] = asked.dims();
        let mut states = asked.clone().expand([rows, batch.slots, d_model]);
        for _ in 1..passes {
            let inputs = self.student.latent_embeddings(states);
            let inputs = self.placed(inputs, first..after);
            let hidden = self.run(inputs, first..after, &mut cache.clone());
            let came_to = self.student.backbone.final_norm(hidden);
            let before = came_to.narrow(1, 0, batch.slots - 1);
            states = match batch.slots {
                1 => asked.clone(),
                _ => Tensor::cat(vec![asked.clone(), before], 1),
            };
        }
        let inputs = self.student.latent_embeddings(states);
        let hidden = self.run(
            self.placed(inputs.clone(), first..after),
            first..after,
            &mut cache,
        );
        self.with_text(vec![question, hidden], vec![inputs], cache)
    }

    /// Runs the text behind `parts`, states of the columns before.
    fn with_text(
        &self,
        mut parts: Vec<Tensor<3>>,
        fed: Vec<Tensor<3>>,
        mut cache: KvCache,
    ) -> ThoughtStates {
        let (batch, backbone) = (self.batch, &self.student.backbone);
        let columns = self.after()..batch.seq;
        let mut text = Vec::new();
        if !columns.is_empty() {
            let real = batch.columns(&batch.real, columns.clone());
            let positions = self.upload(&batch.positions, columns.clone());
            let mut hidden = self.text(columns);
            for layer in 0..backbone.layers.len() {
                let positions = positions.clone();
                let layers = layer..layer + 1;
                hidden = backbone.run_layers_cached(layers, hidden, positions, &real, &mut cache);
                text.push(hidden.clone());
            }
            parts.push(hidden);
        }
        ThoughtStates {
            hidden: Tensor::cat(parts, 1),
            fed: Some(Tensor::cat(fed, 1)),
            text,
        }
    }

    /// Column of the first token after the thoughts.
    fn after(&self) -> usize {
        self.batch.first_slot + self.batch.slots
    }

    fn cache(&self) -> KvCache {
        let backbone = &self.student.backbone;
        backbone.cache(self.batch.batch, self.batch.seq)
    }

    /// All layers on `columns`, whose inputs are `embedded`, behind what `cache` holds.
    fn run(&self, embedded: Tensor<3>, columns: Range<usize>, cache: &mut KvCache) -> Tensor<3> {
        let backbone = &self.student.backbone;
        let real = self.batch.columns(&self.batch.real, columns.clone());
        let positions = self.upload(&self.batch.positions, columns);
        let layers = 0..backbone.layers.len();
        backbone.run_layers_cached(layers, embedded, positions, &real, cache)
    }

    /// The last column's state after the final norm, `[batch, 1, d_model]`.
    fn state(&self, hidden: &Tensor<3>) -> Tensor<3> {
        let last = hidden.dims()[1] - 1;
        self.student
            .backbone
            .final_norm(hidden.clone().narrow(1, last, 1))
    }

    /// `H_0` of columns of tokens.
    fn text(&self, columns: Range<usize>) -> Tensor<3> {
        let ids = self.upload(&self.batch.ids, columns.clone());
        let positions = self.upload(&self.batch.positions, columns);
        self.student.backbone.embed(ids, positions)
    }

    /// `H_0` of columns of thoughts whose inputs without positions are `inputs`
    /// `[batch, columns, d_model]`.
    fn placed(&self, inputs: Tensor<3>, columns: Range<usize>) -> Tensor<3> {
        let positions = self.upload(&self.batch.positions, columns);
        self.student.backbone.with_positions(inputs, positions)
    }

    fn upload(&self, list: &[i32], columns: Range<usize>) -> Tensor<2, Int> {
        let shape = [self.batch.batch, columns.len()];
        let values = self.batch.columns(list, columns);
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}
