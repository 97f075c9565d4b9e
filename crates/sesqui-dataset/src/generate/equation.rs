//! Equations in exact arithmetic: fractions of 128-bit integers, every operation checked.

use std::cmp::Ordering;

/// Decimal places beyond which a value counts as having no finite decimal form.
const MOST_PLACES: u32 = 12;

/// An exact fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    /// Zero.
    pub const ZERO: Self = Self::integer(0);
    /// One.
    pub const ONE: Self = Self::integer(1);

    /// A whole number.
    pub const fn integer(value: i128) -> Self {
        Self {
            numerator: value,
            denominator: 1,
        }
    }

    /// `numerator / denominator`; `None` for a denominator of 0 or on overflow.
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        if denominator == 1 {
            return Some(Self::integer(numerator));
        }
        let (mut left, mut right) = (numerator.unsigned_abs(), denominator.unsigned_abs());
        while right != 0 {
            // Division of 128 bits is slow, and hardly ever needed.
            let rest = match (u64::try_from(left), u64::try_from(right)) {
                (Ok(left), Ok(right)) => u128::from(left % right),
                _ => left % right,
            };
            (left, right) = (right, rest);
        }
        let divisor = i128::try_from(left)
            .ok()?
            .checked_mul(denominator.signum())?;
        Some(Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        })
    }

    /// A decimal number of digits and at most one point, as equations write it: `12`, `.5`, `-3.50`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(text) = text.strip_prefix('-') {
            return Self::parse_unsigned(text)?.negated();
        }
        Self::parse_unsigned(text)
    }

    fn parse_unsigned(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        Self::new(digits.parse().ok()?, scale)
    }

    /// `self + other`, `None` on overflow.
    pub fn plus(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(
            left.checked_add(right)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    /// `self - other`, `None` on overflow.
    pub fn minus(self, other: Self) -> Option<Self> {
        self.plus(other.negated()?)
    }

    /// `self * other`, `None` on overflow.
    pub fn times(self, other: Self) -> Option<Self> {
        Self::new(
            self.numerator.checked_mul(other.numerator)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    /// `self / other`, `None` on overflow and for a divisor of 0.
    pub fn over(self, other: Self) -> Option<Self> {
        self.times(Self::new(other.denominator, other.numerator)?)
    }

    /// `-self`, `None` on overflow.
    pub fn negated(self) -> Option<Self> {
        Some(Self {
            numerator: self.numerator.checked_neg()?,
            ..self
        })
    }

    /// Number of decimal places; `None` where the decimal form is not finite or very long.
    pub fn places(self) -> Option<u32> {
        // The scale stays below 10^12.
        let denominator = u64::try_from(self.denominator).ok()?;
        let mut scale = 1_u64;
        for places in 0..=MOST_PLACES {
            if scale.is_multiple_of(denominator) {
                return Some(places);
            }
            scale *= 10;
        }
        None
    }

    /// The shortest decimal form, for example `-0.25`; `None` where [`Self::places`] is.
    pub fn decimal(self) -> Option<String> {
        let places = self.places()?;
        let scale = 10_i128.pow(places);
        let digits = self.numerator.checked_mul(scale / self.denominator)?;
        let sign = if digits < 0 { "-" } else { "" };
        let (digits, scale) = (digits.unsigned_abs(), scale.unsigned_abs());
        if places == 0 {
            return Some(format!("{sign}{digits}"));
        }
        let width = places as usize;
        Some(format!(
            "{sign}{}.{:0width$}",
            digits / scale,
            digits % scale
        ))
    }
}

impl PartialOrd for Rational {
    /// `None` on overflow.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let left = self.numerator.checked_mul(other.denominator)?;
        Some(left.cmp(&other.numerator.checked_mul(self.denominator)?))
    }
}

/// The left side of an equation, ready to be evaluated with other numbers in the same places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The text before each number, and after the last: one more than there are numbers.
    between: Vec<String>,
    /// The numbers as written, from left to right.
    numbers: Vec<Rational>,
    /// The numbers and operations in reverse Polish order.
    program: Vec<Code>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Number(usize),
    Add,
    Subtract,
    Multiply,
    Divide,
    Negate,
}

impl Expression {
    /// Parses decimal numbers joined by `+ - * /`, with parentheses, minus signs and blanks.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser {
            rest: text,
            between: vec![String::new()],
            numbers: Vec::new(),
            program: Vec::new(),
        };
        parser.sum(0)?;
        parser.blanks();
        let Parser {
            rest,
            between,
            numbers,
            program,
        } = parser;
        rest.is_empty().then_some(Self {
            between,
            numbers,
            program,
        })
    }

    /// The numbers as written, from left to right.
    pub fn numbers(&self) -> &[Rational] {
        &self.numbers
    }

    /// The results of all operations in the order in which they are carried out, for `numbers` in
    /// the places of [`Self::numbers`]; the last is the value. A lone number is its own result.
    /// `None` on overflow, on division by 0, or for the wrong count of numbers.
    pub fn evaluate(&self, numbers: &[Rational]) -> Option<Vec<Rational>> {
        let mut stack: Vec<Rational> = Vec::with_capacity(self.program.len());
        let mut results = Vec::with_capacity(self.program.len());
        for &code in &self.program {
            let result = match code {
                Code::Number(index) => {
                    stack.push(*numbers.get(index)?);
                    continue;
                }
                Code::Negate => stack.pop()?.negated()?,
                Code::Add | Code::Subtract | Code::Multiply | Code::Divide => {
                    let right = stack.pop()?;
                    let left = stack.pop()?;
                    match code {
                        Code::Add => left.plus(right)?,
                        Code::Subtract => left.minus(right)?,
                        Code::Multiply => left.times(right)?,
                        _ => left.over(right)?,
                    }
                }
            };
            stack.push(result);
            results.push(result);
        }
        if results.is_empty() {
            results.push(stack.pop()?);
        }
        Some(results)
    }

    /// The text with other numbers in the places of the old ones.
    pub fn render(&self, numbers: &[String]) -> String {
        let mut text = String::new();
        for (index, between) in self.between.iter().enumerate() {
            text.push_str(between);
            if let Some(number) = numbers.get(index) {
                text.push_str(number);
            }
        }
        text
    }
}

