//! What a study has found so far, read back from its runs and pooled over seeds.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Serialize;
use sesqui_eval::statistics::{mean, wilson_95};
use sesqui_run::{Invocation, RunPaths, Schema, StudyDirectory, SummaryRow};

use super::Study;
use super::cost::{StageCost, TrainingCost};
use super::measure::{Measurement, Record};
use super::plan::{Plan, PlannedRun};
use crate::compare::{Compared, SEED, beside, compare, read_file, shared_questions};
use crate::measure::{Measured, costs};

/// `study.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this file.
    pub schema: Schema<1>,
    /// The command line that wrote it.
    pub command: String,
    /// Commits that its runs were made with.
    pub commits: BTreeSet<String>,
    /// Machines that they ran on.
    pub machines: BTreeSet<String>,
    /// The day on which the last of them was started, in UTC.
    pub date: String,
    /// The method that others are compared with.
    pub reference: String,
    /// Runs that are not finished.
    pub unfinished: Vec<String>,
    /// Every method with every seed.
    pub rows: Vec<SeedRow>,
    /// The same pooled over seeds.
    pub pooled: Vec<PooledRow>,
    /// Every method beside the reference on the same questions: each seed, then pooled.
    pub paired: Vec<Compared>,
    /// Why there is no such comparison, where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpaired: Option<String>,
}

/// A method with one seed on one test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeedRow {
    /// The run directory.
    pub run: String,
    /// The stage.
    pub stage: String,
    /// Asked with this number of latent steps; absent where it is asked as its `[reasoning]` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<usize>,
    /// What was measured; `method` and `dataset` by their names in the study.
    #[serde(flatten)]
    pub summary: SummaryRow,
    /// What training the stage took.
    pub training: Option<StageCost>,
}

/// A method on one test set, over all seeds. Costs are means of the seeds, each a mean per question.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PooledRow {
    /// The data set, by its name in the study.
    pub dataset: String,
    /// The test set.
    pub split: String,
    /// The method.
    pub method: String,
    /// As in [`SeedRow`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<usize>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Questions, over all seeds.
    pub n: u64,
    /// Of these the ones answered rightly.
    pub correct: u64,
    /// Answers to a question that several seeds were asked; each counts by itself.
    pub shared_questions: usize,
    /// Share of right answers.
    pub accuracy: f64,
    /// Lower end of its 95 % Wilson interval, over all questions.
    pub ci_low: f64,
    /// Upper end.
    pub ci_high: f64,
    /// Accuracy with the worst seed.
    pub lowest: f64,
    /// Accuracy with the best seed.
    pub highest: f64,
    /// Tokens generated.
    pub tokens: f64,
    /// Latent steps.
    pub latent_steps: f64,
    /// Layers run while reasoning.
    pub layer_calls: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Of these the ones inside layers while reasoning.
    pub reason_flops: f64,
    /// Milliseconds of reasoning.
    pub reason_ms: f64,
    /// Milliseconds in all.
    pub total_ms: f64,
    /// Training of the stage.
    pub own: TrainingCost,
    /// With that of the stages it goes back to.
    pub with_ancestors: TrainingCost,
}

impl PooledRow {
    /// What an answer cost, as tables show it.
    pub fn costs(&self) -> [String; 7] {
        costs([
            self.tokens,
            self.latent_steps,
            self.layer_calls,
            self.flops,
            self.reason_flops,
            self.reason_ms,
            self.total_ms,
        ])
    }
}

/// A row with its answers.
struct Found {
    row: SeedRow,
    measured: Measured,
}

