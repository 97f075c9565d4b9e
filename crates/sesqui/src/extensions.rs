//! What a stage adds to the paper, so that nobody takes its figures for those of the method as printed.

use sesqui_distill::latent::Padding;
use sesqui_distill::rollout::{ExitDropout, Feeding};
use sesqui_distill::shortcut::{Leaving, ShortcutLoss};
use sesqui_distill::{AlignConfig, ShortcutStageConfig};
use sesqui_model::Feedback;

use crate::experiment::{Objective, Stage};

/// One line that names the settings of `stage` which System-1.5 Reasoning (arXiv 2505.18962) does not
/// have; none where all of them are its own or readings of what it leaves open (decision 12).
pub fn extensions(stage: &Stage) -> Option<String> {
    let mut found = Vec::new();
    match &stage.objective {
        // A halting head is no part of the paper's method, and changes nothing of it; curricula are other
        // papers' methods.
        Objective::Cot
        | Objective::NoCot
        | Objective::Halt(_)
        | Objective::Curriculum(_)
        | Objective::Icot(_)
        | Objective::EarlyExit(_) => {}
        Objective::Align(config) => align(config, &mut found),
        Objective::Shortcut(config) => shortcut(config, &mut found),
        Objective::Joint(config) => {
            align(&config.align, &mut found);
            shortcut(&config.shortcut, &mut found);
        }
    }
    let found = found.join(", ");
    (!found.is_empty()).then(|| format!("{}: extends the paper by {found}", stage.name))
}

fn align(config: &AlignConfig, found: &mut Vec<&'static str>) {
    match config.latents.padding {
        Padding::Answer => found.push("latent steps that hold the answer ready"),
        Padding::None => {}
    }
    match config.latents.feedback {
        Feedback::Linear { .. } => found.push("linear feedback map"),
        Feedback::Projection { .. } => found.push("projected feedback"),
        // Nothing else is aligned.
        Feedback::State | Feedback::Pause | Feedback::FirstState => {}
    }
    match config.feeding {
        Feeding::TeacherForced => {}
        Feeding::FreeRunning => found.push("free-running feeding"),
        Feeding::Ramp { .. } => found.push("feeding that becomes free-running"),
        Feeding::Corrected { .. } => found.push("corrected feeding"),
    }
    if config.weights.read_out > 0.0 {
        found.push("read-out loss");
    }
    match config.exit_dropout {
        ExitDropout::Late { share, .. } if share > 0.0 => found.push("exit dropout"),
        ExitDropout::Late { .. } | ExitDropout::Never => {}
    }
}

fn shortcut(config: &ShortcutStageConfig, found: &mut Vec<&'static str>) {
    match &config.loss {
        ShortcutLoss::Staircase(staircase) => {
            found.push("staircase loss");
            match staircase.leaving {
                Leaving::Padding => found.push("routers that learn padding"),
                Leaving::NonCritical => {}
            }
        }
        ShortcutLoss::Composition(composition) if composition.gamma > 0.0 => {
            found.push("compute term");
        }
        ShortcutLoss::Composition(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sesqui_run::ConfigSource;

    use super::*;
    use crate::experiment::Experiment;

    fn lines(file: &str, set: &[&str]) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/arith-dag");
        let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        let source = ConfigSource::File(root.join(file));
        let experiment = sesqui_run::load::<Experiment>(source, &set).unwrap().value;
        experiment.stages.iter().filter_map(extensions).collect()
    }

    #[test]
    fn what_is_not_in_the_paper_is_named() {
        let latent = "extends the paper by latent steps that hold the answer ready, linear feedback \
                      map, corrected feeding, read-out loss, exit dropout";
        let staircase = "staircase loss, routers that learn padding";
        assert_eq!(
            lines("default.toml", &[]),
            [
                format!("latent: {latent}"),
                format!("system15: extends the paper by {staircase}")
            ]
        );
        assert_eq!(
            lines("joint.toml", &[]),
            [format!("joint: {latent}, {staircase}")]
        );
    }

    #[test]
    fn settings_as_printed_are_not() {
        assert_eq!(lines("paper.toml", &[]), [""; 0]);
        for (set, expected) in [
            (
                "stages.system15.objective.loss.gamma=0.3",
                "system15: extends the paper by compute term",
            ),
            (
                "stages.latent.objective.weights.read_out=0.1",
                "latent: extends the paper by read-out loss",
            ),
            (
                "stages.latent.objective.feeding={ kind = \"free-running\" }",
                "latent: extends the paper by free-running feeding",
            ),
            (
                "stages.latent.objective.feeding={ kind = \"ramp\", start = 0.1, end = 0.5 }",
                "latent: extends the paper by feeding that becomes free-running",
            ),
            (
                "stages.latent.objective.exit_dropout={ kind = \"late\", start = 0.75, share = 0.5, \
                 independent = 0.0 }",
                "latent: extends the paper by exit dropout",
            ),
            (
                "stages.latent.objective.latents.padding=answer",
                "latent: extends the paper by latent steps that hold the answer ready",
            ),
            (
                "stages.system15.objective.loss={ kind = \"staircase\", leaving = \"non-critical\" }",
                "system15: extends the paper by staircase loss",
            ),
        ] {
            assert_eq!(lines("paper.toml", &[set]), [expected], "{set}");
        }
    }
}
