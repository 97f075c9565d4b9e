//! Ways of halting: what a configuration or a command line says.

use sesqui_model::latent::{Continuation, Source};
use sesqui_reason::HaltConfig;
use sesqui_reason::halt::{Gain, Over, Pick};
use toml::{Table, Value};

use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::reasoning::ReasoningConfig;
use crate::short_form;
use crate::trained::{Latent, Trained};

/// What may stand alone on the command line, with the key that a number after it is.
const SHORT: [(&str, &str); 3] = [
    ("entropy", "threshold"),
    ("learned", "probability"),
    ("samples", "threshold"),
];

/// The ways of halting that `texts` describe, as [`parse`] reads them; without any, what the configuration
/// says, if it halts.
///
/// # Errors
///
/// Names the text, the key and the remedy.
pub fn all(texts: &[String], reasoning: &ReasoningConfig) -> Result<Vec<HaltConfig>, Misuse> {
    if texts.is_empty() {
        let configured = (!reasoning.halt.is_never()).then(|| reasoning.halt.clone());
        return Ok(configured.into_iter().collect());
    }
    let mut found = Vec::new();
    for text in texts {
        found.extend(parse(text)?);
    }
    Ok(found)
}

/// Reads the inside of an inline table with the keys of `[reasoning.halt]`. A kind alone is the whole table;
/// `entropy`, `learned` or `samples` in place of `kind` takes a number, its `threshold` or `probability`, or
/// the table of the others. A list in place of that number is one way of halting for each.
///
/// # Errors
///
/// Names the text, the key and the remedy.
pub fn parse(text: &str) -> Result<Vec<HaltConfig>, Misuse> {
    let wrong = |reason: String| Misuse(format!("--halt {text:?}: {reason}"));
    let table = read(text).map_err(wrong)?;
    let kind = table
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let knob = SHORT.iter().find(|(name, _)| *name == kind);
    let knob = knob.map_or("threshold", |(_, knob)| *knob);
    let values = match table.get(knob) {
        Some(Value::Array(values)) if values.is_empty() => {
            return Err(wrong(format!("{knob} is an empty list; name a value")));
        }
        Some(Value::Array(values)) => values.iter().cloned().map(Some).collect(),
        other => vec![other.cloned()],
    };
    let one = |value: Option<Value>| {
        let mut table = table.clone();
        if let Some(value) = value {
            table.insert(knob.to_owned(), float(value));
        }
        complete(&mut table);
        let config: HaltConfig = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| wrong(error.message().trim_end().to_owned()))?;
        match config.problem() {
            _ if config.is_never() => Err(wrong(
                "names nothing to do; give entropy, learned or samples".to_owned(),
            )),
            Some((key, reason)) => Err(wrong(format!("{key}: {reason}"))),
            None => Ok(config),
        }
    };
    values.into_iter().map(one).collect()
}

/// The table that `text` stands for, with its `kind`, lists not yet taken apart.
fn read(text: &str) -> Result<Table, String> {
    let word = text.trim();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !word.is_empty() && word.chars().all(is_word) {
        let kind = Value::String(word.to_owned());
        return Ok(Table::from_iter([("kind".to_owned(), kind)]));
    }
    short_form::read(text, &SHORT, "entropy=0.1")
}

/// A whole number for a fraction.
fn float(value: Value) -> Value {
    match value {
        Value::Integer(number) => Value::Float(number as f64),
        value => value,
    }
}

