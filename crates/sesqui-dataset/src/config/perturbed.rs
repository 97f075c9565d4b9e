//! Settings of `gsm8k-perturbed`.

use std::mem::discriminant;

use serde::{Deserialize, Serialize};

use crate::generate::perturb::Bounds;

/// Settings of `gsm8k-perturbed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gsm8kPerturbed {
    /// Templates of the training rows: those with the smallest hash of the original question among
    /// the training templates within the bounds below that have variants for an even share of the
    /// rows; 0: all, whatever they have.
    pub templates: usize,
    /// Fewest steps of a template, of whichever split.
    pub min_steps: usize,
    /// Most steps of a template, of whichever split; 0: no bound.
    pub max_steps: usize,
    /// Greatest drawn number and greatest result of any operation, of whichever split; 0: no bound.
    /// Templates whose original numbers are greater are left out. Constants of a template, such as
    /// 100 in a percentage, are not drawn and may be greater.
    pub greatest_number: u64,
    /// Distinct training problems; without bounds 800,000 can be had.
    pub train_rows: usize,
    /// Distinct validation problems.
    pub validation_rows: usize,
    /// Where validation problems come from.
    pub validation: PerturbedValidation,
    /// The test sets, each kind at most once.
    pub tests: Vec<PerturbedTest>,
}

impl Default for Gsm8kPerturbed {
    fn default() -> Self {
        Self {
            templates: 0,
            min_steps: 1,
            max_steps: 0,
            greatest_number: 0,
            train_rows: 100_000,
            validation_rows: 500,
            validation: PerturbedValidation::HeldoutTemplates,
            tests: vec![
                PerturbedTest::PerturbedHeldout { rows: 500 },
                PerturbedTest::Gsm8kTest { most_rows: None },
            ],
        }
    }
}

impl Gsm8kPerturbed {
    /// What cannot work, with the key and what to do; `None` if nothing.
    pub fn problem(&self) -> Option<String> {
        if self.max_steps > 0 && self.max_steps < self.min_steps {
            return Some(format!(
                "data.max_steps is {}, less than data.min_steps, {}; raise it, or set it to 0 for no \
                 bound",
                self.max_steps, self.min_steps
            ));
        }
        let doubled = self.tests.iter().enumerate().any(|(place, test)| {
            self.tests[..place]
                .iter()
                .any(|other| discriminant(other) == discriminant(test))
        });
        if doubled {
            return Some("data.tests names a kind of test twice; name each once".into());
        }
        let tested = self
            .tests
            .iter()
            .any(|test| matches!(test, PerturbedTest::PerturbedSeen { .. }));
        let seen = tested || self.validation == PerturbedValidation::SeenTemplates;
        (seen && self.train_rows == 0).then(|| {
            "data.train_rows is 0, so there are no seen templates; set it, or leave out \
             perturbed-seen and validation = \"seen-templates\""
                .into()
        })
    }

    /// Rows from the templates of the training split, tests and validation included.
    pub fn trained_rows(&self) -> usize {
        let tests = self.tests.iter().map(|test| match test {
            PerturbedTest::PerturbedSeen { rows } => *rows,
            PerturbedTest::PerturbedHeldout { .. }
            | PerturbedTest::Gsm8kTest { .. }
            | PerturbedTest::GsmHard { .. }
            | PerturbedTest::Svamp { .. }
            | PerturbedTest::Multiarith { .. } => 0,
        });
        let validation = match self.validation {
            PerturbedValidation::SeenTemplates => self.validation_rows,
            PerturbedValidation::HeldoutTemplates => 0,
        };
        self.train_rows + tests.sum::<usize>() + validation
    }

    /// What every template has to keep to.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            min_steps: self.min_steps,
            max_steps: (self.max_steps > 0).then_some(self.max_steps),
            greatest_number: (self.greatest_number > 0).then_some(self.greatest_number),
        }
    }
}

/// Where validation problems of `gsm8k-perturbed` come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PerturbedValidation {
    /// Templates without any training or test row.
    #[default]
    HeldoutTemplates,
    /// The templates of the training rows, with other numbers, as in
    /// [`PerturbedTest::PerturbedSeen`].
    SeenTemplates,
}

/// A test set of `gsm8k-perturbed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum PerturbedTest {
    /// The texts of the training rows, with combinations of numbers that neither training nor
    /// validation has. It measures how a model computes with new numbers in known texts; how it
    /// reads a new text it does not measure.
    PerturbedSeen {
        /// Distinct problems.
        #[serde(default = "test_rows")]
        rows: usize,
    },
    /// Perturbed problems from templates without any training or validation row.
    PerturbedHeldout {
        /// Distinct problems.
        #[serde(default = "test_rows")]
        rows: usize,
    },
    /// The published GSM8K test set with equations only as steps, whatever the bounds.
    Gsm8kTest {
        /// Most rows, the first ones; all 1,319 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most_rows: Option<usize>,
    },
    /// GSM-Hard: the questions of that test set with larger numbers. Without steps, like the two below.
    GsmHard {
        /// Most rows, the first ones; all 1,319 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most_rows: Option<usize>,
    },
    /// SVAMP: one-step problems in several wordings.
    Svamp {
        /// Most rows, the first ones; all 1,000 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most_rows: Option<usize>,
    },
    /// The MultiArith subset of MAWPS: problems of several operations.
    Multiarith {
        /// Most rows, the first ones; all 600 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most_rows: Option<usize>,
    },
}

fn test_rows() -> usize {
    500
}
