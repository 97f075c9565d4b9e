//! From text to token ids: the pieces of a problem, and the training sequence made of them.
//!
//! Every piece (question, each step, answer marker, answer) is tokenized on its own. A latent method
//! replaces whole steps, reads states at step ends and starts decoding right after the question; if
//! merges could cross a piece boundary, removing or replacing a step would change the tokens of its
//! neighbours, and student and teacher would no longer agree on which token is which. The price is
//! that the ids can differ from those of the joined text where a merge would have crossed.

use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::problem::Problem;
use crate::tokenizer::Tokenizer;

/// The markers between the pieces of a problem. They are plain text for the tokenizer, spaces
/// included: the pieces are joined with nothing in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextFormat {
    /// Text after the question; its tokens belong to the question.
    pub question_end: String,
    /// Text before each step; its tokens belong to the step.
    pub step_start: String,
    /// Text after each step; its tokens belong to the step.
    pub step_end: String,
    /// Text before the answer.
    pub answer_start: String,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self {
            question_end: "||".into(),
            step_start: String::new(),
            step_end: String::new(),
            answer_start: "####".into(),
        }
    }
}

impl TextFormat {
    /// The marker texts, to be given to a trained tokenizer together with the training texts.
    pub fn markers(&self) -> [&str; 4] {
        [
            &self.question_end,
            &self.step_start,
            &self.step_end,
            &self.answer_start,
        ]
    }
}

/// A problem as token ids, piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedProblem {
    /// The problem's id, for error messages and samples.
    pub id: String,
    /// The question with its end marker; never empty.
    pub question: Vec<u32>,
    /// How many of the last question tokens are the end marker.
    pub question_end: usize,
    /// One entry per reasoning step, markers included; no entry is empty.
    pub steps: Vec<Vec<u32>>,
    /// The marker before the answer; may be empty.
    pub answer_start: Vec<u32>,
    /// The answer, ending with the end-of-sequence token.
    pub answer: Vec<u32>,
    /// For each step whether it is critical, `None` where nobody labelled it.
    pub critical: Vec<Option<bool>>,
}

impl EncodedProblem {
    /// Number of tokens of [`sequence`] under `supervision`.
    pub fn length(&self, supervision: Supervision) -> usize {
        let steps = match supervision {
            Supervision::ChainOfThought => self.steps.iter().map(Vec::len).sum(),
            Supervision::AnswerOnly => 0,
        };
        self.question.len() + steps + self.answer_start.len() + self.answer.len()
    }

    /// The problem with the steps that `keep` names by their 0-based number, and with their labels.
    #[must_use]
    pub fn with_steps(&self, keep: impl Fn(usize) -> bool) -> Self {
        fn kept<T: Clone>(all: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
            let numbered = all.iter().enumerate();
            numbered
                .filter(|(number, _)| keep(*number))
                .map(|(_, one)| one.clone())
                .collect()
        }
        Self {
            steps: kept(&self.steps, &keep),
            critical: kept(&self.critical, &keep),
            ..self.clone()
        }
    }

    /// Number of tokens that stand for text outside the tokenizer's vocabulary. Not zero only for
    /// vocabularies without a byte fallback, for example a character that the training split lacks.
    pub fn unknown_tokens(&self, tokenizer: &Tokenizer) -> usize {
        let Some(unknown) = tokenizer.unknown_id() else {
            return 0;
        };
        let pieces = [&self.question, &self.answer_start, &self.answer];
        pieces
            .into_iter()
            .chain(&self.steps)
            .flatten()
            .filter(|id| **id == unknown)
            .count()
    }
}

/// What a training sequence contains and where its loss lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervision {
    /// Question, steps, answer; loss on steps, answer marker and answer.
    #[default]
    ChainOfThought,
    /// Question, answer; loss on answer marker and answer.
    AnswerOnly,
}

/// How position ids are given out, as a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// 0, 1, 2, ... without gaps.
    #[default]
    Contiguous,
    /// Reasoning starts at the same position for every problem of the corpus.
    Aligned,
}

impl Positions {
    /// Settles the setting for a corpus. Give the problems of all splits: the longest question
    /// decides where reasoning starts.
    pub fn resolve<'a>(
        self,
        problems: impl IntoIterator<Item = &'a EncodedProblem>,
    ) -> PositionLayout {
        match self {
            Self::Contiguous => PositionLayout::Contiguous,
            Self::Aligned => PositionLayout::Aligned {
                question_length: problems
                    .into_iter()
                    .map(|problem| problem.question.len())
                    .max()
                    .unwrap_or(0),
            },
        }
    }
}

