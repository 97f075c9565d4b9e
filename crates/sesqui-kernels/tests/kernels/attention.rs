use burn::tensor::{Device, Tensor};
use proptest::prelude::*;
use sesqui_kernels::{Heads, attention};

use crate::reference::{self, Shape};
use crate::support::{
    assert_close, composed, differences, fused, numbers, tensor, values, weighted, wide,
};

/// Sums of up to 40 products of 32-bit numbers below 1, through an exponential and back.
const TOLERANCE: f64 = 3e-6;
const HIDDEN: f32 = -1e30;

fn heads(shape: Shape) -> Heads {
    Heads {
        queries: shape.queries,
        key_values: shape.key_values,
        d_head: shape.d_head,
    }
}

/// Who sees whom.
#[derive(Clone, Copy, Debug)]
enum Mask {
    Everything,
    Causal,
    /// Causal, keys missing here and there, one query and more that see nothing.
    Holes,
    /// Causal, keys missing here and there, but nobody is hidden from itself.
    Gaps,
    /// Smooth.
    Slope,
}

impl Mask {
    /// `[rows, seq, seq]`.
    fn bias(self, rows: usize, seq: usize) -> Option<Vec<f32>> {
        let cells = (0..rows).flat_map(|row| {
            (0..seq).flat_map(move |query| (0..seq).map(move |key| (row, query, key)))
        });
        let value = move |(row, query, key): (usize, usize, usize)| match self {
            Self::Everything => 0.0,
            Self::Slope => -0.1 * (query as f32 - key as f32).abs(),
            Self::Causal if key <= query => 0.0,
            Self::Holes if query != seq / 2 && key <= query && (key + row) % 3 != 1 => 0.0,
            Self::Gaps if key == query || (key < query && (key + row) % 3 != 1) => 0.0,
            Self::Causal | Self::Holes | Self::Gaps => HIDDEN,
        };
        (!matches!(self, Self::Everything)).then(|| cells.map(value).collect())
    }
}

struct Case {
    shape: Shape,
    mask: Mask,
    bias: Option<(Vec<f32>, usize)>,
    joint: Vec<f32>,
    angles: Option<Vec<f32>>,
}

impl Case {
    fn new(shape: Shape, mask: Mask, per_row: bool, rotary: bool, seed: u64) -> Self {
        let rows = if per_row { shape.batch } else { 1 };
        let angles = shape.batch * shape.seq * (shape.d_head / 2);
        Self {
            shape,
            mask,
            bias: mask.bias(rows, shape.seq).map(|bias| (bias, rows)),
            joint: numbers(shape.batch * shape.seq * shape.width(), seed)
                .into_iter()
                .map(|x| 1.5 * x)
                .collect(),
            angles: rotary.then(|| numbers(angles, seed ^ 9)),
        }
    }

    fn expected(&self, joint: &[f64]) -> Vec<f64> {
        let area = self.shape.seq * self.shape.seq;
        let bias: Vec<f64> = match &self.bias {
            None => vec![0.0; self.shape.batch * area],
            Some((bias, 1)) => wide(bias).repeat(self.shape.batch),
            Some((bias, _)) => wide(bias),
        };
        let angles = self.angles.as_deref().map(wide);
        reference::attention(joint, angles.as_deref(), &bias, self.shape)
    }

    fn run(&self, joint: &Tensor<3>, device: &Device) -> Option<Tensor<3>> {
        let Shape {
            batch, seq, d_head, ..
        } = self.shape;
        let bias = self
            .bias
            .as_ref()
            .map(|(bias, rows)| tensor(bias, [*rows, 1, seq, seq], device));
        let angles = self.angles.as_ref().map(|angles| {
            let angles = tensor(angles, [batch, 1, seq, d_head / 2], device);
            [angles.clone().cos(), angles.sin()]
        });
        let angles = angles.as_ref().map(|[cos, sin]| [cos, sin]);
        attention(joint, angles, bias.as_ref(), heads(self.shape))
    }

    fn input(&self, device: &Device) -> Tensor<3> {
        let Shape { batch, seq, .. } = self.shape;
        tensor(&self.joint, [batch, seq, self.shape.width()], device)
    }

    fn check_values(&self) {
        let input = self.input(&fused());
        let found = values(self.run(&input, &fused()).unwrap());
        let what = format!("{:?} {:?}", self.shape, self.mask);
        assert_close(&what, &found, &self.expected(&wide(&self.joint)), TOLERANCE);
    }