/// Fills in what the short forms leave out.
fn complete(table: &mut Table) {
    let of = |pairs: Vec<(&str, Value)>| {
        let owned = pairs.into_iter();
        Value::Table(owned.map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let word = |text: &str| Value::String(text.to_owned());
    if let Some(probability) = table.remove("probability") {
        let pick = of(vec![
            ("kind", word("cumulative")),
            ("probability", probability),
        ]);
        table.insert("pick".to_owned(), pick);
    }
    for key in ["noise", "threshold"] {
        if let Some(value) = table.remove(key) {
            table.insert(key.to_owned(), float(value));
        }
    }
    if let Some(value) = table.remove("over") {
        let value = match value {
            Value::String(kind) => of(vec![("kind", Value::String(kind))]),
            Value::Integer(_) => of(vec![("kind", word("top")), ("tokens", value)]),
            Value::Array(_) => of(vec![("kind", word("tokens")), ("ids", value)]),
            value => value,
        };
        table.insert("over".to_owned(), value);
    }
    if let Some(value) = table.remove("gain") {
        let value = match float(value) {
            Value::String(kind) => of(vec![("kind", Value::String(kind))]),
            Value::Float(bound) => of(vec![
                ("kind", word("below")),
                ("min_gain", Value::Float(bound)),
                ("patience", Value::Integer(2)),
            ]),
            Value::Table(mut inner) => {
                inner
                    .entry("kind".to_owned())
                    .or_insert_with(|| word("below"));
                inner
                    .entry("patience".to_owned())
                    .or_insert(Value::Integer(2));
                if let Some(bound) = inner.remove("min_gain") {
                    inner.insert("min_gain".to_owned(), float(bound));
                }
                Value::Table(inner)
            }
            value => value,
        };
        table.insert("gain".to_owned(), value);
    }
}

/// Its name in tables, with everything that is not as by default but the seed.
pub fn label(halt: &HaltConfig) -> String {
    let mut parts = Vec::new();
    let start = match halt {
        HaltConfig::Never => {
            parts.push("never".to_owned());
            1
        }
        HaltConfig::Entropy(rule) => {
            parts.push(format!("entropy {}", rule.threshold));
            match &rule.over {
                Over::Vocabulary => {}
                Over::Top { tokens } => parts.push(format!("of {tokens} likeliest")),
                Over::Tokens { ids } => parts.push(format!("of {} tokens", ids.len())),
            }
            if let Gain::Below { min_gain, patience } = rule.gain {
                parts.push(format!("or gain {min_gain} {patience} times"));
            }
            rule.start
        }
        HaltConfig::Learned(rule) => {
            parts.push(match rule.pick {
                Pick::Likeliest => "learned".to_owned(),
                Pick::Cumulative { probability } => format!("learned {probability}"),
            });
            1
        }
        HaltConfig::Samples(rule) => {
            let (samples, noise, threshold) = (rule.samples, rule.noise, rule.threshold);
            parts.push(format!("{samples} samples {threshold}, noise {noise}"));
            rule.start
        }
    };
    if start != 1 {
        parts.push(format!("from step {start}"));
    }
    parts.join(", ")
}

/// The line of a plot that a way of halting is a point of: all that it says but for the number that is
/// varied.
pub fn family(halt: &HaltConfig) -> String {
    match halt {
        HaltConfig::Never => "plain latent steps".to_owned(),
        HaltConfig::Learned(_) => "learned".to_owned(),
        HaltConfig::Entropy(rule) => {
            let mut rule = rule.clone();
            rule.threshold = 0.0;
            label(&HaltConfig::Entropy(rule)).replacen("entropy 0", "entropy", 1)
        }
        HaltConfig::Samples(rule) => {
            let mut rule = *rule;
            rule.threshold = 0.0;
            label(&HaltConfig::Samples(rule)).replacen("samples 0", "samples", 1)
        }
    }
}

/// Why a model cannot halt so, if it cannot: a head is learned by a stage of its own, and there has to be an
/// answer to look at after every step.
pub fn unsuited(halt: &HaltConfig, model: &Latent, reasoning: &ReasoningConfig) -> Option<String> {
    if !model.order(reasoning).is_sequential() {
        return Some(format!(
            "computes its latent steps all at once: --halt {} is left out there, unless reasoning.order is \
             {{ kind = \"sequential\" }}",
            label(halt)
        ));
    }
    match (halt, model.continuation(reasoning)) {
        (_, Continuation::Text) => Some(format!(
            "writes on by itself after its latent steps: --halt {} is left out there, unless \
             reasoning.continuation is \"answer\"",
            label(halt)
        )),
        (HaltConfig::Learned(_), Continuation::Answer) if model.head.is_none() => {
            Some("has no head: --halt learned is left out there".to_owned())
        }
        (HaltConfig::Samples(_), Continuation::Answer)
            if model.model.source() != Source::Newest =>
        {
            Some("feeds back no state to add noise to: --halt samples is left out there".to_owned())
        }
        _ => None,
    }
}

/// The ways of halting that a model is measured with beside all steps: those of `asked` that suit it; where
/// nothing is asked for and it has a head, what that says.
pub fn beside(
    asked: &[HaltConfig],
    model: &Trained,
    reasoning: &ReasoningConfig,
) -> Vec<HaltConfig> {
    let Trained::Latent(latent) = model else {
        return Vec::new();
    };
    let learned = [HaltConfig::Learned(Default::default())];
    let asked = match asked {
        [] if latent.head.is_some() => &learned[..],
        asked => asked,
    };
    let suits = |halt: &&HaltConfig| unsuited(halt, latent, reasoning).is_none();
    asked.iter().filter(suits).cloned().collect()
}

/// Checks ways of halting against a model of `vocabulary` tokens, whose latents are refined or not.
///
/// # Errors
///
/// Names the token that there is not, or what does not go together.
pub fn check(halts: &[HaltConfig], vocabulary: usize, refines: bool) -> Result<(), Misuse> {
    for halt in halts {
        let tokens = match halt {
            HaltConfig::Entropy(rule) => match &rule.over {
                Over::Tokens { ids } => ids.as_slice(),
                _ => &[],
            },
            HaltConfig::Samples(_) if refines => {
                return Err(Misuse(format!(
                    "halting, {}: samples cannot be refined; leave out one of the two",
                    label(halt)
                )));
            }
            _ => &[],
        };
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Misuse(format!(
                "halting, over.ids: the model has no token {id}; ids are below {vocabulary}"
            )));
        }
    }
    Ok(())
}

