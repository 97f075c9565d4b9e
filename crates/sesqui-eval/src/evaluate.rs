//! Accuracy over a task, and time per question.
//!
//! Accuracy is measured in batches; time apart from it, at batch 1 unless told otherwise, after
//! warm-up questions whose time is thrown away. Methods to be compared are timed question by question in
//! turn: what slows the machine for a second slows them all.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sesqui_dataset::DatasetError;
use sesqui_reason::PromptError;
use sesqui_shortcut::SlotTrace;

use crate::answer;
use crate::method::{Method, Responses};
use crate::statistics::wilson_95;
use crate::task::Task;

/// How to evaluate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Questions decoded together when accuracy is measured.
    pub batch_size: usize,
    /// Greatest number of generated tokens per question.
    pub max_tokens: usize,
    /// Questions of each test set; 0 means all.
    pub questions: usize,
    /// Questions of the validation set used while training; 0 means all.
    pub validation_questions: usize,
    /// Questions timed.
    pub timing_questions: usize,
    /// Questions answered before timing starts.
    pub warm_up_questions: usize,
    /// Questions answered together when time is measured.
    pub timing_batch_size: usize,
    /// How often each timed question is answered; the median of its times counts.
    pub timing_rounds: usize,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            batch_size: 100,
            max_tokens: 64,
            questions: 0,
            validation_questions: 200,
            timing_questions: 50,
            warm_up_questions: 5,
            timing_batch_size: 1,
            timing_rounds: 5,
        }
    }
}

impl EvaluationConfig {
    /// Questions to answer in all over a task of `problems`: each for its score, some again for their
    /// time and to warm up.
    pub fn work(&self, problems: usize) -> usize {
        problems + self.timing_work(problems)
    }

    /// Of these the ones for time.
    pub fn timing_work(&self, problems: usize) -> usize {
        Plan::new(self, problems).work(self.timing_rounds)
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        [
            ("batch_size", self.batch_size),
            ("max_tokens", self.max_tokens),
            ("timing_batch_size", self.timing_batch_size),
            ("timing_rounds", self.timing_rounds),
        ]
        .into_iter()
        .find(|(_, value)| *value == 0)
        .map(|(key, _)| (key, "must be at least 1".to_owned()))
    }
}

/// One question and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuestionRow {
    /// The problem's id.
    pub id: String,
    /// The question.
    pub question: String,
    /// What was generated, as text.
    pub generated: String,
    /// The answer found in it.
    pub predicted: Option<String>,
    /// The right answer.
    pub answer: String,
    /// Whether they match.
    pub correct: bool,
    /// Tokens generated.
    pub tokens: usize,
    /// Latent steps applied.
    pub latent_steps: usize,
    /// Layer executions while reasoning.
    pub layer_calls: usize,
    /// Boundaries at which each latent step entered and left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<[usize; 2]>,
    /// Floating-point operations.
    pub flops: f64,
    /// Of these the ones inside layers while reasoning.
    #[serde(default)]
    pub reason_flops: f64,
    /// Of the layer executions those that were made to decide when to stop.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probe_layer_calls: usize,
    /// Of the operations those that went into that.
    #[serde(default, skip_serializing_if = "is_none")]
    pub probe_flops: f64,
    /// Tokens drafted by the first layers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drafted: usize,
    /// Of these the ones that the other layers accepted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub accepted: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_none(flops: &f64) -> bool {
    *flops == 0.0
}

/// Milliseconds per question: the median over rounds, the mean over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Questions answered together.
    pub batch_size: usize,
    /// Questions timed.
    pub questions: usize,
    /// How often each was answered.
    #[serde(default)]
    pub rounds: usize,
    /// The prompt.
    pub prefill_ms: f64,
    /// From the end of the prompt to the first token of the answer.
    pub reason_ms: f64,
    /// From there to the end.
    pub answer_ms: f64,
    /// Reads from the device for a batch of questions, each of which waits on a GPU.
    #[serde(default)]
    pub reads: f64,
}

impl Timing {
    /// From the prompt to the last token.
    pub fn total_ms(&self) -> f64 {
        self.prefill_ms + self.reason_ms + self.answer_ms
    }
}

