//! How many steps are critical, by whose word, and how far two words agree.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use sesqui_dataset::label::by_operand_match;
use sesqui_dataset::{LabelSource, Problem};

/// Counts over the steps of some problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Problems counted.
    pub problems: usize,
    /// `(critical, all)` steps by the source of their label.
    pub by_source: BTreeMap<LabelSource, (usize, usize)>,
    /// Steps without a label.
    pub unlabelled: usize,
    /// How operand match does where the truth is known.
    pub agreement: Agreement,
}

/// Operand match against ground truth, over the steps that have both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Both say critical.
    pub both_critical: usize,
    /// Both say independent.
    pub both_independent: usize,
    /// Operand match says critical, the truth independent.
    pub false_critical: usize,
    /// Operand match says independent, the truth critical.
    pub false_independent: usize,
}

impl Agreement {
    /// Steps compared.
    pub fn steps(&self) -> usize {
        self.both_critical + self.both_independent + self.false_critical + self.false_independent
    }
}

impl Labels {
    /// Counts the labels of `problems`.
    pub fn count(problems: &[Problem]) -> Self {
        let mut labels = Self {
            problems: problems.len(),
            ..Self::default()
        };
        for problem in problems {
            let mut guessed = problem.steps.clone();
            by_operand_match(&mut guessed);
            for (step, guess) in problem.steps.iter().zip(&guessed) {
                let Some(label) = step.criticality else {
                    labels.unlabelled += 1;
                    continue;
                };
                let (critical, all) = labels.by_source.entry(label.source).or_default();
                *critical += usize::from(label.critical);
                *all += 1;
                if let (LabelSource::GroundTruth, Some(guess)) = (label.source, guess.criticality) {
                    let agreement = &mut labels.agreement;
                    *match (guess.critical, label.critical) {
                        (true, true) => &mut agreement.both_critical,
                        (false, false) => &mut agreement.both_independent,
                        (true, false) => &mut agreement.false_critical,
                        (false, true) => &mut agreement.false_independent,
                    } += 1;
                }
            }
        }
        labels
    }

    /// The counts as a table, and the agreement in sentences.
    pub fn describe(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["label from", "steps", "critical", "critical %"]);
        for (source, &(critical, all)) in &self.by_source {
            table.add_row([
                name(*source).to_owned(),
                all.to_string(),
                critical.to_string(),
                percent(critical, all),
            ]);
        }
        table.add_row(["nobody", &self.unlabelled.to_string(), "", ""]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n");
        let found = &self.agreement;
        if found.steps() > 0 {
            text.push_str(&format!(
                "operand match agrees with ground truth on {} % of {} steps:\n  {} independent \
                 steps called critical, {} critical ones called independent",
                percent(found.both_critical + found.both_independent, found.steps()),
                found.steps(),
                found.false_critical,
                found.false_independent,
            ));
        } else {
            text.push_str("no step has both ground truth and operand match to compare");
        }
        text
    }
}

fn name(source: LabelSource) -> &'static str {
    match source {
        LabelSource::GroundTruth => "ground truth",
        LabelSource::OperandMatch => "operand match",
        LabelSource::References => "references",
    }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1}", 100.0 * part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use sesqui_dataset::{AnswerKind, Criticality, Step};

    use super::*;

    #[test]
    fn agreement_is_counted_where_both_labels_exist() {
        use LabelSource::{GroundTruth, References};
        let step = |text: &str, label: Option<(bool, LabelSource)>| Step {
            text: text.to_owned(),
            criticality: label.map(|(critical, source)| Criticality { critical, source }),
        };
        let problem = Problem {
            id: "1".to_owned(),
            question: "?".to_owned(),
            steps: vec![
                step("<<1+1=2>>", Some((false, GroundTruth))),
                // Equal by chance to an earlier result.
                step("<<2*3=6>>", Some((false, GroundTruth))),
                step("<<6-2=4>>", Some((true, GroundTruth))),
                step("<<9-9=0>>", Some((true, GroundTruth))),
                step("no equation", Some((true, GroundTruth))),
                step("<<4+4=8>>", Some((true, References))),
                step("<<8+8=6>>", None),
            ],
            answer: "8".to_owned(),
            answer_kind: AnswerKind::Number,
        };
        let labels = Labels::count(&[problem]);
        let agreement = Agreement {
            both_critical: 1,
            both_independent: 1,
            false_critical: 1,
            false_independent: 1,
        };
        let by_source = [(GroundTruth, (3, 5)), (References, (1, 1))];
        let expected = Labels {
            problems: 1,
            by_source: by_source.into(),
            unlabelled: 1,
            agreement,
        };
        assert_eq!(labels, expected);
        assert!(labels.describe().contains("50.0 % of 4 steps"));
    }
}
