//! The numbers of a question: which may be redrawn, and which constants its words explain.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::generate::equation::Rational;

/// A number written with digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrittenNumber {
    /// Its bytes in the question.
    pub(super) range: Range<usize>,
    /// The value.
    pub(super) value: Rational,
    /// The digits as an integer: 150 in `1.50`.
    pub(super) digits: u64,
    /// Digits after the point.
    pub(super) places: u32,
    /// Whether thousands are set off by commas.
    pub(super) commas: bool,
    /// Whether its surroundings leave it free to change: it is not part of a percentage, a
    /// fraction, a time, a year, an ordinal, a range or a word, and not 0 or 1.
    pub(super) free: bool,
}

/// Every number written with digits, in order.
pub(super) fn written_numbers(question: &str) -> Vec<WrittenNumber> {
    let bytes = question.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut numbers = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        let start = at;
        let (mut commas, mut point) = (false, None);
        while let Some(&byte) = bytes.get(at) {
            let group = byte == b',' && (1..=3).all(|ahead| digit(at + ahead)) && !digit(at + 4);
            if group && point.is_none() {
                commas = true;
            } else if byte == b'.' && digit(at + 1) && point.is_none() {
                point = Some(at);
            } else if !byte.is_ascii_digit() {
                break;
            }
            at += 1;
        }
        let plain: String = question[start..at].split(',').collect();
        let places = point.map_or(0, |point| at - point - 1) as u32;
        let digits: String = plain.split('.').collect();
        if let (Some(value), Ok(digits)) = (Rational::parse(&plain), digits.parse::<u64>()) {
            let whole = plain.split('.').next().unwrap_or_default();
            let zero_led = whole.len() > 1 && whole.starts_with('0');
            let dollars = question[..start].ends_with('$');
            let year = (1900..=2100).contains(&digits) && places == 0 && !commas && !dollars;
            let free = (2..1_000_000_000).contains(&digits)
                && places <= 6
                && !zero_led
                && !year
                && free_before(&question[..start])
                && free_after(&question[at..]);
            numbers.push(WrittenNumber {
                range: start..at,
                value,
                digits,
                places,
                commas,
                free,
            });
        }
    }
    numbers
}

fn free_before(before: &str) -> bool {
    !before.ends_with(|last: char| last.is_alphanumeric() || "-–−/.,:#'+*^=".contains(last))
}

fn free_after(after: &str) -> bool {
    let mut ahead = after.chars();
    let (next, second) = (ahead.next(), ahead.next());
    let digit_follows = second.is_some_and(|second| second.is_ascii_digit());
    match next {
        Some(next) if next.is_alphanumeric() || "%+*^=–−°".contains(next) => return false,
        Some('/' | ':' | '-' | ' ' | '.' | ',') if digit_follows => return false,
        _ => (),
    }
    let rest = after.trim_start().to_ascii_lowercase();
    !BOUND.iter().any(|unit| {
        rest.strip_prefix(unit)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphabetic()))
    })
}

/// What follows a number that must stay: percentages, times of day, and spans inside a longer one.
const BOUND: &[&str] = &[
    "%",
    "percent",
    "per cent",
    "am",
    "pm",
    "a.m",
    "p.m",
    "o'clock",
    "o’clock",
    "days a week",
    "days per week",
    "days each week",
    "days every week",
    "days of the week",
    "hours a day",
    "hours per day",
    "hours each day",
    "hours every day",
    "months a year",
    "months per year",
];

/// The constants that a solution may use without naming a redrawn number: 1, numbers written as
/// words, what multiples, units and calendars stand for, and all that follows from a percentage or
/// a fraction.
pub(super) fn explained(question: &str, numbers: &[WrittenNumber]) -> Vec<Rational> {
    let lower = question.to_lowercase();
    let words: Vec<&str> = lower
        .split(|next: char| !next.is_alphabetic())
        .filter(|word| !word.is_empty())
        .collect();
    let distinct: BTreeSet<&str> = words.iter().copied().collect();
    let mut constants = vec![Rational::ONE];
    for (names, values) in WORDS {
        if names.split(' ').any(|name| distinct.contains(name)) {
            constants.extend(values.split(' ').filter_map(Rational::parse));
        }
    }
    for pair in words.windows(2) {
        let tens = TENS.iter().position(|tens| *tens == pair[0]);
        let units = UNITS.iter().position(|units| *units == pair[1]);
        if let (Some(tens), Some(units)) = (tens, units) {
            constants.push(Rational::integer(
                (tens as i128 + 2) * 10 + units as i128 + 1,
            ));
        }
    }
    let mut parts: Vec<Rational> = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let after = question[number.range.end..]
            .trim_start()
            .to_ascii_lowercase();
        if ["%", "percent", "per cent"]
            .iter()
            .any(|unit| after.starts_with(unit))
        {
            let hundred = Rational::integer(100);
            constants.extend([hundred, number.value]);
            constants.extend(hundred.plus(number.value));
            constants.extend(hundred.minus(number.value));
            parts.extend(number.value.over(hundred));
        }
        if let Some(next) = numbers.get(index + 1)
            && question.get(number.range.end..next.range.start) == Some("/")
        {
            constants.extend([number.value, next.value]);
            constants.extend(next.value.minus(number.value));
            parts.extend(number.value.over(next.value));
        }
    }
    for part in parts {
        constants.push(part);
        constants.extend(Rational::ONE.plus(part));
        constants.extend(Rational::ONE.minus(part));
    }
    constants
}