    fn check_derivatives(&self) {
        let Shape {
            batch,
            seq,
            queries,
            d_head,
            ..
        } = self.shape;
        let weights = numbers(batch * seq * queries * d_head, 4);
        let input = self.input(&fused()).require_grad();
        let output = self.run(&input, &fused()).unwrap();
        let weights_there = tensor(&weights, output.dims(), &fused());
        let gradients = (output * weights_there).sum().backward();
        let found = values(input.grad(&gradients).unwrap());
        let expected = differences(&wide(&self.joint), |joint| {
            weighted(&self.expected(joint), &wide(&weights))
        });
        let what = format!("{:?} {:?}", self.shape, self.mask);
        assert_close(&what, &found, &expected, TOLERANCE);
    }
}

/// Without [`Mask::Holes`]: a bias of -1e30 swallows the scores of a query that sees nothing, so a
/// difference finds no slope where the derivative of softmax is taken through the sum, here as in
/// Burn's composition.
fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![
        Just(Mask::Everything),
        Just(Mask::Causal),
        Just(Mask::Gaps),
        Just(Mask::Slope)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn values_agree(
        batch in 1_usize..4,
        seq in 1_usize..40,
        key_values in 1_usize..3,
        group in 1_usize..3,
        half in 1_usize..11,
        mask in prop_oneof![masks(), Just(Mask::Holes)],
        per_row in any::<bool>(),
        rotary in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = Shape { batch, seq, queries: key_values * group, key_values, d_head: 2 * half };
        Case::new(shape, mask, per_row, rotary, seed).check_values();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn derivatives_agree_with_finite_differences(
        batch in 1_usize..3,
        seq in 1_usize..7,
        key_values in 1_usize..3,
        group in 1_usize..3,
        half in 1_usize..3,
        mask in masks(),
        per_row in any::<bool>(),
        rotary in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = Shape { batch, seq, queries: key_values * group, key_values, d_head: 2 * half };
        Case::new(shape, mask, per_row, rotary, seed).check_derivatives();
    }
}

/// More queries than are worked on together, heads wider than a register.
#[test]
fn derivatives_agree_over_several_blocks() {
    for mask in [Mask::Everything, Mask::Causal, Mask::Gaps] {
        let shape = Shape {
            batch: 1,
            seq: 21,
            queries: 1,
            key_values: 1,
            d_head: 18,
        };
        Case::new(shape, mask, false, true, 11).check_derivatives();
    }
}

/// The rows of a batch do not touch each other, bit for bit.
#[test]
fn a_row_alone_is_a_row_in_company() {
    let shape = Shape {
        batch: 3,
        seq: 19,
        queries: 4,
        key_values: 2,
        d_head: 6,
    };
    let case = Case::new(shape, Mask::Causal, false, false, 12);
    let together = case.input(&fused()).require_grad();
    let output = case.run(&together, &fused()).unwrap();
    let gradients = output.clone().powi_scalar(2).sum().backward();
    let derivative = together.grad(&gradients).unwrap();
    for row in 0..3 {
        let alone = case.input(&fused()).narrow(0, row, 1).require_grad();
        let found = case.run(&alone, &fused()).unwrap();
        let gradients = found.clone().powi_scalar(2).sum().backward();
        assert_eq!(values(found), values(output.clone().narrow(0, row, 1)));
        assert_eq!(
            values(alone.grad(&gradients).unwrap()),
            values(derivative.clone().narrow(0, row, 1))
        );
    }
}

/// A key that a mask hides has no part at all, whatever it holds.
#[test]
fn what_is_hidden_changes_no_bit() {
    let shape = Shape {
        batch: 1,
        seq: 20,
        queries: 2,
        key_values: 2,
        d_head: 4,
    };
    let mut case = Case::new(shape, Mask::Causal, false, false, 13);
    let before = values(case.run(&case.input(&fused()), &fused()).unwrap());
    let width = shape.width();
    case.joint[17 * width..].fill(1e3);
    let after = values(case.run(&case.input(&fused()), &fused()).unwrap());
    assert_eq!(before[..17 * 8], after[..17 * 8]);
}

#[test]
fn elsewhere_there_is_none() {
    let shape = Shape {
        batch: 1,
        seq: 2,
        queries: 1,
        key_values: 1,
        d_head: 2,
    };
    let case = Case::new(shape, Mask::Everything, false, false, 1);
    for device in [Device::flex(), composed()] {
        assert!(case.run(&case.input(&device), &device).is_none());
    }
}
