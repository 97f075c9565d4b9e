//! The run directory: its name, its files, and the lock that keeps it to one writer.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, tz::TimeZone};

use crate::difference::{Difference, differences};
use crate::files::{FileError, atomic_write, read_text};

/// Differing keys listed in full before the rest is only counted.
const DIFFERENCES_SHOWN: usize = 12;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file system said no.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process writes this run.
    #[error(
        "{} is being written by another process{holder}; wait for it, stop it, or choose another run directory",
        path.display()
    )]
    Locked {
        /// The run directory.
        path: PathBuf,
        /// ` (<process id>)`, or nothing where it cannot be told.
        holder: String,
    },
    /// A new run would land in a folder that exists.
    #[error("{} exists already; pass it as the run directory to resume it", path.display())]
    Exists {
        /// The run directory.
        path: PathBuf,
    },
    /// The folder exists but holds no run.
    #[error(
        "{} has no config.toml, so it is not a run directory; choose another folder, or one that does not exist yet",
        path.display()
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The run was started with another configuration.
    #[error(
        "{} was started with another configuration (old → new):\n{}\n\
         a run resumes only unchanged: use `--config {}`, or choose another run directory",
        path.display(),
        listed(differences),
        path.join("config.toml").display()
    )]
    Differs {
        /// The run directory.
        path: PathBuf,
        /// The keys with other values.
        differences: Vec<Difference>,
    },
    /// The folder exists but holds no study.
    #[error(
        "{} has no study.toml, so it is not a study directory; choose another folder, or one that does not exist yet",
        path.display()
    )]
    NotAStudy {
        /// The folder.
        path: PathBuf,
    },
    /// A study that grows would leave a run behind.
    #[error(
        "{} holds the run {run}, which the larger study does not: with what was added its runs are cut up in \
         another way, and what is trained would be trained again; choose another study directory",
        path.display()
    )]
    LeftBehind {
        /// The study directory.
        path: PathBuf,
        /// The run.
        run: String,
    },
    /// The study was started with other settings.
    #[error(
        "{} holds another study (old → new):\n{}\n\
         a study goes on unchanged, or with seeds, data sets and methods more: use `--study {}`, or choose another \
         study directory",
        path.display(),
        listed(differences),
        path.join("study.toml").display()
    )]
    StudyDiffers {
        /// The study directory.
        path: PathBuf,
        /// The keys with other values.
        differences: Vec<Difference>,
    },
    /// The frozen configuration of the run cannot be read.
    #[error("{} is damaged: {reason}; restore it or choose another run directory", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A name cannot become a file name.
    #[error("`{name}` cannot name a {what}: use letters, digits, `-`, `_` and `.`, not first")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// The files of a run below its folder. Reading them needs no lock: rows are appended whole, all other
/// files are replaced in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    folder: PathBuf,
}

impl RunPaths {
    /// The files of the run in `folder`; nothing is checked or created.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        RunPaths {
            folder: folder.into(),
        }
    }

    /// The run directory itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of the run: the last part of the path.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or(self.folder.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// The frozen configuration, itself a valid config file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// The [`Invocation`](crate::Invocation)s, one per start of the run.
    #[must_use]
    pub fn invocation(&self) -> PathBuf {
        self.folder.join("invocation.json")
    }

    /// The [`MetricRow`](crate::MetricRow)s.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    /// The [`EventRow`](crate::EventRow)s.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.folder.join("events.jsonl")
    }

    /// The [`SampleRow`](crate::SampleRow)s.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.folder.join("samples.jsonl")
    }

    /// The log for people.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("train.log")
    }

    /// The [`Summary`](crate::Summary).
    #[must_use]
    pub fn summary(&self) -> PathBuf {
        self.folder.join("summary.json")
    }

    /// The report, one self-contained page.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.folder.join("report.html")
    }

    /// The folder of the evaluations.
    #[must_use]
    pub fn evaluations(&self) -> PathBuf {
        self.folder.join("eval")
    }

    /// One evaluation, `eval/<name>.json`.
    ///
    /// # Errors
    /// When `name` cannot be a file name.
    pub fn evaluation(&self, name: &str) -> Result<PathBuf, DirectoryError> {
        check_name("evaluation", name)?;
        Ok(self.evaluations().join(format!("{name}.json")))
    }

    /// The folder of one stage's checkpoints.
    ///
    /// # Errors
    /// When `stage` cannot be a folder name.
    pub fn checkpoints(&self, stage: &str) -> Result<PathBuf, DirectoryError> {
        check_name("stage", stage)?;
        Ok(self.folder.join("checkpoints").join(stage))
    }

    /// The folder of one checkpoint, `checkpoints/<stage>/step-00000100`.
    ///
    /// # Errors
    /// When `stage` cannot be a folder name.
    pub fn checkpoint(&self, stage: &str, step: u64) -> Result<PathBuf, DirectoryError> {
        Ok(self.checkpoints(stage)?.join(format!("step-{step:08}")))
    }

    /// The steps of the checkpoints there are for `stage`, ascending; empty when there are none.
    /// Folders of other names, such as half-written ones, are not checkpoints.
    ///
    /// # Errors
    /// When `stage` cannot be a folder name or the folder cannot be listed.
    pub fn checkpoint_steps(&self, stage: &str) -> Result<Vec<u64>, DirectoryError> {
        let folder = self.checkpoints(stage)?;
        let failed = |source| FileError::new("list", &folder, source);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix("step-"));
            let step: Option<u64> = digits
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