/// Checks `--halt` before anything is loaded.
///
/// # Errors
///
/// When a text cannot be read, none of the models has latents, or a head is asked for that none has; when
/// samples are to be refined as well.
pub fn check_arguments(texts: &[String], models: &[Opened], refines: bool) -> Result<(), Misuse> {
    let Some(text) = texts.first() else {
        return Ok(());
    };
    let asked = all(texts, &ReasoningConfig::default())?;
    let any = |wanted: fn(&crate::experiment::Objective) -> bool| {
        models.iter().any(|opened| {
            let stage = opened.experiment.stage(&opened.state.stage);
            stage.is_some_and(|stage| wanted(&stage.objective))
        })
    };
    if !any(|objective| objective.has_latents()) {
        return Err(Misuse(format!(
            "--halt {text:?}: there are no latent steps to stop; name a stage with objective align, \
             shortcut, joint or halt"
        )));
    }
    let learned = |halt: &HaltConfig| matches!(halt, HaltConfig::Learned(_));
    if asked.iter().any(learned) && !any(|objective| objective.kind() == "halt") {
        return Err(Misuse(
            "--halt learned: none of the models has a head that says how many steps; name a stage with \
             objective halt"
                .to_owned(),
        ));
    }
    if refines
        && asked
            .iter()
            .any(|halt| matches!(halt, HaltConfig::Samples(_)))
    {
        return Err(Misuse(
            "--halt samples: samples cannot be refined; leave out one of the two".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sesqui_reason::halt::{EntropyRule, LearnedRule, SamplesRule};

    use super::*;

    fn entropy(change: impl FnOnce(&mut EntropyRule)) -> HaltConfig {
        let mut rule = EntropyRule::default();
        change(&mut rule);
        HaltConfig::Entropy(rule)
    }

    fn samples(change: impl FnOnce(&mut SamplesRule)) -> HaltConfig {
        let mut rule = SamplesRule::default();
        change(&mut rule);
        HaltConfig::Samples(rule)
    }

    fn learned(probability: f64) -> HaltConfig {
        HaltConfig::Learned(LearnedRule {
            pick: Pick::Cumulative { probability },
        })
    }

    #[test]
    fn short_forms_are_the_long_ones() {
        let below = |min_gain, patience| Gain::Below { min_gain, patience };
        let cases: [(&str, Vec<HaltConfig>, &str); 9] = [
            ("entropy", vec![entropy(|_| ())], "entropy 0.1"),
            (
                "entropy=[1, 0.5, inf]",
                [1.0, 0.5, f64::INFINITY]
                    .map(|threshold| entropy(|rule| rule.threshold = threshold))
                    .into(),
                "entropy 1",
            ),
            (
                r#"kind="entropy", threshold=0.2, over={ kind="top", tokens=20 }, start=2"#,
                vec![entropy(|rule| {
                    rule.threshold = 0.2;
                    rule.over = Over::Top { tokens: 20 };
                    rule.start = 2;
                })],
                "entropy 0.2, of 20 likeliest, from step 2",
            ),
            (
                "entropy=-1, gain=0.01, over=[5, 6]",
                vec![entropy(|rule| {
                    rule.threshold = -1.0;
                    rule.gain = below(0.01, 2);
                    rule.over = Over::Tokens { ids: vec![5, 6] };
                })],
                "entropy -1, of 2 tokens, or gain 0.01 2 times",
            ),
            (
                "entropy={ gain={ min_gain=1, patience=3 } }",
                vec![entropy(|rule| rule.gain = below(1.0, 3))],
                "entropy 0.1, or gain 1 3 times",
            ),
            (
                "learned",
                vec![HaltConfig::Learned(LearnedRule::default())],
                "learned",
            ),
            (
                "learned=[0.5, 1]",
                vec![learned(0.5), learned(1.0)],
                "learned 0.5",
            ),
            (
                r#"kind="learned", pick={ kind="cumulative", probability=0.5 }"#,
                vec![learned(0.5)],
                "learned 0.5",
            ),
            (
                "samples={ samples=3, threshold=[0, 0.7], noise=1 }, seed=4",
                [0.0, 0.7]
                    .map(|threshold| {
                        samples(|rule| {
                            (rule.samples, rule.noise) = (3, 1.0);
                            (rule.threshold, rule.seed) = (threshold, 4);
                        })
                    })
                    .into(),
                "3 samples 0, noise 1",
            ),
        ];
        for (text, expected, name) in cases {
            let found = parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found, expected, "{text}");
            assert_eq!(label(&found[0]), name);
        }
        assert_eq!(
            family(&parse("entropy=0.3, start=2").unwrap()[0]),
            "entropy, from step 2"
        );
        assert_eq!(
            family(&parse("samples=0.3").unwrap()[0]),
            "5 samples, noise 0.1"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, part) in [
            ("", "names no kind; give entropy, learned or samples"),
            ("never", "names nothing to do"),
            ("entrpy", "unknown variant `entrpy`"),
            ("entropy=", "for example entropy=0.1"),
            ("entropy=[]", "threshold is an empty list"),
            ("entropy=0.1, patience=2", "unknown field `patience`"),
            ("entropy=0.1, start=0", "start: must be at least 1"),
            ("learned=2", "pick.probability: 2 is not in (0, 1]"),
            ("samples={ samples=0 }", "samples: must be at least 1"),
            ("start=2", "names no kind"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.0.contains(part), "{}", error.0);
        }
    }
}
