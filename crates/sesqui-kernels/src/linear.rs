//! A linear map of every position.

use burn::nn::Linear;
use burn::tensor::module;
use burn::tensor::{DType, Tensor};

use crate::host::Floats;

/// `map` of `[batch, seq, d_input]`: `[batch, seq, d_output]`, in floats as wide as those of `x`, whatever the
/// weights are kept in.
///
/// Burn multiplies each row of a batch by itself where its positions fill whole tiles of 32, which suits a
/// GPU. On the CPU that packs the same weights again for each row, a third of the time of all products,
/// so there all positions are one matrix.
pub fn linear(map: &Linear, x: Tensor<3>) -> Tensor<3> {
    let dtype = x.dtype();
    if dtype != DType::F32 && map.weight.val().dtype() != dtype {
        let bias = map.bias.as_ref().map(|bias| bias.val().cast(dtype));
        return module::linear(x, map.weight.val().cast(dtype), bias);
    }
    let [batch, seq, d_input] = x.dims();
    if batch == 1 || Floats::of(&x).is_none() {
        return map.forward(x);
    }
    let y = map.forward(x.reshape([batch * seq, d_input]));
    let [_, d_output] = y.dims();
    y.reshape([batch, seq, d_output])
}