/// A run directory that this process alone may write, until the value is dropped.
#[derive(Debug)]
pub struct RunDirectory {
    paths: RunPaths,
    resumed: bool,
    /// The operating system releases the lock with the handle, also when the process dies.
    _lock: File,
}

impl Deref for RunDirectory {
    type Target = RunPaths;

    fn deref(&self) -> &RunPaths {
        &self.paths
    }
}

impl RunDirectory {
    /// Starts a run in `<root>/<utc yyyymmdd-hhmmss>_<variant>_<hash>/` and stores its configuration.
    ///
    /// # Errors
    /// When the folder exists already or cannot be made.
    pub fn create(
        root: &Path,
        started: Timestamp,
        variant: &str,
        hash: &str,
        config: &str,
    ) -> Result<Self, DirectoryError> {
        let path = root.join(run_name(started, variant, hash));
        if path.exists() {
            return Err(DirectoryError::Exists { path });
        }
        RunDirectory::open_or_create(&path, config)
    }

    /// Starts a run in `path`, or goes on with the one that is there.
    ///
    /// # Errors
    /// When `path` holds a run with another configuration, holds something that is not a run, or is
    /// being written by another process.
    pub fn open_or_create(path: &Path, config: &str) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path).map_err(|source| FileError::new("create", path, source))?;
        let paths = RunPaths::new(path);
        let foreign = !paths.config().exists() && has_visible_entries(path)?;
        if foreign {
            return Err(DirectoryError::NotARun {
                path: path.to_path_buf(),
            });
        }
        let lock = lock(path)?;
        // Only now: another process may have stored its configuration before it let go of the lock.
        let resumed = paths.config().exists();
        if resumed {
            compare(path, &paths.config(), config)?;
        } else {
            atomic_write(&paths.config(), config.as_bytes())?;
        }
        for folder in [paths.evaluations(), path.join("checkpoints")] {
            fs::create_dir_all(&folder)
                .map_err(|source| FileError::new("create", &folder, source))?;
        }
        Ok(RunDirectory {
            paths,
            resumed,
            _lock: lock,
        })
    }

    /// Opens an existing run for writing, with the configuration it has: read it from
    /// [`RunPaths::config`].
    ///
    /// # Errors
    /// When `path` holds no run or is being written by another process.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let paths = RunPaths::new(path);
        if !paths.config().is_file() {
            return Err(DirectoryError::NotARun {
                path: path.to_path_buf(),
            });
        }
        Ok(RunDirectory {
            paths,
            resumed: true,
            _lock: lock(path)?,
        })
    }

    /// True when the run was there before.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The files of the run, to be kept after the lock is gone.
    #[must_use]
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }
}

/// `<utc yyyymmdd-hhmmss>_<variant>_<hash>`; characters of the variant that are awkward in file names
/// become `-`.
#[must_use]
pub fn run_name(started: Timestamp, variant: &str, hash: &str) -> String {
    let time = started.to_zoned(TimeZone::UTC);
    let variant: String = variant
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' => character,
            _ => '-',
        })
        .collect();
    format!("{}_{variant}_{hash}", time.strftime("%Y%m%d-%H%M%S"))
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), DirectoryError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        let name = name.to_owned();
        return Err(DirectoryError::Name { what, name });
    }
    Ok(())
}

pub(crate) fn has_visible_entries(path: &Path) -> Result<bool, FileError> {
    let failed = |source| FileError::new("list", path, source);
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.to_string_lossy().starts_with('.') {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn lock(path: &Path) -> Result<File, DirectoryError> {
    let file = path.join(".lock");
    let failed = |source| FileError::new("lock", &file, source);
    let mut handle = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&file)
        .map_err(failed)?;
    match handle.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&file).unwrap_or_default();
            let holder = match holder.trim() {
                "" => String::new(),
                process => format!(" ({process})"),
            };
            return Err(DirectoryError::Locked {
                path: path.to_path_buf(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source).into()),
    }
    handle.set_len(0).map_err(failed)?;
    writeln!(handle, "process {}", std::process::id()).map_err(failed)?;
    Ok(handle)
}

