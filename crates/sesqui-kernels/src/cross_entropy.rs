//! Softmax cross-entropy against one target for each row.

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use macerator::Simd;

use crate::host::{self, Floats};
use crate::simd::{append, exp, maximum, sum_of};

/// Weighted mean cross-entropy in nats of `logits` `[n, vocab]` against `targets` `[n]`, each below
/// `vocab`: `sum(weight * -log softmax(logits)[target]) / sum(weight)`, `[1]`. Weights are not
/// negative, and a row of weight zero has no part in it.
///
/// # Panics
///
/// If there are not as many targets and weights as rows, or a target is no column.
pub fn cross_entropy(logits: Tensor<2>, targets: &[i32], weights: &[f32]) -> Tensor<1> {
    let [n, width] = logits.dims();
    assert!(
        targets.len() == n && weights.len() == n,
        "{n} rows, {} targets, {} weights",
        targets.len(),
        weights.len()
    );
    let input = match Floats::of(&logits) {
        Some(input) if n > 0 => input,
        _ => return generic(logits, targets, weights),
    };
    let columns: Vec<usize> = targets
        .iter()
        .map(|&target| usize::try_from(target).unwrap_or(usize::MAX))
        .collect();
    assert!(
        columns.iter().all(|&column| column < width),
        "a target is none of {width} classes"
    );
    match input {
        Floats::Plain(values) => {
            let values = host::contiguous(values);
            host::plain(forward(&values, &columns, weights).0)
        }
        Floats::Tracked(tracked) => {
            let logits = host::contiguous(tracked.primitive().clone());
            let (loss, log_sums) = forward(&logits, &columns, weights);
            let step = CrossEntropy
                .prepare::<NoCheckpointing>([tracked.node()])
                .compute_bound()
                .stateful();
            host::tracked(match step {
                OpsKind::Tracked(step) => step.finish(
                    Scored {
                        logits,
                        log_sums,
                        columns: columns.into(),
                        weights: weights.into(),
                    },
                    loss,
                ),
                OpsKind::UnTracked(step) => step.finish(loss),
            })
        }
    }
}

/// As tensor operations.
fn generic(logits: Tensor<2>, targets: &[i32], weights: &[f32]) -> Tensor<1> {
    let [n, _] = logits.dims();
    let device = logits.device();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets.to_vec(), [n, 1]), &device);
    let log_probabilities = log_softmax(logits, 1).gather(1, targets);
    let total: f32 = weights.iter().sum();
    let uniform = weights.iter().all(|&weight| weight == weights[0]);
    if uniform {
        return log_probabilities.mean().neg();
    }
    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [n, 1]), &device);
    (log_probabilities * weights).sum().mul_scalar(-1.0 / total)
}

/// The loss, and of every row the logarithm of its sum of exponentials.
fn forward(logits: &FlexTensor, columns: &[usize], weights: &[f32]) -> (FlexTensor, Vec<f32>) {
    let logits = host::slice(logits);
    let width = logits.len() / columns.len();
    let log_sums: Vec<f32> = exponential_sums(logits, width)
        .into_iter()
        .map(|[largest, sum]| largest + sum.ln())
        .collect();
    // In 64 bits: the sum over thousands of rows costs nothing beside the exponentials.
    let (mut sum, mut total) = (0.0, 0.0);
    let rows = logits.chunks_exact(width).zip(columns).zip(weights);
    for (((row, &column), &weight), &log_sum) in rows.zip(&log_sums) {
        if weight != 0.0 {
            sum += f64::from(weight) * f64::from(log_sum - row[column]);
            total += f64::from(weight);
        }
    }
    (host::tensor(vec![(sum / total) as f32], &[1]), log_sums)
}

/// Of every row, the largest value and the sum of the exponentials of what is left without it.
#[macerator::with_simd]
fn exponential_sums<S: Simd>(logits: &[f32], width: usize) -> Vec<[f32; 2]> {
    let mut result = Vec::with_capacity(logits.len() / width);
    for row in logits.chunks_exact(width) {
        let largest = maximum(row);
        result.push([largest, sum_of(row, |x| exp(x - largest))]);
    }
    result
}

/// `scale * softmax(row)` of every row, one scale and one logarithm of a sum for each.
#[macerator::with_simd]
fn scaled_softmax<S: Simd>(
    logits: &[f32],
    width: usize,
    log_sums: &[f32],
    scales: &[f32],
) -> Vec<f32> {
    let mut result = Vec::with_capacity(logits.len());
    let rows = logits.chunks_exact(width).zip(log_sums).zip(scales);
    for ((row, &log_sum), &scale) in rows {
        append(&mut result, row, |x| scale * exp(x - log_sum));
    }
    result
}

/// What the way back needs.
#[derive(Clone, Debug)]
struct Scored {
    logits: FlexTensor,
    log_sums: Vec<f32>,
    columns: Arc<[usize]>,
    weights: Arc<[f32]>,
}

#[derive(Debug)]
struct CrossEntropy;

impl Backward<Flex, 1> for CrossEntropy {
    type State = Scored;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let scored = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |loss| {
            let upstream = host::slice(&host::contiguous(loss))[0];
            let total: f64 = scored.weights.iter().copied().map(f64::from).sum();
            let scale = |&weight: &f32| (f64::from(upstream) * f64::from(weight) / total) as f32;
            let scales: Vec<f32> = scored.weights.iter().map(scale).collect();
            let logits = host::slice(&scored.logits);
            let width = logits.len() / scored.columns.len();
            let mut derivative = scaled_softmax(logits, width, &scored.log_sums, &scales);
            let rows = derivative.chunks_exact_mut(width);
            for ((row, &column), scale) in rows.zip(scored.columns.iter()).zip(scales) {
                row[column] -= scale;
            }
            host::tensor(derivative, &[scored.columns.len(), width])
        });
    }
}
