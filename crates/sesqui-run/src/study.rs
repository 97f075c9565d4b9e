//! The study directory: a frozen study file, the run directories below it, and what is made of them.
//!
//! Any number of processes may work on one. Each run keeps its own lock ([`crate::RunDirectory`]); the lock
//! of the study is held only while its files are made or replaced.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::difference::additions;
use crate::directory::{
    DirectoryError, RunPaths, changed, check_name, compare, has_visible_entries, lock,
};
use crate::files::{FileError, atomic_write};

/// A study directory whose study file and run configurations are those asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudyDirectory {
    folder: PathBuf,
    grown: Vec<String>,
}

impl StudyDirectory {
    /// The files of the study in `folder`; nothing is checked or created.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        StudyDirectory {
            folder: folder.into(),
            grown: Vec::new(),
        }
    }

    /// Starts a study in `folder`, or goes on with the one that is there. `study` is the frozen study file,
    /// `runs` are names and configurations of its runs, each of which gets its folder with a `config.toml`
    /// at once: a file that changes later cannot make two halves of one study.
    ///
    /// A study may grow by seeds, data sets and methods, its runs by stages: what is there stays as it is.
    ///
    /// # Errors
    /// When `folder` holds another study, a run with another configuration, or something else; when a run
    /// that is to grow is being written.
    pub fn open_or_create(
        folder: &Path,
        study: &str,
        runs: &[(&str, &str)],
    ) -> Result<Self, DirectoryError> {
        let mut directory = StudyDirectory::at(folder);
        for (name, _) in runs {
            directory.run(name)?;
        }
        fs::create_dir_all(folder).map_err(|source| FileError::new("create", folder, source))?;
        let stranger = || match !directory.file().exists() && has_visible_entries(folder)? {
            true => Err(DirectoryError::NotAStudy {
                path: folder.to_path_buf(),
            }),
            false => Ok(()),
        };
        // Where there is a lock another process may be making the study just now, its file last of all; where there
        // is none nothing is left behind.
        if !folder.join(".lock").exists() {
            stranger()?;
        }
        directory.grown = directory.alone(|| {
            stranger()?;
            directory.freeze(study, runs)
        })??;
        Ok(directory)
    }

    /// What the study has grown by, if it was there before.
    #[must_use]
    pub fn grown(&self) -> &[String] {
        &self.grown
    }

    fn freeze(&self, study: &str, runs: &[(&str, &str)]) -> Result<Vec<String>, DirectoryError> {
        let file = self.file();
        let grown = match file.exists() {
            false => None,
            true => Some(self.compared(&file, study)?),
        };
        if grown.as_ref().is_some_and(|added| !added.is_empty()) {
            self.keeps_all(runs)?;
        }
        // Everything is compared before anything is replaced, and nobody writes a run meanwhile.
        let mut grown_runs = Vec::new();
        for (name, config) in runs {
            let run = self.run(name)?;
            if let Some(lock) = growing(run.folder(), &run.config(), config)? {
                grown_runs.push((run, config, lock));
            }
        }
        for (run, config, _lock) in &grown_runs {
            atomic_write(&run.config(), config.as_bytes())?;
        }
        for (name, config) in runs {
            let run = self.run(name)?;
            if !run.config().exists() {
                let path = run.folder();
                fs::create_dir_all(path)
                    .map_err(|source| FileError::new("create", path, source))?;
                atomic_write(&run.config(), config.as_bytes())?;
            }
        }
        // Last: a study whose file has grown has runs that have.
        if grown.as_ref().is_none_or(|added| !added.is_empty()) {
            atomic_write(&file, study.as_bytes())?;
        }
        Ok(grown.unwrap_or_default())
    }

    /// Whether every run that is there is among `runs`.
    fn keeps_all(&self, runs: &[(&str, &str)]) -> Result<(), DirectoryError> {
        let folder = self.folder.join("runs");
        let failed = |source| FileError::new("list", &folder, source);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy();
            let known = runs.iter().any(|(run, _)| *run == name);
            if !known && RunPaths::new(folder.join(&*name)).config().is_file() {
                return Err(DirectoryError::LeftBehind {
                    path: self.folder.clone(),
                    run: name.into_owned(),
                });
            }
        }
        Ok(())
    }

    /// What `study` has beyond the study file that is there.
    fn compared(&self, file: &Path, study: &str) -> Result<Vec<String>, DirectoryError> {
        let differences = changed(file, study)?;
        if differences.is_empty() {
            return Ok(Vec::new());
        }
        added(file, study)?.ok_or_else(|| DirectoryError::StudyDiffers {
            path: self.folder.clone(),
            differences,
        })
    }

    /// Does `work` while no other process does such work on this study; waits until it may.
    ///
    /// # Errors
    /// When the lock file cannot be used.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> Result<T, DirectoryError> {
        let path = self.folder.join(".lock");
        let failed = |source| FileError::new("lock", &path, source);
        let handle: File = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        handle.lock().map_err(failed)?;
        // Released with the handle, also when the process dies.
        Ok(work())
    }

    /// The study directory itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The frozen study file, itself a valid one.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("study.toml")
    }

    /// The run called `name`, `runs/<name>/`.
    ///
    /// # Errors
    /// When `name` cannot be a folder name.
    pub fn run(&self, name: &str) -> Result<RunPaths, DirectoryError> {
        check_name("run", name)?;
        Ok(RunPaths::new(self.folder.join("runs").join(name)))
    }

    /// All rows, for programs.
    #[must_use]
    pub fn rows(&self) -> PathBuf {
        self.folder.join("study.json")
    }

    /// The tables, for documents.
    #[must_use]
    pub fn tables(&self) -> PathBuf {
        self.folder.join("study.md")
    }

    /// A picture, `<name>.svg`.
    #[must_use]
    pub fn picture(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.svg"))
    }
}

