//! Intervals for accuracies, agreement of labels, order statistics for timings.

use serde::{Deserialize, Serialize};

/// The standard normal quantile of a two-sided 95 % interval.
pub const Z_95: f64 = 1.959_963_984_540_054;

/// The ends of a confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The score interval of a proportion (E. B. Wilson, "Probable inference, the law of succession, and
/// statistical inference", JASA 22 (1927), 209–212), without continuity correction:
///
/// `(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)` with `p = successes / trials`, `n = trials`.
///
/// Unlike the normal approximation it stays within 0 and 1 and keeps a width at 0 and at 100 %. `z` is
/// the standard normal quantile, [`Z_95`] for 95 %; its sign does not matter. Nothing observed says
/// nothing: with no trials, the interval is 0 to 1. More successes than trials count as all.
#[must_use]
pub fn wilson(successes: u64, trials: u64, z: f64) -> Interval {
    if trials == 0 {
        return Interval {
            low: 0.0,
            high: 1.0,
        };
    }
    let n = trials as f64;
    let share = successes.min(trials) as f64 / n;
    let square = z * z;
    let centre = share + square / (2.0 * n);
    let spread = z.abs() * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    let scale = 1.0 + square / n;
    // At the ends one bound is exact; the formula would miss it by a rounding error.
    Interval {
        low: if successes == 0 {
            0.0
        } else {
            (centre - spread) / scale
        },
        high: if successes >= trials {
            1.0
        } else {
            (centre + spread) / scale
        },
    }
}

/// [`wilson`] at 95 %.
#[must_use]
pub fn wilson_95(successes: u64, trials: u64) -> Interval {
    wilson(successes, trials, Z_95)
}

/// How far two labellers agree beyond chance (J. Cohen, "A coefficient of agreement for nominal scales",
/// Educational and Psychological Measurement 20 (1960), 37–46): `(p_o - p_e) / (1 - p_e)` with `p_o` the
/// share on which they agree and `p_e` the share expected of two that label independently, each as often
/// as it does.
///
/// `counts[a][b]` is how often the first said `a` and the second `b`. `None` where it has no value:
/// nothing was labelled, or both only ever said the same one thing.
#[must_use]
pub fn cohen_kappa(counts: [[u64; 2]; 2]) -> Option<f64> {
    let n: u64 = counts.iter().flatten().sum();
    let n = n as f64;
    let share = |count: u64| count as f64 / n;
    let agreed = share(counts[0][0] + counts[1][1]);
    let by_chance: f64 = (0..2)
        .map(|label| {
            share(counts[label][0] + counts[label][1]) * share(counts[0][label] + counts[1][label])
        })
        .sum();
    (n > 0.0 && by_chance < 1.0).then(|| (agreed - by_chance) / (1.0 - by_chance))
}

/// How a set of measurements is distributed, in their own unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of measurements.
    pub n: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation, with `n − 1`; 0 for one measurement.
    pub standard_deviation: f64,
    /// Smallest.
    pub minimum: f64,
    /// 5 % quantile.
    pub p05: f64,
    /// Middle.
    pub median: f64,
    /// 95 % quantile.
    pub p95: f64,
    /// Largest.
    pub maximum: f64,
}

impl Distribution {
    /// Describes measurements; `None` when there are none or one of them is not a finite number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values)?;
        Some(Distribution {
            n: sorted.len() as u64,
            mean: mean(&sorted)?,
            standard_deviation: standard_deviation(&sorted)?,
            minimum: interpolate(&sorted, 0.0),
            p05: interpolate(&sorted, 0.05),
            median: interpolate(&sorted, 0.5),
            p95: interpolate(&sorted, 0.95),
            maximum: interpolate(&sorted, 1.0),
        })
    }
}

/// Arithmetic mean; `None` when there are no values.
#[must_use]
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, with `n − 1`, computed in two passes; 0 for one value, `None` for none.
#[must_use]
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let degrees = (values.len() - 1).max(1);
    Some((squares / degrees as f64).sqrt())
}

