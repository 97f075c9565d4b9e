//! Scores, costs and times of a method that answers from a script.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sesqui_dataset::encode::PositionLayout;
use sesqui_eval::{
    Evaluation, EvaluationConfig, EvaluationError, Method, Response, Responses, Task,
    TokenDecoding, evaluate, time,
};
use sesqui_model::{Family, ModelConfig, Transformer};
use sesqui_reason::token_exit::Drafts;
use sesqui_reason::{Decoding, Prompt, PromptError, TokenExit};
use sesqui_shortcut::SlotTrace;

use crate::support::{Exercises, FAMILIES, plain, shape};

/// Finds each row's problem by its question and says what the script says.
struct Script<'a> {
    exercises: &'a Exercises,
    replies: Vec<String>,
    /// Numbers of the problems of every call.
    calls: RefCell<Vec<Vec<usize>>>,
    /// Number of a call that takes a thousand times as long.
    slow: Cell<Option<usize>>,
}

impl<'a> Script<'a> {
    fn new(exercises: &'a Exercises, reply: impl Fn(usize, &str) -> String) -> Self {
        let answers = exercises
            .problems
            .iter()
            .map(|problem| problem.answer.as_str());
        let replies = answers
            .enumerate()
            .map(|(index, answer)| reply(index, answer))
            .collect();
        Self {
            exercises,
            replies,
            calls: RefCell::default(),
            slow: Cell::default(),
        }
    }
}

impl Method for Script<'_> {
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        let mut asked = Vec::new();
        for row in 0..prompt.batch {
            let cells = row * prompt.seq..(row + 1) * prompt.seq;
            let question: Vec<u32> = cells
                .filter(|&cell| prompt.real[cell])
                .map(|cell| prompt.ids[cell] as u32)
                .collect();
            let encoded = &self.exercises.encoded;
            asked.push(
                encoded
                    .iter()
                    .position(|problem| problem.question == question)
                    .unwrap(),
            );
        }
        let rows = asked
            .iter()
            .map(|&problem| Response {
                tokens: self
                    .exercises
                    .tokenizer
                    .encode(&self.replies[problem])
                    .unwrap(),
                latent_steps: problem % 3,
                layer_calls: 10 * problem,
                slots: vec![SlotTrace::default(); problem % 3],
                flops: 1e6 * problem as f64,
                reason_flops: 1e5 * problem as f64,
                probe_layer_calls: problem,
                probe_flops: 1e4 * problem as f64,
                drafts: Drafts {
                    drafted: 2 * problem,
                    accepted: problem,
                },
            })
            .collect();
        let slow = self.slow.get() == Some(self.calls.borrow().len());
        let factor = if slow { 1_000 } else { 1 };
        let sum: u64 = asked.iter().map(|&problem| problem as u64).sum();
        let times = |each: u64| Duration::from_millis(factor * each * sum);
        let responses = Responses {
            rows,
            prefill: times(1),
            reasoning: times(20),
            answer: times(300),
        };
        self.calls.borrow_mut().push(asked);
        Ok(responses)
    }
}

fn no_timing() -> EvaluationConfig {
    EvaluationConfig {
        timing_questions: 0,
        ..EvaluationConfig::default()
    }
}

fn run(method: &dyn Method, task: Task<'_>, config: &EvaluationConfig) -> Evaluation {
    evaluate(method, task, config, &mut |_| ()).unwrap()
}

fn ten() -> Exercises {
    let exercises = Exercises::new(10);
    let mut questions: Vec<&Vec<u32>> = exercises.encoded.iter().map(|p| &p.question).collect();
    questions.sort();
    questions.dedup();
    assert_eq!(
        questions.len(),
        10,
        "the script tells problems apart by their questions"
    );
    exercises
}

/// A wrong answer to everything: answers are one digit.
fn wrong(answer: &str) -> String {
    format!("<<1+1=2>>####{answer}9")
}

