//! The study directory: a frozen study file, the run directories below it, and what is made of them.
//!
//! Any number of processes may work on one. Each run keeps its own lock ([`crate::RunDirectory`]); the lock
//! of the study is held only while its files are made or replaced.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::directory::{
    DirectoryError, RunPaths, changed, check_name, compare, has_visible_entries,
};
use crate::files::{FileError, atomic_write};

/// A study directory whose study file and run configurations are those asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudyDirectory {
    folder: PathBuf,
}

impl StudyDirectory {
    /// The files of the study in `folder`; nothing is checked or created.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        StudyDirectory {
            folder: folder.into(),
        }
    }

    /// Starts a study in `folder`, or goes on with the one that is there. `study` is the frozen study file,
    /// `runs` are names and configurations of its runs, each of which gets its folder with a `config.toml`
    /// at once: a file that changes later cannot make two halves of one study.
    ///
    /// # Errors
    /// When `folder` holds another study, a run with another configuration, or something else.
    pub fn open_or_create(
        folder: &Path,
        study: &str,
        runs: &[(&str, &str)],
    ) -> Result<Self, DirectoryError> {
        let directory = StudyDirectory::at(folder);
        for (name, _) in runs {
            directory.run(name)?;
        }
        fs::create_dir_all(folder).map_err(|source| FileError::new("create", folder, source))?;
        if !directory.file().exists() && has_visible_entries(folder)? {
            return Err(DirectoryError::NotAStudy {
                path: folder.to_path_buf(),
            });
        }
        directory.alone(|| directory.freeze(study, runs))??;
        Ok(directory)
    }

    fn freeze(&self, study: &str, runs: &[(&str, &str)]) -> Result<(), DirectoryError> {
        let file = self.file();
        if file.exists() {
            let differences = changed(&file, study)?;
            if !differences.is_empty() {
                return Err(DirectoryError::StudyDiffers {
                    path: self.folder.clone(),
                    differences,
                });
            }
        } else {
            atomic_write(&file, study.as_bytes())?;
        }
        for (name, config) in runs {
            let run = self.run(name)?;
            let (path, stored) = (run.folder(), run.config());
            if stored.exists() {
                compare(path, &stored, config)?;
            } else {
                fs::create_dir_all(path)
                    .map_err(|source| FileError::new("create", path, source))?;
                atomic_write(&stored, config.as_bytes())?;
            }
        }
        Ok(())
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
        let shown = path.display();
        assert_eq!(
            error.to_string(),
            format!(
                "{shown} holds another study (old → new):\n  seeds: [1, 2] → [1]\n\
                 a study goes on only unchanged: use `--study {shown}/study.toml`, or choose another \
                 study directory"
            )
        );
        let changed = [("a_seed-1", "seed = 3\n")];
        let error = StudyDirectory::open_or_create(&path, "seeds = [1, 2]\n", &changed);
        assert!(matches!(error, Err(DirectoryError::Differs { .. })));
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
