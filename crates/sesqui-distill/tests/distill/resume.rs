//! Both stages, and both at once, under the training loop: the bytes do not depend on interruptions or on workers.

use std::path::Path;

use burn::module::Module;
use burn::train::{InferenceStep, Interrupter};
use sesqui_dataset::batch::BatchConfig;
use sesqui_dataset::encode::{Supervision, sequence};
use sesqui_distill::align::{AlignConfig, Teacher};
use sesqui_distill::batches::words;
use sesqui_distill::curriculum::{
    Distillation, Replaced, StageSchedule, StateScale, StepSupervision, Thought,
};
use sesqui_distill::early_exit::{ExitCurriculum, ExitWeights};
use sesqui_distill::latent::Padding;
use sesqui_distill::rollout::{ExitDropout, Feeding, exits_drawn, rollout};
use sesqui_distill::shortcut::{CompositionConfig, Leaving, ShortcutLoss, StaircaseConfig, Trains};
use sesqui_distill::{
    Align, Curriculum, CurriculumConfig, CurriculumPlan, CutBatches, Cuts, EarlyExit,
    EarlyExitBatch, EarlyExitBatches, EarlyExitConfig, Halt, HaltBatch, HaltBatches, IcotConfig,
    IcotPlan, Joint, JointBatch, JointBatches, JointConfig, LatentBatch, LatentBatches, Rollout,
    SequenceBatches, Shortcut, ShortcutStageConfig, Supervised, ThoughtBatch, ThoughtBatches,
    ThoughtProblem,
};
use sesqui_model::{LatentOrder, LatentTransformer};
use sesqui_run::{MetricRow, RowWriter};
use sesqui_shortcut::StepHead;
use sesqui_trainer::{
    Batches, CheckpointPolicy, Checkpoints, Fit, Objective, Renderer, Stop, TrainingConfig,
    Validation, fit,
};

use crate::support::{D_MODEL, Data, LAYERS, RESULTS, moved, parameters, tracked, values};

const STEPS: u64 = 6;
const PARTS: u64 = 2;
const SEED: u64 = 4;

/// Batches that ask for a stop while this step, counted from 1, is made.
struct Stopping<'a, B> {
    batches: &'a B,
    stop: Option<(u64, Interrupter)>,
}

impl<I, B: Batches<I>> Batches<I> for Stopping<'_, B> {
    fn batch(&self, index: u64) -> Result<I, String> {
        if let Some((step, interrupter)) = &self.stop
            && index / PARTS + 1 == *step
        {
            interrupter.stop(None);
        }
        self.batches.batch(index)
    }

    fn per_epoch(&self) -> u64 {
        self.batches.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        self.batches.rows(index)
    }
}

struct Course<I, B> {
    data: Data,
    batches: B,
    /// What validation reads of a batch.
    read: fn(LatentBatch) -> I,
    /// Whether the optimizer forgets before a step.
    resets: fn(u64) -> bool,
}

impl Course<LatentBatch, LatentBatches> {
    fn new(rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static) -> Self {
        let data = Data::new();
        let config = BatchConfig {
            batch_size: 4,
            ..BatchConfig::default()
        };
        let problems = data.problems(Padding::Answer);
        let names = data.encoded.iter().map(|problem| problem.id.clone());
        let names = names.collect();
        let pad = data.tokenizer.pad_id();
        let batches =
            LatentBatches::new(problems, names, &config, PARTS, SEED, RESULTS, pad, rollout);
        Self {
            batches: batches.unwrap(),
            data,
            read: |batch| batch,
            resets: |_| false,
        }
    }

    /// The same rows for both stages, which draw by themselves.
    fn joint(self) -> Course<JointBatch, JointBatches> {
        Course {
            data: self.data,
            batches: JointBatches::new(self.batches, |step| exits_drawn(SEED, step)),
            read: |batch| {
                let rollout = batch.rollout;
                JointBatch::new(batch, rollout)
            },
            resets: self.resets,
        }
    }
}

