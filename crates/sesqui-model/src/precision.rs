//! How wide the floats are that products are computed with.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use sesqui_kernels::cast;

/// Floats inside the halves of a layer and in front of the head. Weights, norms, the residual stream, logits and
/// losses are 32 bits wide in any case, and so are gradients and the optimizer: products are narrowed where they
/// are made, which is what mixed-precision training is (Micikevicius et al. 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits everywhere.
    #[default]
    F32,
    /// 16 bits, 8 of them exponent, as many as 32 bits have.
    Bf16,
    /// 16 bits, 5 of them exponent, for devices without bf16: more digits, and derivatives below 6e-11 are none.
    F16,
}

impl Precision {
    /// Whether nothing is narrowed.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// The name in experiment files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The type of products.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// `tensor` as products are computed with it.
    pub(crate) fn narrow<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => tensor,
            Self::Bf16 | Self::F16 => cast(tensor, self.dtype()),
        }
    }

    /// A result of products, back on the residual stream.
    pub(crate) fn widen<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => tensor,
            Self::Bf16 | Self::F16 => cast(tensor, DType::F32),
        }
    }
}
