//! Studies: methods × seeds × data sets, what they have in common trained once, one table of all.
//!
//! In here: the study file. [`merge`] makes runs of it, [`plan`] names them, [`conduct`](mod@conduct) has them
//! carried out, [`measure`] asks every method, [`cost`] counts what training took, [`report`] reads
//! everything back and pools it over seeds, [`table`], [`markdown`] and [`pareto`] show it.

pub mod conduct;
pub mod cost;
pub mod jobs;
pub mod markdown;
pub mod measure;
pub mod merge;
pub mod pareto;
pub mod plan;
pub mod report;
pub mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sesqui_run::{ConfigError, ConfigSource, Resolved};

use crate::misuse::Misuse;

pub use conduct::{Conduct, Emit, conduct};

/// The fewest latent steps that a model is asked with, in studies: the answer right after the question.
pub const FEWEST_LATENT_STEPS: usize = 0;

/// A study file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Study {
    /// Each method is trained once with each of them; `seed` of the experiment files does not count.
    pub seeds: Vec<u64>,
    /// The method that others are compared with; every data set has it.
    pub reference: String,
    /// Numbers of latent steps that latent models are asked with, beside what their `[reasoning]` says;
    /// empty for all from 0 up to as many as trained.
    pub latent_steps: Vec<usize>,
    /// What the methods are measured on.
    pub data_sets: Vec<DataSet>,
}

/// A data set of a study and what is tried on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    /// Name in tables and folders.
    pub name: String,
    /// Overrides of every experiment file below, as `--set` takes them.
    #[serde(default)]
    pub set: Vec<String>,
    /// A row of the table each, in this order.
    #[serde(default)]
    pub methods: Vec<Method>,
}

/// A method: a stage of an experiment, and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Name in tables, unique in its data set.
    pub name: String,
    /// The experiment file, from the working directory, as `--config` takes it.
    pub config: PathBuf,
    /// Overrides of it, as `--set` takes them, after those of the data set.
    #[serde(default)]
    pub set: Vec<String>,
    /// The stage that is measured. It is trained with all that it starts from; other stages of the file are
    /// left out.
    pub stage: String,
}

impl Study {
    /// Reads a study file and overrides of it.
    ///
    /// # Errors
    ///
    /// Names the key, where it was set, and the nearest valid one.
    pub fn load(file: &Path, set: &[String]) -> Result<Resolved<Self>, ConfigError> {
        sesqui_run::load(ConfigSource::File(file.to_owned()), set)
    }

    /// Whether a text is that of a study file rather than an experiment file: it has data sets.
    pub fn is_text_of(text: &str) -> bool {
        toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("data_sets"))
    }

    /// The data set called `name`.
    pub fn data_set(&self, name: &str) -> Option<&DataSet> {
        self.data_sets.iter().find(|found| found.name == name)
    }

    /// Checks what can be checked without the experiment files.
    ///
    /// # Errors
    ///
    /// Names the key and what to change.
    pub fn validate(&self) -> Result<(), Misuse> {
        if self.seeds.is_empty() {
            return fail(
                "seeds",
                "there is none; give one or more, for example [1, 2, 3]",
            );
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.seeds.iter().find(|seed| !seen.insert(**seed)) {
            return fail(
                "seeds",
                &format!("{twice} is there twice; give each seed once"),
            );
        }
        if self.data_sets.is_empty() {
            return fail(
                "data_sets",
                "there is nothing to study; add a [[data_sets]] with methods",
            );
        }
        unique("data_sets", self.data_sets.iter().map(|set| &*set.name))?;
        for set in &self.data_sets {
            let key = format!("data_sets.{}.methods", set.name);
            if set.methods.is_empty() {
                return fail(&key, "there is none; add a [[data_sets.methods]]");
            }
            unique(&key, set.methods.iter().map(|method| &*method.name))?;
            let overrides = set.methods.iter().flat_map(|method| &method.set);
            let sets_seed = |argument: &&String| {
                let key = argument.split('=').next().unwrap_or_default();
                key.trim() == "seed"
            };
            if let Some(argument) = set.set.iter().chain(overrides).find(sets_seed) {
                return fail(
                    &format!("data_sets.{}", set.name),
                    &format!("set {argument:?}: seeds are those of the study, `seeds`"),
                );
            }
        }
        self.check_reference()
    }

    fn check_reference(&self) -> Result<(), Misuse> {
        for set in &self.data_sets {
            let names: Vec<&str> = set.methods.iter().map(|method| &*method.name).collect();
            if names.contains(&&*self.reference) {
                continue;
            }
            let has = format!("data set {} has {}", set.name, names.join(", "));
            let reason = match &*self.reference {
                "" => format!("name the method that others are compared with; {has}"),
                name => format!("there is no method {name:?}; {has}"),
            };
            return fail("reference", &reason);
        }
        Ok(())
    }
}

fn fail<T>(key: &str, reason: &str) -> Result<T, Misuse> {
    Err(Misuse(format!("{key}: {reason}")))
}

/// Refuses names that are there twice, or that cannot be part of a file name.
fn unique<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Misuse> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let key = format!("{key}.{index}.name");
        if name.is_empty() || !name.chars().all(plain) {
            let reason = format!("{name:?} becomes a file name: use letters, digits, `_` and `-`");
            return fail(&key, &reason);
        }
        if !seen.insert(name) {
            return fail(&key, &format!("{name:?} is taken"));
        }
    }
    Ok(())
}
