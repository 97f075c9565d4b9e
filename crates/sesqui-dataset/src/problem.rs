//! The one schema every reader and generator produces.

use serde::{Deserialize, Serialize};

/// One question with its chain of thought and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Unique within its split, stable between runs (`<source>/<row>`).
    pub id: String,
    /// The question as text, without any separator.
    pub question: String,
    /// The chain of thought, one entry per reasoning step; may be empty.
    pub steps: Vec<Step>,
    /// The answer as text, normalised as `answer_kind` says.
    pub answer: String,
    /// How the answer is to be compared.
    pub answer_kind: AnswerKind,
}

/// One reasoning step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The step as text, for example `<<3+5=8>>`.
    pub text: String,
    /// Whether the step derives from earlier ones; `None` where nobody labelled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criticality: Option<Criticality>,
}

/// A criticality label: `critical` is `c_t = 1` of System-1.5 Reasoning (arXiv 2505.18962, section
/// 2.2), a step derived from earlier results; `c_t = 0` is an independent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criticality {
    /// True for a derived step.
    pub critical: bool,
    /// Where the label comes from.
    pub source: LabelSource,
}

/// Who says that a step is critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelSource {
    /// The generator that made the problem knows its graph.
    GroundTruth,
    /// An operand of the equation equals an earlier result.
    OperandMatch,
    /// The step cites an earlier one as `#k`.
    References,
}

/// How answers are written and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    /// A decimal number without thousands separators, `-` allowed.
    Number,
    /// `yes` or `no`.
    YesNo,
    /// A letter or a phrase out of a closed set, compared after trimming and lower-casing.
    Choice,
}
