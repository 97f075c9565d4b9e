//! Which checkpoints are on the disk after a training.

use burn::optim::AdamWConfig;
use sesqui_trainer::checkpoint::{load_model, load_optimizer};
use sesqui_trainer::{CheckpointPolicy, State};

use crate::support::{Setup, Stopper, assert_same_files, files};

#[test]
fn the_policy_decides_what_stays() {
    let table: [(u64, usize, &[u64], &[u64]); 7] = [
        // every, how many last ones, always, what is left after ten steps
        (0, 2, &[], &[10]),
        (1, 1, &[], &[10]),
        (1, 3, &[], &[8, 9, 10]),
        (4, 2, &[], &[8, 10]),
        (4, 1, &[3, 8], &[3, 8, 10]),
        (1, 2, &[2, 9], &[2, 8, 9, 10]),
        (0, 1, &[5, 10], &[5, 10]),
    ];
    for (every, keep_last, keep_at, left) in table {
        let mut setup = Setup::new();
        let keep_at = keep_at.to_vec();
        setup.config.checkpoints = CheckpointPolicy {
            every,
            keep_last,
            keep_at,
        };
        let folder = tempfile::tempdir().unwrap();
        setup.run(folder.path()).unwrap();
        let found = setup.checkpoints(folder.path()).steps().unwrap();
        assert_eq!(found, left, "{:?}", setup.config.checkpoints);
        let names = std::fs::read_dir(folder.path().join("checkpoints")).unwrap();
        assert_eq!(names.count(), left.len(), "nothing else is left behind");
    }
}

#[test]
fn leftovers_of_a_killed_process_are_swept_and_nothing_else() {
    let setup = Setup {
        stopper: Stopper::InBatch(5),
        ..Setup::new()
    };
    let folder = tempfile::tempdir().unwrap();
    setup.run(folder.path()).unwrap();
    let checkpoints = folder.path().join("checkpoints");
    for name in [".draft-Xy12Z", ".deleted-00000003", "notes"] {
        std::fs::create_dir(checkpoints.join(name)).unwrap();
        std::fs::write(checkpoints.join(name).join("model.bpk"), "half").unwrap();
    }
    std::fs::write(checkpoints.join("README"), "mine").unwrap();
    Setup::new().run(folder.path()).unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["README", "notes", "step-00000008", "step-00000010"]);
}

#[test]
fn a_stage_without_checkpoints_starts_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Setup::new().checkpoints(folder.path());
    assert!(checkpoints.steps().unwrap().is_empty());
    assert_eq!(checkpoints.latest().unwrap(), None);
    checkpoints.sweep().unwrap();
    assert!(!folder.path().join("checkpoints").exists());
}

#[test]
fn equal_trainings_leave_equal_bytes() {
    // Parameter identities and the order of the moments are random in Burn.
    let setup = Setup::new();
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    setup.run(left.path()).unwrap();
    setup.run(right.path()).unwrap();
    let folder = |run: &tempfile::TempDir| run.path().join("checkpoints");
    assert_same_files(&folder(&left), &folder(&right), "two runs");
    let state = std::fs::read_to_string(folder(&left).join("step-00000010/state.json")).unwrap();
    assert_eq!(
        state,
        r#"{
  "schema": 1,
  "stage": "linear",
  "step": 10,
  "next_batch": 10,
  "seed": 7,
  "tokens": 40,
  "best_accuracy": 0.1,
  "best_step": 10,
  "stalled": 0,
  "finished": true
}
"#
    );
}

#[test]
fn saving_what_was_loaded_gives_the_same_bytes() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    let outcome = setup.run(folder.path()).unwrap();
    let checkpoints = setup.checkpoints(folder.path());
    let path = checkpoints.path(10);
    let model = load_model(&path, setup.model()).unwrap();
    assert_eq!(model.values(), outcome.model.values());
    let optimizer = load_optimizer(&path, AdamWConfig::new().init()).unwrap();
    let before = files(&path);
    // Over the old one, as after a crash between a save and its row.
    let saved = checkpoints
        .save(&model, &optimizer, &outcome.state)
        .unwrap();
    assert_eq!(saved, path);
    assert_eq!(files(&path), before);
}

#[test]
fn an_optimizer_that_never_stepped_can_be_saved() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = setup.checkpoints(folder.path());
    let optimizer = AdamWConfig::new().init();
    let state = State::start("linear", 7);
    let path = checkpoints
        .save(&setup.model(), &optimizer, &state)
        .unwrap();
    load_optimizer(&path, AdamWConfig::new().init()).unwrap();
    assert_eq!(checkpoints.latest().unwrap(), Some(state));
}

#[test]
fn a_failed_save_leaves_the_earlier_checkpoints() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    let outcome = setup.run(folder.path()).unwrap();
    let before = files(folder.path());
    let bad = sesqui_trainer::checkpoint::Attachment {
        name: "no/such/folder".to_owned(),
        bytes: Vec::new(),
    };
    let checkpoints = sesqui_trainer::Checkpoints::new(
        folder.path().join("checkpoints"),
        setup.config.checkpoints.clone(),
        vec![bad],
    );
    let optimizer = AdamWConfig::new().init();
    checkpoints
        .save(&outcome.model, &optimizer, &outcome.state)
        .unwrap_err();
    assert_eq!(files(folder.path()), before);
}