/// Deepest nesting of parentheses and signs, against overflowing the stack.
const DEEPEST: usize = 64;

struct Parser<'a> {
    rest: &'a str,
    between: Vec<String>,
    numbers: Vec<Rational>,
    program: Vec<Code>,
}

impl Parser<'_> {
    /// Takes the next character if it is one of `accepted`.
    fn take(&mut self, accepted: &[char]) -> Option<char> {
        self.blanks();
        let next = self
            .rest
            .chars()
            .next()
            .filter(|next| accepted.contains(next))?;
        self.rest = &self.rest[next.len_utf8()..];
        self.between.last_mut()?.push(next);
        Some(next)
    }

    fn blanks(&mut self) {
        while let Some(rest) = self.rest.strip_prefix(' ') {
            self.rest = rest;
            if let Some(between) = self.between.last_mut() {
                between.push(' ');
            }
        }
    }

    fn sum(&mut self, depth: usize) -> Option<()> {
        self.product(depth)?;
        while let Some(operator) = self.take(&['+', '-']) {
            self.product(depth)?;
            self.program.push(if operator == '+' {
                Code::Add
            } else {
                Code::Subtract
            });
        }
        Some(())
    }

    fn product(&mut self, depth: usize) -> Option<()> {
        self.factor(depth)?;
        while let Some(operator) = self.take(&['*', '/']) {
            self.factor(depth)?;
            self.program.push(if operator == '*' {
                Code::Multiply
            } else {
                Code::Divide
            });
        }
        Some(())
    }

    fn factor(&mut self, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match self.take(&['(', '-']) {
            Some('(') => {
                self.sum(depth + 1)?;
                self.take(&[')']).map(|_| ())
            }
            Some(_) => {
                self.factor(depth + 1)?;
                self.program.push(Code::Negate);
                Some(())
            }
            None => {
                let is_number = |next: char| next.is_ascii_digit() || next == '.';
                let end = self
                    .rest
                    .find(|next| !is_number(next))
                    .unwrap_or(self.rest.len());
                let (number, rest) = self.rest.split_at(end);
                self.program.push(Code::Number(self.numbers.len()));
                self.numbers.push(Rational::parse(number)?);
                self.between.push(String::new());
                self.rest = rest;
                Some(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_exact_values() {
        let cases = [
            ("48/2", Some("24")),
            ("0.2*50", Some("10")),
            ("100-50-30-15", Some("5")),
            ("2*(3+.5)", Some("7")),
            ("12/(2*3)/4", Some("0.5")),
            (" 7 - -3 ", Some("10")),
            ("-(4-9)*2", Some("10")),
            ("10/3*3", Some("10")),
            ("10/3", None),
            ("7", Some("7")),
            ("3-5", Some("-2")),
            ("0-1/8", Some("-0.125")),
            ("1/(2-2)", None),
            ("2+", None),
            ("(2", None),
            ("2)", None),
            ("20%", None),
            ("", None),
            ("1.2.3", None),
            ("170141183460469231731687303715884105727*2", None),
        ];
        for (text, expected) in cases {
            let value = Expression::parse(text).and_then(|parsed| {
                assert_eq!(
                    parsed.render(&written(&parsed)).replace(' ', ""),
                    canonical(text)
                );
                parsed.evaluate(parsed.numbers())?.last()?.decimal()
            });
            assert_eq!(value.as_deref(), expected, "{text}");
        }
        assert_eq!(Expression::parse(&"(".repeat(100_000)), None);
    }

    fn written(expression: &Expression) -> Vec<String> {
        expression
            .numbers()
            .iter()
            .map(|number| number.decimal().unwrap())
            .collect()
    }

    fn canonical(text: &str) -> String {
        text.replace(' ', "").replace("+.5", "+0.5")
    }

    #[test]
    fn other_numbers_in_the_same_places() {
        let expression = Expression::parse("(3+5)*2").unwrap();
        let numbers = [7, 4, 10].map(Rational::integer);
        let results = expression.evaluate(&numbers).unwrap();
        assert_eq!(results, [11, 110].map(Rational::integer));
        let written = numbers.map(|number| number.decimal().unwrap());
        assert_eq!(expression.render(&written), "(7+4)*10");
        assert_eq!(expression.evaluate(&numbers[..2]), None);
        assert!(Rational::new(1, 3) < Rational::new(1, 2));
    }
}
