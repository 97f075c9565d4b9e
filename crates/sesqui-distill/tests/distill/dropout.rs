//! Dropout in adapters: what is drawn, and when it is on.

use burn::module::Module;
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::dropout::adapter_masks;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::shortcut::{CompositionConfig, Leaving, ShortcutLoss, StaircaseConfig};
use sesqui_distill::{LatentBatch, Shortcut, ShortcutStageConfig};

use crate::by_hand::{FAMILIES, Models, all};
use crate::support::{assert_close, gradients, plain, tracked, values};

#[test]
fn masks_hide_their_share_and_scale_the_rest() {
    let (adapters, shape) = (5, [16, 6, 64]);
    let draw = |seed, rate| -> Vec<Vec<f32>> {
        let masks = adapter_masks(seed, rate, adapters, shape, &plain());
        masks.into_iter().map(values).collect()
    };
    for rate in [0.1, 0.5] {
        let masks = draw(7, rate);
        assert_eq!(masks, draw(7, rate));
        assert_ne!(masks, draw(8, rate));
        assert_ne!(masks[0], masks[1]);
        let kept = (1.0 / (1.0 - rate)) as f32;
        let all = masks.concat();
        assert!(all.iter().all(|&value| value == 0.0 || value == kept));
        let hidden = all.iter().filter(|&&value| value == 0.0).count() as f64;
        // Four standard errors.
        let (n, share) = (all.len() as f64, hidden / all.len() as f64);
        let allowed = 4.0 * (rate * (1.0 - rate) / n).sqrt();
        assert!((share - rate).abs() < allowed, "{share} for {rate}");
    }
    assert!(draw(7, 0.0).concat().iter().all(|&value| value == 1.0));
}

fn losses() -> [ShortcutLoss; 2] {
    let staircase = StaircaseConfig {
        leaving: Leaving::NonCritical,
        planned: 1.0,
        random: 0.0,
        ..StaircaseConfig::default()
    };
    [
        ShortcutLoss::Staircase(staircase),
        ShortcutLoss::Composition(CompositionConfig::default()),
    ]
}

fn model(models: &Models, loss: &ShortcutLoss, rate: f64) -> Shortcut {
    let mut config = ShortcutStageConfig {
        loss: loss.clone(),
        ..ShortcutStageConfig::default()
    };
    config.shortcuts.adapter.dropout = rate;
    let (student, shortcuts) = (models.student.clone(), models.shortcuts.clone());
    Shortcut::new(student, shortcuts, &models.teacher, &config)
}

/// Losses of a training step, and every gradient.
type Learned = (Vec<f32>, Vec<(String, Vec<f32>)>);

fn learn(model: &Shortcut, batch: LatentBatch) -> Learned {
    let output = TrainStep::step(model, batch);
    (values(output.item.losses), gradients(model, &output.grads))
}

/// A rate so small that nothing is hidden: losses to the bit as without dropout. Gradients, 0.2 at
/// most, meet in another order on the way through the masks: a few roundings of 1e-8.
#[test]
fn without_a_rate_there_is_no_dropout() {
    for family in FAMILIES {
        let models = Models::new(family, &tracked());
        for loss in losses() {
            let batch = || all(exits_drawn(1, 1));
            let without = learn(&model(&models, &loss, 0.0), batch());
            let nothing = learn(&model(&models, &loss, f64::MIN_POSITIVE), batch());
            assert_eq!(without.0, nothing.0, "{family:?}, {loss:?}");
            assert_eq!(without.1.len(), nothing.1.len());
            for ((path, without), (_, nothing)) in without.1.iter().zip(&nothing.1) {
                assert_close(path, nothing, without, 1e-7);
            }
            let some = learn(&model(&models, &loss, 0.3), batch());
            assert_ne!(without.0, some.0, "{family:?}, {loss:?}");
        }
    }
}

#[test]
fn dropout_is_a_function_of_the_seed_of_the_batch() {
    let models = Models::new(FAMILIES[0], &tracked());
    for loss in losses() {
        let model = model(&models, &loss, 0.3);
        let first = learn(&model, all(exits_drawn(1, 1)));
        assert!(learn(&model, all(exits_drawn(1, 1))) == first, "{loss:?}");
        // The staircase drew the same exits: all that are not critical.
        assert!(
            learn(&model, all(exits_drawn(1, 2))).0 != first.0,
            "{loss:?}"
        );
    }
}

#[test]
fn validation_has_no_dropout() {
    let models = Models::new(FAMILIES[0], &tracked());
    for loss in losses() {
        let validated = |rate| {
            let model = model(&models, &loss, rate).valid();
            values(InferenceStep::step(&model, all(exits_drawn(1, 1))).losses)
        };
        assert_eq!(validated(0.3), validated(0.0), "{loss:?}");
    }
}