/// The middle value, or the mean of the two middle ones; `None` when there are none or one of them is
/// not finite.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The quantile at `share`, 0 to 1, linear between the two nearest values: type 7 of Hyndman and Fan,
/// "Sample quantiles in statistical packages", The American Statistician 50 (1996), 361–365. `None` when
/// there are no values, one of them is not finite, or `share` is out of range.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&share) {
        return None;
    }
    Some(interpolate(&sorted(values)?, share))
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// `sorted` is not empty.
fn interpolate(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    let at = share * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn wilson_agrees_with_published_intervals() {
        let table = [
            // R. G. Newcombe, Statistics in Medicine 17 (1998), 857–872, table I, method 3.
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            // By hand from the formula.
            (0, 10, 0.0, 0.2775),
            (10, 10, 0.7225, 1.0),
            (5, 10, 0.2366, 0.7634),
            (990, 1000, 0.9817, 0.9946),
        ];
        for (successes, trials, low, high) in table {
            let interval = wilson_95(successes, trials);
            close(interval.low, low, 5e-5);
            close(interval.high, high, 5e-5);
            // Right and wrong change places.
            let mirrored = wilson_95(trials - successes, trials);
            close(mirrored.low, 1.0 - interval.high, 1e-12);
        }
    }

    #[test]
    fn wilson_at_its_edges() {
        let all = Interval {
            low: 0.0,
            high: 1.0,
        };
        assert_eq!(wilson_95(0, 0), all);
        assert_eq!(wilson_95(3, 0), all);
        assert_eq!(wilson_95(7, 5), wilson_95(5, 5));
        assert_eq!((wilson_95(0, 7).low, wilson_95(7, 7).high), (0.0, 1.0));
        assert_eq!(wilson(3, 9, -2.0), wilson(3, 9, 2.0));
        let point = wilson(1, 4, 0.0);
        assert_eq!((point.low, point.high), (0.25, 0.25));
    }

    #[test]
    fn kappa_agrees_with_worked_examples() {
        // By hand: 35 of 50 agree, 25 by chance; then two with the same agreement, 60 %, and other margins.
        close(cohen_kappa([[20, 5], [10, 15]]).unwrap(), 0.4, 1e-12);
        close(cohen_kappa([[45, 15], [25, 15]]).unwrap(), 0.130_4, 5e-5);
        close(cohen_kappa([[25, 35], [5, 35]]).unwrap(), 0.259_3, 5e-5);
        close(cohen_kappa([[3, 0], [0, 9]]).unwrap(), 1.0, 1e-12);
        close(cohen_kappa([[0, 5], [5, 0]]).unwrap(), -1.0, 1e-12);
        assert_eq!(cohen_kappa([[0, 0], [0, 0]]), None);
        assert_eq!(cohen_kappa([[7, 0], [0, 0]]), None);
    }

    #[test]
    fn quantiles_are_of_type_7() {
        // R: quantile(c(10, 40, 20, 30), c(0, .05, .25, .5, .95, 1))
        let values = [10.0, 40.0, 20.0, 30.0];
        let table = [
            (0.0, 10.0),
            (0.05, 11.5),
            (0.25, 17.5),
            (0.5, 25.0),
            (0.95, 38.5),
            (1.0, 40.0),
        ];
        for (share, expected) in table {
            close(quantile(&values, share).unwrap(), expected, 1e-12);
        }
        let found = Distribution::of(&values).unwrap();
        assert_eq!((found.n, found.mean, found.median), (4, 25.0, 25.0));
        close(found.standard_deviation, 12.909_944_487_358_056, 1e-12);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(Distribution::of(&[7.0]).unwrap().standard_deviation, 0.0);
        for bad in [&[][..], &[1.0, f64::NAN], &[f64::INFINITY]] {
            assert_eq!((Distribution::of(bad), median(bad)), (None, None));
        }
        assert_eq!(
            (
                quantile(&values, 1.5),
                quantile(&values, f64::NAN),
                mean(&[])
            ),
            (None, None, None)
        );
    }
}