impl<I, B: Batches<I>> Course<I, B> {
    /// Trains, from whatever is in `folder`, up to the end or to a stop after step `stop`.
    fn run<M>(&self, model: M, folder: &Path, workers: usize, stop: Option<u64>) -> (M, Stop)
    where
        M: Objective + burn::train::TrainStep<Input = I>,
    {
        let mut config = TrainingConfig {
            steps: STEPS,
            accumulation: PARTS,
            weight_decay: 0.1,
            validate_every: 2,
            checkpoints: CheckpointPolicy {
                every: 2,
                keep_last: 1,
                keep_at: Vec::new(),
            },
            ..TrainingConfig::default()
        };
        config.learning_rate.warm_up_steps = 2;
        config.learning_rate.peak = 0.01;
        let interrupter = Interrupter::new();
        let batches = Stopping {
            batches: &self.batches,
            stop: stop.map(|step| (step, interrupter.clone())),
        };
        let checkpoints = Checkpoints::new(
            folder.join("checkpoints"),
            config.checkpoints.clone(),
            Vec::new(),
        );
        let (mut metrics, _) = RowWriter::<MetricRow>::open(&folder.join("metrics.jsonl")).unwrap();
        let mut validate = |model: &M, _: u64| {
            let batch = (self.read)(self.data.mixed(Rollout::TeacherForced));
            let losses = InferenceStep::step(model, batch).losses;
            assert!(!losses.is_autodiff());
            let loss = Some(f64::from(values(losses)[0]));
            Ok(Validation {
                loss,
                ..Validation::default()
            })
        };
        let job = Fit {
            stage: "latent",
            config: &config,
            seed: SEED,
            devices: &vec![tracked(); workers],
            batches: &batches,
            resets: &self.resets,
            checkpoints: &checkpoints,
            renderer: &mut Renderer::none(Box::new(std::io::sink())),
            metrics: &mut metrics,
            interrupter: &interrupter,
            validate: &mut validate,
        };
        let outcome = fit(model, job).unwrap();
        (outcome.model, outcome.stop)
    }

    /// One go, two goes, and two workers; the model of the first.
    fn check<M>(&self, what: &str, model: impl Fn() -> M) -> M
    where
        M: Objective + burn::train::TrainStep<Input = I>,
    {
        let folders = [0; 4].map(|_| tempfile::tempdir().unwrap());
        let [straight, broken, shared, both] = folders.each_ref().map(tempfile::TempDir::path);
        let (expected, stop) = self.run(model(), straight, 1, None);
        assert_eq!(stop, Stop::Finished);
        assert_eq!(self.run(model(), broken, 1, Some(3)).1, Stop::Interrupted);
        let (found, _) = self.run(model(), broken, 1, None);
        let (side_by_side, _) = self.run(model(), shared, 2, None);
        assert_eq!(self.run(model(), both, 2, Some(3)).1, Stop::Interrupted);
        let (mixed, _) = self.run(model(), both, 1, None);
        let expected_values = parameters(&expected);
        for (how, model) in [
            ("resumed", &found),
            ("two workers", &side_by_side),
            ("both", &mixed),
        ] {
            let differing = moved(&expected_values, &parameters(model));
            assert!(differing.is_empty(), "{what}, {how}: {differing:?}");
        }
        for other in [broken, shared, both] {
            for file in ["model.bpk", "optimizer.bpk", "state.json"] {
                let read = |folder: &Path| {
                    let step = folder.join("checkpoints").join(format!("step-{STEPS:08}"));
                    std::fs::read(step.join(file)).unwrap()
                };
                assert!(read(straight) == read(other), "{what}: {file}");
            }
        }
        expected
    }
}

#[test]
fn stage_1_ends_in_the_same_bytes() {
    let exits = ExitDropout::Late {
        start: 0.5,
        share: 0.7,
        independent: 1.0,
    };
    let ramp = Feeding::Ramp {
        start: 0.0,
        end: 0.5,
    };
    for (kind, feeding) in [
        (Teacher::Frozen, Feeding::Corrected { until: 0.5 }),
        (Teacher::Shared, ramp),
    ] {
        let course = Course::new(move |step| rollout(feeding, exits, SEED, step, STEPS));
        let config = AlignConfig {
            teacher: kind,
            feeding,
            exit_dropout: exits,
            ..AlignConfig::default()
        };
        let model = || {
            let teacher = course.data.teacher(1, &tracked());
            let student = course.data.student(&teacher, &tracked());
            Align::new(student, &teacher, &config)
        };
        let trained = course.check(&format!("{kind:?}, {feeding:?}"), model);
        assert!(!moved(&parameters(&model()), &parameters(&trained)).is_empty());
    }
}

