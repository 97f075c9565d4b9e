//! Looking at the answer that rows would give now.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor};
use sesqui_kernels::read;
use sesqui_model::Transformer;
use sesqui_shortcut::Walk;

use crate::decode::feed;
use crate::halt::config::{EntropyRule, Gain, Over};
use crate::halt::{HaltTrace, Probe};

/// Looks at the rows of a batch, and remembers what it saw.
pub(crate) struct Watch<'a> {
    rule: &'a EntropyRule,
    answer_after: &'a [Vec<i32>],
    seen: Vec<Vec<Probe>>,
    reads: usize,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(rule: &'a EntropyRule, answer_after: &'a [Vec<i32>]) -> Self {
        Self {
            rule,
            answer_after,
            seen: vec![Vec::new(); answer_after.len()],
            reads: 0,
        }
    }

    /// Looks after `steps` steps at the rows that go on and stand at the top; returns those that need no
    /// more. One host read.
    pub(crate) fn look(&mut self, steps: usize, walk: &Walk<'_>, opening: &[u32]) -> Vec<usize> {
        let asked = |row: &usize| !walk.has_stopped(*row) && walk.at_top(*row);
        let rows: Vec<usize> = (0..self.seen.len()).filter(asked).collect();
        if steps < self.rule.start || rows.is_empty() {
            return Vec::new();
        }
        let logits = self.logits(steps, walk, &rows, opening);
        let entropies = read(entropy(logits, &self.rule.over));
        self.reads += 1;
        for (&row, entropy) in rows.iter().zip(entropies.iter::<f32>()) {
            self.seen[row].push(Probe {
                after: steps,
                entropy: f64::from(entropy),
            });
        }
        let enough = |row: &usize| stops(self.rule, &self.seen[*row]);
        rows.into_iter().filter(enough).collect()
    }

    /// Logits `[rows, vocabulary]` of the token with which the answers of `rows` would begin.
    fn logits(&self, steps: usize, walk: &Walk<'_>, rows: &[usize], opening: &[u32]) -> Tensor<2> {
        let backbone: &Transformer = &walk.model().backbone;
        let states = walk.states();
        let device = states.device();
        let normed = if opening.is_empty() {
            let order: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            states.select(0, Tensor::<1, Int>::from_data(order.as_slice(), &device))
        } else {
            let mut fork = walk.cache().fork(rows, opening.len(), &device);
            let ids: Vec<i32> = opening.iter().map(|&id| id as i32).collect();
            let positions = rows.iter().flat_map(|&row| {
                let first = self.answer_after[row][steps - 1];
                (first..).take(opening.len())
            });
            let positions: Vec<i32> = positions.collect();
            let real = vec![true; positions.len()];
            let ids = ids.repeat(rows.len());
            feed(backbone, &mut fork, ids, positions, &real, &device)
        };
        let logits = backbone.head(normed);
        let [rows, _, vocabulary] = logits.dims();
        logits.reshape([rows, vocabulary])
    }

    /// How often it read from the device.
    pub(crate) fn reads(&self) -> usize {
        self.reads
    }

    pub(crate) fn into_traces(self) -> Vec<HaltTrace> {
        self.seen.into_iter().map(HaltTrace::Probes).collect()
    }
}

/// Whether a row with these looks, the newest last, needs no more steps.
fn stops(rule: &EntropyRule, seen: &[Probe]) -> bool {
    let sure = seen
        .last()
        .is_some_and(|probe| probe.entropy <= rule.threshold);
    let idle = match rule.gain {
        Gain::Off => false,
        Gain::Below { min_gain, patience } => {
            let gains = seen.windows(2).rev().take(patience);
            let small = gains.filter(|pair| pair[0].entropy - pair[1].entropy < min_gain);
            seen.len() > patience && small.count() == patience
        }
    };
    sure || idle
}

