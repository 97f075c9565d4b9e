//! Criticality labels of chains of thought that did not come from a generator.
//!
//! Both rules follow System-1.5 Reasoning (arXiv 2505.18962, section 2.2): a step that derives from
//! earlier steps is critical, an independent one is not. The paper asks a language model for these
//! labels; the rules here are deterministic and need nothing but the steps.

use std::collections::BTreeSet;

use crate::problem::{Criticality, LabelSource, Step};
use crate::read::normalise_number;

/// A calculator annotation `<<expression=value>>` as GSM8K (arXiv 2110.14168) writes its steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// The left side, for example `2*(3+.5)`.
    pub expression: String,
    /// The right side, for example `7`; nearly always a decimal number, but not guaranteed to be one.
    pub value: String,
}

impl Equation {
    /// Parses a whole `<<expression=value>>`; the last `=` separates.
    ///
    /// `None` without the brackets, with a bracket inside, or with an empty side. Both sides are trimmed.
    pub fn parse(text: &str) -> Option<Self> {
        let inner = text.trim().strip_prefix("<<")?.strip_suffix(">>")?;
        let (expression, value) = inner.rsplit_once('=')?;
        let (expression, value) = (expression.trim(), value.trim());
        if expression.is_empty() || value.is_empty() || inner.contains(['<', '>']) {
            return None;
        }
        Some(Self {
            expression: expression.to_owned(),
            value: value.to_owned(),
        })
    }

    /// The numbers of the expression from left to right, as [`normalise_number`] spells them.
    ///
    /// A minus sign belongs to its number where no operand stands before it: `5-3` holds 5 and 3,
    /// `5*-3` and `(-3)` hold -3.
    pub fn operands(&self) -> Vec<String> {
        numbers_in(&self.expression)
            .filter_map(|(before, number)| {
                let number = normalise_number(number)?;
                let negative = before
                    .strip_suffix(['-', '\u{2212}'])
                    .is_some_and(|before| {
                        let before = before.trim_end();
                        before.is_empty() || before.ends_with(['+', '-', '*', '/', '('])
                    });
                if negative {
                    normalise_number(&format!("-{number}"))
                } else {
                    Some(number)
                }
            })
            .collect()
    }
}

/// Finds every `<<expression=value>>` in running text, in order.
///
/// # Errors
/// A message when a bracket is left open or what it encloses is no equation.
pub fn equations_in(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<<") {
        let end = rest[start..].find(">>").ok_or("a `<<` has no `>>`")? + start + ">>".len();
        let found = &rest[start..end];
        if Equation::parse(found).is_none() {
            return Err(format!("`{found}` is not `<<expression=value>>`"));
        }
        steps.push(Step {
            text: found.to_owned(),
            criticality: None,
        });
        rest = &rest[end..];
    }
    Ok(steps)
}

/// Labels equation steps: critical if an operand equals the value of an earlier step.
///
/// Numbers are compared by value (`.5` is `0.5`), exactly. Steps that are no [`Equation`] keep no
/// label. The rule cannot tell a result from a constant that happens to be equal: in `<<4/2=2>>
/// <<3*2=6>>` the second step is called critical even if its 2 comes from the question.
pub fn by_operand_match(steps: &mut [Step]) {
    let mut results = BTreeSet::new();
    for step in steps {
        let Some(equation) = Equation::parse(&step.text) else {
            step.criticality = None;
            continue;
        };
        let critical = equation
            .operands()
            .iter()
            .any(|operand| results.contains(operand));
        step.criticality = Some(Criticality {
            critical,
            source: LabelSource::OperandMatch,
        });
        results.extend(normalise_number(&equation.value));
    }
}

/// Labels steps that cite others as `#k`: critical if they cite any; the first step is `#first`.
///
/// # Errors
/// A message when a step cites itself, a later step or one that does not exist.
pub fn by_references(steps: &mut [Step], first: usize) -> Result<(), String> {
    for (index, step) in steps.iter_mut().enumerate() {
        let mut critical = false;
        for cited in references_in(&step.text) {
            let known = cited
                .parse()
                .is_ok_and(|cited| (first..first + index).contains(&cited));
            if !known {
                let own = first + index;
                return Err(format!(
                    "step #{own} cites #{cited}, which is not an earlier step"
                ));
            }
            critical = true;
        }
        step.criticality = Some(Criticality {
            critical,
            source: LabelSource::References,
        });
    }
    Ok(())
}

