//! Which state of the teacher stands for which latent step, and where tokens and steps stand.

use std::path::Path;

use sesqui_dataset::encode::{EncodedProblem, PositionLayout, TextFormat, encode_problem};
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_dataset::{AnswerKind, Criticality, LabelSource, Problem, Step};
use sesqui_distill::latent::{Granularity, Padding, SlotLabel};
use sesqui_distill::{LatentBatch, LatentConfig, LatentProblem, Rollout};
use sesqui_model::latent::SlotPositions;

use crate::support::{Data, RESULTS};

const ALIGNED: PositionLayout = PositionLayout::Aligned {
    question_length: 25,
};

/// Three steps; the question has 19 tokens, each step 7.
fn example() -> (Tokenizer, EncodedProblem) {
    let texts = ["abc=+-*;0123456789"];
    let tokenizer = Tokenizer::from_config(&TokenizerConfig::default(), Path::new(""), texts);
    let tokenizer = tokenizer.unwrap();
    let labels = [Some(false), None, Some(true)];
    let steps = ["<<3+5=8>>", "<<7*2=4>>", "<<8-4=4>>"]
        .into_iter()
        .zip(labels);
    let steps = steps.map(|(text, critical)| Step {
        text: text.into(),
        criticality: critical.map(|critical| Criticality {
            critical,
            source: LabelSource::GroundTruth,
        }),
    });
    let problem = Problem {
        id: "dag/0".into(),
        question: "a=3+5;b=7*2;c=a-b;".into(),
        steps: steps.collect(),
        answer: "4".into(),
        answer_kind: AnswerKind::Number,
    };
    let encoded = encode_problem(&tokenizer, &TextFormat::default(), &problem).unwrap();
    assert_eq!(
        (encoded.question.len(), encoded.answer_start.len()),
        (19, 1)
    );
    (tokenizer, encoded)
}

fn indices(problem: &LatentProblem) -> Vec<usize> {
    problem.targets.iter().map(|target| target.index).collect()
}

fn labels(problem: &LatentProblem) -> Vec<SlotLabel> {
    problem.targets.iter().map(|target| target.label).collect()
}

#[test]
fn steps_end_at_their_last_equals_sign() {
    use SlotLabel::{Critical, Independent, Padding as Ready, Unlabelled};
    let (tokenizer, encoded) = example();
    let marker = Some(tokenizer.encode("=").unwrap()[0]);
    let of = |config: &LatentConfig, count, marker| {
        LatentProblem::new(&encoded, config, count, marker, PositionLayout::Contiguous).unwrap()
    };
    let config = LatentConfig::default();
    let problem = of(&config, 5, marker);
    assert_eq!(indices(&problem), [23, 30, 37, 40, 40, 40]);
    assert_eq!(
        labels(&problem),
        [Independent, Unlabelled, Critical, Ready, Ready, Ready]
    );
    assert_eq!(labels(&problem), config.labels(&encoded, 5));
    assert_eq!(
        (problem.slots(), problem.length(), problem.start),
        (5, 19 + 5 + 2, 19)
    );
    for (target, text) in problem
        .targets
        .iter()
        .zip(["=", "=", "=", "####", "####", "####"])
    {
        let id = problem.sequence.ids[target.index];
        assert_eq!(tokenizer.token_text(id).unwrap(), text);
    }
    // Without a marker, or with one that is not there, the step's last token.
    assert_eq!(indices(&of(&config, 3, None)), [25, 32, 39, 40]);
    assert_eq!(indices(&of(&config, 3, Some(9_999))), [25, 32, 39, 40]);
    let none = LatentConfig {
        padding: Padding::None,
        ..config
    };
    assert_eq!(indices(&of(&none, 5, marker)), [23, 30, 37, 40]);
}

#[test]
fn a_token_is_stood_for_by_the_state_that_predicts_it() {
    let (_, encoded) = example();
    let config = LatentConfig {
        granularity: Granularity::Token,
        ..LatentConfig::default()
    };
    assert_eq!(
        (config.needed(&encoded), config.resolve([&encoded])),
        (21, 21)
    );
    let layout = PositionLayout::Contiguous;
    let problem = LatentProblem::new(&encoded, &config, 22, None, layout).unwrap();
    // Output k is the state before token k of the chain; then the state before the marker.
    let expected: Vec<usize> = (18..39).chain([39, 39]).collect();
    assert_eq!(indices(&problem), expected);
    assert_eq!(labels(&problem), config.labels(&encoded, 22));
    let problems = [problem];
    let collated = LatentBatch::collate(&problems, &[0], &RESULTS, 0, Rollout::TeacherForced);
    let batch = collated.unwrap();
    let chain: Vec<i32> = encoded.steps.concat().iter().map(|id| *id as i32).collect();
    assert_eq!(batch.read_out[..21], chain);
    assert_eq!(batch.read_out[21..], [encoded.answer_start[0] as i32; 2]);
}

