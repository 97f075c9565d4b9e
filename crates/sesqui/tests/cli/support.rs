//! Running the programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a program said and how it ended.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

/// A program of this package, at the root of the source tree, without the caller's data root.
pub fn program(name: &str) -> Command {
    let path = match name {
        "train" => env!("CARGO_BIN_EXE_train"),
        "evaluate" => env!("CARGO_BIN_EXE_evaluate"),
        "compare" => env!("CARGO_BIN_EXE_compare"),
        "generate" => env!("CARGO_BIN_EXE_generate"),
        "parity" => env!("CARGO_BIN_EXE_parity"),
        "prepare" => env!("CARGO_BIN_EXE_prepare"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    command
        .current_dir(root())
        .env_remove("SESQUI_DATA")
        // The width that help is wrapped to where there is no terminal.
        .env("COLUMNS", "100")
        .stdin(Stdio::null());
    command
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs a program to its end.
pub fn run(name: &str, arguments: &[&str]) -> Said {
    said(program(name).args(arguments))
}

/// As [`run`], and fails unless the program succeeds; returns its standard output.
pub fn succeed(name: &str, arguments: &[&str]) -> String {
    let said = run(name, arguments);
    assert_eq!(
        said.code,
        Some(0),
        "{name} {arguments:?}: {}\n{}",
        said.out,
        said.error
    );
    said.out
}

/// Runs a command to its end.
pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Every file below `folder` by its path there.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

/// Trains `experiments/arith-dag/<name>.toml` in small.
pub fn trained(name: &str, at: &Path) -> String {
    let file = format!("experiments/arith-dag/{name}.toml");
    let train = [
        "--smoke",
        "--renderer",
        "plain",
        "--config",
        &file,
        "--run",
        at.to_str().unwrap(),
        "--set",
        "evaluation.timing_questions=1",
    ];
    succeed("train", &train)
}
