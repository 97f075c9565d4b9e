//! Which weights move in stage 2, and the composition loss with its gates shut.

use burn::optim::AdamWConfig;
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::shortcut::{CompositionConfig, Leaving, ShortcutLoss, StaircaseConfig, Trains};
use sesqui_distill::{Shortcut, ShortcutStageConfig};
use sesqui_shortcut::EarlyExitConfig;
use sesqui_shortcut::early_exit::Composed;

use crate::support::{Data, LAYERS, measured, moved, parameters, shaken, tracked, values};

fn losses() -> [ShortcutLoss; 2] {
    let staircase = StaircaseConfig {
        leaving: Leaving::NonCritical,
        planned: 0.3,
        random: 0.4,
        ..StaircaseConfig::default()
    };
    [
        ShortcutLoss::Staircase(staircase),
        ShortcutLoss::Composition(CompositionConfig {
            gamma: 0.1,
            ..CompositionConfig::default()
        }),
    ]
}

/// Paths of student and shortcuts that five steps of AdamW move.
fn moved_by(loss: &ShortcutLoss, trains: Trains) -> [Vec<String>; 2] {
    let (data, device) = (Data::new(), tracked());
    let teacher = data.teacher(1, &device);
    let student = data.student(&teacher, &device);
    let shortcuts = data.shortcuts(&teacher, &device);
    let config = ShortcutStageConfig {
        trains,
        loss: loss.clone(),
        ..ShortcutStageConfig::default()
    };
    let mut model = Shortcut::new(student, shortcuts, &teacher, &config);
    let before = (parameters(&model.student), parameters(&model.shortcuts));
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    for step in 0..5 {
        let output = TrainStep::step(&model, data.mixed(exits_drawn(3, step)));
        assert!(
            values(output.item.losses)
                .iter()
                .all(|loss| loss.is_finite())
        );
        model = optimizer.step(0.01, model, output.grads);
    }
    [
        moved(&before.0, &parameters(&model.student)),
        moved(&before.1, &parameters(&model.shortcuts)),
    ]
}

/// Whether any parameter of `part` is among `paths`.
fn any(paths: &[String], part: &str) -> bool {
    paths
        .iter()
        .any(|path| path.starts_with(&format!("{part}.")))
}

#[test]
fn shortcuts_move_and_the_student_stays_bit_for_bit() {
    for loss in losses() {
        let [student, shortcuts] = moved_by(&loss, Trains::Shortcuts);
        assert!(student.is_empty(), "{loss:?} moved {student:?}");
        // The staircase leaves at boundaries 1..L only; the composition mixes at all of them.
        let staircase = matches!(loss, ShortcutLoss::Staircase(_));
        for boundary in 0..LAYERS {
            let used = !staircase || boundary > 0;
            let router = any(&shortcuts, &format!("routers.{boundary}"));
            assert_eq!(router, used, "{loss:?}: router {boundary}");
        }
        for boundary in 0..=LAYERS {
            let used = !staircase || (1..LAYERS).contains(&boundary);
            let adapter = any(&shortcuts, &format!("adapters.{boundary}"));
            assert_eq!(adapter, used, "{loss:?}: adapter {boundary}");
        }
    }
}

/// No exit, and no loss on the routers: nothing that is trained takes part, which is no reason to fail.
#[test]
fn a_batch_that_teaches_nothing_moves_nothing() {
    let loss = StaircaseConfig {
        routers: 0.0,
        leaving: Leaving::NonCritical,
        planned: 0.0,
        random: 0.0,
        thresholds: vec![1.0],
        ..StaircaseConfig::default()
    };
    let loss = ShortcutLoss::Staircase(loss);
    assert_eq!(
        moved_by(&loss, Trains::Shortcuts),
        [vec![], vec![]] as [Vec<String>; 2]
    );
}

#[test]
fn everything_moves_in_the_ablation() {
    for loss in losses() {
        let [student, shortcuts] = moved_by(&loss, Trains::Everything);
        for part in [
            "feedback",
            "backbone.token_embedding",
            "backbone.layers.0",
            "backbone.layers.2",
        ] {
            assert!(any(&student, part), "{loss:?}: {part} among {student:?}");
        }
        assert!(any(&shortcuts, "routers.1") && any(&shortcuts, "adapters.1"));
    }
}

#[test]
fn shut_gates_leave_no_early_exit_loss() {
    let (data, device) = (Data::new(), tracked());
    let teacher = data.teacher(1, &device);
    for composed in [Composed::Local, Composed::Propagated] {
        let early_exit = EarlyExitConfig {
            composed,
            ..EarlyExitConfig::default()
        };
        let loss = ShortcutLoss::Composition(CompositionConfig {
            early_exit,
            ..CompositionConfig::default()
        });
        let config = ShortcutStageConfig {
            loss,
            ..ShortcutStageConfig::default()
        };
        let part = |shut: bool| {
            let mut shortcuts = shaken(data.shortcuts(&teacher, &device), 5);
            for router in &mut shortcuts.routers {
                let bias = router.output.bias.take().unwrap();
                let value = if shut { -30.0 } else { 0.0 };
                router.output.bias = Some(bias.map(|bias| bias.full_like(value)));
            }
            let student = data.student(&teacher, &device);
            let model = Shortcut::new(student, shortcuts, &teacher, &config);
            f64::from(values(InferenceStep::step(&model, data.mixed(exits_drawn(1, 1))).losses)[2])
        };
        // A normed state has length 4 and the router's weights at most 0.8: w < sigmoid(-26), below
        // the rounding of a state.
        let (shut, open) = (part(true), part(false));
        measured(&format!("early exit, {composed:?}, shut"), shut);
        assert!(
            shut < 1e-12 && open > 1e-4,
            "{composed:?}: {shut:e}, {open:e}"
        );
    }
}