#[test]
fn slots_stand_where_the_results_stood() {
    let (tokenizer, encoded) = example();
    let marker = Some(tokenizer.encode("=").unwrap()[0]);
    let config = LatentConfig::default();
    let problem = LatentProblem::new(&encoded, &config, 4, marker, ALIGNED).unwrap();
    // `||` at P = 24 whatever the question's length; slot t, from 1, at P + 7 (t - 1) + 6.
    assert_eq!((problem.start, problem.sequence.positions[18]), (25, 24));
    let problems = [problem];
    let batch = |positions: &SlotPositions| {
        let rollout = Rollout::TeacherForced;
        LatentBatch::collate(&problems, &[0], positions, 0, rollout).unwrap()
    };
    let strided = batch(&RESULTS);
    assert_eq!(strided.positions[18..], [24, 30, 37, 44, 51, 53, 54]);
    for (t, slot) in (1..).zip(&strided.positions[19..23]) {
        assert_eq!(*slot, 24 + 7 * (t - 1) + 6);
    }
    // The teacher's results of the three steps have these very positions.
    let results = (0..3).map(|step| problems[0].sequence.positions[19 + 7 * step + 5] as i32);
    assert_eq!(results.collect::<Vec<_>>(), strided.positions[19..22]);
    assert_eq!(
        batch(&SlotPositions::Contiguous).positions[18..],
        [24, 25, 26, 27, 28, 29, 30]
    );
    assert_eq!(config.end_position(25, 4, &encoded), 25 + 4 + 3);
}

#[test]
fn rows_of_different_lengths_share_their_columns() {
    let data = Data::new();
    for padding in [Padding::Answer, Padding::None] {
        let rows = [1, 6, 11];
        let problems = data.problems(padding);
        let batch = data.batch(padding, &rows, Rollout::TeacherForced);
        assert_eq!((batch.batch, batch.first_slot, batch.slots), (3, 25, 4));
        let mut tokens = 0;
        for (row, problem) in rows.iter().map(|row| &problems[*row as usize]).enumerate() {
            let real = &batch.real[row * batch.seq..][..batch.seq];
            let slots = problem.slots();
            for (column, real) in real.iter().enumerate() {
                let begins = column >= 25 - problem.question;
                let missing = (25 + slots..29).contains(&column);
                assert_eq!(
                    *real,
                    begins && !missing,
                    "{padding:?}, row {row}, column {column}"
                );
            }
            tokens += problem.length();
            let outputs = &batch.labels[row * 5..][..5];
            assert_eq!(outputs.iter().flatten().count(), slots + 1);
            assert_eq!(batch.column(&batch.ids, 24)[row], data.token("||") as i32);
            // The answer reads the marker and the digit, and is to say the digit and the end.
            let answer = &data.encoded[rows[row] as usize].answer;
            assert_eq!(batch.ids[row * batch.seq + 29], data.token("####") as i32);
            assert_eq!(batch.answer_cells[2 * row] as usize, row * batch.seq + 29);
            let wanted = &batch.answer_targets[2 * row..][..2];
            assert_eq!(wanted, [answer[0] as i32, answer[1] as i32]);
            for (cell, target) in batch.answer_target_cells[2 * row..][..2].iter().zip(wanted) {
                assert_eq!(batch.teacher.target_ids[*cell as usize], *target);
            }
        }
        assert_eq!(batch.tokens, tokens);
        assert_eq!(batch.answer_weights, [1.0; 6]);
        for (cell, token) in batch.target_cells.iter().zip(&batch.read_out) {
            assert_eq!(batch.teacher.target_ids[*cell as usize], *token);
        }
    }
}

#[test]
fn tokens_inside_the_answer_marker_have_no_weight() {
    let (_, mut encoded) = example();
    encoded.answer_start = vec![7, 8, 9];
    let config = LatentConfig::default();
    let problem = LatentProblem::new(&encoded, &config, 3, None, ALIGNED).unwrap();
    assert_eq!(problem.targets[3].index, 42, "the marker's last token");
    let rollout = Rollout::TeacherForced;
    let batch = LatentBatch::collate(&[problem], &[0], &RESULTS, 0, rollout).unwrap();
    assert_eq!(batch.answer_weights, [0.0, 0.0, 1.0, 1.0]);
    assert_eq!(batch.answer_targets[..2], [8, 9]);
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let (_, mut encoded) = example();
    let config = LatentConfig::default();
    let new = |encoded: &EncodedProblem, count, layout| {
        LatentProblem::new(encoded, &config, count, None, layout).map_err(|error| error.to_string())
    };
    let reason = new(&encoded, 2, ALIGNED).unwrap_err();
    for part in ["dag/0", "needs 3", "there are 2", "latents.count"] {
        assert!(reason.contains(part), "{reason}");
    }
    let short = PositionLayout::Aligned {
        question_length: 18,
    };
    assert!(new(&encoded, 3, short).unwrap_err().contains("dag/0"));
    let problems = [new(&encoded, 3, ALIGNED).unwrap()];
    for rows in [&[][..], &[1], &[0, 1]] {
        let rollout = Rollout::TeacherForced;
        let batch = LatentBatch::collate(&problems, rows, &RESULTS, 0, rollout);
        assert!(batch.is_err(), "rows {rows:?}");
    }
    encoded.answer_start.clear();
    assert!(
        new(&encoded, 3, ALIGNED)
            .unwrap_err()
            .contains("answer_start")
    );
}
