//! How wide the floats are that products are computed with.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// Floats inside the halves of a layer and in front of the head. Weights, norms, the residual stream, logits and
/// losses are 32 bits wide in any case, and so are gradients and the optimizer: products are narrowed where they
/// are made, which is what mixed-precision training is (Micikevicius et al. 2018). Without scaling of the loss a
/// 16-bit float needs the exponents of a 32-bit one, so there is no `f16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits everywhere.
    #[default]
    F32,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

impl Precision {
    /// Whether nothing is narrowed.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// The type of products.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// `tensor` as products are computed with it.
    pub(crate) fn narrow<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => tensor,
            Self::Bf16 => like(tensor, DType::BF16),
        }
    }

    /// A result of products, back on the residual stream.
    pub(crate) fn widen<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => tensor,
            Self::Bf16 => like(tensor, DType::F32),
        }
    }
}

/// `tensor` with elements of `dtype`.
pub(crate) fn like<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    match tensor.dtype() == dtype {
        true => tensor,
        false => tensor.cast(dtype),
    }
}
