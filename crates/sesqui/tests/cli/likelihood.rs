//! `prepare labels --checkpoint` on a run that was trained, called from the test that trains it, and what
//! training makes of the labels.

use std::path::{Path, PathBuf};

use sesqui::experiment::{Experiment, Objective};
use sesqui::importance::cache::{Item, score};
use sesqui::label_file::{Header, LabelRow, LabelsConfig, Redundant};
use sesqui::opened::Opened;
use sesqui::workbench::Workbench;
use sesqui_dataset::encode::encode_all;
use sesqui_distill::importance::{Scorer, Walk};
use sesqui_distill::latent::SlotLabel;
use sesqui_distill::rollout::exits_drawn;
use sesqui_run::{ConfigSource, load};
use sesqui_trainer::Batches;

use crate::support::{files, run, succeed};

/// From a trained run to labels, and from labels to batches.
pub fn labels(at: &Path, folder: &Path) {
    let labels = folder.join("likelihood");
    std::fs::create_dir(&labels).unwrap();
    let file = labels.join("labels.jsonl");
    let (path, out) = (at.to_str().unwrap(), file.to_str().unwrap());
    let words = ["labels", "--checkpoint", path, "--out", out];
    let said = succeed("prepare", &words);
    for part in [
        "arith-dag train and validation: 1015 problems",
        "importance in nats: 5 % ",
        "ground truth",
        "symbolic",
        "kappa",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let whole = files(&labels);
    assert_eq!(whole.len(), 2, "labels and cache");
    let (header, rows) = read(&file);
    assert_eq!(
        (header.checkpoint.as_str(), header.data.len()),
        ("cot/step-00000020", 2)
    );
    for row in &rows {
        let nats = row.nats.as_ref().unwrap();
        assert_eq!(nats.len(), row.critical.len());
        assert!(
            nats.iter()
                .zip(&row.critical)
                .all(|(nats, &critical)| (*nats > 0.0) == critical)
        );
        assert!(!row.removed.contains(&true));
    }

    // Broken off in the middle of a line, it ends in the same bytes.
    let cache = whole
        .keys()
        .find(|path| path.to_str().unwrap().starts_with("importance-"))
        .unwrap();
    let bytes = &whole[cache];
    std::fs::write(labels.join(cache), &bytes[..bytes.len() * 2 / 3]).unwrap();
    std::fs::remove_file(&file).unwrap();
    succeed("prepare", &words);
    assert!(files(&labels) == whole);

    // Another threshold needs no scoring; removals do.
    let high = [&words[..], &["--tau", "1000"]].concat();
    let said = succeed("prepare", &high);
    assert!(
        said.contains(" 0 critical (importance above 1000 nats)"),
        "{said}"
    );
    assert_eq!(files(&labels).len(), 2);
    let removing = [&words[..], &["--most-removed", "0.5"]].concat();
    succeed("prepare", &removing);
    assert_eq!(files(&labels).len(), 3);
    let (header, rows) = read(&file);
    assert_eq!(header.most_removed, Some(0.5));
    assert!(rows.iter().any(|row| row.removed.contains(&true)));
    for row in &rows {
        let removed = row.removed.iter().filter(|removed| **removed).count();
        assert!(2 * removed <= row.removed.len());
        assert!(
            row.critical
                .iter()
                .zip(&row.removed)
                .all(|(critical, removed)| !(critical & removed))
        );
    }

    interrupted(at, folder);
    reach_batches(at, &file, &rows);
    refusals(at, folder, &file);
}

fn read(file: &Path) -> (Header, Vec<LabelRow>) {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text.lines();
    let header = serde_json::from_str(lines.next().unwrap()).unwrap();
    (
        header,
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Cut at any place, the cache grows into the same file and the same rows.
fn interrupted(at: &Path, folder: &Path) {
    let opened = Opened::find(at, Some("cot")).unwrap();
    let model = opened.load(&burn::tensor::Device::flex()).unwrap();
    let experiment = &opened.experiment;
    let corpus = experiment
        .data
        .load(None, experiment.seed, experiment.bad_rows)
        .unwrap();
    let problems = &corpus.train[..14];
    let encoded = encode_all(&opened.tokenizer, &experiment.format, problems).unwrap();
    let items: Vec<Item<'_>> = encoded
        .iter()
        .enumerate()
        .map(|(index, problem)| Item {
            split: "train",
            problem,
            // One that the model has no positions for.
            fits: index != 6,
        })
        .collect();
    let scorer = Scorer {
        backbone: model.backbone(),
        layout: opened.layout,
        pad: opened.tokenizer.pad_id(),
    };
    let cache = folder.join("cache.jsonl");
    let walk = Walk::FrontToBack { most_removed: 1.0 };
    let go = || {
        let mut heard = Vec::new();
        let rows = score(&scorer, &items, walk, 4, &cache, &mut |done| {
            heard.push(done)
        })
        .unwrap();
        (rows, heard, std::fs::read(&cache).unwrap())
    };
    let (rows, heard, bytes) = go();
    assert_eq!(heard, [0, 4, 8, 12, 14]);
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(
        text.lines().nth(6).unwrap().contains("\"nats\":null"),
        "{text}"
    );
    let lines: Vec<usize> = text.split_inclusive('\n').map(str::len).collect();
    let after = |count: usize| lines[..count].iter().sum::<usize>();
    for (cut, kept) in [
        (0, 0),
        (after(3), 0),
        (after(4), 4),
        (after(9) + 5, 8),
        (after(13), 12),
        (bytes.len() - 1, 12),
        (bytes.len(), 14),
    ] {
        std::fs::write(&cache, &bytes[..cut]).unwrap();
        let (again, heard, found) = go();
        assert_eq!(heard[0], kept, "cut at {cut}");
        assert!(again == rows && found == bytes, "cut at {cut}");
    }
    let others: Vec<Item<'_>> = items[1..].to_vec();
    let error = score(&scorer, &others, walk, 4, &cache, &mut |_| ()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not the problem here; delete the file"),
        "{error}"
    );
}

/// The frozen configuration of the run, with labels from `file`.
fn labelled(at: &Path, file: &Path, redundant: Redundant) -> Experiment {
    let source = ConfigSource::File(at.join("config.toml"));
    let mut experiment = load::<Experiment>(source, &[]).unwrap().value;
    experiment.labels = LabelsConfig::File {
        path: file.to_owned(),
        redundant,
    };
    experiment
}

/// Labels of a latent stage's batches, by problem, against the rows of the file.
fn reach_batches(at: &Path, file: &Path, rows: &[LabelRow]) {
    let stage = "latent";
    let mut seen = [0, 0];
    for (place, redundant) in [Redundant::Keep, Redundant::Drop].into_iter().enumerate() {
        let experiment = labelled(at, file, redundant);
        let bench = Workbench::new(&experiment, Path::new("")).unwrap();
        assert!(bench.labels.is_some());
        let stage = experiment.stage(stage).unwrap();
        let Objective::Align(config) = &stage.objective else {
            panic!("{stage:?}");
        };
        let settings = bench.latent_settings(config);
        let context = experiment.model.context;
        let exits = |step| exits_drawn(1, step);
        let (batches, _) = bench
            .latent_batches(stage, &settings, context, 1, exits)
            .unwrap();
        for number in 0..3 {
            let batch = batches.batch(number).unwrap();
            let ids = batches.rows(number);
            for (index, id) in ids.split(", ").enumerate().take(batch.batch) {
                let Some(row) = rows.iter().find(|row| row.split == "train" && row.id == id) else {
                    continue;
                };
                let all = row.critical.iter().zip(&row.removed);
                let kept = all.filter(|(_, removed)| redundant == Redundant::Keep || !**removed);
                let expected: Vec<Option<SlotLabel>> = kept
                    .map(|(critical, _)| match critical {
                        true => Some(SlotLabel::Critical),
                        false => Some(SlotLabel::Independent),
                    })
                    .collect();
                let labels = &batch.labels[index * (batch.slots + 1)..];
                assert_eq!(labels[..expected.len()], expected, "{id}");
                seen[place] += 1;
            }
        }
    }
    assert!(seen.iter().all(|seen| *seen > 30), "{seen:?}");
}

fn refusals(at: &Path, folder: &Path, file: &Path) {
    let other = folder.join("other.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let without: String = text.split_inclusive('\n').take(40).collect();
    std::fs::write(&other, without).unwrap();
    let config = at.join("config.toml");
    let train = |labels: PathBuf, more: &[&str]| {
        let set = format!(
            "labels={{ kind = \"file\", path = {:?} }}",
            labels.to_str().unwrap()
        );
        let words = [
            "--config",
            config.to_str().unwrap(),
            "--dry-run",
            "--set",
            &set,
        ];
        run("train", &[&words[..], more].concat())
    };
    let good = train(file.to_owned(), &[]);
    assert_eq!(good.code, Some(0), "{}", good.error);
    for (labels, more, part) in [
        (folder.join("absent"), &[][..], "labels.path: "),
        (
            file.to_owned(),
            &["--set", "seed=2"],
            "labels other data: train has hash ",
        ),
        (other, &[], "lacks 961 of 1000 problems of train"),
    ] {
        let refused = train(labels, more);
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(refused.error.contains(part), "{part}: {}", refused.error);
    }
    let (path, out) = (at.to_str().unwrap(), folder.join("x.jsonl"));
    let words = [
        "labels",
        "--checkpoint",
        path,
        "--out",
        out.to_str().unwrap(),
    ];
    for (more, part) in [
        (
            &["--stage", "latent"][..],
            "has objective align; what a step is worth only a chain-of-thought",
        ),
        (
            &["--most-removed", "1.5"],
            "--most-removed 1.5: not a share",
        ),
        (&["--tau", "nan"], "--tau NaN: not a number"),
        (&["--batch-size", "0"], "--batch-size: must be at least 1"),
        (
            &["--split", "tset"],
            "--split tset: arith-dag has train, validation, test",
        ),
        (&["--set", "model.layers=3"], "the model is trained already"),
    ] {
        let refused = run("prepare", &[&words[..], more].concat());
        assert_eq!(refused.code, Some(2), "{more:?}: {}", refused.error);
        assert!(refused.error.contains(part), "{more:?}: {}", refused.error);
    }
    assert!(!out.exists());
}
