//! Layer norm, as Burn's module but through the fused operation.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::Tensor;

/// Mean and variance of the last dimension taken out, then gain and bias (Ba et al. 2016).
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct LayerNorm {
    /// Gain, `[d_model]`.
    pub gamma: Param<Tensor<1>>,
    /// Bias, `[d_model]`.
    pub beta: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// A norm with this gain and bias, `[d_model]`; `epsilon` is added to the variance.
    pub fn new(gamma: Param<Tensor<1>>, beta: Param<Tensor<1>>, epsilon: f64) -> Self {
        Self {
            gamma,
            beta,
            epsilon,
        }
    }

    /// Normalises the last dimension of `[batch, seq, d_model]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        sesqui_kernels::layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}

impl ModuleDisplay for LayerNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_model] = self.gamma.shape().dims();
        content
            .add("d_model", &d_model)
            .add("epsilon", &self.epsilon)
            .add("bias", &true)
            .optional()
    }
}