#[test]
fn right_answers_are_counted() {
    let exercises = ten();
    let script = Script::new(&exercises, |index, answer| match index {
        0 => format!("####{answer}"),
        1 => format!("<<9-9=0>>####{answer}"),
        2 => format!("####7####{answer}"),
        3 => format!("####0{answer};7"),
        4 => answer.to_owned(),
        5 => "####".to_owned(),
        6 => String::new(),
        7 => format!("####{answer}####"),
        _ => wrong(answer),
    });
    let config = EvaluationConfig {
        batch_size: 4,
        ..no_timing()
    };
    let mut done = Vec::new();
    let found = evaluate(&script, exercises.task(), &config, &mut |n| done.push(n)).unwrap();
    assert_eq!(done, [4, 8, 10]);
    assert_eq!(
        *script.calls.borrow(),
        [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]
    );
    let correct: Vec<bool> = found.rows.iter().map(|row| row.correct).collect();
    assert_eq!(
        correct,
        [
            true, true, true, true, false, false, false, false, false, false
        ]
    );
    assert_eq!((found.correct(), found.accuracy()), (4, 0.4));
    for (index, row) in found.rows.iter().enumerate() {
        let problem = &exercises.problems[index];
        assert_eq!((&row.id, &row.question), (&problem.id, &problem.question));
        assert_eq!(
            (&row.answer, &row.generated),
            (&problem.answer, &script.replies[index])
        );
    }
    assert_eq!(found.rows[5].predicted, None);
    assert_eq!(
        found.rows[8].predicted,
        Some(format!("{}9", exercises.problems[8].answer))
    );
    // Wilson (1927) at 4 of 10, worked out by hand.
    let (low, high) = found.interval();
    assert!(
        (low - 0.168_18).abs() < 1e-5 && (high - 0.687_33).abs() < 1e-5,
        "{low} {high}"
    );
    assert_eq!(found.timing.questions, 0);
    assert_eq!(found.timing.total_ms(), 0.0);
}

#[test]
fn costs_are_means_over_questions() {
    let exercises = ten();
    let script = Script::new(&exercises, |index, answer| {
        format!("{}####{answer}", "<<1+1=2>>".repeat(index % 2))
    });
    let found = run(&script, exercises.task(), &no_timing());
    assert_eq!(found.accuracy(), 1.0);
    // `####` and a digit; `<<`, five characters and `>>` for every other question.
    assert_eq!(found.mean(|row| row.tokens as f64), 2.0 + 7.0 / 2.0);
    assert_eq!(found.mean(|row| row.latent_steps as f64), 0.9);
    assert_eq!(found.mean(|row| row.layer_calls as f64), 45.0);
    assert_eq!(found.mean(|row| row.flops), 4.5e6);
    assert_eq!(found.mean(|row| row.reason_flops), 4.5e5);
    assert_eq!(found.rows[5].slots, [[0, 0]; 2]);
}

#[test]
fn scores_do_not_depend_on_the_batch_size() {
    let exercises = ten();
    let script = Script::new(&exercises, |index, answer| match index % 3 {
        0 => wrong(answer),
        _ => format!("####{answer}"),
    });
    let expected = run(&script, exercises.task(), &no_timing());
    for batch_size in [1, 3, 10, 50] {
        let config = EvaluationConfig {
            batch_size,
            ..no_timing()
        };
        assert_eq!(run(&script, exercises.task(), &config), expected);
    }
}

#[test]
fn nothing_asked_is_nothing_scored() {
    let exercises = ten();
    let script = Script::new(&exercises, |_, answer| wrong(answer));
    let task = Task {
        problems: &[],
        encoded: &[],
        ..exercises.task()
    };
    let found = run(&script, task, &EvaluationConfig::default());
    assert_eq!((found.accuracy(), found.interval()), (0.0, (0.0, 1.0)));
    assert_eq!(found.mean(|row| row.flops), 0.0);
    assert!(script.calls.borrow().is_empty());
}