/// How position ids are given out, settled for one corpus; recorded with a trained model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum PositionLayout {
    /// 0, 1, 2, ... without gaps.
    Contiguous,
    /// The question counts from 0, its end marker jumps so that its last token always has position
    /// `question_length - 1`, and reasoning starts at `question_length`. A model with learned
    /// absolute positions then sees step k at the same place whatever the question's length.
    Aligned {
        /// The longest question of the corpus in tokens, end marker included.
        question_length: usize,
    },
}

impl PositionLayout {
    /// Position id of the first token after the question.
    ///
    /// # Errors
    /// The question is longer than the aligned length.
    pub fn reasoning_start(&self, problem: &EncodedProblem) -> Result<u32, DatasetError> {
        let tokens = problem.question.len();
        match *self {
            Self::Contiguous => narrow(tokens),
            Self::Aligned { question_length } if tokens <= question_length => {
                narrow(question_length)
            }
            Self::Aligned { question_length } => Err(DatasetError::Config(format!(
                "problem {}: the question has {tokens} tokens, but reasoning is aligned to start \
                 at position {question_length}; resolve the aligned positions over every split, or \
                 use positions = \"contiguous\"",
                problem.id
            ))),
        }
    }

    /// Position ids of the question's tokens.
    ///
    /// # Errors
    /// The question is longer than the aligned length.
    pub fn question_positions(&self, problem: &EncodedProblem) -> Result<Vec<u32>, DatasetError> {
        let start = self.reasoning_start(problem)?;
        let tokens = narrow(problem.question.len())?;
        // Without an end marker the last token of the question takes its part.
        let jumping = narrow(problem.question_end.max(1))?.min(tokens);
        Ok((0..tokens - jumping)
            .chain(start - jumping..start)
            .collect())
    }
}

/// Which piece of a problem a token belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The question or its end marker.
    Question,
    /// The step with this 0-based number.
    Step(u16),
    /// The marker before the answer.
    AnswerStart,
    /// The answer or the end-of-sequence token.
    Answer,
}

/// A whole training sequence; the three lists have one entry per token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position ids, strictly increasing.
    pub positions: Vec<u32>,
    /// The piece each token belongs to.
    pub segments: Vec<Segment>,
}

impl Sequence {
    /// Weight in the loss of predicting token `index`: 0 for the question, 1 for what follows it.
    pub fn loss_weight(&self, index: usize) -> f32 {
        match self.segments.get(index) {
            None | Some(Segment::Question) => 0.0,
            Some(Segment::Step(_) | Segment::AnswerStart | Segment::Answer) => 1.0,
        }
    }
}

/// Tokenizes one problem, piece by piece.
///
/// # Errors
/// The question or a step has no tokens, there are more than 65,536 steps, or the tokenizer fails.
pub fn encode_problem(
    tokenizer: &Tokenizer,
    format: &TextFormat,
    problem: &Problem,
) -> Result<EncodedProblem, DatasetError> {
    encode_with(&Markers::new(tokenizer, format)?, tokenizer, problem)
}

/// Tokenizes many problems, in order.
///
/// # Errors
/// As [`encode_problem`], for the first problem that fails.
pub fn encode_all(
    tokenizer: &Tokenizer,
    format: &TextFormat,
    problems: &[Problem],
) -> Result<Vec<EncodedProblem>, DatasetError> {
    let markers = Markers::new(tokenizer, format)?;
    problems
        .iter()
        .map(|problem| encode_with(&markers, tokenizer, problem))
        .collect()
}

/// Joins the pieces of a problem into a training sequence.
///
/// # Errors
/// The question is longer than an aligned layout allows.
pub fn sequence(
    problem: &EncodedProblem,
    supervision: Supervision,
    layout: PositionLayout,
) -> Result<Sequence, DatasetError> {
    let length = problem.length(supervision);
    let mut ids = Vec::with_capacity(length);
    let mut segments = Vec::with_capacity(length);
    let mut push = |piece: &[u32], segment: Segment| {
        ids.extend_from_slice(piece);
        segments.resize(ids.len(), segment);
    };
    push(&problem.question, Segment::Question);
    if supervision == Supervision::ChainOfThought {
        for (number, step) in (0u16..).zip(&problem.steps) {
            push(step, Segment::Step(number));
        }
    }
    push(&problem.answer_start, Segment::AnswerStart);
    push(&problem.answer, Segment::Answer);

    let mut positions = layout.question_positions(problem)?;
    let start = layout.reasoning_start(problem)?;
    let rest = narrow(length - problem.question.len())?;
    positions.extend(start..start + rest);
    Ok(Sequence {
        ids,
        positions,
        segments,
    })
}

