//! The arithmetic of attention, one head after another.

use macerator::Simd;

use super::Heads;
use crate::matmul::{Left, Right, multiply, padded};
use crate::simd::{exp, maximum, sum_of, sum_of_pairs};

/// Queries that are worked on together; keys that none of them sees cost nothing.
const BLOCK: usize = 16;

/// The inputs, in memory.
pub(super) struct Problem<'a> {
    /// `[batch, seq, width]`.
    pub(super) joint: &'a [f32],
    /// Cosines and sines, `[batch, seq, d_head / 2]`.
    pub(super) rotary: Option<[&'a [f32]; 2]>,
    /// `[batch or 1, seq]`.
    pub(super) extents: &'a [usize],
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) heads: Heads,
}

/// Which of the three a head belongs to.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Problem<'_> {
    /// Where head `head` of `part` begins within a position.
    #[inline(always)]
    fn column(&self, part: Part, head: usize) -> usize {
        let before = match part {
            Part::Query => 0,
            Part::Key => self.heads.queries,
            Part::Value => self.heads.queries + self.heads.key_values,
        };
        (before + head) * self.heads.d_head
    }

    /// The extents of a row's queries.
    #[inline(always)]
    fn extents(&self, row: usize) -> &[usize] {
        let start = if self.extents.len() == self.seq {
            0
        } else {
            row * self.seq
        };
        &self.extents[start..start + self.seq]
    }

    /// Copies one head of one row to `tile` `[seq, padded(d_head)]`, turned and scaled.
    #[inline(always)]
    fn load(&self, row: usize, part: Part, head: usize, scale: f32, tile: &mut [f32]) {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let (half, stride) = (d_head / 2, padded(d_head));
        let column = self.column(part, head);
        let positions = self.joint[row * self.seq * width..][..self.seq * width]
            .chunks_exact(width)
            .zip(tile.chunks_exact_mut(stride));
        for (position, (from, to)) in positions.enumerate() {
            let from = &from[column..column + d_head];
            let to = &mut to[..d_head];
            match (self.rotary, part) {
                (Some([cos, sin]), Part::Query | Part::Key) => {
                    let start = (row * self.seq + position) * half;
                    let (cos, sin) = (&cos[start..start + half], &sin[start..start + half]);
                    let (first, second) = from.split_at(half);
                    let (to_first, to_second) = to.split_at_mut(half);
                    for i in 0..half {
                        to_first[i] = scale * (first[i] * cos[i] - second[i] * sin[i]);
                        to_second[i] = scale * (second[i] * cos[i] + first[i] * sin[i]);
                    }
                }
                _ => {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = scale * from;
                    }
                }
            }
        }
    }

    /// Writes the derivative by one head, `tile` as in [`Problem::load`], to its place in `joint`.
    #[inline(always)]
    fn store(
        &self,
        row: usize,
        part: Part,
        head: usize,
        scale: f32,
        tile: &[f32],
        joint: &mut [f32],
    ) {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let (half, stride) = (d_head / 2, padded(d_head));
        let column = self.column(part, head);
        let positions = joint[row * self.seq * width..][..self.seq * width]
            .chunks_exact_mut(width)
            .zip(tile.chunks_exact(stride));
        for (position, (to, from)) in positions.enumerate() {
            let to = &mut to[column..column + d_head];
            let from = &from[..d_head];
            match (self.rotary, part) {
                (Some([cos, sin]), Part::Query | Part::Key) => {
                    let start = (row * self.seq + position) * half;
                    let (cos, sin) = (&cos[start..start + half], &sin[start..start + half]);
                    let (first, second) = from.split_at(half);
                    let (to_first, to_second) = to.split_at_mut(half);
                    for i in 0..half {
                        to_first[i] = scale * (first[i] * cos[i] + second[i] * sin[i]);
                        to_second[i] = scale * (second[i] * cos[i] - first[i] * sin[i]);
                    }
                }
                _ => {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = scale * from;
                    }
                }
            }
        }
    }
}

