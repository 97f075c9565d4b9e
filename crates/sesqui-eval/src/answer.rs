//! Finding the answer in what a model wrote, and comparing it with the right one.
//!
//! Numbers stay text from end to end: they are brought to one decimal spelling and compared as such, so
//! no two answers become equal by rounding.

use sesqui_dataset::AnswerKind;
use sesqui_dataset::read::normalise_number;

/// Finds the answer behind the last `answer_start`, in the spelling of [`normalise`]. `None` when the
/// marker is missing or no answer of that kind follows; both count as a wrong answer. With an empty
/// `answer_start`, the whole text is the answer.
#[must_use]
pub fn extract(generated: &str, answer_start: &str, kind: AnswerKind) -> Option<String> {
    let text = if answer_start.is_empty() {
        generated
    } else {
        generated.rsplit_once(answer_start)?.1
    };
    normalise(text, kind)
}

/// True when `predicted` is the same answer as `gold`. Both are normalised first, so raw text is fine
/// on either side. An answer that cannot be normalised equals nothing.
#[must_use]
pub fn matches(predicted: &str, gold: &str, kind: AnswerKind) -> bool {
    match (normalise(predicted, kind), normalise(gold, kind)) {
        (Some(predicted), Some(gold)) => predicted == gold,
        _ => false,
    }
}

/// Brings an answer to its one spelling, or `None` when there is none of that kind in `text`.
///
/// - `Number`: the first number, without thousands separators, currency, percent sign, leading or
///   trailing zeros: `$1,234.50` is `1234.5`, `.5` is `0.5`, `-0` is `0`, `1e3` is `1000`. Percent signs
///   do not divide by 100. A fraction such as `1/2` is no decimal number and not its numerator either.
/// - `YesNo`: `yes` or `no`, when the first word is `yes`, `true`, `no` or `false`.
/// - `Choice`: the first line with text, lower-cased, runs of blanks made one space, one dot at the end
///   dropped.
#[must_use]
pub fn normalise(text: &str, kind: AnswerKind) -> Option<String> {
    match kind {
        AnswerKind::Number => number(text),
        AnswerKind::YesNo => yes_or_no(text),
        AnswerKind::Choice => choice(text),
    }
}

fn yes_or_no(text: &str) -> Option<String> {
    let word = text
        .split(|character: char| !character.is_alphanumeric())
        .find(|word| !word.is_empty())?;
    let answer = match word.to_lowercase().as_str() {
        "yes" | "true" => "yes",
        "no" | "false" => "no",
        _ => return None,
    };
    Some(answer.to_owned())
}

fn choice(text: &str) -> Option<String> {
    let line = text.trim_start().lines().next()?.trim_end();
    let line = line.strip_suffix('.').unwrap_or(line);
    let words: Vec<&str> = line.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" ").to_lowercase())
}

fn number(text: &str) -> Option<String> {
    let first = text.char_indices().find(|&(at, character)| {
        let after_dot = || text[at + 1..].starts_with(|next: char| next.is_ascii_digit());
        character.is_ascii_digit() || (character == '.' && after_dot())
    });
    let (start, _) = first?;
    let negative = is_negative(&text[..start]);
    let (whole, rest) = whole_part(&text[start..]);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => leading_digits(after),
        None => ("", rest),
    };
    let (exponent, rest) = exponent(rest);
    let is_fraction = rest.trim_start().strip_prefix('/').is_some_and(|rest| {
        rest.trim_start()
            .starts_with(|next: char| next.is_ascii_digit())
    });
    if is_fraction {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    normalise_number(&format!("{sign}{whole}.{fraction}{exponent}"))
}

/// Whether the text in front of a number ends in a minus sign. Blanks and currency may stand between;
/// behind a letter or a digit the sign is a hyphen (`GPT-2`) or a subtraction.
fn is_negative(before: &str) -> bool {
    let before = before.trim_end_matches(|c: char| c.is_whitespace() || "$€£".contains(c));
    let minus = ['-', '\u{2212}', '\u{2013}', '\u{FF0D}'];
    before
        .strip_suffix(minus)
        .is_some_and(|before| !before.trim_end().ends_with(char::is_alphanumeric))
}

/// The digits before the decimal point without separators, and what follows. A comma separates
/// thousands only between one to three digits and groups of exactly three; otherwise it ends the number.
fn whole_part(text: &str) -> (String, &str) {
    let (digits, mut rest) = leading_digits(text);
    let mut whole = digits.to_owned();
    if (1..=3).contains(&digits.len()) {
        while let Some(after) = rest.strip_prefix(',') {
            let (group, behind) = leading_digits(after);
            if group.len() != 3 {
                break;
            }
            whole.push_str(group);
            rest = behind;
        }
    }
    (whole, rest)
}

