//! Both stages at once against each of them alone.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::align::Teacher;
use sesqui_distill::latent::Correction;
use sesqui_distill::loss::hidden_states;
use sesqui_distill::rollout::{Leaves, exits_drawn};
use sesqui_distill::shortcut::{CompositionConfig, EntryPositionChoice, ShortcutLoss, Trains};
use sesqui_distill::student::{Lesson, Outcome, own_inputs, staircase_inputs};
use sesqui_distill::{Align, Joint, JointBatch, JointConfig, Rollout, Shortcut};
use sesqui_shortcut::{ExitPlan, ExitRule, KeyValueRule, Landing, staircase_pass};

use crate::by_hand::{FAMILIES, Models, all};
use crate::support::{LAYERS, gradients, measured, moved, parameters, plain, tracked, values};

/// Both teachers and both losses, with dropout.
fn configs() -> Vec<JointConfig> {
    let mut configs = Vec::new();
    for teacher in [Teacher::Frozen, Teacher::Shared] {
        for loss in [
            ShortcutLoss::default(),
            ShortcutLoss::Composition(CompositionConfig {
                gamma: 0.5,
                ..CompositionConfig::default()
            }),
        ] {
            let mut config = JointConfig::default();
            config.align.teacher = teacher;
            config.shortcut.loss = loss;
            config.shortcut.shortcuts.adapter.dropout = 0.2;
            configs.push(config);
        }
    }
    configs
}

fn joint(models: &Models, config: &JointConfig) -> Joint {
    let (student, shortcuts) = (models.student.clone(), models.shortcuts.clone());
    Joint::new(student, shortcuts, &models.teacher, config)
}

fn align(models: &Models, config: &JointConfig) -> Align {
    Align::new(models.student.clone(), &models.teacher, &config.align)
        .on_staircase(config.shortcut.staircase())
}

fn shortcut(models: &Models, config: &JointConfig) -> Shortcut {
    let (student, shortcuts) = (models.student.clone(), models.shortcuts.clone());
    Shortcut::new(student, shortcuts, &models.teacher, &config.shortcut)
}

/// Stage 1 corrects its student, with exit dropout; stage 2 draws exits of its own.
fn batch() -> JointBatch {
    let rollout = Rollout::Student {
        correction: Correction::WhereWrong,
        exits: Some(3),
    };
    JointBatch::new(all(rollout), exits_drawn(1, 1))
}

/// The losses of either stage to the bit, each under its name, and the sum of their totals; the
/// gradients too are sums.
///
/// Gradients are at most 30 and add up in another order: 1e-5 beside that is a few roundings.
#[test]
fn both_stages_are_learned_and_told_apart() {
    for family in FAMILIES {
        let models = Models::new(family, &tracked());
        for config in configs() {
            let (joint, align, shortcut) = (
                joint(&models, &config),
                align(&models, &config),
                shortcut(&models, &config),
            );
            let found = TrainStep::step(&joint, batch());
            let first = TrainStep::step(&align, batch().align);
            let second = TrainStep::step(&shortcut, batch().shortcut);

            let under = |stage: &str, names: &[&str]| -> Vec<String> {
                let below = names[1..].iter().map(|name| format!("{stage}/{name}"));
                [stage.to_owned()].into_iter().chain(below).collect()
            };
            let mut names = vec!["loss".to_owned()];
            names.extend(under("align", first.item.names));
            names.extend(under("shortcut", second.item.names));
            assert_eq!(found.item.names, names);
            assert_eq!(found.item.tokens, first.item.tokens);

            let mut expected: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            let parts = gradients(&align, &first.grads)
                .into_iter()
                .chain(gradients(&shortcut, &second.grads));
            for (path, gradient) in parts {
                let sum = expected
                    .entry(path)
                    .or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x);
            }
            let gradients: BTreeMap<String, Vec<f32>> =
                gradients(&joint, &found.grads).into_iter().collect();
            let paths = |of: &BTreeMap<String, Vec<f32>>| of.keys().cloned().collect::<Vec<_>>();
            assert_eq!(paths(&gradients), paths(&expected));
            let mut worst = 0.0f32;
            for (path, gradient) in &gradients {
                for (found, expected) in gradient.iter().zip(&expected[path]) {
                    worst = worst.max((found - expected).abs() / (1.0 + expected.abs()));
                }
            }
            measured(&format!("{family:?}, gradients"), f64::from(worst));
            assert!(worst < 1e-5, "{family:?}: {worst:e}");

            let [found, first, second] =
                [found, first, second].map(|output| values(output.item.losses));
            assert_eq!(found[0], first[0] + second[0]);
            assert_eq!(found[1..], [first, second].concat());

            let valid = joint.valid();
            let first = InferenceStep::step(&align.valid(), batch().align).losses;
            let second = InferenceStep::step(&shortcut.valid(), batch().shortcut).losses;
            let found = InferenceStep::step(&valid, batch()).losses;
            assert!(!found.is_autodiff());
            let alone = [values(first), values(second)].concat();
            assert_eq!(values(found)[1..], alone);
        }
    }
}

