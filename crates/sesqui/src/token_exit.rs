//! Early exit of tokens: what a configuration or a command line says.

use anyhow::Result;
use sesqui_reason::TokenExit;
use toml::{Table, Value};

use crate::experiment::{Experiment, Stage};
use crate::measure::Measured;
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::reasoning::ReasoningConfig;
use crate::short_form;
use crate::start::shape;
use crate::trained::Trained;

/// What may stand in place of `kind` on the command line, with the key that a number after it is.
const SHORT: [(&str, &str); 3] = [
    ("fixed", "layer"),
    ("confidence", "threshold"),
    ("self-speculative", "layer"),
];

/// The exits that `texts` describe, as [`parse`] reads them; without any, what the configuration says, if it
/// says one.
///
/// # Errors
///
/// Names the text, the key and the remedy.
pub fn all(texts: &[String], reasoning: &ReasoningConfig) -> Result<Vec<TokenExit>, Misuse> {
    if texts.is_empty() {
        let configured = (!reasoning.token_exit.is_never()).then_some(reasoning.token_exit);
        return Ok(configured.into_iter().collect());
    }
    let mut found = Vec::new();
    for text in texts {
        for exit in parse(text)? {
            // Twice the same would be two rows of one name.
            if !found.contains(&exit) {
                found.push(exit);
            }
        }
    }
    Ok(found)
}

/// Reads the inside of an inline table with the keys of `[reasoning.token_exit]`. `fixed`, `confidence` or
/// `self-speculative` in place of `kind` takes a number, its `layer` or `threshold`, or the table of the
/// others. Lists in place of numbers are one exit for each, several of them a grid.
///
/// # Errors
///
/// Names the text, the key and the remedy.
pub fn parse(text: &str) -> Result<Vec<TokenExit>, Misuse> {
    let wrong = |reason: String| Misuse(format!("--token-exit {text:?}: {reason}"));
    let mut tables = vec![short_form::read(text, &SHORT, "fixed=2").map_err(wrong)?];
    let keys: Vec<String> = tables[0].keys().cloned().collect();
    for key in keys {
        let Some(Value::Array(values)) = tables[0].get(&key).cloned() else {
            continue;
        };
        if values.is_empty() {
            return Err(wrong(format!("{key} is an empty list; name a value")));
        }
        let each = tables.iter().flat_map(|table| {
            values.iter().map(|value| {
                let mut table = table.clone();
                table.insert(key.clone(), value.clone());
                table
            })
        });
        tables = each.collect();
    }
    let one = |mut table: Table| {
        if let Some(Value::Integer(number)) = table.get("threshold") {
            let number = *number as f64;
            table.insert("threshold".to_owned(), Value::Float(number));
        }
        let exit: TokenExit = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| wrong(error.message().trim_end().to_owned()))?;
        match exit.problem() {
            _ if exit.is_never() => Err(wrong(
                "leaves nowhere; give fixed, confidence or self-speculative".to_owned(),
            )),
            Some((key, reason)) => Err(wrong(format!("{key}: {reason}"))),
            None => Ok(exit),
        }
    };
    tables.into_iter().map(one).collect()
}

/// Its name in tables.
pub fn label(exit: &TokenExit) -> String {
    match exit {
        TokenExit::Never => "never".to_owned(),
        TokenExit::Fixed { layer } => format!("exit at layer {layer}"),
        TokenExit::Confidence { threshold, from: 1 } => format!("confidence {threshold}"),
        TokenExit::Confidence { threshold, from } => {
            format!("confidence {threshold} from layer {from}")
        }
        TokenExit::SelfSpeculative { layer, drafts } => {
            format!("self-speculative {layer}x{drafts}")
        }
    }
}

/// The exits of `asked` that a model is measured with beside all layers: none where it reasons in latent
/// steps, all of whose tokens run all layers.
///
/// # Errors
///
/// Names a layer that the model of `stage` does not have.
pub fn beside(asked: &[TokenExit], model: &Trained, stage: &str) -> Result<Vec<TokenExit>, Misuse> {
    match model {
        Trained::Tokens(words) => {
            check(asked, words.backbone.layers.len(), stage)?;
            Ok(asked.to_vec())
        }
        Trained::Latent(_) => Ok(Vec::new()),
    }
}

fn check(exits: &[TokenExit], layers: usize, stage: &str) -> Result<(), Misuse> {
    let misfit = |exit: &TokenExit| exit.misfit(layers);
    match exits.iter().find_map(misfit) {
        Some((key, reason)) => Err(Misuse(format!(
            "reasoning.token_exit.{key}: of stage {stage}: {reason}"
        ))),
        None => Ok(()),
    }
}