#[test]
fn timed_questions_are_spread_over_the_task() {
    let exercises = ten();
    let table: [(usize, usize, usize, &[&[usize]]); 6] = [
        // timed, together, warm-up, what is asked after the score
        // Warm-up is spread too, in its own number of calls.
        (5, 1, 2, &[&[0], &[5], &[0], &[2], &[4], &[6], &[8]]),
        // More than half of them: not simply the first ones.
        (6, 1, 0, &[&[0], &[1], &[3], &[5], &[6], &[8]]),
        (3, 1, 1, &[&[0], &[0], &[3], &[6]]),
        (
            99,
            1,
            0,
            &[&[0], &[1], &[2], &[3], &[4], &[5], &[6], &[7], &[8], &[9]],
        ),
        (4, 2, 3, &[&[0, 1], &[5, 6], &[0, 1], &[5, 6]]),
        // As many as there are, in threes that do not come out even: nobody is left out.
        (10, 3, 0, &[&[0, 1, 2], &[2, 3, 4], &[5, 6, 7], &[7, 8, 9]]),
    ];
    for (timing_questions, timing_batch_size, warm_up_questions, asked) in table {
        let config = EvaluationConfig {
            timing_questions,
            timing_batch_size,
            warm_up_questions,
            timing_rounds: 1,
            ..EvaluationConfig::default()
        };
        let script = Script::new(&exercises, |_, answer| format!("####{answer}"));
        let mut done = Vec::new();
        let found = evaluate(&script, exercises.task(), &config, &mut |n| done.push(n));
        let found = found.unwrap().timing;
        let what = format!("{timing_questions} timed, {timing_batch_size} together");
        assert_eq!(script.calls.borrow()[1..], *asked, "{what}");
        // Progress goes on through all of it.
        let heard: Vec<usize> = asked.iter().map(|rows| rows.len()).collect();
        let heard = (0..=heard.len()).map(|calls| 10 + heard[..calls].iter().sum::<usize>());
        assert_eq!(done, heard.collect::<Vec<_>>(), "{what}");
        assert_eq!(done.last(), Some(&config.work(10)), "{what}");
        // The script takes as many milliseconds as the problem's number says.
        let warm_up = warm_up_questions.div_ceil(timing_batch_size);
        let timed: Vec<usize> = asked[warm_up..].concat();
        let mean = timed.iter().sum::<usize>() as f64 / timed.len() as f64;
        assert_eq!(
            (found.batch_size, found.questions),
            (timing_batch_size, timed.len())
        );
        for (found, expected) in [
            (found.prefill_ms, mean),
            (found.reason_ms, 20.0 * mean),
            (found.answer_ms, 300.0 * mean),
            (found.total_ms(), 321.0 * mean),
        ] {
            assert!(
                (found - expected).abs() < 1e-9 * expected,
                "{what}: {found}, {expected}"
            );
        }
    }
}

/// A question that once takes a thousand times as long changes nothing.
#[test]
fn a_timed_question_takes_its_median() {
    let exercises = ten();
    let script = Script::new(&exercises, |_, answer| format!("####{answer}"));
    script.slow.set(Some(13));
    let config = EvaluationConfig {
        timing_questions: 5,
        warm_up_questions: 1,
        timing_rounds: 3,
        ..EvaluationConfig::default()
    };
    let found = run(&script, exercises.task(), &config).timing;
    assert_eq!((found.questions, found.rounds), (5, 3));
    // Scoring in one batch, warm-up, then three rounds over 0, 2, 4, 6, 8: it was the last 2.
    let calls = script.calls.borrow();
    assert_eq!(calls.len(), 1 + 1 + 3 * 5);
    assert_eq!(calls[13], [2]);
    assert!((found.prefill_ms - 4.0).abs() < 1e-9, "{found:?}");
}

/// A script, and a note of who was asked what in a log that several share.
struct Noted<'a> {
    script: Script<'a>,
    name: char,
    log: &'a RefCell<Vec<(char, Vec<usize>)>>,
}

impl Method for Noted<'_> {
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        let responses = self.script.respond(prompt);
        let asked = self.script.calls.borrow().last().cloned();
        self.log
            .borrow_mut()
            .push((self.name, asked.unwrap_or_default()));
        responses
    }
}

/// Each question goes to all methods before the next one, in every round, and each gets its own times.
#[test]
fn methods_are_timed_in_turn() {
    let exercises = ten();
    let log = RefCell::default();
    let noted = |name| Noted {
        script: Script::new(&exercises, |_, answer| format!("####{answer}")),
        name,
        log: &log,
    };
    let (one, two) = (noted('a'), noted('b'));
    // The second answer of `b` to question 5; of `a` to none.
    two.script.slow.set(Some(2));
    let config = EvaluationConfig {
        timing_questions: 2,
        warm_up_questions: 1,
        timing_rounds: 2,
        ..EvaluationConfig::default()
    };
    let mut done = Vec::new();
    let heard = &mut |n| done.push(n);
    let found = time(&[&one, &two], exercises.task(), &config, heard).unwrap();
    let order: String = log.borrow().iter().map(|(name, _)| *name).collect();
    assert_eq!(order, "ab".repeat(5));
    let asked: Vec<usize> = log
        .borrow()
        .iter()
        .map(|(_, asked)| asked[0])
        .step_by(2)
        .collect();
    assert_eq!(asked, [0, 0, 5, 0, 5]);
    assert_eq!(done.last(), Some(&(2 * config.timing_work(10))));
    assert_eq!(found.len(), 2);
    assert!((found[0].prefill_ms - 2.5).abs() < 1e-9, "{found:?}");
    // The median of two is their mean: (1,000 + 1) / 2 times 5 ms over two questions.
    assert!((found[1].prefill_ms - 1_251.25).abs() < 1e-9, "{found:?}");
    assert!(
        time(&[], exercises.task(), &config, &mut |_| ())
            .unwrap()
            .is_empty()
    );
}

