//! The runs of a study, made of its experiment files.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::read::BadRows;
use sesqui_eval::EvaluationConfig;
use sesqui_reason::HaltConfig;
use sesqui_run::difference::differences;
use sesqui_run::{ConfigSource, Resolved, RunPaths, StudyDirectory, Summary};

use super::measure::Record;
use super::merge::{Merged, Shown, Source, merge};
use super::{DataSet, Method, Study};
use crate::experiment::{Experiment, Initialize, Objective};
use crate::misuse::Misuse;

/// Differing keys named before the rest is only counted.
const KEYS_SHOWN: usize = 4;

/// Every run of a study, in the order in which they are taken.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One data set after the other, each with one seed after the other.
    pub runs: Vec<PlannedRun>,
}

/// One run directory of a study.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Its folder below `runs/`.
    pub name: String,
    /// The data set, by its name in the study.
    pub data_set: String,
    /// The frozen configuration.
    pub resolved: Resolved<Experiment>,
    /// What it holds.
    pub methods: Vec<Shown>,
    /// For each stage, the methods that need it.
    pub users: Vec<Vec<String>>,
    /// Where the methods of a data set need several runs: the settings that keep this one apart from the
    /// first.
    pub apart: Vec<String>,
}

/// What a command line changes in all experiments of a study.
#[derive(Clone, Debug, Default)]
pub struct Adjustments {
    /// Overrides before those of the study file.
    pub overrides: Vec<String>,
    /// Whether data, models and steps are shrunk.
    pub smoke: bool,
}

impl Plan {
    /// Reads the experiment files of a valid `study` and merges what its methods have in common.
    ///
    /// # Errors
    ///
    /// When a file or an override does not fit, a stage is not there, or methods of a data set would be
    /// measured on other data or in another way.
    pub fn new(study: &Study, adjustments: &Adjustments) -> Result<Self> {
        let mut runs = Vec::new();
        for set in &study.data_sets {
            let sources = set
                .methods
                .iter()
                .map(|method| {
                    let place = || format!("data_sets.{}.methods.{}", set.name, method.name);
                    source(set, method, &adjustments.overrides).with_context(place)
                })
                .collect::<Result<Vec<Source>>>()?;
            comparable(set, &sources)?;
            let merged = merge(&sources);
            for &seed in &study.seeds {
                runs.extend(of_seed(set, &merged, seed, adjustments.smoke)?);
            }
        }
        Ok(Self { runs })
    }

    /// Name and configuration of each run.
    pub fn configurations(&self) -> Vec<(&str, &str)> {
        let runs = self.runs.iter();
        runs.map(|run| (&*run.name, &*run.resolved.text)).collect()
    }

    /// The runs with the first seed: those of other seeds differ from them in nothing else.
    pub fn of_first_seed(&self) -> impl Iterator<Item = &PlannedRun> {
        let first = self.runs.first().map(PlannedRun::seed);
        self.runs
            .iter()
            .filter(move |run| Some(run.seed()) == first)
    }

    /// What will be trained, stage by stage.
    pub fn stages(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "run",
            "stage",
            "objective",
            "starts from",
            "steps",
            "for methods",
        ]);
        let mut notes = Vec::new();
        for run in self.of_first_seed() {
            // Its name without the seed.
            let name = run.name.rsplit_once("_seed-").map_or("", |(name, _)| name);
            for (stage, users) in run.resolved.value.stages.iter().zip(&run.users) {
                let start = match &stage.initialize {
                    Initialize::Scratch => "the seed".to_owned(),
                    Initialize::Stage { stage } => stage.clone(),
                    Initialize::Checkpoint { path } | Initialize::HuggingFace { path } => {
                        path.display().to_string()
                    }
                };
                table.add_row([
                    name.to_owned(),
                    stage.name.clone(),
                    stage.objective.kind().to_owned(),
                    start,
                    stage.training.steps.to_string(),
                    users.join(", "),
                ]);
            }
            if !run.apart.is_empty() {
                let methods: Vec<&str> = run.methods.iter().map(|shown| &*shown.method).collect();
                notes.push(format!(
                    "{name}: a run of its own for {}, because of {}; what it has in common with others is \
                     trained again",
                    methods.join(", "),
                    named(&run.apart)
                ));
            }
        }
        if let Some(steps) = table.column_mut(4) {
            steps.set_cell_alignment(CellAlignment::Right);
        }
        let notes = notes.into_iter();
        notes.fold(table.to_string(), |text, note| format!("{text}\n{note}"))
    }

    /// Every run and how far it has come.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn states(&self, directory: &StudyDirectory) -> Result<String> {
        let runs = self.runs.iter();
        let width = runs.map(|run| run.name.len()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for run in &self.runs {
            let state = run.state(&directory.run(&run.name)?)?;
            lines.push(format!("{:width$}  {state}", run.name));
        }
        Ok(lines.join("\n"))
    }
}