/// `[seq, stride]` to `[stride, columns]`, the columns beyond `seq` left as they are.
#[inline(always)]
fn transpose(tile: &[f32], stride: usize, columns: usize, transposed: &mut [f32]) {
    for (column, row) in tile.chunks_exact(stride).enumerate() {
        for (index, value) in row.iter().enumerate() {
            transposed[index * columns + column] = *value;
        }
    }
}

/// Blocks of queries: first, end, and how many keys any of them sees.
#[inline(always)]
fn blocks(extents: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..extents.len()).step_by(BLOCK).map(|first| {
        let end = (first + BLOCK).min(extents.len());
        let seen = extents[first..end].iter().copied().max().unwrap_or(0);
        (first, end, seen)
    })
}

#[inline(always)]
fn rows(values: &[f32], stride: usize) -> Left<'_> {
    Left {
        values,
        stride,
        transposed: false,
    }
}

/// Output `[batch, seq, queries d_head]` and probabilities `[batch, queries, seq, padded(seq)]`.
/// `bias` is `[batch or 1, seq, seq]`, or empty.
#[macerator::with_simd]
pub(super) fn forward<'a, S: Simd, const FUSED: bool>(
    problem: &Problem<'a>,
    bias: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let Problem {
        batch, seq, heads, ..
    } = *problem;
    let (stride, keys) = (padded(heads.d_head), padded(seq));
    let scale = (1.0 / (heads.d_head as f64).sqrt()) as f32;
    let width = heads.queries * heads.d_head;
    let mut output = vec![0.0; batch * seq * width];
    let mut probabilities = vec![0.0; batch * heads.queries * seq * keys];
    let mut query = vec![0.0; seq * stride];
    let mut key = vec![0.0; seq * stride];
    let mut key_transposed = vec![0.0; stride * keys];
    let mut value = vec![0.0; seq * stride];
    let mut attended = vec![0.0; BLOCK * stride];
    let group = heads.queries / heads.key_values;
    for row in 0..batch {
        let extents = problem.extents(row);
        let bias = (!bias.is_empty()).then(|| {
            let start = if bias.len() == seq * seq {
                0
            } else {
                row * seq * seq
            };
            &bias[start..start + seq * seq]
        });
        for head in 0..heads.queries {
            if head % group == 0 {
                problem.load(row, Part::Key, head / group, 1.0, &mut key);
                transpose(&key, stride, keys, &mut key_transposed);
                problem.load(row, Part::Value, head / group, 1.0, &mut value);
            }
            problem.load(row, Part::Query, head, scale, &mut query);
            let start = (row * heads.queries + head) * seq * keys;
            let scores = &mut probabilities[start..start + seq * keys];
            for (first, end, seen) in blocks(extents) {
                let scores = &mut scores[first * keys..end * keys];
                multiply::<FUSED>(
                    [end - first, heads.d_head, padded(seen)],
                    rows(&query[first * stride..], stride),
                    Right {
                        values: &key_transposed,
                        stride: keys,
                    },
                    (scores, keys),
                    false,
                );
                for (query, scores) in (first..end).zip(scores.chunks_exact_mut(keys)) {
                    let (scores, rest) = scores.split_at_mut(seen);
                    rest.fill(0.0);
                    softmax(scores, bias.map(|bias| &bias[query * seq..][..seen]));
                }
                multiply::<FUSED>(
                    [end - first, seen, stride],
                    rows(scores, keys),
                    Right {
                        values: &value,
                        stride,
                    },
                    (&mut attended, stride),
                    false,
                );
                let places = output[(row * seq + first) * width..(row * seq + end) * width]
                    .chunks_exact_mut(width)
                    .zip(attended.chunks_exact(stride));
                for (place, attended) in places {
                    place[head * heads.d_head..(head + 1) * heads.d_head]
                        .copy_from_slice(&attended[..heads.d_head]);
                }
            }
        }
    }
    (output, probabilities)
}

