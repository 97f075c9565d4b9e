//! When latent reasoning ends before its last step.

use serde::{Deserialize, Serialize};

/// After how many latent steps a question is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum HaltConfig {
    /// After all of them.
    #[default]
    Never,
    /// As soon as the answer is sure, or has stopped becoming surer: Adaptive Think and InfoGain of "Think
    /// or Not?" (arXiv 2505.18237), with latent steps for its steps in words.
    Entropy(EntropyRule),
    /// After as many as a head says that read the state before the first step: LAPO (arXiv 2507.15758)
    /// with all lengths enumerated.
    Learned(LearnedRule),
    /// As soon as several noisy trajectories agree, which then vote: semantic entropy as in ST-CoT.
    Samples(SamplesRule),
}

/// Stopping by the entropy of the token that the answer would begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyRule {
    /// Stops where the entropy, in nats, is no greater. Below 0 it never is.
    pub threshold: f64,
    /// Over which tokens.
    pub over: Over,
    /// Whether a row also stops that gains nothing more.
    pub gain: Gain,
    /// Latent steps before the first look, at least 1.
    pub start: usize,
}

/// The tokens that an entropy is about; probabilities are renormalised over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Over {
    /// All of them.
    #[default]
    Vocabulary,
    /// The likeliest ones, each time anew.
    Top {
        /// How many, at least 2.
        tokens: usize,
    },
    /// These: the first tokens of the possible answers.
    Tokens {
        /// Token ids, at least two.
        ids: Vec<u32>,
    },
}

/// Stopping by information gain, `H_{i-1} - H_i` between two looks at the same row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Gain {
    /// Not at all.
    #[default]
    Off,
    /// After so many gains in a row below a bound.
    Below {
        /// The bound, in nats.
        min_gain: f64,
        /// How many, at least 1.
        patience: usize,
    },
}

/// Stopping where a trained head says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnedRule {
    /// How a number of steps is picked from its probabilities.
    pub pick: Pick,
}

/// A number of latent steps from the probabilities of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pick {
    /// The likeliest one, of equals the smallest.
    #[default]
    Likeliest,
    /// The smallest that is enough with this probability.
    Cumulative {
        /// In (0, 1]; 1 takes all steps.
        probability: f64,
    },
}

impl Pick {
    /// The number of steps, from 1.
    pub fn steps(self, probabilities: &[f64]) -> usize {
        match self {
            Self::Likeliest => {
                let first_best = |best: usize, index: usize| {
                    if probabilities[index] > probabilities[best] {
                        index
                    } else {
                        best
                    }
                };
                (0..probabilities.len()).fold(0, first_best) + 1
            }
            Self::Cumulative { probability } if probability >= 1.0 => probabilities.len(),
            Self::Cumulative { probability } => {
                let mut sum = 0.0;
                let reached = |value: &f64| {
                    sum += value;
                    sum >= probability
                };
                let place = probabilities.iter().position(reached);
                place.map_or(probabilities.len(), |index| index + 1)
            }
        }
    }
}

/// Stopping where noisy trajectories agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplesRule {
    /// Trajectories of each question.
    pub samples: usize,
    /// Standard deviation of the Gaussian noise on each value of a latent that is fed, as a share of the
    /// latent's root mean square.
    pub noise: f64,
    /// Stops where the entropy, in nats, of the distinct answers is no greater; at 0 all agree.
    pub threshold: f64,
    /// Latent steps before the first look, at least 1.
    pub start: usize,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for EntropyRule {
    fn default() -> Self {
        Self {
            threshold: 0.1,
            over: Over::default(),
            gain: Gain::default(),
            start: 1,
        }
    }
}

impl Default for SamplesRule {
    fn default() -> Self {
        Self {
            samples: 5,
            noise: 0.1,
            threshold: 0.0,
            start: 1,
            seed: 1,
        }
    }
}

