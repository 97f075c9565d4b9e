//! The light map that stands in for the layers a shortcut jumps over.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use sesqui_model::initialize::{Initializer, Role};

use crate::config::AdapterConfig;

/// `g(h) = h + (alpha / rank) B A h` (arXiv 2505.18962, appendix B; D8 of what it leaves open,
/// `docs/decisions/0012-what-the-paper-leaves-open.md`).
#[derive(Module, Debug)]
pub struct Adapter {
    /// A: `[d_model] -> [rank]`.
    pub down: Linear,
    /// B: `[rank] -> [d_model]`, zero at the start.
    pub up: Linear,
    scale: f64,
}

impl Adapter {
    /// The identity, ready to be trained.
    pub fn new(
        config: &AdapterConfig,
        d_model: usize,
        weights: &mut Initializer,
        device: &Device,
    ) -> Self {
        let down = weights.linear([d_model, config.rank], false, Role::Input, device);
        let mut up = weights.linear([config.rank, d_model], false, Role::Input, device);
        up.weight = Param::from_tensor(up.weight.val().zeros_like());
        Self {
            down,
            up,
            scale: config.alpha / config.rank as f64,
        }
    }

    /// `[batch, seq, d_model]` in and out.
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.update(hidden.clone(), hidden)
    }

    /// `h + (alpha / rank) B A (mask h)`, all three `[batch, seq, d_model]`.
    pub fn forward_dropped(&self, hidden: Tensor<3>, mask: Tensor<3>) -> Tensor<3> {
        self.update(hidden.clone(), hidden * mask)
    }

    fn update(&self, hidden: Tensor<3>, read: Tensor<3>) -> Tensor<3> {
        let update = self.up.forward(self.down.forward(read));
        hidden + update.mul_scalar(self.scale)
    }
}
