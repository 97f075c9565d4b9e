//! Readers for published data sets: one file per format, all into [`Problem`].
//!
//! A reader is a function of a path and a [`BadRows`] policy. The files themselves are never part of
//! this repository; [`ALL`] lists those known by path and [`crate::manifest`] pins their bytes.

mod number;
mod rows;

pub mod aqua_rat;
pub mod gsm8k;
pub mod gsm8k_aug;
pub mod input_target;
pub mod mathqa;
pub mod multiplication;
pub mod prontoqa;
pub mod prosqa;
pub mod strategyqa;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use number::normalise_number;

use crate::error::{BadRow, DatasetError};
use crate::manifest;
use crate::problem::Problem;

/// What to do with a row that does not have the format of its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BadRows {
    /// Stop at the first one.
    #[default]
    Fail,
    /// Leave it out and report it in [`ReadRows::skipped`].
    Skip,
}

/// What a reader returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadRows {
    /// The problems in the order of the file; ids are `<folder>/<file>/<row>`, rows from 1.
    pub problems: Vec<Problem>,
    /// The rows left out, in the order of the file; empty under [`BadRows::Fail`].
    pub skipped: Vec<BadRow>,
}

impl From<rows::Rows<Problem>> for ReadRows {
    fn from(rows: rows::Rows<Problem>) -> Self {
        Self {
            problems: rows.good,
            skipped: rows.skipped,
        }
    }
}

/// Reads one file.
///
/// # Errors
/// [`DatasetError::Io`] where the file cannot be read, [`DatasetError::Row`] at the first bad row
/// under [`BadRows::Fail`] and, under either policy, for a JSON-array file that does not parse.
pub type Reader = fn(&Path, BadRows) -> Result<ReadRows, DatasetError>;

/// Whether the bytes of a file are pinned by a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The manifest pins its hash and says which commit it comes from.
    Pinned,
    /// Not to be had from the pinned sources; read if somebody puts it there.
    UserSupplied,
}

/// A file that [`read_file`] can read.
#[derive(Clone, Copy, Debug)]
pub struct KnownFile {
    /// Path below the data root with `/`, for example `gsm8k/train.jsonl`.
    pub relative: &'static str,
    /// The reader of its format.
    pub reader: Reader,
    /// Number of rows: counted where pinned, as published where user supplied.
    pub records: usize,
    /// Whether a manifest pins it.
    pub availability: Availability,
}

/// Every file with problems that the readers know, grouped by data set.
pub const ALL: &[KnownFile] = &[
    pinned("gsm8k/train.jsonl", gsm8k::read, 7473),
    pinned("gsm8k/test.jsonl", gsm8k::read, 1319),
    pinned("gsm8k-aug/train_noaug.txt", gsm8k_aug::read, 6973),
    pinned("gsm8k-aug/valid.txt", gsm8k_aug::read, 500),
    pinned("gsm8k-aug/test.txt", gsm8k_aug::read, 1319),
    user_supplied("gsm8k-aug/train.txt", gsm8k_aug::read, 385_620),
    pinned("gsm-hard/gsmhardv2.jsonl", input_target::read, 1319),
    pinned("math-word-problems/svamp.jsonl", input_target::read, 1000),
    pinned(
        "math-word-problems/mawpsaddsub.jsonl",
        input_target::read,
        395,
    ),
    pinned(
        "math-word-problems/mawpsmultiarith.jsonl",
        input_target::read,
        600,
    ),
    pinned(
        "math-word-problems/mawpssingleeq.jsonl",
        input_target::read,
        508,
    ),
    pinned(
        "math-word-problems/mawpssingleop.jsonl",
        input_target::read,
        562,
    ),
    pinned("prosqa/prosqa_valid.json", prosqa::read, 300),
    pinned("prosqa/prosqa_test.json", prosqa::read, 500),
    user_supplied("prosqa/prosqa_train.json", prosqa::read, 17_886),
    pinned("prontoqa/prontoqa_train.jsonl", prontoqa::read, 9000),
    pinned("prontoqa/prontoqa_valid.jsonl", prontoqa::read, 200),
    pinned("prontoqa/prontoqa_test.jsonl", prontoqa::read, 800),
    pinned("strategyqa/train.json", strategyqa::read, 2061),
    pinned("strategyqa/dev.json", strategyqa::read, 229),
    pinned("mathqa/dev.json", mathqa::read, 4475),
    pinned("mathqa/test.json", mathqa::read, 2985),
    pinned("mathqa/challenge_test.json", mathqa::read, 604),
    user_supplied("mathqa/train.json", mathqa::read, 29_837),
    pinned("aqua-rat/dev.json", aqua_rat::read, 254),
    pinned("aqua-rat/test.json", aqua_rat::read, 254),
    user_supplied("aqua-rat/train.json", aqua_rat::read, 97_467),
    pinned("multiplication/4x4_valid.txt", multiplication::read, 1000),
    pinned(
        "multiplication/4x4_test_bigbench.txt",
        multiplication::read,
        1000,
    ),
    pinned("multiplication/5x5_valid.txt", multiplication::read, 1000),
    pinned(
        "multiplication/5x5_test_bigbench.txt",
        multiplication::read,
        1000,
    ),
    pinned(
        "multiplication/7x7_test_bigbench.txt",
        multiplication::read,
        1000,
    ),
    pinned(
        "multiplication/9x9_test_bigbench.txt",
        multiplication::read,
        1000,
    ),
];