impl HaltConfig {
    /// Whether all steps always run.
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let wrong = |key, reason: String| Some((key, reason));
        let start = match self {
            Self::Never => return None,
            Self::Learned(LearnedRule { pick }) => {
                return match pick {
                    // Written so that what is not a number is refused too.
                    Pick::Cumulative { probability }
                        if !(*probability > 0.0 && *probability <= 1.0) =>
                    {
                        let reason = format!("{probability} is not in (0, 1]; 1 takes all steps");
                        wrong("pick.probability", reason)
                    }
                    _ => None,
                };
            }
            Self::Entropy(rule) => {
                if rule.threshold.is_nan() {
                    let reason = "is not a number; give nats, for example 0.1".to_owned();
                    return wrong("threshold", reason);
                }
                match &rule.over {
                    Over::Top { tokens } if *tokens < 2 => {
                        let reason = format!("{tokens} is too few; give 2 or more");
                        return wrong("over.tokens", reason);
                    }
                    Over::Tokens { ids } if ids.len() < 2 => {
                        let reason = "name at least two token ids".to_owned();
                        return wrong("over.ids", reason);
                    }
                    _ => {}
                }
                if let Gain::Below { min_gain, patience } = rule.gain {
                    if !min_gain.is_finite() {
                        let reason = format!("{min_gain} is not a number of nats");
                        return wrong("gain.min_gain", reason);
                    }
                    if patience == 0 {
                        return wrong("gain.patience", "must be at least 1".to_owned());
                    }
                }
                rule.start
            }
            Self::Samples(rule) => {
                if rule.samples == 0 {
                    return wrong("samples", "must be at least 1".to_owned());
                }
                if !(rule.noise.is_finite() && rule.noise >= 0.0) {
                    let reason = format!("{} is no share; give 0 or more", rule.noise);
                    return wrong("noise", reason);
                }
                if rule.threshold.is_nan() {
                    let reason = "is not a number; give nats, for example 0".to_owned();
                    return wrong("threshold", reason);
                }
                rule.start
            }
        };
        (start == 0).then(|| ("start", "must be at least 1".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_steps_are_picked_by_hand() {
        let probabilities = [0.1, 0.35, 0.35, 0.2];
        let cumulative = |probability| Pick::Cumulative { probability };
        for (pick, expected) in [
            (Pick::Likeliest, 2),
            (cumulative(0.05), 1),
            (cumulative(0.44), 2),
            (cumulative(0.5), 3),
            (cumulative(0.9), 4),
            (cumulative(1.0), 4),
        ] {
            assert_eq!(pick.steps(&probabilities), expected, "{pick:?}");
        }
        // Sums that stay below 1 by rounding.
        assert_eq!(cumulative(1.0).steps(&[0.1; 10]), 10);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_key() {
        let entropy = |change: fn(&mut EntropyRule)| {
            let mut rule = EntropyRule::default();
            change(&mut rule);
            HaltConfig::Entropy(rule)
        };
        let samples = |change: fn(&mut SamplesRule)| {
            let mut rule = SamplesRule::default();
            change(&mut rule);
            HaltConfig::Samples(rule)
        };
        let learned = |probability| {
            HaltConfig::Learned(LearnedRule {
                pick: Pick::Cumulative { probability },
            })
        };
        let below = |min_gain, patience| Gain::Below { min_gain, patience };
        let gained = |gain| {
            HaltConfig::Entropy(EntropyRule {
                gain,
                ..EntropyRule::default()
            })
        };
        for (config, key) in [
            (entropy(|rule| rule.threshold = f64::NAN), "threshold"),
            (entropy(|rule| rule.start = 0), "start"),
            (
                entropy(|rule| rule.over = Over::Top { tokens: 1 }),
                "over.tokens",
            ),
            (
                entropy(|rule| rule.over = Over::Tokens { ids: vec![3] }),
                "over.ids",
            ),
            (gained(below(f64::INFINITY, 2)), "gain.min_gain"),
            (gained(below(0.1, 0)), "gain.patience"),
            (learned(0.0), "pick.probability"),
            (learned(f64::NAN), "pick.probability"),
            (samples(|rule| rule.samples = 0), "samples"),
            (samples(|rule| rule.noise = -0.1), "noise"),
            (samples(|rule| rule.threshold = f64::NAN), "threshold"),
            (samples(|rule| rule.start = 0), "start"),
        ] {
            let found = config.problem().map(|(key, _)| key);
            assert_eq!(found, Some(key), "{config:?}");
        }
        for config in [
            HaltConfig::Never,
            entropy(|rule| rule.threshold = f64::INFINITY),
            entropy(|rule| rule.threshold = -1.0),
            learned(1.0),
            HaltConfig::Learned(LearnedRule::default()),
            samples(|_| ()),
        ] {
            assert_eq!(config.problem(), None, "{config:?}");
        }
    }
}