/// Operations counted one multiplication and addition at a time: each matrix element once per
/// position that passes through it, each pair of query and key once per head dimension, twice.
fn counted(model: &Transformer, prompt: usize, generated: usize) -> u64 {
    #[derive(Default)]
    struct Matrices {
        path: Vec<String>,
        in_layers: u64,
    }
    impl ModuleVisitor for Matrices {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 2 && self.path[0] == "layers" {
                self.in_layers += param.val().shape().num_elements() as u64;
            }
        }
    }
    let mut matrices = Matrices::default();
    model.visit(&mut matrices);
    let config = model.config();
    let mut operations = 0;
    for position in 0..prompt + generated {
        operations += 2 * matrices.in_layers;
        for _layer in 0..config.layers {
            for _head in 0..config.heads {
                for _key in 0..=position {
                    operations += 2 * 2 * (config.d_model / config.heads) as u64;
                }
            }
        }
    }
    // One choice after the prompt, one after every generated token.
    for _choice in 0..=generated {
        operations += 2 * (config.d_model * model.vocabulary()) as u64;
    }
    operations
}

#[test]
fn token_decoding_counts_what_it_runs() {
    let exercises = Exercises::new(7);
    let tokenizer = &exercises.tokenizer;
    for family in FAMILIES {
        let shape = ModelConfig {
            d_feed_forward: 24,
            ..shape(family, 64)
        };
        let model = Transformer::new(&shape, tokenizer.vocab_size(), 9, &plain()).unwrap();
        // An untrained model never writes the marker; any token that it does write will do.
        let decoding = Decoding {
            stop: tokenizer.eos_id(),
            max_tokens: 9,
        };
        let unmarked = TokenDecoding {
            model: &model,
            device: &plain(),
            decoding,
            exit: TokenExit::Never,
            answer_start: &[],
        };
        let everybody = unmarked
            .respond(&exercises.task().prompt(0..7).unwrap())
            .unwrap();
        let longest = everybody
            .rows
            .iter()
            .map(|row| &row.tokens)
            .max_by_key(|tokens| tokens.len())
            .unwrap();
        let marker = [longest[longest.len() / 2]];
        let method = TokenDecoding {
            answer_start: &marker,
            ..unmarked
        };
        let found = run(&method, exercises.task(), &EvaluationConfig::default());
        let mut opened = 0;
        for (index, row) in found.rows.iter().enumerate() {
            let prompt = exercises.task().prompt(index..index + 1).unwrap();
            let response = &method.respond(&prompt).unwrap().rows[0];
            let expected = counted(&model, prompt.seq, response.tokens.len());
            assert_eq!(row.flops, expected as f64, "{family:?} {index}");
            let before = response.tokens.iter().position(|token| *token == marker[0]);
            opened += usize::from(before.is_some());
            assert_eq!(row.layer_calls, 2 * before.unwrap_or(response.tokens.len()));
            assert_eq!((row.tokens, row.latent_steps), (response.tokens.len(), 0));
        }
        assert!(opened > 0, "no answer was opened");
        let timing = found.timing;
        assert_eq!((timing.questions, timing.batch_size), (7, 1));
        assert!(timing.prefill_ms > 0.0 && timing.reason_ms > 0.0 && timing.answer_ms > 0.0);
    }
}

#[test]
fn questions_that_do_not_fit_the_model_name_the_task() {
    let exercises = Exercises::new(3);
    let vocabulary = exercises.tokenizer.vocab_size();
    let model = Transformer::new(&shape(Family::Gpt2, 8), vocabulary, 1, &plain()).unwrap();
    let decoding = Decoding {
        stop: 1,
        max_tokens: 4,
    };
    let method = TokenDecoding {
        model: &model,
        device: &plain(),
        decoding,
        exit: TokenExit::Never,
        answer_start: &[],
    };
    let fail = |task| evaluate(&method, task, &no_timing(), &mut |_| ()).unwrap_err();
    let message = fail(exercises.task()).to_string();
    assert!(message.starts_with("arith-dag, train: "), "{message}");
    assert!(
        message.contains("outside 0..8") || message.contains("outside 0..9"),
        "{message}"
    );
    let layout = PositionLayout::Aligned { question_length: 4 };
    let error = fail(Task {
        layout,
        ..exercises.task()
    });
    assert!(matches!(error, EvaluationError::Data(_)), "{error}");
}
