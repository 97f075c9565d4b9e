//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// The peak until the end.
    Constant,
    /// The peak until `start` of the steps, then a straight line to `end` times the peak.
    Linear {
        /// Fraction of all steps after which the decay begins.
        start: f64,
        /// Final rate as a fraction of the peak.
        end: f64,
    },
    /// Half a cosine from the end of the warm-up to `end` times the peak.
    Cosine {
        /// Final rate as a fraction of the peak.
        end: f64,
    },
}

/// Peak, warm-up and decay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Greatest learning rate.
    pub peak: f64,
    /// Steps of linear warm-up from 0.
    pub warm_up_steps: u64,
    /// What follows.
    pub decay: Decay,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            peak: 3e-3,
            warm_up_steps: 50,
            decay: Decay::Linear {
                start: 0.5,
                end: 0.05,
            },
        }
    }
}

impl Schedule {
    /// The rate of step `step` (0-based) of `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warm_up_steps {
            return self.peak * (step + 1) as f64 / self.warm_up_steps as f64;
        }
        let done = step as f64 / steps.max(1) as f64;
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear { start, end } => {
                    let part = ((done - start) / (1.0 - start)).clamp(0.0, 1.0);
                    1.0 - part * (1.0 - end)
                }
                Decay::Cosine { end } => {
                    let warm = self.warm_up_steps as f64 / steps.max(1) as f64;
                    let part = ((done - warm) / (1.0 - warm)).clamp(0.0, 1.0);
                    end + (1.0 - end) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
                }
            }
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if !(self.peak.is_finite() && self.peak > 0.0) {
            return Some(("peak", format!("{} is not a positive number", self.peak)));
        }
        let fraction = |x: f64| (0.0..=1.0).contains(&x);
        match self.decay {
            Decay::Linear { start, .. } if !(0.0..1.0).contains(&start) => {
                Some(("decay.start", format!("{start} is not in [0, 1)")))
            }
            Decay::Linear { end, .. } | Decay::Cosine { end } if !fraction(end) => {
                Some(("decay.end", format!("{end} is not in [0, 1]")))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_the_corners() {
        let linear = Schedule::default();
        let cosine = Schedule {
            decay: Decay::Cosine { end: 0.1 },
            ..linear
        };
        let constant = Schedule {
            decay: Decay::Constant,
            ..linear
        };
        let cases = [
            (linear, 0, 3e-3 / 50.0),
            (linear, 49, 3e-3),
            (linear, 500, 3e-3),
            (linear, 750, 3e-3 * 0.525),
            (linear, 1000, 3e-3 * 0.05),
            (cosine, 50, 3e-3),
            (cosine, 525, 3e-3 * 0.55),
            (cosine, 1000, 3e-4),
            (constant, 999, 3e-3),
        ];
        for (schedule, step, rate) in cases {
            assert!(
                (schedule.rate(step, 1000) - rate).abs() < 1e-12,
                "{schedule:?} at {step}"
            );
        }
    }
}
