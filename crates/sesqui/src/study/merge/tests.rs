use sesqui_reason::{HaltConfig, TokenExit};

use super::*;

fn source(method: &str, stage: &str, change: impl FnOnce(&mut Experiment)) -> Source {
    let mut experiment = Experiment::default();
    change(&mut experiment);
    Source {
        method: method.to_owned(),
        stage: stage.to_owned(),
        experiment,
    }
}

fn plain(method: &str, stage: &str) -> Source {
    source(method, stage, |_| ())
}

/// The stage called `name`, to be changed.
fn of<'a>(experiment: &'a mut Experiment, name: &str) -> &'a mut Stage {
    let mut stages = experiment.stages.iter_mut();
    stages.find(|stage| stage.name == name).unwrap()
}

fn names(run: &Merged) -> Vec<&str> {
    let stages = run.experiment.stages.iter();
    stages.map(|stage| stage.name.as_str()).collect()
}

fn start<'a>(run: &'a Merged, name: &str) -> Option<&'a str> {
    match &run.experiment.stage(name)?.initialize {
        Initialize::Stage { stage } => Some(stage),
        _ => None,
    }
}

#[test]
fn what_several_methods_start_from_is_one_stage() {
    let sources = [
        plain("cot", "cot"),
        plain("latent", "latent"),
        plain("system15", "system15"),
        plain("words", "no_cot"),
    ];
    let [run] = &merge(&sources)[..] else {
        panic!("more than one run");
    };
    // Only what a method needs, and with its own settings.
    assert_eq!(names(run), ["cot", "latent", "system15", "no_cot"]);
    for stage in &run.experiment.stages {
        assert_eq!(Some(stage), Experiment::default().stage(&stage.name));
    }
    assert_eq!(run.users[0], ["cot", "latent", "system15"]);
    assert_eq!(run.users[1], ["latent", "system15"]);
    assert_eq!(run.users[3], ["words"]);
    let shown: Vec<(&str, &str)> = run
        .methods
        .iter()
        .map(|shown| (&*shown.method, &*shown.stage))
        .collect();
    assert_eq!(shown[3], ("words", "no_cot"));
    run.experiment.validate().unwrap();
}

/// Equal settings after another start are another stage, and so is everything that follows.
#[test]
fn stages_of_one_name_and_other_content_get_their_methods_name() {
    let longer = |experiment: &mut Experiment| of(experiment, "cot").training.steps += 1;
    let sources = [
        plain("short", "latent"),
        source("long", "latent", longer),
        source("stairs", "system15", longer),
    ];
    let [run] = &merge(&sources)[..] else {
        panic!("more than one run");
    };
    assert_eq!(
        names(run),
        [
            "short-cot",
            "short-latent",
            "long-cot",
            "long-latent",
            "system15"
        ]
    );
    assert_eq!(start(run, "short-latent"), Some("short-cot"));
    assert_eq!(start(run, "long-latent"), Some("long-cot"));
    assert_eq!(start(run, "system15"), Some("long-latent"));
    assert_eq!(run.users[3], ["long", "stairs"]);
    assert_eq!(run.methods[1].stage, "long-latent");
    run.experiment.validate().unwrap();

    // A name that is taken already, here by a stage, is not given twice.
    let taken = source("b", "cot", |experiment| {
        of(experiment, "no_cot").name = "a-cot".to_owned();
        longer(experiment);
    });
    let other = source("c", "a-cot", |experiment| {
        of(experiment, "no_cot").name = "a-cot".to_owned();
    });
    let run = merge(&[plain("a", "cot"), taken, other]).remove(0);
    assert_eq!(names(&run), ["a-cot-2", "b-cot", "a-cot"]);
}

/// A name decides nothing: the same content under another name is the same stage.
#[test]
fn a_stage_under_two_names_is_trained_once() {
    let renamed = source("other", "latent", |experiment| {
        of(experiment, "cot").name = "chain".to_owned();
        of(experiment, "latent").initialize = Initialize::Stage {
            stage: "chain".to_owned(),
        };
    });
    let runs = merge(&[plain("latent", "latent"), renamed]);
    assert_eq!(names(&runs[0]), ["cot", "latent"]);
    assert_eq!(runs[0].methods[1].stage, "latent");
}

#[test]
fn other_surroundings_make_a_run_of_their_own() {
    let sources = [
        plain("cot", "cot"),
        source("deep", "latent", |experiment| experiment.model.layers += 1),
        plain("latent", "latent"),
        source("deeper-yet", "cot", |experiment| {
            experiment.model.layers += 1;
        }),
    ];
    let runs = merge(&sources);
    let methods = |run: &Merged| -> Vec<String> {
        let methods = run.methods.iter();
        methods.map(|shown| shown.method.clone()).collect()
    };
    assert_eq!(runs.len(), 2);
    assert_eq!(methods(&runs[0]), ["cot", "latent"]);
    assert_eq!(methods(&runs[1]), ["deep", "deeper-yet"]);
    assert_eq!(names(&runs[1]), ["cot", "latent"]);
}

/// `[reasoning]` decides how a model is asked. Where it also decides when training ends, it is part of the
/// stage.
#[test]
fn ways_of_reasoning_share_what_they_do_not_change() {
    let eager = |experiment: &mut Experiment| experiment.reasoning.exit_threshold = 0.2;
    let sources = [
        plain("system15", "system15"),
        source("eager", "system15", eager),
        source("sure", "latent", |experiment| {
            experiment.reasoning.halt = HaltConfig::Entropy(Default::default());
        }),
        source("shallow", "cot", |experiment| {
            experiment.reasoning.token_exit = TokenExit::Fixed { layer: 2 };
        }),
    ];
    let [run] = &merge(&sources)[..] else {
        panic!("more than one run");
    };
    assert_eq!(names(run), ["cot", "latent", "system15"]);
    assert_eq!(run.experiment.reasoning, ReasoningConfig::default());
    assert_eq!(run.methods[1].reasoning.exit_threshold, 0.2);
    assert!(!run.methods[2].reasoning.halt.is_never());
    assert!(!run.methods[3].reasoning.token_exit.is_never());
    let alone = run.methods[2].alone(&run.experiment);
    assert_eq!(alone.stages.len(), 2);
    assert_eq!(alone.reasoning, run.methods[2].reasoning);

    let early = |experiment: &mut Experiment| {
        let stopping = EarlyStopping::Reached { accuracy: 0.9 };
        of(experiment, "latent").training.early_stopping = stopping;
    };
    let sources = [
        source("system15", "system15", early),
        source("eager", "system15", |experiment| {
            early(experiment);
            eager(experiment);
        }),
        // What does not stop early goes along with any.
        source("words", "cot", |experiment| {
            early(experiment);
            eager(experiment);
        }),
    ];
    let runs = merge(&sources);
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0].methods.len(), 2);
    assert_eq!(runs[1].experiment.reasoning.exit_threshold, 0.2);
}