/// What was measured on one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// One row per question, in task order.
    pub rows: Vec<QuestionRow>,
    /// What every latent step of every question did; empty for methods without.
    pub traces: Vec<Vec<SlotTrace>>,
    /// Time per question; all zero where no question was timed.
    pub timing: Timing,
}

/// Why a task could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A question does not fit.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// A prompt does not fit the model.
    #[error("{dataset}, {split}: {source}")]
    Prompt {
        /// The data set.
        dataset: String,
        /// The split.
        split: String,
        /// What is wrong.
        source: PromptError,
    },
}

impl Evaluation {
    /// Questions answered rightly.
    pub fn correct(&self) -> usize {
        self.rows.iter().filter(|row| row.correct).count()
    }

    /// Share of questions answered rightly, 0 where there are none.
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.rows.len().max(1) as f64
    }

    /// The 95 % Wilson interval of the accuracy.
    pub fn interval(&self) -> (f64, f64) {
        let interval = wilson_95(self.correct() as u64, self.rows.len() as u64);
        (interval.low, interval.high)
    }

    /// Mean of a quantity over questions.
    pub fn mean(&self, quantity: impl Fn(&QuestionRow) -> f64) -> f64 {
        self.rows.iter().map(quantity).sum::<f64>() / self.rows.len().max(1) as f64
    }
}

