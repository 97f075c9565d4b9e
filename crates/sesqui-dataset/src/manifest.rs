//! What every data set consists of: origin, licence and the exact bytes of its files.
//!
//! The manifests are `datasets/<name>/manifest.toml`, compiled into the program so that it needs no
//! source tree. The files themselves lie below a data root as `<root>/<name>/<file>`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DatasetError;
use crate::read::{self, BadRows};

/// One data set: `datasets/<name>/manifest.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Name, and folder below the data root.
    pub name: String,
    /// One line on what it is.
    pub description: String,
    /// Licence of the data, with doubts where there are any.
    pub licence: String,
    /// The files it consists of.
    #[serde(default, rename = "file")]
    pub files: Vec<PinnedFile>,
    /// Files that belong to it but are not among the pinned ones.
    #[serde(default, rename = "not-included")]
    pub not_included: Vec<NotIncluded>,
}

/// A file whose bytes are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PinnedFile {
    /// Path below the data set's folder.
    pub path: String,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Number of problems, for files that [`crate::read`] knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<usize>,
    /// Where it comes from.
    pub source: Source,
}

/// A place in a public Git repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Source {
    /// `owner/name` on GitHub.
    pub repository: String,
    /// Commit, 40 hexadecimal digits.
    pub commit: String,
    /// Path of the file there; of the input or the generator where `derivation` is set.
    pub path: String,
    /// How the file was made, where it is not a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            commit,
            path,
            derivation,
        } = self;
        write!(
            f,
            "https://github.com/{repository} at commit {commit}, path {path}"
        )?;
        derivation
            .as_ref()
            .map_or(Ok(()), |how| write!(f, " ({how})"))
    }
}

/// A file that no pinned source holds; whoever has it may put it next to the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NotIncluded {
    /// Path below the data set's folder.
    pub path: String,
    /// Why it is not pinned, and where it comes from.
    pub reason: String,
    /// Number of problems as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<usize>,
    /// SHA-256 of every version known by its hash; may be empty.
    #[serde(default)]
    pub known_sha256: Vec<String>,
}

/// What [`Manifest::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Name of the data set.
    pub data_set: String,
    /// Every file of the manifest, in its order; those not included last.
    pub files: Vec<FileReport>,
}

impl Report {
    /// Whether every pinned file is there and right, and no supplied one has a wrong hash.
    pub fn is_ok(&self) -> bool {
        self.files.iter().all(|file| {
            matches!(
                file.status,
                Status::Ok | Status::NotIncluded { .. } | Status::Supplied { .. }
            )
        })
    }
}

/// One file in a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileReport {
    /// Path below the data root.
    pub path: String,
    /// What is the matter with it.
    pub status: Status,
}

/// The state of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Size, hash and number of problems are those of the manifest.
    Ok,
    /// A pinned file is not there.
    Missing {
        /// Where to get it.
        source: Source,
    },
    /// The size differs, as after an interrupted copy; the hash was not computed.
    WrongSize {
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// The bytes differ.
    WrongHash {
        /// SHA-256 by the manifest; several where several versions are known.
        expected: String,
        /// SHA-256 on disk.
        found: String,
    },
    /// The bytes are right, but the reader does not return the number of problems promised.
    WrongCount {
        /// Problems by the manifest.
        expected: usize,
        /// Problems read.
        found: usize,
    },
    /// Not pinned, and not there.
    NotIncluded {
        /// Why, and where it comes from.
        reason: String,
    },
    /// Not pinned, but there; its hash is a known one or nothing is known about it.
    Supplied {
        /// SHA-256 on disk.
        sha256: String,
    },
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => write!(f, "ok"),
            Self::Missing { source } => write!(f, "missing; get it from {source}"),
            Self::WrongSize { expected, found } => {
                write!(f, "{found} bytes instead of {expected}; get it again")
            }
            Self::WrongHash { expected, found } => {
                write!(f, "sha256 is {found} instead of {expected}; get it again")
            }
            Self::WrongCount { expected, found } => {
                write!(f, "{found} problems were read instead of {expected}")
            }
            Self::NotIncluded { reason } => write!(f, "not included: {reason}"),
            Self::Supplied { sha256 } => write!(f, "supplied by the user, sha256 {sha256}"),
        }
    }
}

