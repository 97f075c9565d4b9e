//! Numbers as text: one spelling per value, no rounding.

/// Largest power of ten that an exponent may shift by; more is refused instead of written out.
const MAX_EXPONENT: i32 = 400;

/// The plain decimal spelling of `text`, or `None` where it is not one number.
///
/// Accepted: surrounding blanks, a sign (`+`, `-`, or the minus sign U+2212) and a dollar sign in
/// either order, thousands commas in groups of three, leading zeros, a missing digit before or after
/// the decimal point, and an exponent up to ±400 as JSON writers print it (`1e6`). The result has an
/// optional `-`, no `+`, no leading or trailing zeros and never an exponent; zero is `0`. It works on
/// the digits as text, so an integer of any length keeps every digit.
///
/// ```text
/// "$1,234.50" -> "1234.5"    "-.5" -> "-0.5"    "3e2" -> "300"    "1,23" -> None
/// ```
pub fn normalise_number(text: &str) -> Option<String> {
    let mut rest = text.trim();
    let mut negative = false;
    let (mut signed, mut priced) = (false, false);
    loop {
        let mut characters = rest.chars();
        match characters.next()? {
            sign @ ('+' | '-' | '\u{2212}') if !signed => {
                signed = true;
                negative = sign != '+';
            }
            '$' if !priced => priced = true,
            _ => break,
        }
        rest = characters.as_str();
    }

    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().ok()?;
            if exponent.abs() > MAX_EXPONENT {
                return None;
            }
            (mantissa, exponent)
        }
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = without_commas(whole)?;
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(&whole) || !digits_only(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }

    let digits = format!("{whole}{fraction}");
    let point = i64::try_from(whole.len()).ok()? + i64::from(exponent);
    let (whole, fraction) = match usize::try_from(point) {
        Ok(point) if point >= digits.len() => (
            format!("{digits}{}", "0".repeat(point - digits.len())),
            String::new(),
        ),
        Ok(point) => (digits[..point].to_owned(), digits[point..].to_owned()),
        Err(_) => {
            let zeros = usize::try_from(point.unsigned_abs()).ok()?;
            (String::new(), format!("{}{digits}", "0".repeat(zeros)))
        }
    };
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let sign = if negative && !(whole.is_empty() && fraction.is_empty()) {
        "-"
    } else {
        ""
    };
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

/// Takes thousands commas out, or `None` where the groups do not have three digits each.
fn without_commas(whole: &str) -> Option<String> {
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let mut joined = first.to_owned();
    for group in groups {
        if group.len() != 3 || !(1..=3).contains(&first.len()) {
            return None;
        }
        joined.push_str(group);
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::normalise_number;

    #[test]
    fn numbers_have_one_spelling() {
        let cases: &[(&str, Option<&str>)] = &[
            ("18", Some("18")),
            (" 1,234 ", Some("1234")),
            ("12,345,678.90", Some("12345678.9")),
            ("-3", Some("-3")),
            ("\u{2212}3.0", Some("-3")),
            ("+7", Some("7")),
            ("$60", Some("60")),
            ("-$60.50", Some("-60.5")),
            ("$-60", Some("-60")),
            ("007.500", Some("7.5")),
            (".5", Some("0.5")),
            ("5.", Some("5")),
            ("-0.00", Some("0")),
            ("1e6", Some("1000000")),
            ("1.25E+1", Some("12.5")),
            ("-25e-4", Some("-0.0025")),
            ("0e9", Some("0")),
            ("9007199254740993", Some("9007199254740993")),
            (
                "123456789012345678901234567890.10",
                Some("123456789012345678901234567890.1"),
            ),
            ("", None),
            (".", None),
            ("-", None),
            ("--3", None),
            ("$$3", None),
            ("1,23", None),
            ("1234,567", None),
            (",123", None),
            ("1.2.3", None),
            ("1.234,5", None),
            ("3/4", None),
            ("12a", None),
            ("e5", None),
            ("1e", None),
            ("1e401", None),
            ("1e999999999999", None),
            ("١٢", None),
            ("inf", None),
            ("1 000", None),
        ];
        for (text, expected) in cases {
            assert_eq!(normalise_number(text).as_deref(), *expected, "{text:?}");
            if let Some(number) = expected {
                assert_eq!(
                    normalise_number(number).as_deref(),
                    Some(*number),
                    "stable: {text:?}"
                );
            }
        }
        assert_eq!(cases.len(), 38);
    }
}