#[inline(always)]
fn softmax(scores: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        for (score, bias) in scores.iter_mut().zip(bias) {
            *score += bias;
        }
    }
    let largest = maximum(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let inverse = 1.0 / sum_of(scores, |score| score);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

/// Derivative by `joint`, given that by the output.
#[macerator::with_simd]
pub(super) fn backward<'a, S: Simd, const FUSED: bool>(
    problem: &Problem<'a>,
    probabilities: &[f32],
    output: &[f32],
) -> Vec<f32> {
    let Problem {
        batch, seq, heads, ..
    } = *problem;
    let (stride, keys) = (padded(heads.d_head), padded(seq));
    let scale = (1.0 / (heads.d_head as f64).sqrt()) as f32;
    let width = heads.queries * heads.d_head;
    let group = heads.queries / heads.key_values;
    let mut joint = vec![0.0; problem.joint.len()];
    let tile = || vec![0.0; seq * stride];
    let (mut query, mut key, mut value, mut upstream) = (tile(), tile(), tile(), tile());
    let (mut d_query, mut d_key, mut d_value) = (tile(), tile(), tile());
    let mut value_transposed = vec![0.0; stride * keys];
    let mut d_scores = vec![0.0; seq * keys];
    for row in 0..batch {
        let extents = problem.extents(row);
        for head in 0..heads.queries {
            let shared = head / group;
            let first_of_group = head % group == 0;
            if first_of_group {
                problem.load(row, Part::Key, shared, 1.0, &mut key);
                problem.load(row, Part::Value, shared, 1.0, &mut value);
                transpose(&value, stride, keys, &mut value_transposed);
            }
            problem.load(row, Part::Query, head, scale, &mut query);
            let positions = output[row * seq * width..(row + 1) * seq * width]
                .chunks_exact(width)
                .zip(upstream.chunks_exact_mut(stride));
            for (from, to) in positions {
                to[..heads.d_head]
                    .copy_from_slice(&from[head * heads.d_head..(head + 1) * heads.d_head]);
            }
            let start = (row * heads.queries + head) * seq * keys;
            let probabilities = &probabilities[start..start + seq * keys];
            for (first, end, seen) in blocks(extents) {
                let d_scores = &mut d_scores[first * keys..end * keys];
                multiply::<FUSED>(
                    [end - first, heads.d_head, padded(seen)],
                    rows(&upstream[first * stride..], stride),
                    Right {
                        values: &value_transposed,
                        stride: keys,
                    },
                    (d_scores, keys),
                    false,
                );
                let queries = d_scores
                    .chunks_exact_mut(keys)
                    .zip(probabilities[first * keys..].chunks_exact(keys));
                for (d_scores, probabilities) in queries {
                    let (d_scores, rest) = d_scores.split_at_mut(seen);
                    let probabilities = &probabilities[..seen];
                    rest.fill(0.0);
                    let mean = sum_of_pairs(d_scores, probabilities, |d, p| d * p);
                    for (d_score, p) in d_scores.iter_mut().zip(probabilities) {
                        *d_score = p * (*d_score - mean);
                    }
                }
                multiply::<FUSED>(
                    [end - first, seen, stride],
                    rows(d_scores, keys),
                    Right {
                        values: &key,
                        stride,
                    },
                    (&mut d_query[first * stride..], stride),
                    false,
                );
            }
            problem.store(row, Part::Query, head, scale, &d_query, &mut joint);
            for first in (0..seq).step_by(BLOCK) {
                let end = (first + BLOCK).min(seq);
                // Queries before the first that sees any of these keys have nothing to add.
                let from = extents.iter().position(|&seen| seen > first).unwrap_or(seq);
                for (scores, right, result) in [
                    (&d_scores[..], &query, &mut d_key),
                    (probabilities, &upstream, &mut d_value),
                ] {
                    multiply::<FUSED>(
                        [end - first, seq - from, stride],
                        Left {
                            values: &scores[from * keys + first..],
                            stride: keys,
                            transposed: true,
                        },
                        Right {
                            values: &right[from * stride..],
                            stride,
                        },
                        (&mut result[first * stride..], stride),
                        !first_of_group,
                    );
                }
            }
            if head % group == group - 1 {
                problem.store(row, Part::Key, shared, 1.0, &d_key, &mut joint);
                problem.store(row, Part::Value, shared, 1.0, &d_value, &mut joint);
            }
        }
    }
    joint
}