/// Refuses a configuration that says something else than the one stored in the run directory `path`.
pub(crate) fn compare(path: &Path, stored: &Path, config: &str) -> Result<(), DirectoryError> {
    let differences = changed(stored, config)?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(DirectoryError::Differs {
        path: path.to_path_buf(),
        differences,
    })
}

/// In which keys `text` differs from the TOML file `stored`.
pub(crate) fn changed(stored: &Path, text: &str) -> Result<Vec<Difference>, DirectoryError> {
    let old = read_text(stored)?;
    if old == text {
        return Ok(Vec::new());
    }
    differences(&old, text).map_err(|error| DirectoryError::Damaged {
        path: stored.to_path_buf(),
        reason: error.message().to_owned(),
    })
}

fn listed(differences: &[Difference]) -> String {
    let mut lines: Vec<String> = differences
        .iter()
        .take(DIFFERENCES_SHOWN)
        .map(|difference| format!("  {difference}"))
        .collect();
    if differences.len() > DIFFERENCES_SHOWN {
        let more = differences.len() - DIFFERENCES_SHOWN;
        lines.push(format!("  and {more} more"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Timestamp {
        "2026-03-04T23:06:07+01:00".parse().unwrap()
    }

    #[test]
    fn names_carry_utc_time_variant_and_hash() {
        assert_eq!(
            run_name(started(), "codi gsm8k/αug_v1", "0badcafe"),
            "20260304-220607_codi-gsm8k--ug-v1_0badcafe"
        );
    }

    #[test]
    fn creates_then_resumes_and_keeps_others_out() {
        let root = tempfile::tempdir().unwrap();
        let run =
            RunDirectory::create(root.path(), started(), "cot", "0badcafe", "a = 1\n").unwrap();
        let path = run.folder().to_path_buf();
        assert!(!run.resumed());
        assert_eq!(run.name(), "20260304-220607_cot_0badcafe");
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "a = 1\n");
        let error = RunDirectory::open(&path).unwrap_err().to_string();
        let expected = format!(
            "{} is being written by another process (process {}); wait for it, stop it, or choose another run directory",
            path.display(),
            std::process::id()
        );
        assert_eq!(error, expected);
        drop(run);
        assert!(
            RunDirectory::open_or_create(&path, "a=1 # same")
                .unwrap()
                .resumed()
        );
        let again = RunDirectory::create(root.path(), started(), "cot", "0badcafe", "a = 1\n");
        assert!(matches!(again, Err(DirectoryError::Exists { .. })));
    }

    #[test]
    fn refuses_another_configuration_and_folders_that_are_no_runs() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        drop(RunDirectory::open_or_create(&path, "seed = 1\n[model]\nlayers = 2\n").unwrap());
        let new = "[model]\nlayers = 4\nwidth = 8\n";
        let error = RunDirectory::open_or_create(&path, new)
            .unwrap_err()
            .to_string();
        let path = path.display();
        let expected = format!(
            "{path} was started with another configuration (old → new):\n  \
             model.layers: 2 → 4\n  model.width: (absent) → 8\n  seed: 1 → (absent)\n\
             a run resumes only unchanged: use `--config {path}/config.toml`, or choose another run directory"
        );
        assert_eq!(error, expected);

        let many: String = (0..14).map(|key| format!("k{key} = 0\n")).collect();
        let error = RunDirectory::open_or_create(Path::new(&path.to_string()), &many).unwrap_err();
        assert!(error.to_string().contains("\n  and 4 more\n"), "{error}");

        fs::create_dir(root.path().join("photos")).unwrap();
        fs::write(root.path().join("photos/me.jpg"), b"").unwrap();
        let error = RunDirectory::open_or_create(&root.path().join("photos"), "").unwrap_err();
        assert!(matches!(error, DirectoryError::NotARun { .. }));
        assert!(RunDirectory::open(root.path()).is_err());
        assert!(!root.path().join(".lock").exists() && !root.path().join("photos/.lock").exists());
    }

    #[test]
    fn checkpoints_are_listed_in_order_and_names_checked() {
        let root = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(root.path());
        assert_eq!(paths.checkpoint_steps("cot").unwrap(), Vec::<u64>::new());
        for step in [900, 1000, 123_456_789, 0] {
            fs::create_dir_all(paths.checkpoint("cot", step).unwrap()).unwrap();
        }
        for other in ["step-", "step-00000007.partial", "best", "step-+0000008"] {
            fs::create_dir_all(paths.checkpoints("cot").unwrap().join(other)).unwrap();
        }
        assert_eq!(
            paths.checkpoint_steps("cot").unwrap(),
            [0, 900, 1000, 123_456_789]
        );
        assert!(
            paths
                .checkpoint("cot", 7)
                .unwrap()
                .ends_with("checkpoints/cot/step-00000007")
        );
        for name in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(paths.checkpoint(name, 1).is_err(), "{name}");
            assert!(paths.evaluation(name).is_err(), "{name}");
        }
    }
}