/// Every unsigned number of an expression, with the text before it.
fn numbers_in(expression: &str) -> impl Iterator<Item = (&str, &str)> {
    let of_a_number = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    let mut position = 0;
    std::iter::from_fn(move || {
        let start = position + expression[position..].find(of_a_number)?;
        let rest = &expression[start..];
        let number = &rest[..rest.find(|c| !of_a_number(c)).unwrap_or(rest.len())];
        position = start + number.len();
        Some((expression[..start].trim_end(), number))
    })
}

/// The digits of every `#k` in a step.
fn references_in(text: &str) -> impl Iterator<Item = &str> {
    text.split('#').skip(1).filter_map(|rest| {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        (end > 0).then(|| &rest[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(texts: &[&str]) -> Vec<Step> {
        texts
            .iter()
            .map(|&text| Step {
                text: text.to_owned(),
                criticality: None,
            })
            .collect()
    }

    fn labels(steps: &[Step]) -> Vec<Option<bool>> {
        steps
            .iter()
            .map(|step| step.criticality.map(|label| label.critical))
            .collect()
    }

    #[test]
    fn equations_give_their_operands() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("<<3+5=8>>", "8", &["3", "5"]),
            ("<<5-3=2>>", "2", &["5", "3"]),
            ("<<-5*-3=15>>", "15", &["-5", "-3"]),
            ("<<2*(-3+.50)=-5>>", "-5", &["2", "-3", "0.5"]),
            ("<<(1)-3=-2>>", "-2", &["1", "3"]),
            ("<<1,200/12.=100>>", "100", &["1200", "12"]),
            ("<<20%*50=10>>", "10", &["20", "50"]),
            ("<<3/4=3/4>>", "3/4", &["3", "4"]),
        ];
        for (text, value, operands) in cases {
            let equation = Equation::parse(text).unwrap();
            assert_eq!(equation.value, *value, "{text}");
            assert_eq!(equation.operands(), *operands, "{text}");
        }
        for text in [
            "3+5=8",
            "<<3+5>>",
            "<<=8>>",
            "<<3+5=>>",
            "<<1=1>> <<2=2>>",
            "",
        ] {
            assert_eq!(Equation::parse(text), None, "{text}");
        }
    }

    #[test]
    fn operand_match_compares_values_with_earlier_results() {
        let mut chain = steps(&[
            "<<1/2=.5>>",
            "<<3*4=12>>",
            "<<12*0.50=6>>",
            "so 6",
            "<<6+12=18>>",
        ]);
        by_operand_match(&mut chain);
        assert_eq!(
            labels(&chain),
            [Some(false), Some(false), Some(true), None, Some(true)]
        );
        // A step's own result does not count, nor does a fraction without a decimal spelling.
        let mut chain = steps(&[
            "<<3*1=3>>",
            "<<3/4=3/4>>",
            "<<5-8=-3>>",
            "<<10-3=7>>",
            "<<-3+7=4>>",
        ]);
        by_operand_match(&mut chain[1..]);
        assert_eq!(
            labels(&chain),
            [None, Some(false), Some(false), Some(false), Some(true)]
        );
    }

    #[test]
    fn references_must_point_back() {
        let mut chain = steps(&["Who is it?", "When was #1 born?", "Which #!?"]);
        by_references(&mut chain, 1).unwrap();
        assert_eq!(labels(&chain), [Some(false), Some(true), Some(false)]);
        let mut chain = steps(&["add(n0,n1)", "power(#0,const_2)"]);
        by_references(&mut chain, 0).unwrap();
        assert_eq!(labels(&chain), [Some(false), Some(true)]);
        for (texts, first) in [
            (["a #1", "b"], 1),
            (["a", "b #0"], 1),
            (["a", "b #1"], 0),
            (["a", "b #99999999999999999999"], 0),
        ] {
            assert!(
                by_references(&mut steps(&texts), first).is_err(),
                "{texts:?} from {first}"
            );
        }
    }

    #[test]
    fn equations_are_found_in_text() {
        let found = equations_in("He has 2+3 = <<2+3=5>>5 and <<5*2=10>>10.").unwrap();
        assert_eq!(found, steps(&["<<2+3=5>>", "<<5*2=10>>"]));
        for text in ["<<2+3=5", "<<2+3>>", "<<1=1 <<2=2>>"] {
            assert!(equations_in(text).is_err(), "{text}");
        }
    }
}
