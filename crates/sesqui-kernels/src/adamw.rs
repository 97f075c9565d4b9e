//! AdamW (Loshchilov and Hutter 2019), three passes over a parameter instead of fourteen.

use burn::backend::flex::FlexTensor;
use burn::optim::{AdamW as BurnAdamW, AdamWConfig, AdamWState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use macerator::Simd;

use crate::host::{self, Floats};
use crate::simd::{append_pairs, append_triples};

/// Burn's AdamW, with the same state and, on the CPU, the same bits.
#[derive(Clone)]
pub struct AdamW {
    burn: BurnAdamW,
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f32,
}

impl AdamW {
    /// Decay of the first and the second moment, what is added to the root of the second, and the part of
    /// a parameter that a step at learning rate 1 takes away.
    pub fn new([beta_1, beta_2]: [f32; 2], epsilon: f32, weight_decay: f32) -> Self {
        let config = AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(weight_decay);
        Self {
            burn: config.build(),
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
        }
    }

    /// What one step multiplies and divides by; `time` counts from 1.
    fn factors(&self, rate: LearningRate, time: usize) -> Factors {
        let time = time as i32;
        Factors {
            keep: [self.beta_1, self.beta_2],
            take: [1.0 - self.beta_1, 1.0 - self.beta_2],
            correction: [1.0 - self.beta_1.powi(time), 1.0 - self.beta_2.powi(time)],
            epsilon: self.epsilon,
            shrink: (1.0 - rate * f64::from(self.weight_decay)) as f32,
            rate: rate as f32,
        }
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        // The first step makes the moments; Burn may do that.
        let Some(mut state) = state else {
            return self.burn.step(rate, parameter, gradient, None);
        };
        let moments = &state.momentum;
        let here = [&parameter, &gradient, &moments.moment_1, &moments.moment_2].map(|tensor| {
            match Floats::of(tensor) {
                Some(Floats::Plain(values)) => Some(host::contiguous(values)),
                _ => None,
            }
        });
        let [Some(values), Some(slope), Some(first), Some(second)] = here else {
            return self.burn.step(rate, parameter, gradient, Some(state));
        };
        let factors = self.factors(rate, moments.time + 1);
        let shape = parameter.dims();
        let [values, first, second] = factors.apply([&values, &slope, &first, &second], &shape);
        state.momentum.time += 1;
        state.momentum.moment_1 = host::plain(first);
        state.momentum.moment_2 = host::plain(second);
        (host::plain(values), Some(state))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        BurnAdamW::to_device(state, device)
    }
}

/// The numbers of one step, for first and second moment where there are two.
struct Factors {
    keep: [f32; 2],
    take: [f32; 2],
    correction: [f32; 2],
    epsilon: f32,
    shrink: f32,
    rate: f32,
}

impl Factors {
    /// New values, first and second moment.
    fn apply(&self, inputs: [&FlexTensor; 4], shape: &[usize]) -> [FlexTensor; 3] {
        let [values, slope, first, second] = inputs.map(host::slice);
        let first = moment(first, slope, self.keep[0], self.take[0]);
        let second = square_moment(second, slope, self.keep[1], self.take[1]);
        let values = update(values, &first, &second, self);
        [values, first, second].map(|result| host::tensor(result, shape))
    }
}

#[macerator::with_simd]
fn moment<S: Simd>(moment: &[f32], slope: &[f32], keep: f32, take: f32) -> Vec<f32> {
    let mut result = Vec::with_capacity(moment.len());
    append_pairs(&mut result, moment, slope, |moment, slope| {
        moment * keep + slope * take
    });
    result
}

#[macerator::with_simd]
fn square_moment<S: Simd>(moment: &[f32], slope: &[f32], keep: f32, take: f32) -> Vec<f32> {
    let mut result = Vec::with_capacity(moment.len());
    append_pairs(&mut result, moment, slope, |moment, slope| {
        moment * keep + slope * slope * take
    });
    result
}

#[macerator::with_simd]
fn update<S: Simd>(values: &[f32], first: &[f32], second: &[f32], factors: &Factors) -> Vec<f32> {
    let [first_correction, second_correction] = factors.correction;
    let (epsilon, shrink, rate) = (factors.epsilon, factors.shrink, factors.rate);
    let mut result = Vec::with_capacity(values.len());
    append_triples(
        &mut result,
        [values, first, second],
        |value, first, second| {
            let root = (second / second_correction).sqrt() + epsilon;
            value * shrink - first / first_correction / root * rate
        },
    );
    result
}
