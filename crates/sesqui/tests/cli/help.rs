//! `--help`, word for word.
//!
//! After a change that is meant: `SESQUI_UPDATE_GOLDEN=1 cargo test -p sesqui --test cli help`, then
//! read the difference.

use std::path::Path;

use crate::support::{program, succeed};

const COMMANDS: &[(&str, &[&str])] = &[
    ("train", &["--help"]),
    ("evaluate", &["--help"]),
    ("compare", &["--help"]),
    ("generate", &["--help"]),
    ("parity", &["--help"]),
    ("prepare", &["--help"]),
    ("prepare", &["list", "--help"]),
    ("prepare", &["verify", "--help"]),
    ("prepare", &["derive", "--help"]),
    ("prepare", &["generate", "--help"]),
    ("prepare", &["labels", "--help"]),
    ("prepare", &["export", "--help"]),
];

#[test]
fn help_is_as_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/help");
    let update = std::env::var_os("SESQUI_UPDATE_GOLDEN").is_some();
    let mut changed = Vec::new();
    for (name, arguments) in COMMANDS {
        let words: Vec<&str> = [*name]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let file = folder.join(format!("{}.txt", words[..words.len() - 1].join("-")));
        // On Windows the usage line names `train.exe`.
        let found = succeed(name, arguments).replace(".exe", "");
        if update {
            std::fs::write(&file, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if found != expected.replace("\r\n", "\n") {
            changed.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(
        changed.is_empty(),
        "help differs; if that is meant, run once with SESQUI_UPDATE_GOLDEN=1:\n{}",
        changed.join("\n")
    );
}

#[test]
fn a_reader_may_go_away() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = program("prepare")
        .arg("list")
        .stdout(writer)
        .output()
        .unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}
