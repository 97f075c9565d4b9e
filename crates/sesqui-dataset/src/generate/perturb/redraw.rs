//! Which new numbers are plausible: of the same scale as the original, and with results of the same
//! kind.

use super::question::WrittenNumber;
use crate::generate::equation::Rational;
use crate::generate::random::Random;

/// A redrawn number: `multiple * granularity` digits, of which `places` stand after the point.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    lowest: u64,
    highest: u64,
    granularity: u64,
    pub(super) places: u32,
    commas: bool,
}

/// What a new result must have in common with the original one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Most decimal places; `None` for a passing result without a finite decimal form.
    places: Option<u32>,
    positive: bool,
    below_one: bool,
    largest: Rational,
}

impl Hole {
    /// As many digits as the original, half to twice its size, as round as it where that leaves at
    /// least five choices.
    pub(super) fn new(number: &WrittenNumber) -> Self {
        let digits = number.digits;
        let ten = 10_u64.pow(digits.ilog10());
        let low = digits.div_ceil(2).max(ten).max(2);
        let (low, high) = if ten == 1 {
            (2, 9)
        } else {
            (low, (2 * digits).min(10 * ten - 1))
        };
        let mut granularity = 1;
        while digits.is_multiple_of(granularity * 10) {
            granularity *= 10;
        }
        loop {
            let (lowest, highest) = (low.div_ceil(granularity), high / granularity);
            if granularity == 1 || highest + 1 >= lowest + 5 {
                let WrittenNumber { places, commas, .. } = *number;
                return Self {
                    lowest,
                    highest,
                    granularity,
                    places,
                    commas,
                };
            }
            // 100, 50, 10, 5, 1.
            let power_of_ten = granularity.to_string().starts_with('1');
            granularity /= if power_of_ten { 2 } else { 5 };
        }
    }

    /// Draws no number above `greatest`, which is not below the original.
    pub(super) fn lower(&mut self, greatest: u64) {
        let digits = greatest.saturating_mul(10_u64.pow(self.places));
        self.highest = self.highest.min(digits / self.granularity);
    }

    /// Digits for the hole, the point left out.
    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        (self.lowest + random.below(self.highest + 1 - self.lowest)) * self.granularity
    }

    /// Digits as the question writes them.
    pub(super) fn render(&self, digits: u64) -> String {
        let scale = 10_u64.pow(self.places);
        let mut whole = (digits / scale).to_string();
        if self.commas {
            let mut at = whole.len();
            while at > 3 {
                at -= 3;
                whole.insert(at, ',');
            }
        }
        let width = self.places as usize;
        if width == 0 {
            whole
        } else {
            format!("{whole}.{:0width$}", digits % scale)
        }
    }
}

impl Limit {
    /// `None` for a negative result.
    pub(super) fn new(original: Rational) -> Option<Self> {
        if original < Rational::ZERO {
            return None;
        }
        let hundred = Rational::integer(100);
        let tenfold = original.times(Rational::integer(10))?;
        Some(Self {
            places: original
                .places()
                .map(|places| if places == 0 { 0 } else { places.max(2) }),
            positive: original > Rational::ZERO,
            below_one: original < Rational::ONE,
            largest: if tenfold > hundred { tenfold } else { hundred },
        })
    }

    /// Allows no result above `greatest`.
    pub(super) fn lower(&mut self, greatest: Rational) {
        if greatest < self.largest {
            self.largest = greatest;
        }
    }

    /// Whether a new result is of the kind of the original.
    pub(super) fn allows(&self, result: Rational) -> bool {
        let places = match self.places {
            Some(most) => result.places().is_some_and(|places| places <= most),
            None => true,
        };
        places
            && if self.positive {
                result > Rational::ZERO
            } else {
                result >= Rational::ZERO
            }
            && (!self.below_one || result < Rational::ONE)
            && result <= self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::perturb::question::written_numbers;

    #[test]
    fn numbers_keep_their_scale() {
        let cases = [
            ("5", 2, 9, 1),
            ("48", 24, 96, 1),
            ("50", 30, 90, 10),
            ("10", 10, 20, 1),
            ("20", 10, 40, 5),
            ("1,200", 1_000, 2_400, 100),
            ("3.50", 180, 700, 10),
            ("999", 500, 999, 1),
        ];
        let mut random = Random::stream(1, "test", 0);
        for (text, low, high, granularity) in cases {
            let hole = Hole::new(&written_numbers(text)[0]);
            assert_eq!(
                (
                    hole.lowest * granularity,
                    hole.highest * granularity,
                    hole.granularity
                ),
                (low, high, granularity),
                "{text}"
            );
            assert!((0..100).all(|_| (low..=high).contains(&hole.draw(&mut random))));
        }
        let render = |text: &str, digits| Hole::new(&written_numbers(text)[0]).render(digits);
        assert_eq!(render("1,234,567", 2_000_001), "2,000,001");
        assert_eq!(
            (render("$3.50", 405), render("0.05", 7)),
            ("4.05".into(), "0.07".into())
        );
    }

    #[test]
    fn results_keep_their_kind() {
        let allows = |original: &str, result: &str| {
            let [original, result] = [original, result].map(|text| Rational::parse(text).unwrap());
            Limit::new(original).unwrap().allows(result)
        };
        assert!(Limit::new(Rational::integer(-1)).is_none());
        let cases = [
            ("24", "12", true),
            ("24", "12.5", false),
            ("24", "0", false),
            ("24", "241", false),
            ("0", "0", true),
            ("2.5", "3.25", true),
            ("2.5", "3.125", false),
            ("0.5", "1", false),
            ("5", "-1", false),
        ];
        for (original, result, expected) in cases {
            assert_eq!(allows(original, result), expected, "{original} {result}");
        }
    }
}