/// The lock of the run in `folder` if `config` has more stages than the configuration that is `stored` there;
/// none where it is the same, or nothing is there.
fn growing(folder: &Path, stored: &Path, config: &str) -> Result<Option<File>, DirectoryError> {
    if !stored.exists() || changed(stored, config)?.is_empty() {
        return Ok(None);
    }
    match added(stored, config)? {
        Some(_) => Ok(Some(lock(folder)?)),
        None => {
            compare(folder, stored, config)?;
            Ok(None)
        }
    }
}

/// What `text` has beyond the file `stored`, if that is all in which they differ.
fn added(stored: &Path, text: &str) -> Result<Option<Vec<String>>, DirectoryError> {
    let old =
        fs::read_to_string(stored).map_err(|source| FileError::new("read", stored, source))?;
    additions(&old, text).map_err(|error| DirectoryError::Damaged {
        path: stored.to_path_buf(),
        reason: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunDirectory;

    #[test]
    fn a_study_goes_on_only_unchanged() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("study");
        let runs = [("a_seed-1", "seed = 1\n"), ("a_seed-2", "seed = 2\n")];
        let study = StudyDirectory::open_or_create(&path, "seeds = [1, 2]\n", &runs).unwrap();
        for (name, config) in runs {
            let run = study.run(name).unwrap();
            assert_eq!(fs::read_to_string(run.config()).unwrap(), config);
            // Made beforehand, and yet a run directory like any other.
            let held = RunDirectory::open_or_create(run.folder(), config).unwrap();
            assert!(StudyDirectory::open_or_create(&path, "seeds = [1,2]", &runs).is_ok());
            drop(held);
        }
        let error = StudyDirectory::open_or_create(&path, "seeds = [1]\n", &runs).unwrap_err();
        assert!(study.grown().is_empty());
        let shown = path.display();
        assert_eq!(
            error.to_string(),
            format!(
                "{shown} holds another study (old → new):\n  seeds: [1, 2] → [1]\n\
                 a study goes on unchanged, or with seeds, data sets and methods more: use `--study \
                 {shown}/study.toml`, or choose another study directory"
            )
        );
        let changed = [("a_seed-1", "seed = 3\n")];
        let error = StudyDirectory::open_or_create(&path, "seeds = [1, 2]\n", &changed);
        assert!(matches!(error, Err(DirectoryError::Differs { .. })));
    }

    #[test]
    fn a_study_grows_where_nobody_writes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("study");
        let small = ("a_seed-1", "[[stages]]\nname = \"cot\"\n");
        let large = (
            "a_seed-1",
            "[[stages]]\nname = \"cot\"\n\n[[stages]]\nname = \"codi\"\n",
        );
        let open =
            |text: &str, runs: &[(&str, &str)]| StudyDirectory::open_or_create(&path, text, runs);
        let study = open("seeds = [1]\n", &[small]).unwrap();
        let config = study.run("a_seed-1").unwrap().config();
        let wider = "seeds = [1, 2]\n";
        let more = [large, ("a_seed-2", "seed = 2\n")];

        let held = RunDirectory::open(study.run("a_seed-1").unwrap().folder()).unwrap();
        let refused = open(wider, &more).unwrap_err();
        assert!(
            matches!(refused, DirectoryError::Locked { .. }),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(study.file()).unwrap(), "seeds = [1]\n");
        assert_eq!(fs::read_to_string(&config).unwrap(), small.1);
        drop(held);

        let grown = open(wider, &more).unwrap();
        assert_eq!(grown.grown(), ["seeds.2"]);
        assert_eq!(fs::read_to_string(&config).unwrap(), large.1);
        assert_eq!(fs::read_to_string(study.file()).unwrap(), wider);
        assert!(open(wider, &more).unwrap().grown().is_empty());
        // What is there would be trained again under another name.
        let renamed = [
            ("a.1_seed-1", large.1),
            ("a.2_seed-1", ""),
            ("a_seed-2", "seed = 2\n"),
        ];
        let refused = open("seeds = [1, 2, 3]\n", &renamed).unwrap_err();
        assert!(
            refused.to_string().contains("holds the run a_seed-1"),
            "{refused}"
        );
        assert!(!grown.run("a.2_seed-1").unwrap().folder().exists());
        // Not back.
        assert!(open("seeds = [1]\n", &[large]).is_err());
        assert!(open(wider, &[small]).is_err());
    }

    #[test]
    fn other_folders_and_names_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("me.jpg"), b"").unwrap();
        let error = StudyDirectory::open_or_create(root.path(), "", &[]);
        assert!(matches!(error, Err(DirectoryError::NotAStudy { .. })));
        assert!(!root.path().join(".lock").exists());
        let path = root.path().join("study");
        assert!(StudyDirectory::open_or_create(&path, "", &[("../up", "")]).is_err());
        assert!(!path.exists());
    }
}
