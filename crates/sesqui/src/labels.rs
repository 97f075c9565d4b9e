//! How many steps are critical, by whose word, and how far two words agree.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use sesqui_dataset::label::by_operand_match;
use sesqui_dataset::{LabelSource, Problem, Step};
use sesqui_eval::statistics::cohen_kappa;

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

/// Two labels of the same steps, one of them questioned, over the steps that have both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Both say critical.
    pub both_critical: usize,
    /// Both say independent.
    pub both_independent: usize,
    /// The label in question says critical, the other independent.
    pub false_critical: usize,
    /// The label in question says independent, the other critical.
    pub false_independent: usize,
}

impl Agreement {
    /// Counts one step.
    pub fn add(&mut self, questioned: bool, other: bool) {
        *match (questioned, other) {
            (true, true) => &mut self.both_critical,
            (false, false) => &mut self.both_independent,
            (true, false) => &mut self.false_critical,
            (false, true) => &mut self.false_independent,
        } += 1;
    }

    /// Steps on which the two agree.
    pub fn agreed(&self) -> usize {
        self.both_critical + self.both_independent
    }

    /// Cohen's kappa; `None` where it has no value.
    pub fn kappa(&self) -> Option<f64> {
        let counts = [
            [self.both_independent, self.false_independent],
            [self.false_critical, self.both_critical],
        ];
        cohen_kappa(counts.map(|row| row.map(|count| count as u64)))
    }

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
                    labels.agreement.add(guess.critical, label.critical);
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
                percent(found.agreed(), found.steps()),
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

/// Labels of the steps of a problem that its generator knows to be true.
pub fn truth(problem: &Problem) -> Vec<Option<bool>> {
    let known = |step: &Step| {
        let label = step.criticality?;
        (label.source == LabelSource::GroundTruth).then_some(label.critical)
    };
    problem.steps.iter().map(known).collect()
}

/// Labels of the steps of a problem by a rule over their text; operand match where the generator knows
/// better.
pub fn symbolic(problem: &Problem) -> Vec<Option<bool>> {
    let mut guessed = problem.steps.clone();
    by_operand_match(&mut guessed);
    let rule = |(step, guess): (&Step, &Step)| match step.criticality {
        Some(label) if label.source != LabelSource::GroundTruth => Some(label.critical),
        _ => guess.criticality.map(|label| label.critical),
    };
    problem.steps.iter().zip(&guessed).map(rule).collect()
}

/// Agreements as a table: the label in question, the other, and their counts.
pub fn agreements(rows: &[(&str, &str, Agreement)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "label",
        "beside",
        "steps",
        "both critical",
        "only the first",
        "only the second",
        "neither",
        "agree %",
        "kappa",
    ]);
    for (questioned, other, found) in rows {
        table.add_row([
            (*questioned).to_owned(),
            (*other).to_owned(),
            found.steps().to_string(),
            found.both_critical.to_string(),
            found.false_critical.to_string(),
            found.false_independent.to_string(),
            found.both_independent.to_string(),
            percent(found.agreed(), found.steps()),
            found
                .kappa()
                .map_or("–".to_owned(), |kappa| format!("{kappa:.2}")),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
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
    use sesqui_dataset::{AnswerKind, Criticality};

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
