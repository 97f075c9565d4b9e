//! The operations as plain loops over 64-bit floats.

use std::f64::consts::PI;

pub fn gelu_tanh(x: &[f64]) -> Vec<f64> {
    x.iter()
        .map(|&x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()))
        .collect()
}

pub fn layer_norm(x: &[f64], gain: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let width = gain.len();
    let mut result = Vec::new();
    for row in x.chunks_exact(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        for ((x, gain), bias) in row.iter().zip(gain).zip(bias) {
            result.push((x - mean) / (variance + epsilon).sqrt() * gain + bias);
        }
    }
    result
}

pub fn rms_norm(x: &[f64], gain: &[f64], epsilon: f64) -> Vec<f64> {
    let width = gain.len();
    let mut result = Vec::new();
    for row in x.chunks_exact(width) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        for (x, gain) in row.iter().zip(gain) {
            result.push(x / (mean + epsilon).sqrt() * gain);
        }
    }
    result
}

pub fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = parts.iter().sum();
    parts.into_iter().map(|part| part / sum).collect()
}

pub fn cross_entropy(logits: &[f64], targets: &[i32], weights: &[f64]) -> f64 {
    let width = logits.len() / targets.len();
    let mut sum = 0.0;
    for ((row, &target), weight) in logits.chunks_exact(width).zip(targets).zip(weights) {
        sum -= weight * softmax(row)[target as usize].ln();
    }
    sum / weights.iter().sum::<f64>()
}

/// How attention divides its input.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub seq: usize,
    pub queries: usize,
    pub key_values: usize,
    pub d_head: usize,
}

impl Shape {
    pub fn width(&self) -> usize {
        (self.queries + 2 * self.key_values) * self.d_head
    }
}

/// `bias` is `[batch, seq, seq]`, `angles` `[batch, seq, d_head / 2]`.
pub fn attention(joint: &[f64], angles: Option<&[f64]>, bias: &[f64], shape: Shape) -> Vec<f64> {
    let Shape {
        batch,
        seq,
        queries,
        key_values,
        d_head,
    } = shape;
    let half = d_head / 2;
    let at = |row: usize, position: usize, head: usize, index: usize| {
        joint[(row * seq + position) * shape.width() + head * d_head + index]
    };
    let turned = |row: usize, position: usize, head: usize, index: usize| {
        let Some(angles) = angles else {
            return at(row, position, head, index);
        };
        let angle = angles[(row * seq + position) * half + index % half];
        let (here, other) = (
            at(row, position, head, index),
            at(row, position, head, (index + half) % d_head),
        );
        let sign = if index < half { -1.0 } else { 1.0 };
        here * angle.cos() + sign * other * angle.sin()
    };
    let mut result = vec![0.0; batch * seq * queries * d_head];
    for row in 0..batch {
        for head in 0..queries {
            let shared = queries + head / (queries / key_values);
            for query in 0..seq {
                let scores: Vec<f64> = (0..seq)
                    .map(|key| {
                        let dot: f64 = (0..d_head)
                            .map(|i| turned(row, query, head, i) * turned(row, key, shared, i))
                            .sum();
                        dot / (d_head as f64).sqrt() + bias[(row * seq + query) * seq + key]
                    })
                    .collect();
                for (key, probability) in softmax(&scores).into_iter().enumerate() {
                    for i in 0..d_head {
                        result[((row * seq + query) * queries + head) * d_head + i] +=
                            probability * at(row, key, shared + key_values, i);
                    }
                }
            }
        }
    }
    result
}