#[test]
fn stage_2_ends_in_the_same_bytes() {
    let staircase = ShortcutLoss::Staircase(StaircaseConfig {
        leaving: Leaving::NonCritical,
        planned: 0.3,
        random: 0.3,
        ..StaircaseConfig::default()
    });
    let composition = ShortcutLoss::Composition(CompositionConfig {
        gamma: 0.1,
        ..CompositionConfig::default()
    });
    for (trains, dropout, loss) in [
        (Trains::Shortcuts, 0.2, staircase.clone()),
        (Trains::Shortcuts, 0.2, composition),
        (Trains::Everything, 0.0, staircase),
    ] {
        let course = Course::new(|step| exits_drawn(SEED, step));
        let mut config = ShortcutStageConfig {
            trains,
            loss,
            ..ShortcutStageConfig::default()
        };
        config.shortcuts.adapter.dropout = dropout;
        let model = || {
            let teacher = course.data.teacher(1, &tracked());
            let student = course.data.student(&teacher, &tracked());
            let shortcuts = course.data.shortcuts(&teacher, &tracked());
            Shortcut::new(student, shortcuts, &teacher, &config)
        };
        let trained = course.check(&format!("{config:?}"), model);
        let start = model();
        let student = moved(&parameters(&start.student), &parameters(&trained.student));
        assert_eq!(
            student.is_empty(),
            trains == Trains::Shortcuts,
            "{student:?}"
        );
        let shortcuts = moved(
            &parameters(&start.shortcuts),
            &parameters(&trained.shortcuts),
        );
        assert!(!shortcuts.is_empty());
        assert!(
            !trained
                .valid()
                .student
                .backbone
                .token_embedding
                .weight
                .val()
                .is_autodiff()
        );
    }
}

/// The head alone moves; the model under it, with shortcuts or without, not by a bit.
#[test]
fn a_head_ends_in_the_same_bytes_and_moves_nothing_else() {
    for (with_shortcuts, hidden) in [(true, 5), (false, 0)] {
        let data = Data::new();
        let config = BatchConfig {
            batch_size: 4,
            ..BatchConfig::default()
        };
        let states = (0..12 * D_MODEL).map(|index| (index as f32 * 12.9898).sin());
        let labelled = HaltBatch {
            states: states.collect(),
            labels: (0..12).map(|row| row % 4 + 1).collect(),
        };
        let names = data.encoded.iter().map(|problem| problem.id.clone());
        let lengths = data.encoded.iter().map(|problem| problem.question.len());
        let (names, lengths) = (names.collect(), lengths.collect());
        let batches = HaltBatches::new(labelled, names, lengths, &config, PARTS, SEED).unwrap();
        let course = Course {
            data,
            batches,
            read: |_: LatentBatch| HaltBatch {
                states: vec![0.5; D_MODEL],
                labels: vec![2],
            },
            resets: |_| false,
        };
        let model = || {
            let teacher = course.data.teacher(1, &tracked());
            let student = course.data.student(&teacher, &tracked());
            let shortcuts = course.data.shortcuts(&teacher, &tracked());
            let head = StepHead::new(hidden, 4, teacher.config(), SEED, &tracked());
            Halt::new(student, with_shortcuts.then_some(shortcuts), head)
        };
        let trained = course.check(&format!("{with_shortcuts}, {hidden}"), model);
        let start = model();
        let student = moved(&parameters(&start.student), &parameters(&trained.student));
        assert!(student.is_empty(), "{student:?}");
        if let (Some(start), Some(trained)) = (&start.shortcuts, &trained.shortcuts) {
            let shortcuts = moved(&parameters(start), &parameters(trained));
            assert!(shortcuts.is_empty(), "{shortcuts:?}");
        }
        let head = moved(&parameters(&start.head), &parameters(&trained.head));
        assert_eq!(head.len(), if hidden > 0 { 4 } else { 2 }, "{head:?}");
    }
}

/// A curriculum of three stages, two updates each, with rows of all stages among them and an optimizer that
/// forgets at every change.
fn stages(thought: Thought) -> CurriculumPlan {
    let config = CurriculumConfig {
        thought,
        stages: 2,
        schedule: StageSchedule::Staged {
            first: 1,
            updates: 2,
        },
        uniform_probability: 0.3,
        ..CurriculumConfig::default()
    };
    config.plan(&Data::new().encoded, STEPS)
}

fn removals() -> IcotPlan {
    let config = IcotConfig {
        remove_per: 3,
        updates: 2,
        removal_smoothing: 0.5,
        ..IcotConfig::default()
    };
    config.plan(&Data::new().encoded)
}

fn thoughts(data: &Data) -> Vec<ThoughtProblem> {
    let problems = data.encoded.iter().cloned();
    let problems = problems.map(|problem| ThoughtProblem::new(problem, data.layout).unwrap());
    problems.collect()
}