impl Report {
    /// Reads what is finished.
    ///
    /// # Errors
    ///
    /// When a file of a finished run cannot be read.
    pub fn read(
        study: &Study,
        plan: &Plan,
        directory: &StudyDirectory,
        command: String,
    ) -> Result<Self> {
        let mut report = Self {
            schema: Schema,
            command,
            commits: BTreeSet::new(),
            machines: BTreeSet::new(),
            date: String::new(),
            reference: study.reference.clone(),
            unfinished: Vec::new(),
            rows: Vec::new(),
            pooled: Vec::new(),
            paired: Vec::new(),
            unpaired: None,
        };
        let mut found = Vec::new();
        for run in &plan.runs {
            let paths = directory.run(&run.name)?;
            match Record::read(&paths, &run.methods)? {
                Some(record) => {
                    found.extend(rows(run, &paths, &record)?);
                    report.origin(&paths)?;
                }
                None => report.unfinished.push(run.name.clone()),
            }
        }
        report.pooled = pooled(study, &found);
        match paired(study, &found) {
            Ok(rows) => report.paired = rows,
            Err(error) => report.unpaired = Some(format!("{error:#}")),
        }
        report.rows = found.into_iter().map(|found| found.row).collect();
        Ok(report)
    }

    /// The rows of the table: methods asked as they say.
    pub fn methods(&self) -> impl Iterator<Item = &PooledRow> {
        self.pooled.iter().filter(|row| row.asked.is_none())
    }

    /// A latent method with every number of latent steps, fewest first, its own among them; empty where it
    /// was not asked with others.
    pub fn by_latent_steps(&self, method: &PooledRow) -> Vec<(usize, &PooledRow)> {
        let key = |row: &&PooledRow| {
            (&row.dataset, &row.split, &row.method)
                == (&method.dataset, &method.split, &method.method)
        };
        let others = self.pooled.iter().filter(key);
        let mut rows: Vec<(usize, &PooledRow)> = others
            .filter_map(|row| row.asked.map(|steps| (steps, row)))
            .collect();
        if let (false, Some(own)) = (rows.is_empty(), self.methods().find(key)) {
            rows.push((own.latent_steps.round() as usize, own));
        }
        rows.sort_by_key(|(steps, _)| *steps);
        rows
    }