/// The exponent behind a number as written, empty when there is none, and what follows.
fn exponent(text: &str) -> (&str, &str) {
    let Some(after) = text.strip_prefix(['e', 'E']) else {
        return ("", text);
    };
    let unsigned = after.strip_prefix(['-', '+']).unwrap_or(after);
    let (digits, rest) = leading_digits(unsigned);
    if digits.is_empty() {
        return ("", text);
    }
    text.split_at(text.len() - rest.len())
}

fn leading_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_spelling() {
        let table = [
            ("18", "18"),
            ("18.", "18"),
            (" 18 dollars.", "18"),
            ("1,234", "1234"),
            ("-3", "-3"),
            ("- 3", "-3"),
            ("\u{2212}3", "-3"),
            ("$5.00", "5"),
            ("-$5", "-5"),
            ("$-5.50", "-5.5"),
            (".5", "0.5"),
            ("-.50", "-0.5"),
            ("1e6", "1000000"),
            ("1.5E+2", "150"),
            ("25e-3", "0.025"),
            ("1e", "1"),
            ("2 eggs", "2"),
            ("2eggs", "2"),
            ("50%", "50"),
            ("007", "7"),
            ("0", "0"),
            ("-0", "0"),
            ("-0.00", "0"),
            ("0.10", "0.1"),
            ("100", "100"),
            ("1,2", "1"),
            ("1,234,567.890", "1234567.89"),
            ("12,34", "12"),
            ("1234,567", "1234"),
            ("3, 4 or 5", "3"),
            ("1,000,50", "1000"),
            ("x = 5-3", "5"),
            ("GPT-2", "2"),
            ("5 - 3", "5"),
            ("is: -7", "-7"),
            ("3.14.15", "3.14"),
            ("...4", "0.4"),
            ("the end. 4", "4"),
            ("km/h 60", "60"),
            ("60/hour", "60"),
            ("£1,000", "1000"),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            ("0e400", "0"),
        ];
        for (text, expected) in table {
            assert_eq!(
                normalise(text, AnswerKind::Number).as_deref(),
                Some(expected),
                "{text}"
            );
            assert!(matches(text, expected, AnswerKind::Number), "{text}");
        }
        for text in [
            "",
            "none",
            "-",
            "$",
            ".",
            "1/2",
            "3 / 4 is wrong: 1/2",
            "1e401",
            "1e99999999999999999999",
        ] {
            assert_eq!(normalise(text, AnswerKind::Number), None, "{text}");
        }
    }

    #[test]
    fn rounding_makes_no_answers_equal() {
        // Equal as f64.
        assert!(!matches(
            "9007199254740993",
            "9007199254740992",
            AnswerKind::Number
        ));
        assert!(!matches("0.1", "0.1000000000000000055", AnswerKind::Number));
        assert!(!matches("", "", AnswerKind::Number));
    }

    #[test]
    fn words_and_phrases_have_one_spelling() {
        let table = [
            (AnswerKind::YesNo, " Yes, because 1 < 2", Some("yes")),
            (AnswerKind::YesNo, ": TRUE.", Some("yes")),
            (AnswerKind::YesNo, "False", Some("no")),
            (AnswerKind::YesNo, "no", Some("no")),
            (AnswerKind::YesNo, "not true", None),
            (AnswerKind::YesNo, "nothing", None),
            (AnswerKind::YesNo, "", None),
            (
                AnswerKind::Choice,
                " Alex  is a\tBOMPUS. ",
                Some("alex is a bompus"),
            ),
            (AnswerKind::Choice, "\n B\nC", Some("b")),
            (AnswerKind::Choice, "etc..", Some("etc.")),
            (AnswerKind::Choice, " . ", None),
            (AnswerKind::Choice, " \n ", None),
        ];
        for (kind, text, expected) in table {
            assert_eq!(normalise(text, kind).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_last_marker_counts() {
        let table = [
            ("<<3+5=8>> #### 8", "####", Some("8")),
            ("#### 8 no wait #### 9", "####", Some("9")),
            ("#### 8 ####", "####", None),
            ("the answer is 8", "####", None),
            ("8", "####", None),
            ("", "####", None),
            ("so 8", "", Some("8")),
        ];
        for (text, marker, expected) in table {
            assert_eq!(
                extract(text, marker, AnswerKind::Number).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
