//! Layer norm (Ba et al. 2016) and root mean square norm (Zhang and Sennrich 2019) over the last
//! dimension.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::tensor::module::layer_norm as burn_layer_norm;
use burn::tensor::{DType, FloatDType, Tensor};
use macerator::Simd;

use crate::host::{self, Floats};
use crate::simd::{append_pairs, append_triples, sum_of, sum_of_pairs};

/// `(x - mean) / sqrt(variance + epsilon) * gain + bias` over the last dimension of `x`
/// `[.., width]`; `gain` and `bias` are `[width]`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gain: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    let on_cpu = (Floats::of(&x), Floats::of(&gain), Floats::of(&bias));
    let (Some(input), Some(gain_values), Some(bias_values)) = on_cpu else {
        return generic_layer_norm(x, gain, bias, epsilon);
    };
    if let (Floats::Plain(_), Floats::Plain(_), Floats::Plain(_)) =
        (&input, &gain_values, &bias_values)
    {
        // Burn's own is one pass already.
        return burn_layer_norm(x, gain, Some(bias), epsilon);
    }
    let parents = [
        input.tracked(),
        gain_values.tracked(),
        bias_values.tracked(),
    ];
    let [input, gain, bias] = parents
        .each_ref()
        .map(|parent| host::contiguous(parent.primitive().clone()));
    let (output, statistics) = forward::<true>(&input, &gain, Some(&bias), epsilon, &x.dims());
    let step = LayerNorm
        .prepare::<NoCheckpointing>(parents.each_ref().map(|parent| parent.node()))
        .compute_bound()
        .stateful();
    host::tracked(match step {
        OpsKind::Tracked(step) => step.finish(
            Normed {
                input,
                gain,
                statistics,
            },
            output,
        ),
        OpsKind::UnTracked(step) => step.finish(output),
    })
}

/// `x / sqrt(mean(x^2) + epsilon) * gain` over the last dimension of `x` `[.., width]`; `gain` is
/// `[width]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let (Some(input), Some(gain_values)) = (Floats::of(&x), Floats::of(&gain)) else {
        return generic_rms_norm(x, gain, epsilon);
    };
    if let (Floats::Plain(input), Floats::Plain(gain)) = (&input, &gain_values) {
        let (input, gain) = (
            host::contiguous(input.clone()),
            host::contiguous(gain.clone()),
        );
        return host::plain(forward::<false>(&input, &gain, None, epsilon, &x.dims()).0);
    }
    let parents = [input.tracked(), gain_values.tracked()];
    let [input, gain] = parents
        .each_ref()
        .map(|parent| host::contiguous(parent.primitive().clone()));
    let (output, statistics) = forward::<false>(&input, &gain, None, epsilon, &x.dims());
    let step = RmsNorm
        .prepare::<NoCheckpointing>(parents.each_ref().map(|parent| parent.node()))
        .compute_bound()
        .stateful();
    host::tracked(match step {
        OpsKind::Tracked(step) => step.finish(
            Normed {
                input,
                gain,
                statistics,
            },
            output,
        ),
        OpsKind::UnTracked(step) => step.finish(output),
    })
}

/// As Burn's module computes it: in 32 bits where 16 could not hold a sum of squares.
fn generic_layer_norm<const D: usize>(
    x: Tensor<D>,
    gain: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    if x.dtype() != DType::F16 {
        return burn_layer_norm(x, gain, Some(bias), epsilon);
    }
    let wide = FloatDType::F32;
    let (x, gain, bias) = (x.cast(wide), gain.cast(wide), bias.cast(wide));
    burn_layer_norm(x, gain, Some(bias), epsilon).cast(FloatDType::F16)
}

/// As Burn's module computes it.
fn generic_rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let wide = x.clone().cast(DType::F32);
    let scale = (wide.square().mean_dim(D - 1) + epsilon).sqrt();
    (x / scale.cast(dtype)) * gain.unsqueeze()
}