/// Entropy, in nats, of each row of `logits` `[rows, vocabulary]`, `[rows]`: of the softmax over the tokens
/// that `over` names.
///
/// # Panics
///
/// If `over` names a token that there is not.
pub fn entropy(logits: Tensor<2>, over: &Over) -> Tensor<1> {
    let [rows, vocabulary] = logits.dims();
    let logits = match over {
        Over::Vocabulary => logits,
        Over::Top { tokens } if *tokens >= vocabulary => logits,
        Over::Top { tokens } => logits.topk(*tokens, 1),
        Over::Tokens { ids } => {
            let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &logits.device());
            logits.select(1, ids)
        }
    };
    let terms = softmax(logits.clone(), 1) * log_softmax(logits, 1);
    // 0 rather than -0 where one token has it all.
    terms.sum_dim(1).reshape([rows]).neg().clamp_min(0.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn probes(entropies: &[f64]) -> Vec<Probe> {
        let all = entropies.iter().zip(1..);
        all.map(|(&entropy, after)| Probe { after, entropy })
            .collect()
    }

    /// Two gains in a row below 0.1: 1.0 → 0.95 → 0.94 stops at the third look, a gain of 0.4 between
    /// starts anew, and a loss is no gain.
    #[test]
    fn gains_by_hand() {
        let rule = EntropyRule {
            threshold: -1.0,
            gain: Gain::Below {
                min_gain: 0.1,
                patience: 2,
            },
            ..EntropyRule::default()
        };
        let cases: [(&[f64], bool); 7] = [
            (&[1.0], false),
            (&[1.0, 0.95], false),
            (&[1.0, 0.95, 0.94], true),
            (&[1.0, 0.95, 0.55], false),
            (&[1.0, 0.95, 0.55, 0.54], false),
            (&[1.0, 0.95, 0.55, 0.54, 0.6], true),
            (&[1.0, 0.9, 0.8], false),
        ];
        for (entropies, expected) in cases {
            // 1.0 - 0.9 and 0.9 - 0.8 are 0.1 but for rounding; a little more makes it plain.
            let mut seen = probes(entropies);
            if entropies == [1.0, 0.9, 0.8] {
                seen[1].entropy -= 1e-9;
                seen[2].entropy -= 3e-9;
            }
            assert_eq!(stops(&rule, &seen), expected, "{entropies:?}");
        }
        let sure = EntropyRule {
            threshold: 0.55,
            ..rule
        };
        assert!(stops(&sure, &probes(&[1.0, 0.55])));
        assert!(!stops(&sure, &probes(&[0.5, 0.56])));
    }

    #[test]
    fn entropy_by_hand() {
        // Probabilities 1/2, 1/4, 1/8, 1/8 and, in the second row, one token for sure.
        let data = TensorData::new(
            [0.5f32, 0.25, 0.125, 0.125]
                .map(f32::ln)
                .into_iter()
                .chain([200.0, 0.0, 0.0, 0.0])
                .collect::<Vec<f32>>(),
            [2, 4],
        );
        let logits = Tensor::<2>::from_data(data, &Device::flex());
        let found = |over: Over| -> Vec<f32> {
            let data = entropy(logits.clone(), &over).into_data();
            data.iter::<f32>().collect()
        };
        let ln2 = std::f32::consts::LN_2;
        // 2/3 and 1/3: ln 3 - 2/3 ln 2.
        let two = 3f32.ln() - 2.0 / 3.0 * ln2;
        for (over, expected) in [
            (Over::Vocabulary, 1.75 * ln2),
            (Over::Top { tokens: 9 }, 1.75 * ln2),
            (Over::Top { tokens: 2 }, two),
            (Over::Tokens { ids: vec![2, 3] }, ln2),
            (Over::Tokens { ids: vec![1, 0] }, two),
        ] {
            let [first, second] = found(over.clone())[..] else {
                panic!("two rows")
            };
            assert!((first - expected).abs() < 1e-6, "{over:?}: {first}");
            if over != (Over::Tokens { ids: vec![2, 3] }) {
                assert_eq!(second.to_bits(), 0, "{over:?}");
            }
        }
    }
}
