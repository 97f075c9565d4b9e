//! Everything together: a tiny transformer learns eight problems by heart, and the score says so.

use burn::module::Module;
use burn::train::{InferenceStep, Interrupter};
use sesqui_dataset::batch::{BatchConfig, SequenceBatch};
use sesqui_dataset::encode::Supervision;
use sesqui_distill::{SequenceBatches, Supervised};
use sesqui_eval::{Evaluation, EvaluationConfig, TokenDecoding, evaluate};
use sesqui_model::{ModelConfig, Transformer};
use sesqui_reason::{Decoding, TokenExit};
use sesqui_run::RowWriter;
use sesqui_trainer::schedule::{Decay, Schedule};
use sesqui_trainer::{
    CheckpointPolicy, Checkpoints, EarlyStopping, Fit, Renderer, Stop, TrainingConfig, Validation,
    fit,
};

use crate::support::{Exercises, FAMILIES, plain, tracked};

fn score(model: &Transformer, exercises: &Exercises) -> Evaluation {
    let decoding = Decoding {
        stop: exercises.tokenizer.eos_id(),
        max_tokens: 40,
    };
    let answer_start = &exercises.encoded[0].answer_start;
    let method = TokenDecoding {
        model,
        device: &plain(),
        decoding,
        exit: TokenExit::Never,
        answer_start,
    };
    let config = EvaluationConfig {
        batch_size: 3,
        timing_questions: 0,
        ..EvaluationConfig::default()
    };
    evaluate(&method, exercises.task(), &config, &mut |_| ()).unwrap()
}

#[test]
fn eight_problems_are_learned_by_heart() {
    let exercises = Exercises::new(8);
    for (family, supervision) in [
        (FAMILIES[0], Supervision::ChainOfThought),
        (FAMILIES[1], Supervision::AnswerOnly),
    ] {
        let shape = ModelConfig {
            family,
            layers: 2,
            d_model: 32,
            heads: 4,
            context: 64,
            ..ModelConfig::default()
        };
        let vocabulary = exercises.tokenizer.vocab_size();
        let model = Transformer::new(&shape, vocabulary, 1, &tracked()).unwrap();
        let before = score(&Supervised::new(model.clone()).valid().backbone, &exercises);
        assert!(
            before.accuracy() < 0.5,
            "right before training: {}",
            before.accuracy()
        );

        let sequences = exercises.sequences(supervision);
        let identities = exercises
            .problems
            .iter()
            .map(|problem| problem.id.clone())
            .collect();
        let pad = exercises.tokenizer.pad_id();
        let batch_config = BatchConfig {
            batch_size: 8,
            ..BatchConfig::default()
        };
        let batches =
            SequenceBatches::new(sequences.clone(), identities, &batch_config, 1, 1, pad).unwrap();
        let config = TrainingConfig {
            steps: 150,
            learning_rate: Schedule {
                peak: 1e-2,
                warm_up_steps: 10,
                decay: Decay::Linear {
                    start: 0.5,
                    end: 0.1,
                },
            },
            validate_every: 50,
            early_stopping: EarlyStopping::Reached { accuracy: 1.0 },
            ..TrainingConfig::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(
            folder.path().join("stage"),
            CheckpointPolicy::default(),
            Vec::new(),
        );
        let (mut metrics, _) = RowWriter::open(&folder.path().join("metrics.jsonl")).unwrap();
        let mut accuracies = Vec::new();
        let mut validate = |model: &Supervised, _step: u64| {
            let all: Vec<u32> = (0..8).collect();
            let batch = SequenceBatch::collate(&sequences, &all, pad).unwrap();
            let loss = InferenceStep::step(model, batch).losses.into_data();
            let accuracy = score(&model.backbone, &exercises).accuracy();
            accuracies.push(accuracy);
            Ok(Validation {
                loss: loss.iter::<f64>().next(),
                accuracy: Some(accuracy),
                ..Validation::default()
            })
        };
        let outcome = fit(
            Supervised::new(model),
            Fit {
                stage: "by-heart",
                config: &config,
                seed: 1,
                devices: &[tracked()],
                batches: &batches,
                resets: &|_| false,
                checkpoints: &checkpoints,
                renderer: &mut Renderer::none(Box::new(std::io::sink())),
                metrics: &mut metrics,
                interrupter: &Interrupter::new(),
                validate: &mut validate,
            },
        )
        .unwrap();
        assert_eq!(outcome.stop, Stop::Finished);
        let found = score(&outcome.model.valid().backbone, &exercises);
        let wrong: Vec<_> = found.rows.iter().filter(|row| !row.correct).collect();
        assert!(
            wrong.is_empty(),
            "{supervision:?}, {accuracies:?}: {wrong:#?}"
        );
        assert_eq!(outcome.state.best_accuracy, Some(1.0));
        for (row, problem) in found.rows.iter().zip(&exercises.problems) {
            assert_eq!(row.predicted.as_deref(), Some(problem.answer.as_str()));
            let steps: String = problem
                .steps
                .iter()
                .map(|step| step.text.as_str())
                .collect();
            let steps = if supervision == Supervision::ChainOfThought {
                steps
            } else {
                String::new()
            };
            assert_eq!(row.generated, format!("{steps}####{}", problem.answer));
        }
    }
}