/// Output and, for every row, its mean (zero unless `CENTRED`) and the inverse of its deviation.
fn forward<const CENTRED: bool>(
    input: &FlexTensor,
    gain: &FlexTensor,
    bias: Option<&FlexTensor>,
    epsilon: f64,
    shape: &[usize],
) -> (FlexTensor, Vec<[f32; 2]>) {
    let (x, gain) = (host::slice(input), host::slice(gain));
    let bias = bias.map_or(&[][..], host::slice);
    let (output, statistics) = normalize::<CENTRED>(x, gain, bias, epsilon as f32);
    (host::tensor(output, shape), statistics)
}

/// `bias` is empty where there is none.
#[macerator::with_simd]
fn normalize<S: Simd, const CENTRED: bool>(
    x: &[f32],
    gain: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<[f32; 2]>) {
    let width = gain.len();
    let mut statistics = Vec::with_capacity(x.len() / width.max(1));
    let mut output = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean = if CENTRED {
            sum_of(row, |x| x) / width as f32
        } else {
            0.0
        };
        let squares = sum_of(row, |x| (x - mean) * (x - mean));
        let inverse = 1.0 / (squares / width as f32 + epsilon).sqrt();
        if bias.is_empty() {
            append_pairs(&mut output, row, gain, |x, gain| {
                (x - mean) * inverse * gain
            });
        } else {
            append_triples(&mut output, [row, gain, bias], |x, gain, bias| {
                (x - mean) * inverse * gain + bias
            });
        }
        statistics.push([mean, inverse]);
    }
    (output, statistics)
}

/// What the way back needs.
#[derive(Clone, Debug)]
struct Normed {
    input: FlexTensor,
    gain: FlexTensor,
    statistics: Vec<[f32; 2]>,
}

impl Normed {
    /// Derivatives by input, gain and bias.
    fn backward<const CENTRED: bool>(&self, dy: FlexTensor) -> [FlexTensor; 3] {
        let [dx, dgain, dbias] = derive::<CENTRED>(
            host::slice(&self.input),
            host::slice(&self.gain),
            &self.statistics,
            host::slice(&host::contiguous(dy)),
        );
        let width = dgain.len();
        let shape = self.input.layout().shape().to_vec();
        [
            host::tensor(dx, &shape),
            host::tensor(dgain, &[width]),
            host::tensor(dbias, &[width]),
        ]
    }
}

/// As [`Normed::backward`].
#[macerator::with_simd]
fn derive<S: Simd, const CENTRED: bool>(
    x: &[f32],
    gain: &[f32],
    statistics: &[[f32; 2]],
    dy: &[f32],
) -> [Vec<f32>; 3] {
    let width = gain.len();
    let mut dx = Vec::with_capacity(x.len());
    let mut dgain = vec![0.0; width];
    let mut dbias = vec![0.0; width];
    let mut normed = vec![0.0; width];
    let mut scaled = vec![0.0; width];
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for ((x, dy), &[mean, inverse]) in rows.zip(statistics) {
        for (normed, x) in normed.iter_mut().zip(x) {
            *normed = (x - mean) * inverse;
        }
        for ((scaled, dy), gain) in scaled.iter_mut().zip(dy).zip(gain) {
            *scaled = dy * gain;
        }
        let along = sum_of_pairs(&scaled, &normed, |d, x| d * x) / width as f32;
        let shift = if CENTRED {
            sum_of(&scaled, |d| d) / width as f32
        } else {
            0.0
        };
        append_pairs(&mut dx, &scaled, &normed, |d, x| {
            inverse * (d - shift - x * along)
        });
        for ((dgain, dy), normed) in dgain.iter_mut().zip(dy).zip(&normed) {
            *dgain += dy * normed;
        }
        if CENTRED {
            for (dbias, dy) in dbias.iter_mut().zip(dy) {
                *dbias += dy;
            }
        }
    }
    [dx, dgain, dbias]
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    type State = Normed;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let derivatives = ops.state.backward::<true>(dy);
        for (parent, derivative) in ops.parents.into_iter().zip(derivatives) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, derivative);
            }
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    type State = Normed;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let derivatives = ops.state.backward::<false>(dy);
        for (parent, derivative) in ops.parents.into_iter().zip(derivatives) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, derivative);
            }
        }
    }
}