#[test]
fn a_curriculum_ends_in_the_same_bytes_over_changes_of_stage() {
    let alone = CurriculumConfig::default();
    let taught = CurriculumConfig {
        order: LatentOrder::Jacobi { iterations: 2 },
        distillation: Distillation::Codi {
            teacher: 1.0,
            states: 2.0,
            scale: StateScale::default(),
        },
        step_supervision: StepSupervision::Decoder { weight: 0.5 },
        ..CurriculumConfig::default()
    };
    for (thought, teaching) in [
        (Thought::State, &alone),
        (Thought::Linear { scale: 0.25 }, &alone),
        (Thought::Pause, &alone),
        (Thought::FirstState, &alone),
        (Thought::Projection { width: 8 }, &taught),
    ] {
        let data = Data::new();
        let config = BatchConfig {
            batch_size: 4,
            ..BatchConfig::default()
        };
        let (problems, pad) = (thoughts(&data), data.tokenizer.pad_id());
        let plan = stages(thought);
        let batches =
            ThoughtBatches::new(problems, &config, PARTS, SEED, plan, RESULTS, pad).unwrap();
        let course = Course {
            data,
            batches,
            read: |_: LatentBatch| {
                let replaced = Replaced {
                    steps: 1,
                    thoughts: 2,
                };
                let rows = [(1, replaced), (6, replaced)];
                ThoughtBatch::collate(&thoughts(&Data::new()), &rows, &RESULTS, 0).unwrap()
            },
            resets: |update| stages(Thought::State).resets(update),
        };
        assert!((course.resets)(2) && (course.resets)(4) && !(course.resets)(3));
        let model = || {
            let backbone = course.data.teacher(1, &tracked());
            let feedback = thought.feedback().unwrap();
            Curriculum::new(
                LatentTransformer::new(backbone, &feedback, 0, &tracked()),
                teaching,
            )
        };
        let trained = course.check(&format!("{thought:?}"), model);
        assert!(!moved(&parameters(&model()), &parameters(&trained)).is_empty());
    }
}

#[test]
fn what_goes_word_by_word_ends_in_the_same_bytes() {
    for cuts in [Cuts::Tokens(removals()), Cuts::Steps(stages(Thought::None))] {
        let data = Data::new();
        let config = BatchConfig {
            batch_size: 4,
            ..BatchConfig::default()
        };
        let (problems, layout) = (data.encoded.clone(), data.layout);
        let pad = data.tokenizer.pad_id();
        let what = format!("{cuts:?}");
        let batches = CutBatches::new(problems, &config, PARTS, SEED, cuts, layout, pad).unwrap();
        let course = Course {
            data,
            batches,
            read: |_: LatentBatch| {
                let data = Data::new();
                words(&data.encoded[3..5], data.layout, 0).unwrap()
            },
            // Both change every two updates.
            resets: |update| removals().resets(update),
        };
        assert!((course.resets)(2) && (course.resets)(4) && !(course.resets)(3));
        let model = || Supervised::new(course.data.teacher(1, &tracked()));
        let trained = course.check(&what, model);
        assert!(!moved(&parameters(&model()), &parameters(&trained)).is_empty());
    }
}

#[test]
fn what_can_be_left_early_ends_in_the_same_bytes() {
    let data = Data::new();
    let sequences = data
        .encoded
        .iter()
        .map(|problem| sequence(problem, Supervision::ChainOfThought, data.layout).unwrap());
    let names = data.encoded.iter().map(|problem| problem.id.clone());
    let batch = BatchConfig {
        batch_size: 4,
        ..BatchConfig::default()
    };
    let (sequences, names) = (sequences.collect(), names.collect());
    let words = SequenceBatches::new(sequences, names, &batch, PARTS, SEED, 0).unwrap();
    let config = EarlyExitConfig {
        weights: ExitWeights::LayerSkip { scale: 0.5 },
        curriculum: ExitCurriculum::Rotational { every: 2 },
        layer_dropout: 0.6,
    };
    let course = Course {
        batches: EarlyExitBatches::new(words, config.plan(LAYERS, STEPS), SEED),
        data,
        read: |batch| {
            let plan = EarlyExitConfig::default().plan(LAYERS, STEPS);
            EarlyExitBatch::whole(batch.teacher, &plan)
        },
        resets: |_| false,
    };
    let model = || EarlyExit::new(course.data.teacher(1, &tracked()));
    let trained = course.check("early exit", model);
    assert!(!moved(&parameters(&model()), &parameters(&trained)).is_empty());
}

#[test]
fn both_at_once_end_in_the_same_bytes() {
    let mut config = JointConfig::default();
    config.shortcut.shortcuts.adapter.dropout = 0.2;
    let feeding = Feeding::Corrected { until: 0.5 };
    let exits = ExitDropout::Late {
        start: 0.5,
        share: 0.7,
        independent: 1.0,
    };
    let course = Course::new(move |step| rollout(feeding, exits, SEED, step, STEPS)).joint();
    let model = || {
        let teacher = course.data.teacher(1, &tracked());
        let student = course.data.student(&teacher, &tracked());
        let shortcuts = course.data.shortcuts(&teacher, &tracked());
        Joint::new(student, shortcuts, &teacher, &config)
    };
    let trained = course.check("joint", model);
    assert!(!moved(&parameters(&model()), &parameters(&trained)).is_empty());
}