const fn pinned(relative: &'static str, reader: Reader, records: usize) -> KnownFile {
    KnownFile {
        relative,
        reader,
        records,
        availability: Availability::Pinned,
    }
}

const fn user_supplied(relative: &'static str, reader: Reader, records: usize) -> KnownFile {
    KnownFile {
        relative,
        reader,
        records,
        availability: Availability::UserSupplied,
    }
}

/// The entry of [`ALL`] for a path below the data root.
pub fn file_kind(relative: &str) -> Option<&'static KnownFile> {
    ALL.iter().find(|file| file.relative == relative)
}

/// Reads a known file below the data root `root`.
///
/// # Errors
/// [`DatasetError::Config`] for a path that is not in [`ALL`], [`DatasetError::Missing`] with its
/// origin where the file is not there, otherwise what its [`Reader`] says.
pub fn read_file(root: &Path, relative: &str, policy: BadRows) -> Result<ReadRows, DatasetError> {
    let (data_set, name) = relative.split_once('/').unwrap_or((relative, ""));
    let Some(kind) = file_kind(relative) else {
        let same_folder = |file: &&KnownFile| file.relative.split('/').next() == Some(data_set);
        let mut near: Vec<_> = ALL
            .iter()
            .filter(same_folder)
            .map(|file| file.relative)
            .collect();
        if near.is_empty() {
            near.extend(ALL.iter().map(|file| file.relative));
        }
        let near = near.join(", ");
        return Err(DatasetError::Config(format!(
            "no reader for `{relative}` below the data root; readable are {near}"
        )));
    };
    let path = root.join(relative);
    if !path.exists() {
        return Err(DatasetError::Missing {
            data_set: data_set.to_owned(),
            hint: manifest::how_to_obtain(data_set, name)?,
            path,
        });
    }
    (kind.reader)(&path, policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_missing_files_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let message = |relative| {
            read_file(folder.path(), relative, BadRows::Fail)
                .unwrap_err()
                .to_string()
        };
        assert!(message("gsm8k/trian.jsonl").contains("gsm8k/train.jsonl"));
        assert!(message("nothing").contains("prosqa/prosqa_test.json"));
        let missing = message("gsm8k/train.jsonl");
        assert!(missing.contains("openai/grade-school-math"), "{missing}");
        assert!(missing.contains("prepare -- verify gsm8k"), "{missing}");
        let supplied = message("prosqa/prosqa_train.json");
        assert!(supplied.contains("facebookresearch/coconut"), "{supplied}");
    }
}