/// The marker ids, the same for every problem. Step markers stay text: they are tokenized with
/// their step, as one piece.
struct Markers<'a> {
    question_end: Vec<u32>,
    step_start: &'a str,
    step_end: &'a str,
    answer_start: Vec<u32>,
}

impl<'a> Markers<'a> {
    fn new(tokenizer: &Tokenizer, format: &'a TextFormat) -> Result<Self, DatasetError> {
        Ok(Self {
            question_end: tokenizer.encode(&format.question_end)?,
            step_start: &format.step_start,
            step_end: &format.step_end,
            answer_start: tokenizer.encode(&format.answer_start)?,
        })
    }
}

fn encode_with(
    markers: &Markers<'_>,
    tokenizer: &Tokenizer,
    problem: &Problem,
) -> Result<EncodedProblem, DatasetError> {
    let empty =
        |what: &str| DatasetError::Config(format!("problem {}: {what} has no tokens", problem.id));
    if problem.steps.len() > usize::from(u16::MAX) + 1 {
        return Err(DatasetError::Config(format!(
            "problem {}: {} steps are more than the {} that can be told apart",
            problem.id,
            problem.steps.len(),
            usize::from(u16::MAX) + 1
        )));
    }
    let mut question = tokenizer.encode(&problem.question)?;
    question.extend_from_slice(&markers.question_end);
    if question.is_empty() {
        return Err(empty("the question"));
    }
    let mut steps = Vec::with_capacity(problem.steps.len());
    let mut critical = Vec::with_capacity(problem.steps.len());
    for (number, step) in problem.steps.iter().enumerate() {
        let ids = if markers.step_start.is_empty() && markers.step_end.is_empty() {
            tokenizer.encode(&step.text)?
        } else {
            tokenizer.encode(&[markers.step_start, &step.text, markers.step_end].concat())?
        };
        if ids.is_empty() {
            return Err(empty(&format!("step {}", number + 1)));
        }
        steps.push(ids);
        critical.push(step.criticality.map(|label| label.critical));
    }
    let mut answer = tokenizer.encode(&problem.answer)?;
    answer.push(tokenizer.eos_id());
    Ok(EncodedProblem {
        id: problem.id.clone(),
        question,
        question_end: markers.question_end.len(),
        steps,
        answer_start: markers.answer_start.clone(),
        answer,
        critical,
    })
}