/// Answers every question of `task` in batches, then times some. `progress` hears how many questions
/// are done, of [`EvaluationConfig::work`].
///
/// # Errors
///
/// When a question fits neither layout nor model.
pub fn evaluate(
    method: &dyn Method,
    task: Task<'_>,
    config: &EvaluationConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation, EvaluationError> {
    let mut found = answer_all(method, task, config, progress)?;
    let answered = found.rows.len();
    let timings = time(&[method], task, config, &mut |done| {
        progress(answered + done);
    })?;
    found.timing = timings.into_iter().next().unwrap_or_default();
    Ok(found)
}

/// Answers every question of `task` in batches, and times none.
///
/// # Errors
///
/// When a question fits neither layout nor model.
pub fn answer_all(
    method: &dyn Method,
    task: Task<'_>,
    config: &EvaluationConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation, EvaluationError> {
    let mut rows = Vec::with_capacity(task.problems.len());
    let mut traces = Vec::with_capacity(task.problems.len());
    while rows.len() < task.problems.len() {
        let end = (rows.len() + config.batch_size).min(task.problems.len());
        let range = rows.len()..end;
        let responses = respond(method, &task, range.clone())?;
        for (index, response) in range.zip(responses.rows) {
            let problem = &task.problems[index];
            let generated = task.tokenizer.decode(&response.tokens)?;
            let predicted =
                answer::extract(&generated, &task.format.answer_start, problem.answer_kind);
            rows.push(QuestionRow {
                id: problem.id.clone(),
                question: problem.question.clone(),
                correct: predicted.as_deref().is_some_and(|found| {
                    answer::matches(found, &problem.answer, problem.answer_kind)
                }),
                generated,
                predicted,
                answer: problem.answer.clone(),
                tokens: response.tokens.len(),
                latent_steps: response.latent_steps,
                layer_calls: response.layer_calls,
                slots: response
                    .slots
                    .iter()
                    .map(|slot| [slot.enter, slot.leave])
                    .collect(),
                flops: response.flops,
                reason_flops: response.reason_flops,
                probe_layer_calls: response.probe_layer_calls,
                probe_flops: response.probe_flops,
                drafted: response.drafts.drafted,
                accepted: response.drafts.accepted,
            });
            traces.push(response.slots);
        }
        progress(rows.len());
    }
    Ok(Evaluation {
        rows,
        traces,
        timing: Timing::default(),
    })
}

/// Questions that are answered together, to warm up and then for their time.
struct Plan {
    warm_up: Vec<Range<usize>>,
    timed: Vec<Range<usize>>,
}

impl Plan {
    /// Spread over the task, so that one length or source does not stand for all: to warm up too, since
    /// another length takes other kernels and other memory. Empty where no question is timed.
    fn new(config: &EvaluationConfig, problems: usize) -> Self {
        let size = config.timing_batch_size;
        let questions = config.timing_questions.min(problems);
        let spread = |questions: usize| -> Vec<Range<usize>> {
            let batches = questions.div_ceil(size);
            (0..batches)
                .map(|index| {
                    let start = index * problems / batches;
                    start..(start + size).min(problems)
                })
                .collect()
        };
        let warm_up = match questions {
            0 => 0,
            _ => config.warm_up_questions,
        };
        Self {
            warm_up: spread(warm_up),
            timed: spread(questions),
        }
    }

    /// Questions answered, each time counted.
    fn work(&self, rounds: usize) -> usize {
        let count = |batches: &[Range<usize>]| batches.iter().map(|rows| rows.len()).sum::<usize>();
        count(&self.warm_up) + rounds * count(&self.timed)
    }
}

/// Times of `methods` on the same questions of `task`, each question answered by one method after the
/// other. `progress` hears how many answers were given, of [`EvaluationConfig::timing_work`] for each.
///
/// # Errors
///
/// When a question fits neither layout nor model.
pub fn time(
    methods: &[&dyn Method],
    task: Task<'_>,
    config: &EvaluationConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Timing>, EvaluationError> {
    let Plan { warm_up, timed } = Plan::new(config, task.problems.len());
    if timed.is_empty() {
        return Ok(vec![Timing::default(); methods.len()]);
    }
    let mut done = 0;
    let mut answer = |method: &dyn Method, rows: &Range<usize>| {
        let responses = respond(method, &task, rows.clone())?;
        done += rows.len();
        progress(done);
        Ok::<_, EvaluationError>(responses)
    };
    for rows in &warm_up {
        for method in methods {
            answer(*method, rows)?;
        }
    }
    // Round after round, so that a disturbance of the machine hits a question once at most.
    let mut times = vec![vec![[const { Vec::new() }; 3]; timed.len()]; methods.len()];
    let mut reads = vec![0; methods.len()];
    for _ in 0..config.timing_rounds {
        for (index, rows) in timed.iter().enumerate() {
            for ((method, times), reads) in methods.iter().zip(&mut times).zip(&mut reads) {
                let before = sesqui_kernels::reads();
                let responses = answer(*method, rows)?;
                *reads += sesqui_kernels::reads() - before;
                let spent = [responses.prefill, responses.reasoning, responses.answer];
                for (phase, spent) in times[index].iter_mut().zip(spent) {
                    phase.push(1e3 * spent.as_secs_f64());
                }
            }
        }
    }
    let questions: usize = timed.iter().map(|rows| rows.len()).sum();
    let batches = (timed.len() * config.timing_rounds).max(1);
    let timing = |(questions_times, reads): (&mut Vec<[Vec<f64>; 3]>, u64)| {
        let mut totals = [0.0; 3];
        for phases in questions_times {
            for (total, phase) in totals.iter_mut().zip(phases) {
                *total += median(phase);
            }
        }
        let [prefill_ms, reason_ms, answer_ms] = totals.map(|total| total / questions as f64);
        Timing {
            batch_size: config.timing_batch_size,
            questions,
            rounds: config.timing_rounds,
            prefill_ms,
            reason_ms,
            answer_ms,
            reads: reads as f64 / batches as f64,
        }
    };
    Ok(times.iter_mut().zip(reads).map(timing).collect())
}

/// The middle of `times`, or the mean of the two in the middle; 0 where there are none.
fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => times[middle],
        _ => f64::midpoint(times[middle - 1], times[middle]),
    }
}

fn respond(
    method: &dyn Method,
    task: &Task<'_>,
    rows: Range<usize>,
) -> Result<Responses, EvaluationError> {
    method
        .respond(&task.prompt(rows)?)
        .map_err(|source| prompt_error(task, source))
}

pub(crate) fn prompt_error(task: &Task<'_>, source: PromptError) -> EvaluationError {
    EvaluationError::Prompt {
        dataset: task.dataset.to_owned(),
        split: task.split.to_owned(),
        source,
    }
}
