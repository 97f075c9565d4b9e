//! Questions that a model has positions for.

use anyhow::Result;
use sesqui_dataset::Problem;
use sesqui_dataset::batch::TooLong;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_distill::LatentConfig;
use sesqui_eval::Task;

use crate::misuse::Misuse;
use crate::reasoning::ReasoningConfig;
use crate::trained::{LatentSettings, Trained};

/// How many positions a stage's model has.
#[derive(Clone, Debug)]
pub struct ContextLength {
    /// Positions.
    pub positions: usize,
    /// What to do where they are too few.
    pub remedy: String,
}

impl ContextLength {
    /// As `[model]` says.
    pub fn new(positions: usize) -> Self {
        Self {
            positions,
            remedy: "raise model.context".to_owned(),
        }
    }
}

/// The questions of a task that fit a model, and how many do not.
pub struct Fitting {
    /// What fits, in the given order.
    pub problems: Vec<Problem>,
    /// Its encoding, one for one.
    pub encoded: Vec<EncodedProblem>,
    /// What does not, each with the reason.
    pub skipped: Vec<String>,
}

impl Fitting {
    /// Sorts out the questions of `task` that do not fit into `room`.
    ///
    /// # Errors
    ///
    /// Under [`TooLong::Fail`] for the first that does not fit; when none does.
    pub fn new(task: &Task<'_>, room: &Room<'_>, too_long: TooLong) -> Result<Self> {
        let mut fitting = Self {
            problems: Vec::new(),
            encoded: Vec::new(),
            skipped: Vec::new(),
        };
        for (problem, encoded) in task.problems.iter().zip(task.encoded) {
            match (room.misfit(encoded, task.layout), too_long) {
                (None, _) => {
                    fitting.problems.push(problem.clone());
                    fitting.encoded.push(encoded.clone());
                }
                (Some(reason), TooLong::Skip) => {
                    fitting.skipped.push(format!("{}: {reason}", problem.id));
                }
                (Some(reason), TooLong::Fail) => {
                    return Err(Misuse(format!(
                        "{} {}, question {}: {reason}; --too-long skip leaves such questions out \
                         and counts them",
                        task.dataset, task.split, problem.id
                    ))
                    .into());
                }
            }
        }
        if fitting.problems.is_empty() && !task.problems.is_empty() {
            return Err(Misuse(format!(
                "{} {}: none of {} questions fits the model; the first: {}",
                task.dataset,
                task.split,
                task.problems.len(),
                fitting.skipped[0]
            ))
            .into());
        }
        Ok(fitting)
    }

    /// The task with the questions that fit.
    pub fn task<'a>(&'a self, whole: &Task<'a>) -> Task<'a> {
        Task {
            problems: &self.problems,
            encoded: &self.encoded,
            ..*whole
        }
    }
}

/// The positions of a model, and what it takes them for after a question.
#[derive(Clone, Debug)]
pub struct Room<'a> {
    context: usize,
    takes: Takes<'a>,
}

#[derive(Clone, Debug)]
enum Takes<'a> {
    /// At least one token.
    Token,
    /// Latent steps and the whole answer.
    Latents {
        latents: &'a LatentConfig,
        steps: usize,
        /// Who wants so many; nobody where they are as many as trained.
        said: Option<String>,
    },
}

/// How many latent steps are asked for, and where.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// `--latent-steps`: the most of them.
    Flag(usize),
    /// `reasoning.latent_steps`, 0 for as many as trained.
    Setting(usize),
}

impl Asked {
    /// What the flag says, if it is given, else what the run is configured for.
    pub fn new(flag: Option<usize>, reasoning: &ReasoningConfig) -> Self {
        flag.map_or(Self::Setting(reasoning.latent_steps.into()), Self::Flag)
    }
}