/// Lengths and positions fit 32 bits for any text that fits a model; say so instead of wrapping.
fn narrow(count: usize) -> Result<u32, DatasetError> {
    u32::try_from(count)
        .map_err(|_| DatasetError::Config(format!("{count} tokens do not fit 32-bit positions")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::problem::{AnswerKind, Criticality, LabelSource, Step};
    use crate::tokenizer::TokenizerConfig;

    fn problem(id: &str, question: &str, steps: &[(&str, Option<bool>)], answer: &str) -> Problem {
        let step = |(text, critical): &(&str, Option<bool>)| Step {
            text: (*text).into(),
            criticality: critical.map(|critical| Criticality {
                critical,
                source: LabelSource::GroundTruth,
            }),
        };
        Problem {
            id: id.into(),
            question: question.into(),
            steps: steps.iter().map(step).collect(),
            answer: answer.into(),
            answer_kind: AnswerKind::Number,
        }
    }

    /// The recipe's example with three statements, and a shorter one.
    fn problems() -> [Problem; 2] {
        let steps = [
            ("<<3+5=8>>", Some(false)),
            ("<<7*2=4>>", Some(false)),
            ("<<8-4=4>>", Some(true)),
        ];
        [
            problem("dag/0", "a=3+5;b=7*2;c=a-b;", &steps, "4"),
            problem("dag/1", "a=1+2;", &[("<<1+2=3>>", None)], "3"),
        ]
    }

    fn tokenizer() -> Tokenizer {
        let texts = ["abc=+-*;0123456789"];
        Tokenizer::from_config(&TokenizerConfig::default(), Path::new(""), texts).unwrap()
    }

    fn shown(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        ids.iter()
            .map(|id| tokenizer.token_text(*id).unwrap())
            .collect()
    }

    #[test]
    fn pieces_are_those_of_the_recipe() {
        let tokenizer = tokenizer();
        let encoded = encode_problem(&tokenizer, &TextFormat::default(), &problems()[0]).unwrap();
        assert_eq!(shown(&tokenizer, &encoded.question), "a=3+5;b=7*2;c=a-b;||");
        assert_eq!((encoded.question.len(), encoded.question_end), (19, 1));
        assert!(encoded.steps.iter().all(|step| step.len() == 7));
        assert_eq!(shown(&tokenizer, &encoded.answer_start), "####");
        assert_eq!(shown(&tokenizer, &encoded.answer), "4<eos>");
        assert_eq!(encoded.critical, [Some(false), Some(false), Some(true)]);
        assert_eq!(encoded.unknown_tokens(&tokenizer), 0);
    }

    #[test]
    fn markers_join_their_piece() {
        let format: TextFormat =
            toml::from_str("question_end = \"\"\nstep_start = \"*\"\nstep_end = \"?;\"").unwrap();
        let tokenizer = tokenizer();
        let encoded = encode_all(&tokenizer, &format, &problems()).unwrap();
        assert_eq!(shown(&tokenizer, &encoded[1].steps[0]), "*<<1+2=3>><unk>;");
        assert_eq!(encoded[1].unknown_tokens(&tokenizer), 1);
        assert_eq!((encoded[1].question.len(), encoded[1].question_end), (6, 0));
        // Without a marker the last question token takes its place.
        let layout = Positions::Aligned.resolve(&encoded);
        let positions = layout.question_positions(&encoded[1]).unwrap();
        assert_eq!(positions, [0, 1, 2, 3, 4, 17]);
    }

    #[test]
    fn pieces_without_tokens_are_refused() {
        let format = TextFormat {
            question_end: String::new(),
            ..TextFormat::default()
        };
        for (broken, place) in [
            (problem("a/7", "", &[], "1"), "a/7: the question"),
            (
                problem("a/8", "a", &[("b", None), ("", None)], "1"),
                "a/8: step 2",
            ),
        ] {
            let error = encode_problem(&tokenizer(), &format, &broken).unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
        }
    }

    #[test]
    fn sequences_have_pieces_positions_and_weights() {
        use Segment::{Answer, AnswerStart, Question, Step};
        let encoded = encode_all(&tokenizer(), &TextFormat::default(), &problems()).unwrap();
        let short = &encoded[1];
        let layout = Positions::Aligned.resolve(&encoded);
        assert_eq!(
            layout,
            PositionLayout::Aligned {
                question_length: 19
            }
        );

        let thought = sequence(short, Supervision::ChainOfThought, layout).unwrap();
        let question = [0, 1, 2, 3, 4, 5, 18];
        assert_eq!(thought.positions[..7], question);
        assert!(thought.positions[7..].iter().copied().eq(19..29));
        let expected = [
            &[Question; 7][..],
            &[Step(0); 7],
            &[AnswerStart],
            &[Answer; 2],
        ]
        .concat();
        assert_eq!(thought.segments, expected);
        let weights: Vec<_> = (0..17).map(|index| thought.loss_weight(index)).collect();
        assert_eq!(weights, [[0.0; 7].as_slice(), &[1.0; 10]].concat());
        assert_eq!(thought.ids.len(), short.length(Supervision::ChainOfThought));

        let answer = sequence(short, Supervision::AnswerOnly, layout).unwrap();
        assert_eq!(answer.positions, [&question[..], &[19, 20, 21]].concat());
        assert_eq!(answer.segments[7..], [AnswerStart, Answer, Answer]);
        assert_eq!(answer.ids.len(), short.length(Supervision::AnswerOnly));

        // The longest question has no gap: aligned and contiguous agree.
        let aligned = sequence(&encoded[0], Supervision::ChainOfThought, layout).unwrap();
        let contiguous = PositionLayout::Contiguous;
        let plain = sequence(&encoded[0], Supervision::ChainOfThought, contiguous).unwrap();
        assert_eq!(aligned, plain);
        assert!(plain.positions.iter().copied().eq(0..19 + 21 + 3));
    }

    #[test]
    fn a_question_longer_than_the_aligned_length_is_refused() {
        let encoded = encode_all(&tokenizer(), &TextFormat::default(), &problems()).unwrap();
        let layout = Positions::Aligned.resolve(&encoded[1..]);
        let error = sequence(&encoded[0], Supervision::AnswerOnly, layout).unwrap_err();
        assert!(error.to_string().contains("dag/0"), "{error}");
    }
}
