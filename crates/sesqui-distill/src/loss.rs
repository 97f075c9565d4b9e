//! Losses that several objectives share.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_kernels::cross_entropy;
use sesqui_model::{SequenceContext, Transformer, Visibility};

/// A batch of token ids on a device.
struct TokenTensors {
    /// `[batch, seq]`.
    ids: Tensor<2, Int>,
    /// `[batch, seq]`.
    positions: Tensor<2, Int>,
}

impl TokenTensors {
    /// Uploads ids and positions.
    fn new(batch: &SequenceBatch, device: &Device) -> Self {
        let shape = [batch.batch, batch.seq];
        let upload =
            |values: &[i32]| Tensor::from_data(TensorData::new(values.to_vec(), shape), device);
        Self {
            ids: upload(&batch.input_ids),
            positions: upload(&batch.position_ids),
        }
    }
}

/// States before the final norm, `[batch, seq, d_model]`.
pub fn hidden_states(backbone: &Transformer, batch: &SequenceBatch) -> Tensor<3> {
    let (embedded, context) = embedded(backbone, batch);
    backbone.run_layers(0..backbone.layers.len(), embedded, &context)
}

/// States after each layer, before the final norm, `[batch, seq, d_model]` each.
pub fn layer_states(backbone: &Transformer, batch: &SequenceBatch) -> Vec<Tensor<3>> {
    let (mut hidden, context) = embedded(backbone, batch);
    let layers = 0..backbone.layers.len();
    layers
        .map(|layer| {
            hidden = backbone.run_layers(layer..layer + 1, hidden.clone(), &context);
            hidden.clone()
        })
        .collect()
}

/// `H_0` of a batch, and what its layers need to know.
fn embedded(backbone: &Transformer, batch: &SequenceBatch) -> (Tensor<3>, SequenceContext) {
    let device = &backbone.device();
    let tokens = TokenTensors::new(batch, device);
    // Rows are padded on the right, so a causal rule already keeps pads from every real token.
    let context = backbone.context(
        tokens.positions.clone(),
        Visibility::causal(batch.seq, device),
    );
    (backbone.embed(tokens.ids, tokens.positions), context)
}

/// Mean cross-entropy in nats over the weighted targets of `batch`, `[1]`, from states before the
/// final norm, `[batch, seq, d_model]`.
///
/// The head runs on the positions that have a target only: the question's logits are never made.
pub fn next_token_loss(
    backbone: &Transformer,
    hidden: Tensor<3>,
    batch: &SequenceBatch,
) -> Tensor<1> {
    let device = &hidden.device();
    let picked: Vec<usize> = (0..batch.loss_weights.len())
        .filter(|&cell| batch.loss_weights[cell] > 0.0)
        .collect();
    let n = picked.len();
    let cells: Vec<i32> = picked.iter().map(|&cell| cell as i32).collect();
    let targets: Vec<i32> = picked.iter().map(|&cell| batch.target_ids[cell]).collect();
    let weights: Vec<f32> = picked
        .iter()
        .map(|&cell| batch.loss_weights[cell])
        .collect();

    let d_model = backbone.config().d_model;
    let cells = Tensor::<1, Int>::from_data(TensorData::new(cells, [n]), device);
    let hidden = hidden
        .reshape([batch.batch * batch.seq, d_model])
        .select(0, cells);
    let logits = backbone.head(backbone.final_norm(hidden.unsqueeze_dim(0)));
    let logits = logits.reshape([n, backbone.vocabulary()]);
    cross_entropy(logits, &targets, &weights)
}
