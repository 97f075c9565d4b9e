//! Who ran what, from which commit, on which machine: `invocation.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, atomic_write};
use crate::rows::{RowError, Schema};

/// What only the program knows about its own start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The command line, the program first.
    pub argv: Vec<String>,
    /// When it started.
    pub started: Timestamp,
    /// Version of Burn it was built with.
    pub burn_version: String,
    /// Backend, for example `flex`, `cuda`, `wgpu`.
    pub backend: String,
    /// Name of the device as the backend gives it.
    pub device: String,
    /// SHA-256 of every data file read, by path below the data root.
    pub data: BTreeMap<String, String>,
    /// Seeds by purpose, for example `data`, `model`.
    pub seeds: BTreeMap<String, u64>,
}

/// One start of a run, complete enough to repeat it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// Version of this record.
    pub schema: Schema<1>,
    /// When it started, RFC 3339 in UTC, whole seconds.
    pub started_utc: String,
    /// The command line, the program first.
    pub argv: Vec<String>,
    /// Commit of the working directory; `null` outside a git repository or without git.
    pub commit: Option<String>,
    /// Whether tracked files differ from the commit or untracked ones lie beside them.
    pub dirty: Option<bool>,
    /// Version of this package.
    pub package_version: String,
    /// Oldest Rust version the package builds with; the lock file pins the rest.
    pub rust_version: String,
    /// Version of Burn.
    pub burn_version: String,
    /// Backend, for example `flex`, `cuda`, `wgpu`.
    pub backend: String,
    /// Name of the device as the backend gives it.
    pub device: String,
    /// Operating system and architecture, for example `linux x86_64`.
    pub system: String,
    /// Model name of the processor, where the system tells.
    pub cpu_model: Option<String>,
    /// Threads the process may run at once, where the system tells.
    pub cores: Option<usize>,
    /// SHA-256 of every data file read, by path below the data root.
    pub data: BTreeMap<String, String>,
    /// Seeds by purpose.
    pub seeds: BTreeMap<String, u64>,
}

impl Invocation {
    /// Adds to what the program knows what the system tells; `folder` is where git is asked, normally
    /// the working directory. What cannot be found out is `None`, never an error.
    #[must_use]
    pub fn observe(program: Program, folder: &Path) -> Self {
        let commit = git(folder, &["rev-parse", "HEAD"]);
        let dirty = git(folder, &["status", "--porcelain"]).map(|changes| !changes.is_empty());
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok();
        Invocation {
            schema: Schema,
            started_utc: program.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            argv: program.argv,
            commit,
            dirty,
            package_version: env!("CARGO_PKG_VERSION").to_owned(),
            rust_version: env!("CARGO_PKG_RUST_VERSION").to_owned(),
            burn_version: program.burn_version,
            backend: program.backend,
            device: program.device,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu_model: cpu.as_deref().and_then(cpu_model),
            cores: thread::available_parallelism().ok().map(usize::from),
            data: program.data,
            seeds: program.seeds,
        }
    }

    /// Adds this start to `invocation.json`: a run that is resumed keeps the record of every start.
    ///
    /// # Errors
    /// When the file is there but damaged, or cannot be written.
    pub fn record(&self, path: &Path) -> Result<(), RowError> {
        let mut starts = Invocation::read(path)?;
        starts.push(self.clone());
        let mut text = serde_json::to_vec_pretty(&starts).map_err(|error| RowError::Encode {
            path: path.to_path_buf(),
            reason: error.to_string(),
        })?;
        text.push(b'\n');
        Ok(atomic_write(path, &text)?)
    }

    /// Every start of a run, oldest first; none when the file does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or has another schema; the error names file and line.
    pub fn read(path: &Path) -> Result<Vec<Self>, RowError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(|source| FileError::new("read", path, source))?,
        };
        serde_json::from_str(&text).map_err(|error| RowError::Line {
            path: path.to_path_buf(),
            line: error.line(),
            reason: error.to_string(),
        })
    }
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_repository_git_facts_are_absent() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program {
            argv: vec!["train".to_owned(), "--config".to_owned()],
            started: "2026-03-04T22:06:07.5Z".parse().unwrap(),
            seeds: BTreeMap::from([("data".to_owned(), u64::MAX)]),
            ..Program::default()
        };
        let invocation = Invocation::observe(program, folder.path());
        assert_eq!((&invocation.commit, invocation.dirty), (&None, None));
        assert_eq!(invocation.started_utc, "2026-03-04T22:06:07Z");
        assert_eq!(invocation.rust_version, "1.95");

        let path = folder.path().join("invocation.json");
        invocation.record(&path).unwrap();
        invocation.record(&path).unwrap();
        assert_eq!(
            Invocation::read(&path).unwrap(),
            [invocation.clone(), invocation]
        );
        std::fs::write(&path, "[{").unwrap();
        let error = Invocation::read(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}:1: ", path.display())),
            "{error}"
        );
    }

    #[test]
    fn sees_commit_and_uncommitted_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        if git(path, &["init", "--quiet"]).is_none() {
            return; // no git on this machine
        }
        let who = [
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@e",
            "-c",
            "commit.gpgsign=false",
        ];
        let commit = [&who[..], &["commit", "--quiet", "--allow-empty", "-m", "m"]].concat();
        git(path, &commit).unwrap();
        let clean = Invocation::observe(Program::default(), path);
        assert_eq!(
            (clean.commit.map(|hash| hash.len()), clean.dirty),
            (Some(40), Some(false))
        );
        std::fs::write(path.join("new"), "").unwrap();
        assert_eq!(
            Invocation::observe(Program::default(), path).dirty,
            Some(true)
        );
    }

    #[test]
    fn finds_the_processor() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: A: B\n").as_deref(),
            Some("A: B")
        );
        assert_eq!(cpu_model("Features : fp\n"), None);
    }
}