/// Steps that exit dropout lets leave stand on the staircase that the shortcuts are trained on: the
/// losses of stage 1 are those of a pass over that staircase, not of the default one.
#[test]
fn exit_dropout_leaves_on_the_staircase_of_the_shortcuts() {
    let device = tracked();
    let models = Models::new(FAMILIES[0], &device);
    let seed = (0..)
        .find(|&seed| {
            let batch = all(Rollout::TeacherForced);
            let leaves = Leaves::dropout(&batch, seed, 0.0);
            (0..3).any(|row| leaves.leaves(row, 1, 1))
        })
        .unwrap();
    let rollout = Rollout::Student {
        correction: Correction::Never,
        exits: Some(seed),
    };
    let batch = all(rollout);
    let answer_loss = "align/answer";
    let mut found = Vec::new();
    for (key_values, landing, entry) in [
        (
            KeyValueRule::Holes,
            Landing::SameBoundary,
            EntryPositionChoice::ByLoss,
        ),
        (
            KeyValueRule::Fill,
            Landing::SameBoundary,
            EntryPositionChoice::ByLoss,
        ),
        (
            KeyValueRule::Holes,
            Landing::NextBoundary,
            EntryPositionChoice::ByLoss,
        ),
        (
            KeyValueRule::Holes,
            Landing::SameBoundary,
            EntryPositionChoice::CycleStart,
        ),
        (
            KeyValueRule::Fill,
            Landing::NextBoundary,
            EntryPositionChoice::CycleStart,
        ),
    ] {
        let mut config = JointConfig::default();
        config.shortcut.key_values = key_values;
        config.shortcut.landing = landing;
        config.shortcut.entry_position = entry;
        let losses = TrainStep::step(
            &joint(&models, &config),
            JointBatch::new(batch.clone(), exits_drawn(1, 1)),
        );
        let names = losses.item.names;
        let at = names.iter().position(|name| *name == answer_loss).unwrap();
        let answer = values(losses.item.losses)[at];

        // The same from its pieces.
        let student = models.student.valid();
        let leaves = Leaves::dropout(&batch, seed, 0.0);
        let leaves = |row: usize, slot: usize, at: usize| leaves.leaves(row, slot, at);
        let staircase = config.shortcut.staircase();
        let rule = ExitRule::Plan {
            shortcuts: None,
            leaves: &leaves,
        };
        let latents = own_inputs(&student, &batch, rule, staircase, None).0;
        let (rows, slots) = (batch.batch, batch.slots);
        let plan = ExitPlan::from_exits(rows, slots, LAYERS, landing, leaves)
            .with_entry_position(staircase.entry_position);
        assert!(!plan.is_full());
        let inputs = staircase_inputs(&student, &batch, latents);
        let pass = staircase_pass(&student, None, inputs, &plan, key_values);
        let teacher = models.teacher.valid();
        let chain = hidden_states(&teacher, &batch.teacher);
        let lesson = Lesson::new(&teacher, chain, &batch, &plain());
        let outcome = Outcome::new(&student, pass, &lesson, &batch, |_, _| true);
        let expected = values(outcome.answer_loss(&student, &batch))[0];
        assert!((answer - expected).abs() < 1e-5, "{answer} and {expected}");
        found.push(answer);
    }
    for (index, answer) in found.iter().enumerate() {
        for other in &found[..index] {
            assert!((answer - other).abs() > 1e-4, "{found:?}");
        }
    }
}

/// Where the teacher is frozen, only student and shortcuts move.
#[test]
fn everything_moves_but_the_teacher() {
    let models = Models::new(FAMILIES[0], &tracked());
    for config in configs() {
        let mut model = joint(&models, &config);
        let before = (parameters(&model.student), parameters(&model.shortcuts));
        let teacher = parameters(&models.teacher);
        let losses = |model: &Joint| {
            let batch = JointBatch::new(all(Rollout::TeacherForced), exits_drawn(1, 1));
            values(InferenceStep::step(&model.valid(), batch).losses)
        };
        let at_start = losses(&model);
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
        for _ in 0..5 {
            let output = TrainStep::step(&model, batch());
            model = optimizer.step(0.01, model, output.grads);
        }
        let after = (parameters(&model.student), parameters(&model.shortcuts));
        for (part, [before, after]) in [
            ("feedback", [&before.0, &after.0]),
            ("backbone.token_embedding", [&before.0, &after.0]),
            ("backbone.layers.0", [&before.0, &after.0]),
            ("routers.1", [&before.1, &after.1]),
            ("adapters.1", [&before.1, &after.1]),
        ] {
            let moved = moved(before, after);
            let is = |path: &String| path.starts_with(&format!("{part}."));
            assert!(moved.iter().any(is), "{part} among {moved:?}");
        }
        assert!(moved(&teacher, &parameters(&models.teacher)).is_empty());
        assert!(losses(&model)[0] < at_start[0], "{:?}", losses(&model));
        // Student and shortcuts put back, only a teacher that moved could change the losses.
        model.student = models.student.clone();
        model.shortcuts = models.shortcuts.clone();
        assert_eq!(losses(&model), at_start);
    }
}

#[test]
fn what_makes_no_sense_is_named_with_its_stage() {
    let named = |change: fn(&mut JointConfig)| {
        let mut config = JointConfig::default();
        change(&mut config);
        config.problem().map(|(key, _)| key)
    };
    assert_eq!(named(|_| ()), None);
    let frozen = named(|config| config.shortcut.trains = Trains::Shortcuts);
    assert_eq!(frozen.as_deref(), Some("shortcut.trains"));
    let negative = named(|config| config.align.weights.read_out = -1.0);
    assert_eq!(negative.as_deref(), Some("align.weights.read_out"));
    let all = named(|config| config.shortcut.shortcuts.adapter.dropout = 1.0);
    assert_eq!(all.as_deref(), Some("shortcut.shortcuts.adapter.dropout"));
}