impl Manifest {
    /// Checks every file below the data root `root`.
    ///
    /// # Errors
    /// [`DatasetError::Io`] where a file is there but cannot be read. Everything that is wrong with
    /// the files is in the report.
    pub fn verify(&self, root: &Path) -> Result<Report, DatasetError> {
        let mut files = Vec::new();
        for file in &self.files {
            let path = format!("{}/{}", self.name, file.path);
            files.push(FileReport {
                status: check_pinned(root, &path, file)?,
                path,
            });
        }
        for file in &self.not_included {
            let path = format!("{}/{}", self.name, file.path);
            files.push(FileReport {
                status: check_supplied(root, &path, file)?,
                path,
            });
        }
        Ok(Report {
            data_set: self.name.clone(),
            files,
        })
    }
}

/// Every manifest, sorted by name.
///
/// # Errors
/// [`DatasetError::Config`] where a compiled-in manifest does not parse; a test rules it out.
pub fn all() -> Result<Vec<Manifest>, DatasetError> {
    EMBEDDED
        .iter()
        .map(|(name, text)| {
            toml::from_str(text).map_err(|error| {
                DatasetError::Config(format!("datasets/{name}/manifest.toml: {error}"))
            })
        })
        .collect()
}

/// The manifest of one data set.
///
/// # Errors
/// [`DatasetError::Config`] with the known names where there is none called `name`.
pub fn find(name: &str) -> Result<Manifest, DatasetError> {
    all()?
        .into_iter()
        .find(|manifest| manifest.name == name)
        .ok_or_else(|| {
            let known: Vec<_> = EMBEDDED.iter().map(|(name, _)| *name).collect();
            DatasetError::Config(format!(
                "no data set `{name}`; known are {}",
                known.join(", ")
            ))
        })
}

/// Where the file `name` of a data set comes from and how to check it, for error messages.
///
/// # Errors
/// As [`find`].
pub fn how_to_obtain(data_set: &str, name: &str) -> Result<String, DatasetError> {
    let manifest = find(data_set)?;
    let pinned = manifest.files.iter().find(|file| file.path == name);
    let origin = match pinned {
        Some(file) => format!("get it from {}", file.source),
        None => match manifest.not_included.iter().find(|file| file.path == name) {
            Some(file) => file.reason.clone(),
            None => format!("its files are listed in datasets/{data_set}/manifest.toml"),
        },
    };
    Ok(format!(
        "{origin}; check with `cargo run --release --bin prepare -- verify {data_set}`"
    ))
}

/// SHA-256 of a file as 64 lower-case hexadecimal digits, read piece by piece.
///
/// # Errors
/// [`DatasetError::Io`] where it cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, DatasetError> {
    let io = |source| DatasetError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => hash.update(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(io(error)),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn check_pinned(root: &Path, relative: &str, file: &PinnedFile) -> Result<Status, DatasetError> {
    let path = root.join(relative);
    let found = match path.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Status::Missing {
                source: file.source.clone(),
            });
        }
        Err(source) => return Err(DatasetError::Io { path, source }),
    };
    if found != file.bytes {
        return Ok(Status::WrongSize {
            expected: file.bytes,
            found,
        });
    }
    let found = sha256_of(&path)?;
    if found != file.sha256 {
        return Ok(Status::WrongHash {
            expected: file.sha256.clone(),
            found,
        });
    }
    if let Some(expected) = file.records {
        let found = read::read_file(root, relative, BadRows::Skip)?
            .problems
            .len();
        if found != expected {
            return Ok(Status::WrongCount { expected, found });
        }
    }
    Ok(Status::Ok)
}

fn check_supplied(root: &Path, relative: &str, file: &NotIncluded) -> Result<Status, DatasetError> {
    let path = root.join(relative);
    if !path.exists() {
        return Ok(Status::NotIncluded {
            reason: file.reason.clone(),
        });
    }
    let sha256 = sha256_of(&path)?;
    if file.known_sha256.is_empty() || file.known_sha256.contains(&sha256) {
        Ok(Status::Supplied { sha256 })
    } else {
        Ok(Status::WrongHash {
            expected: file.known_sha256.join(" or "),
            found: sha256,
        })
    }
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../datasets/", $name, "/manifest.toml")))),*]
    };
}