    /// Data sets and test sets, in the order of the study.
    pub fn places(&self) -> Vec<(&str, &str)> {
        let mut places = Vec::new();
        for row in self.methods() {
            let place = (row.dataset.as_str(), row.split.as_str());
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// The comparisons over all seeds that a method has: of each the last row.
    pub fn paired_over_seeds(&self) -> Vec<Compared> {
        let key = |row: &Compared| {
            let (method, dataset, split) = (&row.method, &row.dataset, &row.split);
            [method.clone(), dataset.clone(), split.clone()]
        };
        let methods = self.paired.chunk_by(|one, next| key(one) == key(next));
        methods.filter_map(|rows| rows.last().cloned()).collect()
    }

    fn origin(&mut self, paths: &RunPaths) -> Result<()> {
        for start in Invocation::read(&paths.invocation())? {
            let commit = start.commit.as_deref().unwrap_or("unknown");
            let short = commit.get(..7).unwrap_or(commit);
            let changed = match start.dirty {
                Some(true) => " and uncommitted changes",
                _ => "",
            };
            self.commits.insert(format!("{short}{changed}"));
            let cores = start.cores.map(|cores| format!("{cores} cores, "));
            self.machines.insert(format!(
                "{}{}, {}",
                cores.unwrap_or_default(),
                start.cpu_model.as_deref().unwrap_or(&start.system),
                start.backend
            ));
            let day = start.started_utc.split('T').next().unwrap_or_default();
            if self.date.as_str() < day {
                self.date = day.to_owned();
            }
        }
        Ok(())
    }
}

fn rows(run: &PlannedRun, paths: &RunPaths, record: &Record) -> Result<Vec<Found>> {
    let row = |measurement: &Measurement| {
        let file = paths.folder().join(&measurement.file);
        let mut measured =
            read_file(&file).with_context(|| format!("the record of run {}", run.name))?;
        measured.summary.method.clone_from(&measurement.method);
        measured.summary.dataset.clone_from(&run.data_set);
        let mut stages = record.stages.iter();
        let row = SeedRow {
            run: run.name.clone(),
            stage: measurement.stage.clone(),
            asked: measurement.latent_steps,
            summary: measured.summary.clone(),
            training: stages.find(|cost| cost.stage == measurement.stage).cloned(),
        };
        Ok(Found { row, measured })
    };
    record.measurements.iter().map(row).collect()
}

/// Rows of the same method, data set, split and number of latent steps, in the order of the study.
fn pooled(study: &Study, found: &[Found]) -> Vec<PooledRow> {
    let mut pooled = Vec::new();
    for set in &study.data_sets {
        let of_set = || {
            let rows = found.iter();
            rows.filter(|found| found.row.summary.dataset == set.name)
        };
        let mut splits: Vec<&str> = Vec::new();
        for found in of_set() {
            let split = found.row.summary.split.as_str();
            if !splits.contains(&split) {
                splits.push(split);
            }
        }
        for split in splits {
            for method in &set.methods {
                let of_method: Vec<&Found> = of_set()
                    .filter(|found| {
                        let row = &found.row.summary;
                        (row.split.as_str(), &row.method) == (split, &method.name)
                    })
                    .collect();
                let asked: BTreeSet<Option<usize>> =
                    of_method.iter().map(|found| found.row.asked).collect();
                for asked in asked {
                    let seeds = of_method.iter().filter(|found| found.row.asked == asked);
                    pooled.push(pool(&seeds.copied().collect::<Vec<_>>()));
                }
            }
        }
    }
    pooled
}

/// `seeds` has one row or more, of one method.
fn pool(seeds: &[&Found]) -> PooledRow {
    let first = &seeds[0].row;
    let answers = || seeds.iter().flat_map(|found| &found.measured.answers);
    let correct = answers().filter(|row| row.correct).count() as u64;
    let n = answers().count() as u64;
    let interval = wilson_95(correct, n);
    let over = |of: fn(&SummaryRow) -> f64| -> Vec<f64> {
        let rows = seeds.iter().map(|found| &found.row.summary);
        rows.map(of).collect()
    };
    let average = |of| mean(&over(of)).unwrap_or_default();
    let accuracies = over(|row| row.accuracy);
    let training = |of: fn(&StageCost) -> TrainingCost| {
        let costs = seeds.iter().filter_map(|found| found.row.training.as_ref());
        TrainingCost::mean(&costs.map(of).collect::<Vec<_>>())
    };
    PooledRow {
        dataset: first.summary.dataset.clone(),
        split: first.summary.split.clone(),
        method: first.summary.method.clone(),
        asked: first.asked,
        seeds: seeds.iter().map(|found| found.row.summary.seed).collect(),
        n,
        correct,
        shared_questions: shared_questions(answers()),
        accuracy: correct as f64 / n.max(1) as f64,
        ci_low: interval.low,
        ci_high: interval.high,
        lowest: accuracies.iter().copied().fold(f64::INFINITY, f64::min),
        highest: accuracies.iter().copied().fold(0.0, f64::max),
        tokens: average(|row| row.tokens),
        latent_steps: average(|row| row.latent_steps),
        layer_calls: average(|row| row.layer_calls),
        flops: average(|row| row.flops),
        reason_flops: average(|row| row.reason_flops),
        reason_ms: average(|row| row.reason_ms),
        total_ms: average(|row| row.total_ms),
        own: training(|cost| cost.own),
        with_ancestors: training(|cost| cost.with_ancestors),
    }
}

/// Every method beside the reference, seed by seed and pooled, of the seeds that have both.
fn paired(study: &Study, found: &[Found]) -> Result<Vec<Compared>> {
    let mut seeds: Vec<Vec<Measured>> = Vec::with_capacity(study.seeds.len());
    for &seed in &study.seeds {
        let own = found.iter().filter(|found| {
            let row = &found.row;
            row.asked.is_none() && row.summary.seed == seed
        });
        seeds.push(own.map(|found| found.measured.clone()).collect());
    }
    let couples: Vec<_> = seeds
        .iter()
        .flat_map(|measured| beside(measured, &study.reference))
        .collect();
    compare(&couples, SEED)
}
