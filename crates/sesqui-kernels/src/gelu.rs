//! GELU in its tanh form (Hendrycks and Gimpel 2016, section 2).

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use macerator::Simd;

use crate::host::{self, Floats};
use crate::simd::{append, append_pairs, sigmoid};

/// `2 sqrt(2 / pi)`.
const SLOPE: f32 = 1.595_769;
/// Of the cube, inside the sigmoid.
const CUBE: f32 = 0.044_715 * SLOPE;

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, computed as
/// `x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`, which is the same function. Any shape.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match Floats::of(&x) {
        None => generic(x),
        Some(Floats::Plain(values)) => {
            let values = host::contiguous(values);
            host::plain(forward(&values, &x.dims()))
        }
        Some(Floats::Tracked(tracked)) => {
            let values = host::contiguous(tracked.primitive().clone());
            let output = forward(&values, &x.dims());
            let step = GeluTanh
                .prepare::<NoCheckpointing>([tracked.node()])
                .compute_bound()
                .stateful();
            host::tracked(match step {
                OpsKind::Tracked(step) => step.finish(values, output),
                OpsKind::UnTracked(step) => step.finish(output),
            })
        }
    }
}

/// As tensor operations.
fn generic<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let square = x.clone() * x.clone();
    let inner = x.clone() * square.mul_scalar(CUBE).add_scalar(SLOPE);
    x * burn::tensor::activation::sigmoid(inner)
}

fn forward(x: &FlexTensor, shape: &[usize]) -> FlexTensor {
    host::tensor(activate(host::slice(x)), shape)
}

#[macerator::with_simd]
fn activate<S: Simd>(x: &[f32]) -> Vec<f32> {
    let mut result = Vec::with_capacity(x.len());
    append(&mut result, x, |x| {
        x * sigmoid(x * (CUBE * (x * x) + SLOPE))
    });
    result
}

/// Derivative by the input, given that by the output.
#[macerator::with_simd]
fn derive<S: Simd>(x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut result = Vec::with_capacity(x.len());
    append_pairs(&mut result, x, dy, |x, dy| {
        let square = x * x;
        let gate = sigmoid(x * (CUBE * square + SLOPE));
        let inner = 3.0 * CUBE * square + SLOPE;
        dy * (gate + x * gate * (1.0 - gate) * inner)
    });
    result
}

#[derive(Debug)]
struct GeluTanh;

impl Backward<Flex, 1> for GeluTanh {
    /// The input.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let x = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |dy| {
            let shape = x.layout().shape().to_vec();
            let dx = derive(host::slice(&x), host::slice(&host::contiguous(dy)));
            host::tensor(dx, &shape)
        });
    }
}
