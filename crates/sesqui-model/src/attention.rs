//! Grouped-query attention, with rotary positions where the family has them.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use sesqui_kernels::{Heads, attention_of_one, cast, linear};

use crate::cache::Admission;
use crate::config::ModelConfig;
use crate::initialize::{Initializer, Role};
use crate::mask::Visibility;

/// Rotary angles of a set of positions (Su et al. 2021), in the half-split layout that Llama
/// checkpoints use.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// Angles for `positions` `[batch, seq]` at `frequencies` in radians per position.
    pub fn new(positions: Tensor<2, Int>, frequencies: &[f64]) -> Self {
        let half = frequencies.len();
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        let device = positions.device();
        let frequencies = Tensor::<1>::from_data(TensorData::new(frequencies, [half]), &device);
        let [batch, seq] = positions.dims();
        let angles =
            positions.float().reshape([batch, 1, seq, 1]) * frequencies.reshape([1, 1, 1, half]);
        Self {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }

    /// Rotates `x` `[batch, heads, seq, d_head]`.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let cos = cast(self.cos.clone(), x.dtype());
        let sin = cast(self.sin.clone(), x.dtype());
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        Tensor::cat(
            vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second * cos + first * sin,
            ],
            3,
        )
    }
}

/// Self-attention with one fused query/key/value map.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model] -> [(heads + 2 key_value_heads) d_head]`: queries, then keys, then values.
    pub query_key_value: Linear,
    /// `[heads d_head] -> [d_model]`.
    pub output: Linear,
    heads: usize,
    key_value_heads: usize,
    d_head: usize,
}

impl Attention {
    /// A new attention block.
    pub fn new(
        config: &ModelConfig,
        bias: bool,
        weights: &mut Initializer,
        device: &Device,
    ) -> Self {
        let (heads, key_value_heads, d_head) =
            (config.heads, config.key_value_heads(), config.d_head());
        let width = (heads + 2 * key_value_heads) * d_head;
        Self {
            query_key_value: weights.linear([config.d_model, width], bias, Role::Input, device),
            output: weights.linear([heads * d_head, config.d_model], bias, Role::Output, device),
            heads,
            key_value_heads,
            d_head,
        }
    }

    /// Attends within `hidden` `[batch, seq, d_model]`, or, with a cache, over the cached positions
    /// followed by `hidden`, which are appended to it.
    pub fn forward(
        &self,
        hidden: Tensor<3>,
        rotary: Option<&Rotary>,
        visibility: &Visibility,
        cache: Option<Admission<'_>>,
    ) -> Tensor<3> {
        let [batch, seq, _] = hidden.dims();
        let joint = linear(&self.query_key_value, hidden);
        if cache.is_none()
            && let Some(attended) = self.attend_at_once(&joint, rotary, visibility)
        {
            return linear(&self.output, attended);
        }
        let joint = joint
            .reshape([
                batch,
                seq,
                self.heads + 2 * self.key_value_heads,
                self.d_head,
            ])
            .swap_dims(1, 2);
        let mut query = joint.clone().narrow(1, 0, self.heads);
        let mut key = joint.clone().narrow(1, self.heads, self.key_value_heads);
        let value = joint.narrow(1, self.heads + self.key_value_heads, self.key_value_heads);
        if let Some(rotary) = rotary {
            query = rotary.rotate(query);
            key = rotary.rotate(key);
        }
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let bias = visibility.bias();
        let attended = match attention_of_one(&query, &key, &value, bias.as_ref()) {
            Some(attended) => attended,
            None => {
                let group = self.heads / self.key_value_heads;
                attend(query, repeat(key, group), repeat(value, group), bias)
            }
        };
        let width = self.heads * self.d_head;
        linear(
            &self.output,
            attended.swap_dims(1, 2).reshape([batch, seq, width]),
        )
    }

    /// Attention within `joint` `[batch, seq, (heads + 2 key_value_heads) d_head]` as one operation,
    /// where there is one.
    fn attend_at_once(
        &self,
        joint: &Tensor<3>,
        rotary: Option<&Rotary>,
        visibility: &Visibility,
    ) -> Option<Tensor<3>> {
        let heads = Heads {
            queries: self.heads,
            key_values: self.key_value_heads,
            d_head: self.d_head,
        };
        let angles = rotary.map(|rotary| [&rotary.cos, &rotary.sin]);
        sesqui_kernels::attention(joint, angles, visibility.bias().as_ref(), heads)
    }
}

/// `[batch, heads, seq, d_head]` with every head repeated `group` times in place.
fn repeat(x: Tensor<4>, group: usize) -> Tensor<4> {
    if group == 1 {
        return x;
    }
    let [batch, heads, seq, d_head] = x.dims();
    x.reshape([batch, heads, 1, seq, d_head])
        .expand([batch, heads, group, seq, d_head])
        .reshape([batch, heads * group, seq, d_head])
}

/// Softmax attention, shapes `[batch, heads, seq, d_head]`.
fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    let d_head = query.dims()[3];
    if !query.is_autodiff() {
        let options = AttentionModuleOptions::default();
        let bias = bias.map(|bias| cast(bias, query.dtype()));
        return fused_attention(query, key, value, None, bias, options);
    }
    // Under autodiff the fused operation falls apart into more pieces than these.
    let scores = query
        .mul_scalar(1.0 / (d_head as f64).sqrt())
        .matmul(key.swap_dims(2, 3));
    // Scores are added up and compared in 32 bits.
    let scores = cast(scores, DType::F32);
    let scores = match bias {
        Some(bias) => scores + bias,
        None => scores,
    };
    cast(softmax(scores, 3), value.dtype()).matmul(value)
}
