//! A frozen teacher that reads every problem once teaches what one does that reads every batch.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::TrainStep;
use sesqui_dataset::batch::BatchConfig;
use sesqui_distill::latent::{Correction, Padding};
use sesqui_distill::lessons::Lessons;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::student::Lesson;
use sesqui_distill::{
    Align, AlignConfig, LatentBatch, LatentBatches, Rollout, Shortcut, ShortcutStageConfig,
    TeacherStates,
};
use sesqui_model::Transformer;
use sesqui_trainer::Batches;

use crate::support::{CLOSE, D_MODEL, Data, RESULTS, assert_close, plain, tracked, values};

/// Batches of five of the twelve problems.
fn batches(
    data: &Data,
    padding: Padding,
    rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static,
) -> LatentBatches {
    let config = BatchConfig {
        batch_size: 5,
        ..BatchConfig::default()
    };
    let names = data.encoded.iter().map(|problem| problem.id.clone());
    let pad = data.tokenizer.pad_id();
    let problems = data.problems(padding);
    LatentBatches::new(
        problems,
        names.collect(),
        &config,
        1,
        9,
        RESULTS,
        pad,
        rollout,
    )
    .unwrap()
}

fn keep(batches: &mut LatentBatches, teacher: &Transformer) {
    batches.keep_lessons(teacher, &|_| true).unwrap();
}

/// Outputs that some row has; what stands where it has none is nobody's.
fn wanted(batch: &LatentBatch, outputs: Tensor<3>) -> Vec<f32> {
    let states = values(outputs);
    let states = states.chunks_exact(D_MODEL).zip(&batch.labels);
    let present = states.filter(|(_, label)| label.is_some());
    present.flat_map(|(state, _)| state.to_vec()).collect()
}

#[test]
fn what_is_kept_is_what_the_teacher_says_of_a_batch() {
    let (data, device) = (Data::new(), plain());
    let teacher = data.teacher(1, &device);
    for padding in [Padding::Answer, Padding::None] {
        let forced = |_| Rollout::TeacherForced;
        let anew = batches(&data, padding, forced);
        let mut kept = batches(&data, padding, forced);
        keep(&mut kept, &teacher);
        for index in 0..6 {
            let (anew, kept) = (anew.batch(index).unwrap(), kept.batch(index).unwrap());
            assert!(anew.lesson.is_none() && kept.lesson.is_some());
            let expected = Lesson::of(&teacher, &anew, &device);
            let found = Lesson::of(&teacher, &kept, &device);
            assert_close(
                &format!("{padding:?}: targets of batch {index}"),
                &wanted(&kept, found.outputs),
                &wanted(&anew, expected.outputs),
                CLOSE,
            );
            assert_close(
                &format!("{padding:?}: answers of batch {index}"),
                &values(found.answer),
                &values(expected.answer),
                CLOSE,
            );
        }
    }
}

/// Another teacher's lessons in their place would be seen.
#[test]
fn both_stages_learn_the_same_from_kept_states() {
    let (data, device) = (Data::new(), tracked());
    let teacher = data.teacher(1, &device);
    let student = data.student(&teacher, &device);
    let shortcuts = data.shortcuts(&teacher, &device);
    let own = |step| Rollout::Student {
        correction: Correction::WhereWrong,
        exits: Some(step),
    };
    let align = Align::new(student.clone(), &teacher, &AlignConfig::default());
    let shortcut = Shortcut::new(
        student,
        shortcuts,
        &teacher,
        &ShortcutStageConfig::default(),
    );
    let other = data.teacher(7, &device).valid();
    let teacher = teacher.valid();
    let first = |teacher: Option<&Transformer>, stage: usize| {
        let mut batches = match stage {
            0 => batches(&data, Padding::None, own),
            _ => batches(&data, Padding::None, |step| exits_drawn(3, step)),
        };
        if let Some(teacher) = teacher {
            keep(&mut batches, teacher);
        }
        let batch = batches.batch(2).unwrap();
        let output = match stage {
            0 => TrainStep::step(&align, batch).item,
            _ => TrainStep::step(&shortcut, batch).item,
        };
        values(output.losses)
    };
    for stage in 0..2 {
        let expected = first(None, stage);
        let found = first(Some(&teacher), stage);
        // Losses up to 40 are means of at least ten squares or logarithms of such states.
        assert_close(
            &format!("losses of stage {}", stage + 1),
            &found,
            &expected,
            1e-4,
        );
        let wrong = first(Some(&other), stage);
        assert!(
            (wrong[0] - expected[0]).abs() > 1e-2,
            "{wrong:?} {expected:?}"
        );
    }
}

#[test]
fn nothing_is_kept_that_is_read_once_takes_too_much_or_is_not_wanted() {
    let data = Data::new();
    let problems = data.problems(Padding::Answer);
    let bytes = Lessons::bytes(&problems, D_MODEL);
    // Five targets of sixteen numbers, and the answer with its marker.
    assert!(bytes >= 12 * (5 + 1) * 16 * 4, "{bytes}");
    let kept = TeacherStates::default();
    assert!(kept.keeps(&problems, 24, D_MODEL));
    assert!(!kept.keeps(&problems, 23, D_MODEL));
    assert!(!TeacherStates::EachStep.keeps(&problems, 240, D_MODEL));
    let no_room = TeacherStates::Kept { most_mebibytes: 0 };
    assert!(!no_room.keeps(&problems, 240, D_MODEL));

    let mut batches = batches(&data, Padding::Answer, |_| Rollout::TeacherForced);
    let teacher = data.teacher(1, &plain());
    let read = AtomicUsize::new(0);
    let nobody = |problems| {
        read.fetch_add(problems, Ordering::Relaxed);
        false
    };
    batches.keep_lessons(&teacher, &nobody).unwrap();
    assert_eq!(read.into_inner(), 12);
    assert!(batches.batch(0).unwrap().lesson.is_none());
}
