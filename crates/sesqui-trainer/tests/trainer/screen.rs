//! The lines that a person and the log get.

use sesqui_run::MetricRow;
use sesqui_trainer::{Plan, Renderer};

use crate::support::{Page, Setup, Stopper};

fn step(step: u64, done: u64) -> MetricRow {
    MetricRow {
        loss: Some(2.0 / step as f64),
        learning_rate: Some(3e-3 / step as f64),
        gradient_norm: Some(0.25 * step as f64),
        tokens_per_second: Some(1_000.0 * step as f64 + 0.6),
        elapsed_seconds: 40.0 * (step - done) as f64,
        ..MetricRow::new("cot", step, "train")
    }
}

fn drive(renderer: &mut Renderer, done: u64) {
    let stage = "cot".to_owned();
    renderer.start(Plan {
        stage,
        steps: 150,
        done,
        log_every: 50,
    });
    for number in done + 1..=150 {
        renderer.step(&step(number, done));
    }
    let mut found = MetricRow::new("cot", 150, "validation");
    found.loss = Some(1.0 / 3.0);
    found.values.insert("accuracy".to_owned(), 0.875);
    found.values.insert("agreement".to_owned(), 1.0);
    renderer.validation(&found);
    renderer.end("cot: done");
    // Between stages there is nothing to draw a step of.
    renderer.step(&step(150, done));
}

const FRESH: &str = "\
cot: 150 steps
cot        step      1/150   0%  loss 2.0000  lr 3.00e-3  norm 0.250  1001 tok/s  eta 1h39m
cot        step     50/150  33%  loss 0.0400  lr 6.00e-5  norm 12.500  50001 tok/s  eta 1h06m
cot        step    100/150  66%  loss 0.0200  lr 3.00e-5  norm 25.000  100001 tok/s  eta 33m20s
cot        step    150/150 100%  loss 0.0133  lr 2.00e-5  norm 37.500  150001 tok/s  eta 0s
cot        step    150  validation  loss 0.3333  accuracy 0.8750  agreement 1.0000
cot: done
";

const RESUMED: &str = "\
cot: 150 steps, resuming after step 98
cot        step     99/150  66%  loss 0.0202  lr 3.03e-5  norm 24.750  99001 tok/s  eta 34m00s
cot        step    100/150  66%  loss 0.0200  lr 3.00e-5  norm 25.000  100001 tok/s  eta 33m20s
cot        step    150/150 100%  loss 0.0133  lr 2.00e-5  norm 37.500  150001 tok/s  eta 0s
cot        step    150  validation  loss 0.3333  accuracy 0.8750  agreement 1.0000
cot: done
";

#[test]
fn the_plain_log_reads_as_agreed() {
    for (done, lines) in [(0, FRESH), (98, RESUMED)] {
        let (screen, log) = (Page::default(), Page::default());
        let (mut plain, mut none) = (
            Renderer::plain(Box::new(screen.clone()), Box::new(log.clone())),
            Renderer::none(Box::new(log.clone())),
        );
        drive(&mut plain, done);
        assert_eq!(screen.text(), lines);
        assert_eq!(log.text(), lines);
        drive(&mut none, done);
        assert_eq!(screen.text(), lines, "nothing more on the screen");
        assert_eq!(log.text(), lines.repeat(2), "the log as before");
    }
}

/// Lines up to what a clock measured.
fn timeless(page: &Page) -> Vec<String> {
    let cut = |line: &str, at: &str| line.split(at).next().unwrap().to_owned();
    page.text()
        .lines()
        .map(|line| cut(&cut(line, "  loss"), " in "))
        .collect()
}

#[test]
fn a_training_writes_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let run = |stopper| {
        let (screen, log) = (Page::default(), Page::default());
        let mut renderer = Renderer::plain(Box::new(screen.clone()), Box::new(log.clone()));
        let setup = Setup {
            stopper,
            ..Setup::new()
        };
        setup.run_seen(folder.path(), &mut renderer).unwrap();
        renderer.close();
        assert_eq!(screen.text(), log.text());
        timeless(&log)
    };
    assert_eq!(
        run(Stopper::InBatch(5)),
        [
            "linear: 10 steps",
            "linear     step      1/10  10%",
            "linear     step      2/10  20%",
            "linear     step      3  validation",
            "linear     step      4/10  40%",
            "linear: stopped after step 5, saved",
        ]
    );
    assert_eq!(
        run(Stopper::Nobody),
        [
            "linear: 10 steps, resuming after step 5",
            "linear     step      6/10  60%",
            "linear     step      6  validation",
            "linear     step      8/10  80%",
            "linear     step      9  validation",
            "linear     step     10/10 100%",
            "linear     step     10  validation",
            "linear: done after 10 steps",
        ]
    );
}