impl<'a> Room<'a> {
    /// Of a trained model; what is `asked` concerns latent ones.
    pub fn new(model: &'a Trained, asked: Asked) -> Self {
        let context = model.backbone().config().context;
        match model {
            Trained::Tokens(_) => Self {
                context,
                takes: Takes::Token,
            },
            Trained::Latent(latent) => Self::latent(&latent.settings, context, asked),
        }
    }

    /// Of a latent model of `context` positions.
    pub fn latent(settings: &'a LatentSettings, context: usize, asked: Asked) -> Self {
        let kept = settings.kept();
        let (steps, said) = match asked {
            Asked::Setting(0) => (settings.count, None),
            Asked::Setting(steps) | Asked::Flag(steps) if kept > 0 && steps <= kept => (kept, None),
            Asked::Setting(steps) => {
                let said = format!("with reasoning.latent_steps = {steps}");
                (steps, Some(said))
            }
            Asked::Flag(steps) => (steps, Some(format!("with --latent-steps {steps}"))),
        };
        Self {
            context,
            takes: Takes::Latents {
                latents: &settings.latents,
                steps,
                said,
            },
        }
    }

    /// Whether it takes what the model was trained with, rather than what somebody asked for.
    pub fn as_trained(&self) -> bool {
        !matches!(self.takes, Takes::Latents { said: Some(_), .. })
    }

