//! Methods that have stages in common, merged into as few runs as possible.
//!
//! A stage is what it is trained with and where it starts from, its name apart: weights are a function of
//! data, tokenizer, positions, shape, seed, settings of the stage, and the same of what it started from. Two
//! stages that agree in all of it would come out the same, bit for bit, so one of them is trained.

use sesqui_trainer::config::EarlyStopping;

use crate::experiment::{Experiment, Initialize, Objective, Stage};
use crate::reasoning::ReasoningConfig;

/// A method with the experiment that its stage belongs to.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name of the method.
    pub method: String,
    /// The stage that is measured, by its name in the experiment.
    pub stage: String,
    /// The experiment, valid by itself and with that stage in it.
    pub experiment: Experiment,
}

/// One run for one or more methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// All stages that its methods need, each once, under names that are unique.
    pub experiment: Experiment,
    /// Its methods, in the order given.
    pub methods: Vec<Shown>,
    /// For each stage, the methods that need it.
    pub users: Vec<Vec<String>>,
}

/// A method in its run.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Name of the method.
    pub method: String,
    /// The stage that is measured, by its name in the run.
    pub stage: String,
    /// How it is asked.
    pub reasoning: ReasoningConfig,
}

impl Shown {
    /// The part of a run's `experiment` that this method is: its stage with what that starts from, under its
    /// own way of reasoning.
    pub fn alone(&self, experiment: &Experiment) -> Experiment {
        let stages = experiment.ancestry(&self.stage);
        Experiment {
            stages: stages.into_iter().cloned().collect(),
            reasoning: self.reasoning.clone(),
            ..experiment.clone()
        }
    }
}

/// The runs for `sources`, which share data, seed and evaluation. A method goes into the first run in which
/// everything around its stages is equal. Its `[reasoning]` need not be, where no weight depends on it: it
/// is asked under its own.
pub fn merge(sources: &[Source]) -> Vec<Merged> {
    let mut groups: Vec<Group> = Vec::new();
    for source in sources {
        let index = match groups.iter().position(|group| group.takes(source)) {
            Some(index) => index,
            None => {
                groups.push(Group::new(source));
                groups.len() - 1
            }
        };
        groups[index].add(source);
    }
    groups.into_iter().map(Group::finish).collect()
}

/// A run in the making.
struct Group {
    /// Everything but the stages; of `[reasoning]` what training sees of it.
    around: Experiment,
    stages: Vec<Content>,
    /// Methods, with the index of their stage.
    methods: Vec<(Shown, usize)>,
}

/// A stage of a run in the making.
struct Content {
    /// Without its name, and with the index of the stage that it starts from in place of that one's name:
    /// equal where content and ancestry are.
    content: Stage,
    /// The name that the first of its methods has for it.
    name: String,
    users: Vec<String>,
}

impl Group {
    fn new(source: &Source) -> Self {
        Self {
            around: around(&source.experiment),
            stages: Vec::new(),
            methods: Vec::new(),
        }
    }

    fn takes(&self, source: &Source) -> bool {
        let around = around(&source.experiment);
        let stages = source.experiment.ancestry(&source.stage);
        let reasoning = match stages.into_iter().any(depends_on_reasoning) {
            true => around.reasoning.clone(),
            false => self.around.reasoning.clone(),
        };
        self.around
            == Experiment {
                reasoning,
                ..around
            }
    }

    fn add(&mut self, source: &Source) {
        let mut last = 0;
        for (depth, stage) in source
            .experiment
            .ancestry(&source.stage)
            .into_iter()
            .enumerate()
        {
            let initialize = match &stage.initialize {
                // The ancestry begins with what starts elsewhere, so `last` is the one before.
                Initialize::Stage { .. } if depth > 0 => Initialize::Stage {
                    stage: last.to_string(),
                },
                other => other.clone(),
            };
            let content = Stage {
                name: String::new(),
                initialize,
                ..stage.clone()
            };
            let known = self
                .stages
                .iter()
                .position(|known| known.content == content);
            last = known.unwrap_or_else(|| {
                self.stages.push(Content {
                    content,
                    name: stage.name.clone(),
                    users: Vec::new(),
                });
                self.stages.len() - 1
            });
            self.stages[last].users.push(source.method.clone());
        }
        let shown = Shown {
            method: source.method.clone(),
            stage: String::new(),
            reasoning: source.experiment.reasoning.clone(),
        };
        self.methods.push((shown, last));
    }

    fn finish(self) -> Merged {
        let names = self.names();
        let stages = self.stages.iter().zip(&names).map(|(stage, name)| {
            let initialize = match &stage.content.initialize {
                Initialize::Stage { stage: index } => Initialize::Stage {
                    stage: index
                        .parse::<usize>()
                        .map_or_else(|_| index.clone(), |index| names[index].clone()),
                },
                other => other.clone(),
            };
            Stage {
                name: name.clone(),
                initialize,
                ..stage.content.clone()
            }
        });
        let shown = self.methods.iter().map(|(shown, index)| Shown {
            stage: names[*index].clone(),
            ..shown.clone()
        });
        Merged {
            experiment: Experiment {
                stages: stages.collect(),
                ..self.around.clone()
            },
            methods: shown.collect(),
            users: self
                .stages
                .iter()
                .map(|stage| stage.users.clone())
                .collect(),
        }
    }

    /// The names that the stages have in the run: their own, unless it stands for several; those get the
    /// name of their first method in front.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(self.stages.len());
        let own = |name: &str| {
            self.stages
                .iter()
                .filter(|stage| stage.name == name)
                .count()
        };
        for stage in &self.stages {
            let mut name = match own(&stage.name) {
                1 => stage.name.clone(),
                _ => format!("{}-{}", stage.users[0], stage.name),
            };
            // A method may have the name of a stage, and a stage one with a dash.
            while names.contains(&name) || (name != stage.name && own(&name) > 0) {
                name.push_str("-2");
            }
            names.push(name);
        }
        names
    }
}

/// What surrounds the stages of an experiment, with the part of `[reasoning]` that training sees: how many
/// latent steps and which exit threshold validation asks with.
fn around(experiment: &Experiment) -> Experiment {
    let reasoning = &experiment.reasoning;
    Experiment {
        reasoning: ReasoningConfig {
            latent_steps: reasoning.latent_steps,
            exit_threshold: reasoning.exit_threshold,
            ..ReasoningConfig::default()
        },
        stages: Vec::new(),
        ..experiment.clone()
    }
}

/// Whether the weights that a stage leaves are a function of `[reasoning]`: where validation, which asks by
/// it, ends training, and where labels are found by it. Elsewhere it only decides what validation reports.
fn depends_on_reasoning(stage: &Stage) -> bool {
    stage.training.early_stopping != EarlyStopping::Never
        || matches!(stage.objective, Objective::Halt(_))
}

#[cfg(test)]
mod tests;