const TENS: [&str; 8] = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
const UNITS: [&str; 9] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];

/// Words, and the constants that they put into a solution.
const WORDS: &[(&str, &str)] = &[
    ("half halves halved halfway", "2 0.5 1.5 50"),
    (
        "two twice double doubles doubled doubling couple pair pairs both second twin twins",
        "2",
    ),
    ("round other another remaining", "2"),
    (
        "three third thirds thrice triple triples tripled tripling triplets trio",
        "3",
    ),
    ("third thirds", "2"),
    ("four fourth fourths quadruple quadrupled square", "4"),
    ("quarter quarters quarterly", "4 0.25 0.75 25 3"),
    ("fourth fourths", "0.25 0.75 3"),
    (
        "five fifth fifths quintuple weekday weekdays nickel nickels",
        "5",
    ),
    ("fifth fifths", "0.2 0.4 0.6 0.8"),
    ("six sixth sixths", "6"),
    (
        "seven seventh seventh week weeks weekly day days daily everyday",
        "7",
    ),
    ("eight eighth eighths", "8"),
    ("nine ninth ninths", "9"),
    ("ten tenth tenths dime dimes decade decades", "10 0.1"),
    ("eleven", "11"),
    (
        "twelve dozen dozens year years yearly annual annually month months monthly",
        "12",
    ),
    ("feet foot inch inches", "12 3"),
    ("dozen dozens", "6 24"),
    ("thirteen", "13"),
    ("fourteen fortnight", "14"),
    ("fifteen", "15"),
    ("sixteen pound pounds ounce ounces", "16"),
    ("seventeen", "17"),
    ("eighteen", "18"),
    ("nineteen", "19"),
    ("twenty", "20"),
    ("day days daily hour hours everyday night", "24"),
    (
        "thirty month months monthly april june september november",
        "30",
    ),
    (
        "month months january march may july august october december",
        "31",
    ),
    ("month months monthly week weeks", "4"),
    ("february", "28 29"),
    ("forty", "40"),
    ("fifty", "50"),
    ("year years yearly annual annually week weeks weekly", "52"),
    (
        "sixty hour hours hourly minute minutes second seconds",
        "60",
    ),
    ("hour hours second seconds", "3600"),
    ("seventy", "70"),
    ("eighty", "80"),
    ("ninety", "90"),
    ("year years yearly annual annually day days daily", "365"),
    ("weekend weekends", "2"),
    (
        "hundred hundreds percent percentage century cent cents dollar dollars",
        "100 0.01",
    ),
    ("penny pennies", "0.01 100"),
    ("nickel nickels", "0.05"),
    ("quarts quart gallon gallons", "4"),
    ("cup cups pint pints gallon gallons", "16 8 2"),
    ("yard yards", "3"),
    ("meter meters metre metres cm centimeters", "100"),
    (
        "thousand thousands km kilometer kilometers kg kilogram kilograms gram grams liter liters",
        "1000",
    ),
    ("ml milliliters mm", "1000"),
    ("million millions", "1000000"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_numbers() {
        let cases: &[(&str, &[&str])] = &[
            ("Ann has 12 pens and $3.50.", &["12", "3.50"]),
            (
                "A 5-year-old drives 60 miles/hour for 1,200 miles.",
                &["5", "60", "1,200"],
            ),
            ("20% of 40, 2/3 of 30, 15 percent", &["40", "30"]),
            ("at 7:30 or 6 p.m. on the 3rd, 4kg, in 2010", &[]),
            ("from 5-7, 2 1/2 cups, .5 liters, 0 or 1", &[]),
            ("$2010, 007, 0.05 (9)? €8", &["2010", "0.05", "9", "8"]),
            (
                "0.00000000000000000000000005 or 99999999999999999999 or 2",
                &["2"],
            ),
            ("He ran 5 amazing miles, 12,5 and 3,4567.", &["5"]),
        ];
        for (question, expected) in cases {
            let free: Vec<&str> = written_numbers(question)
                .into_iter()
                .filter(|number| number.free)
                .map(|number| &question[number.range])
                .collect();
            assert_eq!(&free, expected, "{question}");
        }
        let number = &written_numbers("$1,250.50")[0];
        assert_eq!(
            (number.digits, number.places, number.commas),
            (125_050, 2, true)
        );
    }

    #[test]
    fn constants_need_a_word() {
        let explained = |question: &str, value: &str| {
            explained(question, &written_numbers(question))
                .contains(&Rational::parse(value).unwrap())
        };
        let cases = [
            ("Half of them", "2", true),
            ("three apples", "2", false),
            ("twenty-five apples", "25", true),
            ("20% off", "0.8", true),
            ("20 off", "0.8", false),
            ("3/4 of it", "0.25", true),
            ("per week", "7", true),
            ("5 times", "7", false),
        ];
        for (question, value, expected) in cases {
            assert_eq!(
                explained(question, value),
                expected,
                "{value} in {question}"
            );
        }
    }
}