    /// Why a question does not fit; `None` where it does.
    pub fn misfit(&self, problem: &EncodedProblem, layout: PositionLayout) -> Option<String> {
        let (tokens, context) = (problem.question.len(), self.context);
        let start = match layout {
            PositionLayout::Aligned { question_length } if tokens > question_length => {
                return Some(format!(
                    "it has {tokens} tokens, but this model's reasoning always starts at position \
                     {question_length}, after the longest question it was trained with"
                ));
            }
            PositionLayout::Aligned { question_length } => question_length,
            PositionLayout::Contiguous => tokens,
        };
        match &self.takes {
            Takes::Token => (start >= context).then(|| {
                format!(
                    "it takes {start} of the model's {context} positions and leaves none for an \
                     answer"
                )
            }),
            Takes::Latents {
                latents,
                steps,
                said,
            } => {
                let start = i32::try_from(start).unwrap_or(i32::MAX);
                let end = latents.end_position(start, *steps, problem);
                usize::try_from(end)
                    .is_ok_and(|end| end > context)
                    .then(|| {
                        let said = match said {
                            Some(said) => said,
                            None => &format!("with {steps} latent steps, as trained,"),
                        };
                        format!("{said} it needs {end} positions, the model has {context}")
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sesqui_dataset::AnswerKind;
    use sesqui_dataset::encode::TextFormat;
    use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
    use sesqui_distill::latent::Padding;
    use sesqui_model::latent::SlotPositions;
    use sesqui_shortcut::{KeyValueRule, Landing};

    use super::*;

    const ALIGNED: PositionLayout = PositionLayout::Aligned { question_length: 6 };

    /// An answer of two tokens after a marker of one.
    fn question(tokens: usize) -> EncodedProblem {
        EncodedProblem {
            id: "q".to_owned(),
            question: vec![1; tokens],
            question_end: 1,
            steps: Vec::new(),
            answer_start: vec![3],
            answer: vec![2, 4],
            critical: Vec::new(),
        }
    }

    fn settings(padding: Padding) -> LatentSettings {
        LatentSettings {
            latents: LatentConfig {
                padding,
                positions: SlotPositions::Strided {
                    offset: 5,
                    stride: 7,
                },
                ..LatentConfig::default()
            },
            count: 3,
            key_values: KeyValueRule::default(),
            landing: Landing::default(),
            entry_position: None,
            shortcuts: None,
            continuation: Default::default(),
            order: sesqui_model::LatentOrder::Sequential,
            growth: Vec::new(),
        }
    }

    #[test]
    fn a_question_must_leave_a_position_and_respect_the_alignment() {
        let cases = [
            (PositionLayout::Contiguous, 7, None),
            (
                PositionLayout::Contiguous,
                8,
                Some("takes 8 of the model's 8"),
            ),
            (ALIGNED, 6, None),
            (ALIGNED, 7, Some("always starts at position 6")),
        ];
        let room = |context| Room {
            context,
            takes: Takes::Token,
        };
        for (layout, tokens, expected) in cases {
            let found = room(8).misfit(&question(tokens), layout);
            match expected {
                None => assert_eq!(found, None),
                Some(part) => assert!(found.unwrap().contains(part), "{layout:?} {tokens}"),
            }
        }
        assert!(room(6).misfit(&question(1), ALIGNED).is_some());
    }

    /// The answer stands `7 n` positions after the question and ends three later; who wants `n` is
    /// named.
    #[test]
    fn latent_steps_and_answer_must_fit_and_who_wants_them_is_named() {
        let padded = Padding::Answer;
        let cases = [
            (
                padded,
                Asked::Setting(0),
                30,
                "with 3 latent steps, as trained,",
            ),
            // Fewer steps leave the answer where it is.
            (
                padded,
                Asked::Flag(1),
                30,
                "with 3 latent steps, as trained,",
            ),
            (padded, Asked::Flag(4), 37, "with --latent-steps 4"),
            (
                padded,
                Asked::Setting(5),
                44,
                "with reasoning.latent_steps = 5",
            ),
            (
                Padding::None,
                Asked::Setting(0),
                30,
                "with 3 latent steps, as trained,",
            ),
            (Padding::None, Asked::Flag(1), 16, "with --latent-steps 1"),
        ];
        for (padding, asked, needed, said) in cases {
            let settings = settings(padding);
            let misfit =
                |context| Room::latent(&settings, context, asked).misfit(&question(4), ALIGNED);
            assert_eq!(misfit(needed), None, "{padding:?}, {asked:?}");
            let few = needed - 1;
            let expected = format!("{said} it needs {needed} positions, the model has {few}");
            assert_eq!(misfit(few), Some(expected), "{padding:?}, {asked:?}");
        }
        // No number of steps overflows.
        let settings = settings(padded);
        let room = Room::latent(&settings, 128, Asked::Flag(usize::MAX));
        assert!(room.misfit(&question(4), ALIGNED).is_some());
    }

    #[test]
    fn questions_whose_latent_steps_do_not_fit_are_left_out_and_named() {
        let format = TextFormat::default();
        let config = TokenizerConfig::default();
        let tokenizer = Tokenizer::from_config(&config, Path::new(""), format.markers()).unwrap();
        let encoded = [question(4), question(9), question(5)];
        let problem = |id: &str| Problem {
            id: id.to_owned(),
            question: String::new(),
            steps: Vec::new(),
            answer: String::new(),
            answer_kind: AnswerKind::Choice,
        };
        let task = Task {
            dataset: "d",
            split: "test",
            problems: &["short", "long", "middle"].map(problem),
            encoded: &encoded,
            tokenizer: &tokenizer,
            format: &format,
            layout: PositionLayout::Contiguous,
        };
        let settings = settings(Padding::Answer);
        let sort = |context, too_long| {
            let room = Room::latent(&settings, context, Asked::Setting(0));
            Fitting::new(&task, &room, too_long)
        };
        let fitting = sort(29, TooLong::Skip).unwrap();
        let kept = fitting.problems.iter().map(|problem| problem.id.as_str());
        assert_eq!(kept.collect::<Vec<_>>(), ["short", "middle"]);
        assert_eq!(fitting.encoded, [question(4), question(5)]);
        let reason = "with 3 latent steps, as trained, it needs 33 positions, the model has 29";
        assert_eq!(fitting.skipped, [format!("long: {reason}")]);
        for (context, too_long) in [(29, TooLong::Fail), (27, TooLong::Skip)] {
            let error = sort(context, too_long).map(|_| ()).unwrap_err();
            assert!(error.is::<Misuse>(), "{error}");
        }
    }
}
