//! Attention of one new position over a cache.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use macerator::Simd;

use crate::host::{self, Floats};
use crate::simd::{exp, maximum, sum_of, sum_of_pairs};

/// For a single query without autodiff on the CPU, `softmax(Q K^T / sqrt(d_head) + bias) V`,
/// `[batch, heads, 1, d_head]`. Anywhere else nothing, and the caller composes it of tensor operations.
///
/// Keys and values are read where they lie, which may be the front of a larger cache.
///
/// - `query` is `[batch, heads, 1, d_head]`.
/// - `key` and `value` are `[batch, key_value_heads, length, d_head]`, each head serving
///   `heads / key_value_heads` query heads in a row.
/// - `bias` is `[batch or 1, 1, 1, length]`.
///
/// # Panics
///
/// If a shape is not as above.
pub fn attention_of_one(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    bias: Option<&Tensor<4>>,
) -> Option<Tensor<4>> {
    let [batch, heads, queries, d_head] = query.dims();
    if queries != 1 {
        return None;
    }
    let [_, key_heads, length, _] = key.dims();
    assert_eq!(key.dims(), [batch, key_heads, length, d_head]);
    assert_eq!(value.dims(), key.dims());
    assert_eq!(heads % key_heads, 0, "{heads} heads over {key_heads}");
    let [query, key, value] = [query, key, value].map(plain);
    let (query, key, value) = (query?, key?, value?);
    let bias = match bias {
        Some(bias) => {
            let rows = bias.dims()[0];
            assert!(rows == 1 || rows == batch, "bias {:?}", bias.dims());
            assert_eq!(bias.dims(), [rows, 1, 1, length]);
            Some(host::contiguous(plain(bias)?))
        }
        None => None,
    };
    let output = attend(
        [Rows::of(&query)?, Rows::of(&key)?, Rows::of(&value)?],
        bias.as_ref().map_or(&[], |bias| host::slice(bias)),
        [batch, heads, heads / key_heads],
        length,
    );
    Some(host::plain(host::tensor(
        output,
        &[batch, heads, 1, d_head],
    )))
}

fn plain(tensor: &Tensor<4>) -> Option<FlexTensor> {
    match Floats::of(tensor)? {
        Floats::Plain(values) => Some(values),
        Floats::Tracked(_) => None,
    }
}

/// Rows of `width` values, found by batch, head and position.
#[derive(Clone, Copy)]
struct Rows<'a> {
    storage: &'a [f32],
    start: usize,
    strides: [usize; 3],
    width: usize,
}

impl<'a> Rows<'a> {
    /// Nothing if a row is not in one piece.
    fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let strides: Vec<usize> = layout
            .strides()
            .iter()
            .map(|&stride| usize::try_from(stride).ok())
            .collect::<Option<_>>()?;
        let [first, second, third, 1] = strides[..] else {
            return None;
        };
        Some(Self {
            storage: tensor.storage(),
            start: layout.start_offset(),
            strides: [first, second, third],
            width: *layout.shape().last()?,
        })
    }

    #[inline(always)]
    fn row(&self, batch: usize, head: usize, position: usize) -> &'a [f32] {
        let [first, second, third] = self.strides;
        let start = self.start + batch * first + head * second + position * third;
        &self.storage[start..start + self.width]
    }
}

/// `[batch, heads, d_head]`; `bias` is `[batch or 1, length]`, or empty.
#[macerator::with_simd]
fn attend<'a, S: Simd>(
    inputs: [Rows<'a>; 3],
    bias: &[f32],
    dims: [usize; 3],
    length: usize,
) -> Vec<f32> {
    let [query, key, value] = inputs;
    let [batch, heads, group] = dims;
    let width = query.width;
    let scale = (1.0 / (width as f64).sqrt()) as f32;
    let mut output = vec![0.0; batch * heads * width];
    let mut scores = vec![0.0; length];
    let mut places = output.chunks_exact_mut(width.max(1));
    for row in 0..batch {
        for head in 0..heads {
            let Some(place) = places.next() else {
                break;
            };
            let queried = query.row(row, head, 0);
            for (position, score) in scores.iter_mut().enumerate() {
                let key = key.row(row, head / group, position);
                *score = scale * sum_of_pairs(queried, key, |q, k| q * k);
            }
            if !bias.is_empty() {
                let start = if bias.len() == length {
                    0
                } else {
                    row * length
                };
                for (score, bias) in scores.iter_mut().zip(&bias[start..start + length]) {
                    *score += bias;
                }
            }
            let largest = maximum(&scores);
            for score in &mut scores {
                *score = exp(*score - largest);
            }
            let inverse = 1.0 / sum_of(&scores, |score| score);
            for (position, score) in scores.iter().enumerate() {
                let value = value.row(row, head / group, position);
                for (place, value) in place.iter_mut().zip(value) {
                    *place += score * value;
                }
            }
            for place in place {
                *place *= inverse;
            }
        }
    }
    output
}
