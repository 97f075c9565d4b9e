//! A linear map of every position.

use burn::backend::flex::FlexTensor;
use burn::nn::Linear;
use burn::tensor::module;
use burn::tensor::{DType, Tensor};

use crate::cast::cast;
use crate::host::{self, Floats};
use crate::one_row;

/// `map` of `[batch, seq, d_input]`: `[batch, seq, d_output]`, in floats as wide as those of `x`, whatever the
/// weights are kept in.
///
/// Burn multiplies each row of a batch by itself where its positions fill whole tiles of 32, which suits a
/// GPU. On the CPU that packs the same weights again for each row, a third of the time of all products,
/// so there all positions are one matrix. A single position is not worth packing for.
pub fn linear(map: &Linear, x: Tensor<3>) -> Tensor<3> {
    let dtype = x.dtype();
    if dtype != DType::F32 && map.weight.val().dtype() != dtype {
        let bias = map.bias.as_ref().map(|bias| cast(bias.val(), dtype));
        return module::linear(x, cast(map.weight.val(), dtype), bias);
    }
    let [batch, seq, d_input] = x.dims();
    if batch * seq == 1
        && let Some(y) = one(map, &x)
    {
        return y;
    }
    if batch == 1 || Floats::of(&x).is_none() {
        return map.forward(x);
    }
    let y = map.forward(x.reshape([batch * seq, d_input]));
    let [_, d_output] = y.dims();
    y.reshape([batch, seq, d_output])
}

/// `x · t` of a single position `[1, 1, d_input]` for every row `t` of `table` `[rows, d_input]`: `[1, 1, rows]`. On
/// the CPU without autodiff only; anywhere else nothing, and the caller composes it of tensor operations.
pub fn against_rows(x: &Tensor<3>, table: &Tensor<2>) -> Option<Tensor<3>> {
    let [batch, seq, _] = x.dims();
    if batch * seq != 1 {
        return None;
    }
    let (x, values) = (here(x)?, here(table)?);
    let [rows, _] = table.dims();
    let y = one_row::against(host::slice(&x), host::slice(&values), rows);
    Some(host::plain(host::tensor(y, &[1, 1, rows])))
}

/// `map` of a single position, on the CPU without autodiff.
fn one(map: &Linear, x: &Tensor<3>) -> Option<Tensor<3>> {
    let (x, weight) = (here(x)?, here(&map.weight.val())?);
    let bias = match &map.bias {
        Some(bias) => Some(here(&bias.val())?),
        None => None,
    };
    let bias = bias.as_ref().map_or(&[][..], host::slice);
    let [_, d_output] = map.weight.dims();
    let y = one_row::through(host::slice(&x), host::slice(&weight), bias, d_output);
    Some(host::plain(host::tensor(y, &[1, 1, d_output])))
}

/// Values in this process's memory, in row-major order, without autodiff; nothing where a copy would be needed.
fn here<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    match Floats::of(tensor)? {
        Floats::Plain(values) => values.as_slice::<f32>().is_some().then_some(values),
        Floats::Tracked(_) => None,
    }
}