/// Name and text of every manifest, sorted by name.
const EMBEDDED: [(&str, &str); 11] = embedded![
    "aqua-rat",
    "gpt2-tokenizer",
    "gsm-hard",
    "gsm8k",
    "gsm8k-aug",
    "math-word-problems",
    "mathqa",
    "multiplication",
    "prontoqa",
    "prosqa",
    "strategyqa",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::read::{ALL, Availability};

    fn is_hex(text: &str, length: usize) -> bool {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    #[test]
    fn manifests_parse_and_agree_with_the_readers() {
        let mut listed = BTreeMap::new();
        for (manifest, (folder, _)) in all().unwrap().iter().zip(EMBEDDED) {
            assert_eq!(manifest.name, folder);
            for file in &manifest.files {
                assert!(
                    is_hex(&file.sha256, 64) && is_hex(&file.source.commit, 40),
                    "{file:?}"
                );
                if let Some(records) = file.records {
                    let path = format!("{folder}/{}", file.path);
                    listed.insert(path, (records, Availability::Pinned));
                }
            }
            for file in &manifest.not_included {
                assert!(
                    file.known_sha256.iter().all(|sum| is_hex(sum, 64)),
                    "{file:?}"
                );
                if let Some(records) = file.records {
                    let path = format!("{folder}/{}", file.path);
                    listed.insert(path, (records, Availability::UserSupplied));
                }
            }
        }
        let readable: BTreeMap<_, _> = ALL
            .iter()
            .map(|file| (file.relative.to_owned(), (file.records, file.availability)))
            .collect();
        assert_eq!(listed, readable);
        assert_eq!(listed.len(), 33);
        assert!(find("gsm9k").unwrap_err().to_string().contains("gsm8k-aug"));
    }

    #[test]
    fn verify_names_every_kind_of_damage() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("gsm8k");
        std::fs::create_dir(&folder).unwrap();
        let row = "{\"question\":\"q\",\"answer\":\"#### 1\"}\n";
        std::fs::write(folder.join("train.jsonl"), row).unwrap();
        std::fs::write(folder.join("extra.jsonl"), "abc").unwrap();
        let sum = sha256_of(&folder.join("train.jsonl")).unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of(&folder.join("extra.jsonl")).unwrap(), abc);

        let source = Source {
            repository: "somebody/something".into(),
            commit: "0".repeat(40),
            path: "data".into(),
            derivation: None,
        };
        let status = |path: &str, sha256: &str, bytes: usize, records: usize| {
            let file = PinnedFile {
                path: path.into(),
                sha256: sha256.into(),
                bytes: bytes as u64,
                records: Some(records),
                source: source.clone(),
            };
            let manifest = Manifest {
                files: vec![file],
                ..find("gsm8k").unwrap()
            };
            let report = manifest.verify(root.path()).unwrap();
            assert_eq!(report.is_ok(), report.files[0].status == Status::Ok);
            report.files[0].status.clone()
        };
        assert_eq!(status("train.jsonl", &sum, row.len(), 1), Status::Ok);
        let found = sum.clone();
        assert_eq!(
            status("train.jsonl", abc, row.len(), 1),
            Status::WrongHash {
                expected: abc.into(),
                found
            }
        );
        assert_eq!(
            status("train.jsonl", &sum, 3, 1),
            Status::WrongSize {
                expected: 3,
                found: row.len() as u64
            }
        );
        assert_eq!(
            status("train.jsonl", &sum, row.len(), 2),
            Status::WrongCount {
                expected: 2,
                found: 1
            }
        );
        assert_eq!(
            status("test.jsonl", &sum, 1, 1),
            Status::Missing {
                source: source.clone()
            }
        );

        let supplied = |path: &str, known: &[&str]| {
            let file = NotIncluded {
                path: path.into(),
                reason: "none".into(),
                records: None,
                known_sha256: known.iter().map(|&sum| sum.to_owned()).collect(),
            };
            check_supplied(root.path(), &format!("gsm8k/{path}"), &file).unwrap()
        };
        assert_eq!(
            supplied("gone", &[]),
            Status::NotIncluded {
                reason: "none".into()
            }
        );
        assert_eq!(
            supplied("extra.jsonl", &[&sum, abc]),
            Status::Supplied { sha256: abc.into() }
        );
        assert_eq!(
            supplied("extra.jsonl", &[]),
            Status::Supplied { sha256: abc.into() }
        );
        assert_eq!(
            supplied("extra.jsonl", &[&sum]),
            Status::WrongHash {
                expected: sum.clone(),
                found: abc.into()
            }
        );
    }
}