/// Checks before anything is trained that the stages of an experiment have the layers that it names.
///
/// # Errors
///
/// Names the stage and the layer that it does not have.
pub fn check_stages(experiment: &Experiment) -> Result<()> {
    let asked = all(&[], &experiment.reasoning)?;
    let latent = |stage: &Stage| stage.objective.has_latents();
    if !asked.is_empty() && experiment.stages.iter().all(latent) {
        let reason =
            "no stage reasons in words, and no token of latent models leaves early; leave it out";
        return Err(Misuse(format!("reasoning.token_exit: {reason}")).into());
    }
    for stage in &experiment.stages {
        if !(asked.is_empty() || stage.objective.has_latents()) {
            check(&asked, shape(experiment, stage)?.layers, &stage.name)?;
        }
    }
    Ok(())
}

/// Checks `--token-exit` before anything is loaded.
///
/// # Errors
///
/// When a text cannot be read, none of the models reasons in words, or one that does has not the layer.
pub fn check_arguments(texts: &[String], models: &[Opened]) -> Result<()> {
    let Some(text) = texts.first() else {
        return Ok(());
    };
    let asked = all(texts, &ReasoningConfig::default())?;
    let mut any = false;
    for opened in models {
        let stage = opened.stage()?;
        if stage.objective.has_latents() {
            continue;
        }
        any = true;
        let layers = shape(&opened.experiment, stage)?.layers;
        if let Some((key, reason)) = asked.iter().find_map(|exit| exit.misfit(layers)) {
            return Err(Misuse(format!(
                "--token-exit: {key}: of stage {}: {reason}",
                stage.name
            ))
            .into());
        }
    }
    match any {
        true => Ok(()),
        false => Err(Misuse(format!(
            "--token-exit {text:?}: there are only models that reason in latent steps; name a stage that \
             reasons in words, for example with objective early-exit"
        ))
        .into()),
    }
}

/// What became of drafts, a line for each method that drafts; none where no method does.
pub fn acceptance(measured: &[Measured]) -> Option<String> {
    let line = |found: &Measured| {
        let sum = |of: fn(&sesqui_eval::QuestionRow) -> usize| -> usize {
            found.answers.iter().map(of).sum()
        };
        let (drafted, accepted) = (sum(|row| row.drafted), sum(|row| row.accepted));
        let (summary, share) = (&found.summary, accepted as f64 / drafted.max(1) as f64);
        (drafted > 0).then(|| {
            format!(
                "{}, {}: {:.1} % of {drafted} drafted tokens accepted",
                summary.method,
                summary.split,
                100.0 * share
            )
        })
    };
    let lines: Vec<String> = measured.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_the_long_ones() {
        let confidence = |threshold, from| TokenExit::Confidence { threshold, from };
        let speculative = |layer, drafts| TokenExit::SelfSpeculative { layer, drafts };
        let cases: [(&str, Vec<TokenExit>, &str); 6] = [
            (
                "fixed=2",
                vec![TokenExit::Fixed { layer: 2 }],
                "exit at layer 2",
            ),
            (
                r#"kind="fixed", layer=[1, 3]"#,
                vec![TokenExit::Fixed { layer: 1 }, TokenExit::Fixed { layer: 3 }],
                "exit at layer 1",
            ),
            (
                "confidence=[1, 0.5]",
                vec![confidence(1.0, 1), confidence(0.5, 1)],
                "confidence 1",
            ),
            (
                "confidence={threshold=0.9, from=2}",
                vec![confidence(0.9, 2)],
                "confidence 0.9 from layer 2",
            ),
            (
                "self-speculative=2",
                vec![speculative(2, 4)],
                "self-speculative 2x4",
            ),
            (
                "self-speculative={layer=[1, 2], drafts=[3, 6]}",
                [(1, 3), (2, 3), (1, 6), (2, 6)]
                    .map(|(layer, drafts)| speculative(layer, drafts))
                    .into(),
                "self-speculative 1x3",
            ),
        ];
        for (text, mut expected, name) in cases {
            let mut found = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(label(&found[0]), name);
            let order = |exit: &TokenExit| label(exit);
            found.sort_by_key(order);
            expected.sort_by_key(order);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_names_key_and_remedy() {
        for (text, part) in [
            ("", "names no kind; give fixed, confidence"),
            ("fixed=0", "layer: must be at least 1"),
            ("fixed=[]", "layer is an empty list"),
            ("fixed=-1", "invalid value"),
            ("fixed=2, drafts=3", "unknown field `drafts`"),
            ("confidence=1.5", "threshold: 1.5 is not in [0, 1]"),
            ("confidence=nan", "threshold: NaN is not in [0, 1]"),
            (
                "confidence={threshold=0.5, from=0}",
                "from: must be at least 1",
            ),
            (
                "self-speculative={layer=1, drafts=0}",
                "drafts: must be at least 1",
            ),
            (r#"kind="never""#, "leaves nowhere"),
            ("fixed=2}\nx={", "is more than one table"),
            ("two", "write KEY=VALUE"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
