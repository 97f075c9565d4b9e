//! What the gradient of stage 1 reaches, and that it is the derivative of the loss.

use burn::module::{Module, Param};
use burn::optim::AdamWConfig;
use burn::tensor::{Tensor, TensorData};
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::align::{AlignConfig, AlignWeights, Teacher};
use sesqui_distill::latent::Correction;
use sesqui_distill::{Align, Rollout};

use crate::support::{Data, assert_close, gradients, measured, moved, parameters, tracked, values};

const ROLLOUTS: [Rollout; 3] = [
    Rollout::TeacherForced,
    Rollout::Student {
        correction: Correction::Never,
        exits: Some(3),
    },
    Rollout::Student {
        correction: Correction::WhereWrong,
        exits: None,
    },
];

fn config(teacher: Teacher, weight: f64) -> AlignConfig {
    AlignConfig {
        teacher,
        weights: AlignWeights {
            teacher: weight,
            ..AlignWeights::default()
        },
        ..AlignConfig::default()
    }
}

#[test]
fn a_frozen_teacher_stays_as_it_is() {
    let (data, device) = (Data::new(), tracked());
    let teacher = data.teacher(1, &device);
    let student = data.student(&teacher, &device);
    let start = student.clone();
    let before = parameters(&teacher);
    let mut model = Align::new(student, &teacher, &config(Teacher::Frozen, 1.0));
    let losses = |model: &Align| values(InferenceStep::step(model, data.mixed(ROLLOUTS[0])).losses);
    let at_start = losses(&model);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    for step in 0..5 {
        let output = TrainStep::step(&model, data.mixed(ROLLOUTS[step % 3]));
        assert_eq!(
            output.grads.len(),
            gradients(&model.student, &output.grads).len()
        );
        model = optimizer.step(0.01, model, output.grads);
    }
    assert!(moved(&before, &parameters(&teacher)).is_empty());
    assert!(!moved(&parameters(&start), &parameters(&model.student)).is_empty());
    assert!(
        losses(&model)[0] < at_start[0],
        "five steps make the loss smaller"
    );
    // The student put back, only a teacher that moved could change the losses.
    model.student = start;
    assert_eq!(losses(&model), at_start);
}

#[test]
fn no_gradient_reaches_a_shared_teacher_that_is_not_trained() {
    let (data, device) = (Data::new(), tracked());
    let base = data.teacher(1, &device);
    let student = data.student(&base, &device);
    let teacher = student.backbone.clone();
    for rollout in ROLLOUTS {
        let of = |kind, weight| {
            let model = Align::new(student.clone(), &teacher, &config(kind, weight));
            let output = TrainStep::step(&model, data.mixed(rollout));
            (gradients(&model, &output.grads), values(output.item.losses))
        };
        let (frozen, losses) = of(Teacher::Frozen, 0.0);
        let (shared, shared_losses) = of(Teacher::Shared, 0.0);
        // A teacher on the tape sums in another order; losses are at most 30, gradients 10.
        assert_close("losses", &shared_losses[..5], &losses, 3e-5);
        assert_eq!(shared.len(), frozen.len());
        for ((path, shared), (_, frozen)) in shared.iter().zip(&frozen) {
            assert_close(&format!("gradient of {path}"), shared, frozen, 1e-5);
        }
        let (trained, _) = of(Teacher::Shared, 1.0);
        let table = |of: &[(String, Vec<f32>)]| of[0].1.clone();
        let pairs = table(&trained).into_iter().zip(table(&frozen));
        let furthest = pairs.fold(0.0f32, |furthest, (a, b)| furthest.max((a - b).abs()));
        assert!(furthest > 0.01, "the teacher's own loss moves {furthest}");
    }
}

#[test]
fn gradients_are_derivatives_of_the_loss() {
    const STEP: f64 = 5e-3;
    let (data, device) = (Data::new(), tracked());
    let teacher = data.teacher(1, &device);
    let config = config(Teacher::Frozen, 0.0);
    let weights = &config.weights;
    let weights = [
        weights.answer,
        weights.answer_alignment,
        weights.reasoning_alignment,
        weights.read_out,
    ];
    let start = data.student(&teacher, &device);
    let model = Align::new(start, &teacher, &config);
    let output = TrainStep::step(&model, data.mixed(Rollout::TeacherForced));
    let total = |model: &Align| -> f64 {
        let parts = values(InferenceStep::step(&model.valid(), data.mixed(ROLLOUTS[0])).losses);
        let parts = parts[1..].iter().zip(weights);
        parts.map(|(part, weight)| weight * f64::from(*part)).sum()
    };
    type Weight = fn(&mut Align) -> &mut Param<Tensor<2>>;
    let choices: [(&str, Weight); 3] = [
        ("feedback", |model| {
            &mut model.student.feedback.as_mut().unwrap().weight
        }),
        ("token embedding", |model| {
            &mut model.student.backbone.token_embedding.weight
        }),
        ("position embedding", |model| {
            let table = &mut model.student.backbone.position_embedding;
            &mut table.as_mut().unwrap().weight
        }),
    ];
    for (name, weight) in choices {
        let mut model = model.clone();
        let param = weight(&mut model).clone();
        let gradient = values(output.grads.get::<2>(param.id).unwrap());
        let at = (0..gradient.len())
            .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
            .unwrap();
        let mut moved_by = |by: f64| {
            let mut data = values(param.val());
            data[at] += by as f32;
            let data = TensorData::new(data, param.val().dims());
            *weight(&mut model) = param
                .clone()
                .map(|tensor| Tensor::from_data(data, &tensor.device()));
            total(&model)
        };
        let found = (moved_by(STEP) - moved_by(-STEP)) / (2.0 * STEP);
        let expected = f64::from(gradient[at]);
        measured(
            &format!("{name}: {expected:.4}, difference quotient off by"),
            (found - expected).abs(),
        );
        // Rounding: parts of about 4 carry 1e-6, weighted 6 in all, over 1e-2: 6e-4. Truncation is
        // of the order of the step squared, 2.5e-5, times a third derivative that is tens of times
        // the first.
        assert!(
            (found - expected).abs() < 2e-3 + 5e-3 * expected.abs(),
            "{name}"
        );
        assert!(expected.abs() > 0.02, "{name}: {expected} says little");
    }
}