impl PlannedRun {
    /// The seed of everything in it.
    pub fn seed(&self) -> u64 {
        self.resolved.value.seed
    }

    /// Whether all its stages are trained and measured in `run`, which may have had fewer when that was done.
    ///
    /// # Errors
    ///
    /// When its summary cannot be read.
    pub fn is_measured(&self, run: &RunPaths) -> Result<bool> {
        let path = run.summary();
        if !path.is_file() {
            return Ok(false);
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let summary: Summary =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(summary.config_hash == self.resolved.hash)
    }

    fn state(&self, paths: &RunPaths) -> Result<String> {
        if Record::read(paths, &self.methods)?.is_some() {
            return Ok("finished".to_owned());
        }
        if self.is_measured(paths)? {
            return Ok("trained, not all methods asked".to_owned());
        }
        let mut state = "not begun".to_owned();
        for stage in &self.resolved.value.stages {
            if let Some(step) = paths.checkpoint_steps(&stage.name)?.last() {
                state = format!("{} saved after step {step}", stage.name);
            }
        }
        Ok(state)
    }
}

/// The experiment of a method, valid by itself.
fn source(set: &DataSet, method: &Method, overrides: &[String]) -> Result<Source> {
    let overrides: Vec<String> = [overrides, &set.set, &method.set].concat();
    let file = ConfigSource::File(method.config.clone());
    let experiment = sesqui_run::load::<Experiment>(file, &overrides)?.value;
    experiment.validate()?;
    let Some(stage) = experiment.stage(&method.stage) else {
        let names = experiment.stages.iter().map(|stage| &*stage.name);
        return Err(Misuse(format!(
            "stage: {} has no stage {:?}; it has {}",
            method.config.display(),
            method.stage,
            names.collect::<Vec<_>>().join(", ")
        ))
        .into());
    };
    let learned = matches!(experiment.reasoning.halt, HaltConfig::Learned(_));
    if learned && stage.objective.has_latents() && !matches!(stage.objective, Objective::Halt(_)) {
        return Err(Misuse(format!(
            "reasoning.halt: stage {} has no head that says when to stop; name a stage with objective halt",
            method.stage
        ))
        .into());
    }
    Ok(Source {
        method: method.name.clone(),
        stage: method.stage.clone(),
        experiment,
    })
}

/// What all methods of a data set have to have in common, so that a table can compare them.
#[derive(Serialize)]
struct Common<'a> {
    bad_rows: &'a BadRows,
    data: &'a DatasetConfig,
    evaluation: &'a EvaluationConfig,
}

impl<'a> Common<'a> {
    fn of(experiment: &'a Experiment) -> Self {
        Self {
            bad_rows: &experiment.bad_rows,
            data: &experiment.data,
            evaluation: &experiment.evaluation,
        }
    }
}

fn comparable(set: &DataSet, sources: &[Source]) -> Result<()> {
    let Some((first, others)) = sources.split_first() else {
        return Ok(());
    };
    let text = |source: &Source| toml::to_string(&Common::of(&source.experiment));
    for other in others {
        let changed = differences(&text(first)?, &text(other)?)?;
        if let Some(difference) = changed.first() {
            return Err(Misuse(format!(
                "data_sets.{}: {} and {} differ in {difference}; methods of one data set share data, bad_rows \
                 and evaluation: set them in `set` of the data set, or make two data sets",
                set.name, first.method, other.method
            ))
            .into());
        }
    }
    Ok(())
}

fn of_seed(set: &DataSet, merged: &[Merged], seed: u64, smoke: bool) -> Result<Vec<PlannedRun>> {
    let mut runs: Vec<PlannedRun> = Vec::with_capacity(merged.len());
    let text = |group: &Merged| toml::to_string(&group.experiment);
    for (index, group) in merged.iter().enumerate() {
        let mut experiment = Experiment {
            seed,
            ..group.experiment.clone()
        };
        let mut methods = group.methods.clone();
        if smoke {
            experiment.shrink();
            for shown in &mut methods {
                let exit = shown.reasoning.token_exit;
                shown.reasoning.token_exit = exit.within(experiment.model.layers);
            }
        }
        experiment.validate()?;
        let resolved = Resolved::frozen(experiment)?;
        // As they are, not as `--smoke` makes them.
        let apart = differences(&text(&merged[0])?, &text(group)?)?;
        let apart = apart.into_iter().map(|difference| difference.key);
        // A dot is in no name of a data set.
        let number = match merged.len() {
            1 => String::new(),
            _ => format!(".{}", index + 1),
        };
        runs.push(PlannedRun {
            name: format!("{}{number}_seed-{seed}", set.name),
            data_set: set.name.clone(),
            resolved,
            methods,
            users: group.users.clone(),
            apart: apart.filter(|key| !key.starts_with("stages.")).collect(),
        });
    }
    Ok(runs)
}

fn named(keys: &[String]) -> String {
    let shown = keys[..keys.len().min(KEYS_SHOWN)].join(", ");
    match keys.len().saturating_sub(KEYS_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
