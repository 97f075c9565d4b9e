//! The shipped experiment files.

use std::path::{Path, PathBuf};

use sesqui::experiment::Experiment;
use sesqui::study::Study;
use sesqui::study::plan::Plan;
use sesqui_run::{ConfigSource, load};

use crate::support::{files, root, succeed};

fn shipped() -> Vec<PathBuf> {
    let folder = root().join("experiments");
    files(&folder)
        .into_keys()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| Path::new("experiments").join(path))
        .collect()
}

#[test]
fn every_file_loads_validates_and_says_what_it_is() {
    let shipped = shipped();
    let (mut experiments, mut studies) = (0, 0);
    for path in shipped {
        let name = path.display().to_string();
        let file = root().join(&path);
        let text = std::fs::read_to_string(&file).unwrap();
        if Study::is_text_of(&text) {
            studies += 1;
            let study = Study::load(&file, &[]);
            let mut study = study.unwrap_or_else(|error| panic!("{error}")).value;
            let valid = study.validate();
            valid.unwrap_or_else(|error| panic!("{name}: {error}"));
            // Their paths are from the root, tests run elsewhere.
            for method in study.data_sets.iter_mut().flat_map(|set| &mut set.methods) {
                method.config = root().join(&method.config);
            }
            let plan = Plan::new(&study, &Default::default());
            let plan = plan.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(plan.runs.len() >= study.seeds.len(), "{name}");
        } else {
            experiments += 1;
            let resolved = load::<Experiment>(ConfigSource::File(file), &[]);
            let valid = resolved.unwrap_or_else(|error| panic!("{error}"));
            let valid = valid.value.validate();
            valid.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut head = text.lines();
        for label in ["", "command: ", "hardware: ", "time: ", "expect: "] {
            let line = head.next().unwrap_or_default();
            let said = line
                .strip_prefix("# ")
                .and_then(|line| line.strip_prefix(label));
            assert!(
                said.is_some_and(|said| !said.trim().is_empty()),
                "{name}: expected `# {label}…`, found `{line}`"
            );
            if label == "command: " {
                assert!(
                    line.contains(&name),
                    "{name}: the command names another file: {line}"
                );
            }
        }
    }
    assert!(experiments >= 2 && studies >= 1, "{experiments}, {studies}");
}

#[test]
fn the_written_out_default_is_the_default() {
    let path = root().join("experiments/arith-dag/default.toml");
    let resolved = load::<Experiment>(ConfigSource::File(path), &[]).unwrap();
    assert_eq!(resolved.value, Experiment::default());
}

#[test]
fn list_shows_every_file() {
    let listed = succeed("train", &["--list"]);
    for path in shipped() {
        assert!(listed.contains(&path.display().to_string()), "{listed}");
    }
}
