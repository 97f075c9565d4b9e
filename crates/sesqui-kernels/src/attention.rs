//! Softmax attention within a sequence, from joint queries, keys and values.
//!
//! One pass per head over tiles that stay in cache: no transposed copy, no mask or score tensor but
//! the probabilities, which the way back needs.

mod tiles;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use crate::host::{self, Floats};
use crate::simd::has_fused_multiply_add;
use tiles::{Problem, backward, forward};

/// How the last dimension of joint queries, keys and values divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of the next.
    pub queries: usize,
    /// Heads of keys and of values, each serving `queries / key_values` query heads in a row.
    pub key_values: usize,
    /// Width of a head.
    pub d_head: usize,
}

impl Heads {
    /// `(queries + 2 key_values) d_head`.
    pub fn width(&self) -> usize {
        (self.queries + 2 * self.key_values) * self.d_head
    }
}

/// A score with a bias below this counts as hidden.
const HIDDEN: f32 = -5e29;

/// Under autodiff on the CPU, `softmax(Q K^T / sqrt(d_head) + bias) V` for every head:
/// `[batch, seq, queries d_head]`. Anywhere else nothing, and the caller composes it of tensor
/// operations.
///
/// - `joint` is `[batch, seq, width]`: all queries, then all keys, then all values.
/// - `rotary`, cosines and sines `[batch, 1, seq, d_head / 2]`, turns queries and keys: component `i`
///   with component `i + d_head / 2`.
/// - `bias` is `[batch or 1, 1, seq, seq]`, and no derivative is taken by it nor by `rotary`. A key
///   with a bias below -5e29 has probability 0, unless its row shows no other.
///
/// # Panics
///
/// If a shape is not as above.
pub fn attention(
    joint: &Tensor<3>,
    rotary: Option<[&Tensor<4>; 2]>,
    bias: Option<&Tensor<4>>,
    heads: Heads,
) -> Option<Tensor<3>> {
    let Floats::Tracked(tracked) = Floats::of(joint)? else {
        return None;
    };
    let constant = |tensor: &Tensor<4>| Floats::of(tensor).map(Floats::values);
    let [batch, seq, width] = joint.dims();
    assert_eq!(width, heads.width(), "{heads:?}");
    assert_eq!(heads.queries % heads.key_values, 0, "{heads:?}");
    let rotary = match rotary {
        Some(angles) => {
            for angles in angles {
                assert_eq!(angles.dims(), [batch, 1, seq, heads.d_head / 2]);
            }
            Some([constant(angles[0])?, constant(angles[1])?])
        }
        None => None,
    };
    let bias = match bias {
        Some(bias) => {
            let rows = bias.dims()[0];
            assert!(rows == 1 || rows == batch, "bias {:?}", bias.dims());
            assert_eq!(bias.dims(), [rows, 1, seq, seq]);
            Some(constant(bias)?)
        }
        None => None,
    };
    let mut attended = Attended {
        joint: host::contiguous(tracked.primitive().clone()),
        rotary,
        extents: extents(bias.as_ref(), seq),
        probabilities: Vec::new(),
        batch,
        seq,
        heads,
    };
    let (output, probabilities) = attended.forward(bias.as_ref());
    let step = Attention
        .prepare::<NoCheckpointing>([tracked.node()])
        .compute_bound()
        .stateful();
    Some(host::tracked(match step {
        OpsKind::Tracked(step) => {
            attended.probabilities = probabilities;
            step.finish(attended, output)
        }
        OpsKind::UnTracked(step) => step.finish(output),
    }))
}

/// For every query of a bias, one more than the last key it sees; all keys where it sees none.
fn extents(bias: Option<&FlexTensor>, seq: usize) -> Vec<usize> {
    let Some(bias) = bias else {
        return vec![seq; seq];
    };
    let extent = |row: &[f32]| {
        let last = row.iter().rposition(|&bias| bias > HIDDEN);
        last.map_or(seq, |last| last + 1)
    };
    host::slice(bias)
        .chunks_exact(seq.max(1))
        .map(extent)
        .collect()
}

/// What the way back needs.
#[derive(Clone, Debug)]
struct Attended {
    joint: FlexTensor,
    rotary: Option<[FlexTensor; 2]>,
    extents: Vec<usize>,
    /// `[batch, queries, seq, padded(seq)]`.
    probabilities: Vec<f32>,
    batch: usize,
    seq: usize,
    heads: Heads,
}

impl Attended {
    fn problem(&self) -> Problem<'_> {
        Problem {
            joint: host::slice(&self.joint),
            rotary: self
                .rotary
                .as_ref()
                .map(|angles| angles.each_ref().map(host::slice)),
            extents: &self.extents,
            batch: self.batch,
            seq: self.seq,
            heads: self.heads,
        }
    }

    /// Output and probabilities.
    fn forward(&self, bias: Option<&FlexTensor>) -> (FlexTensor, Vec<f32>) {
        let (problem, bias) = (self.problem(), bias.map(host::slice));
        let (output, probabilities) = if has_fused_multiply_add() {
            forward::<true>(&problem, bias.unwrap_or(&[]))
        } else {
            forward::<false>(&problem, bias.unwrap_or(&[]))
        };
        let shape = [self.batch, self.seq, self.heads.queries * self.heads.d_head];
        (host::tensor(output, &shape), probabilities)
    }
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 1> for Attention {
    type State = Attended;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let attended = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |output| {
            let output = host::contiguous(output);
            let (problem, output) = (attended.problem(), host::slice(&output));
            let probabilities = &attended.probabilities;
            let joint = if has_fused_multiply_add() {
                backward::<true>(&problem, probabilities, output)
            } else {
                backward::<false>(&problem, probabilities, output)
            };
            let shape = [attended.batch, attended.seq, attended.heads.width()];
            host::tensor(joint, &shape)
        });
    }
}
