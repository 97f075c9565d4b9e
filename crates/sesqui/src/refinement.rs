//! Variants of refining latents: what a configuration or a command line says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sesqui_reason::RefineConfig;
use sesqui_reason::refine::{
    Context, Contrastive, Direction, Norm, Order, Residual, Scaling, Sign,
};
use toml::{Table, Value};

use crate::misuse::Misuse;
use crate::reasoning::ReasoningConfig;

/// Which checkpoints refinement holds latents against, and the questions that it is set up with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferencesConfig {
    /// The strong model.
    pub strong: Reference,
    /// The weak model.
    pub weak: Reference,
    /// Questions spread over the validation split by which kept checkpoints are told apart, and
    /// questions that a direction is calibrated on; 0 means all.
    pub questions: usize,
}

/// A checkpoint of the student's shape and tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reference {
    /// The last one of the `cot` stage that the student comes from.
    Last,
    /// Of those that this stage has kept, the earliest with a validation accuracy between these shares
    /// of the best; where there is none, the nearest to that.
    Early {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// A checkpoint folder, of whatever stage.
    Checkpoint {
        /// The folder.
        path: PathBuf,
    },
}

impl Default for ReferencesConfig {
    fn default() -> Self {
        Self {
            strong: Reference::Last,
            weak: Reference::Early {
                low: 0.25,
                high: 0.6,
            },
            questions: 200,
        }
    }
}

impl ReferencesConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        [("strong", &self.strong), ("weak", &self.weak)]
            .into_iter()
            .find_map(|(key, reference)| match reference {
                Reference::Early { low, high } if !(0.0 <= *low && low <= high && *high <= 1.0) => {
                    let reason = format!("{low} to {high} is no range of shares within [0, 1]");
                    Some((key, reason))
                }
                _ => None,
            })
    }
}

/// One way of refining latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// What is done.
    pub refine: RefineConfig,
    /// With which models.
    pub references: ReferencesConfig,
}

impl Variant {
    /// What the configuration says, if it refines.
    pub fn configured(reasoning: &ReasoningConfig) -> Option<Self> {
        (!reasoning.refine.is_off()).then(|| Self {
            refine: reasoning.refine.clone(),
            references: reasoning.references.clone(),
        })
    }

    /// The variants that `texts` describe, as [`Variant::parse`] reads them; without any, what the
    /// configuration says.
    ///
    /// # Errors
    ///
    /// Names the text, the key and the remedy.
    pub fn all(texts: &[String], reasoning: &ReasoningConfig) -> Result<Vec<Self>, Misuse> {
        if texts.is_empty() {
            return Ok(Self::configured(reasoning).into_iter().collect());
        }
        let mut all = Vec::new();
        for text in texts {
            all.extend(Self::parse(text, &reasoning.references)?);
        }
        Ok(all)
    }

    /// Reads the inside of an inline table with the keys of `[reasoning.refine]`, and `references` with
    /// those of `[reasoning.references]` that differ from `base`. A number for `residual` is its
    /// `alpha`, one for `contrastive` its `size`; a word for a table is its `kind`, and the other
    /// tables can do without. A list for `alpha` or `size` stands for a variant with each of its numbers,
    /// two lists for one with each pair, those of one `alpha` together.
    ///
    /// # Errors
    ///
    /// Names the text, the key and the remedy.
    pub fn parse(text: &str, base: &ReferencesConfig) -> Result<Vec<Self>, Misuse> {
        let wrong = |reason: String| Misuse(format!("--refine {text:?}: {reason}"));
        let braced = format!("variant = {{ {text} }}");
        let mut table: Table = toml::from_str(&braced).map_err(|error| {
            wrong(format!(
                "{}; write KEY=VALUE, KEY=VALUE as in TOML, for example residual=0.05",
                error.message().trim_end()
            ))
        })?;
        let Some(Value::Table(mut table)) = table.remove("variant") else {
            return Err(wrong("is more than one table".to_owned()));
        };
        complete(&mut table, "residual", "blend", "alpha");
        complete(&mut table, "contrastive", "search", "size");
        if let Some(Value::Table(search)) = table.get_mut("contrastive") {
            complete(search, "direction", "gated", "variance");
        }
        let mut references = table_of(base).map_err(|error| wrong(error.to_string()))?;
        match table.remove("references") {
            Some(Value::Table(mut named)) => {
                for key in ["strong", "weak"] {
                    complete(&mut named, key, "checkpoint", "path");
                }
                references.extend(named);
            }
            Some(_) => return Err(wrong("references must be a table".to_owned())),
            None => {}
        }
        let read = |error: toml::de::Error| wrong(error.message().trim_end().to_owned());
        let references: ReferencesConfig = Value::Table(references).try_into().map_err(read)?;
        let mut all = Vec::new();
        for table in each(table, "residual", "alpha") {
            for table in each(table, "contrastive", "size") {
                let refine = Value::Table(table).try_into().map_err(read)?;
                let references = references.clone();
                all.push(Self { refine, references }.checked(&wrong)?);
            }
        }
        if all.is_empty() {
            return Err(wrong("the list is empty".to_owned()));
        }
        Ok(all)
    }

    /// Itself, if its numbers make sense; `wrong` puts a reason into words.
    fn checked(self, wrong: &dyn Fn(String) -> Misuse) -> Result<Self, Misuse> {
        let variant = self;
        if variant.refine.is_off() && variant.refine == RefineConfig::default() {
            let reason = "names nothing to do; give residual, contrastive or both";
            return Err(wrong(reason.to_owned()));
        }
        match (variant.refine.problem(), variant.references.problem()) {
            (Some((key, reason)), _) => Err(wrong(format!("{key}: {reason}"))),
            (_, Some((key, reason))) => Err(wrong(format!("references.{key}: {reason}"))),
            (None, None) => Ok(variant),
        }
    }

    /// Its name in tables, with everything that is not as by default.
    pub fn label(&self) -> String {
        let mut parts = Vec::new();
        if let Residual::Blend { alpha, norm, start } = self.refine.residual {
            parts.push(format!("residual {alpha}"));
            if norm == Norm::Kept {
                parts.push("norm kept".to_owned());
            }
            if start != 1 {
                parts.push(format!("from latent {start}"));
            }
        }
        if let Contrastive::Search(search) = &self.refine.contrastive {
            let unit = match search.scaling {
                Scaling::Direct => "",
                Scaling::Mean => " of the mean",
            };
            parts.push(format!("contrastive {}{unit}", search.size));
            if search.sign == Sign::Printed {
                parts.push("printed sign".to_owned());
            }
            parts.extend(match search.direction {
                Direction::Constant => None,
                Direction::Differentiated => Some("differentiated".to_owned()),
                Direction::Gated { variance } => Some(format!("gated {variance}")),
                Direction::Mean => Some("mean direction".to_owned()),
            });
            match search.context {
                Context::Own => {}
                Context::Shared => parts.push("shared context".to_owned()),
                Context::None => parts.push("no context".to_owned()),
            }
            if search.inner_steps != 1 {
                parts.push(format!("{} times", search.inner_steps));
            }
            if search.start != 1 {
                parts.push(format!("from latent {}", search.start));
            }
        }
        if self.refine.order == Order::ContrastiveFirst {
            parts.push("contrastive first".to_owned());
        }
        for (name, reference) in [
            ("strong", &self.references.strong),
            ("weak", &self.references.weak),
        ] {
            if let Reference::Checkpoint { path } = reference
                && self.refine.search().is_some()
            {
                let step = path.file_name().unwrap_or_default().to_string_lossy();
                parts.push(format!("{name} {step}"));
            }
        }
        parts.join(", ")
    }
}

/// Puts `{ kind, inner }` in the place of a number or a text that is not a kind, `{ kind }` in that of
/// a word, and `kind` into a table without one.
fn complete(table: &mut Table, key: &str, kind: &str, inner: &str) {
    let Some(value) = table.get_mut(key) else {
        return;
    };
    let fraction = |value: &mut Value| {
        if let Value::Integer(number) = value {
            *value = Value::Float(*number as f64);
        }
    };
    let mut whole = match value {
        Value::Table(table) => std::mem::take(table),
        Value::String(word) if !word.contains(['/', '\\', '.']) => {
            let kind = Value::String(word.clone());
            Table::from_iter([("kind".to_owned(), kind)])
        }
        ref plain => Table::from_iter([(inner.to_owned(), (*plain).clone())]),
    };
    // A whole number for a fraction.
    match whole.get_mut(inner) {
        Some(Value::Array(numbers)) => numbers.iter_mut().for_each(fraction),
        Some(number) => fraction(number),
        None => {}
    }
    whole
        .entry("kind".to_owned())
        .or_insert_with(|| Value::String(kind.to_owned()));
    *value = Value::Table(whole);
}

/// `table` with each number of the list `key.inner` in its place; `table` itself where there is no list.
fn each(table: Table, key: &str, inner: &str) -> Vec<Table> {
    let part = table.get(key).and_then(Value::as_table);
    let Some(Value::Array(numbers)) = part.and_then(|part| part.get(inner)) else {
        return vec![table];
    };
    let one = |number: &Value| {
        let mut table = table.clone();
        if let Some(Value::Table(part)) = table.get_mut(key) {
            part.insert(inner.to_owned(), number.clone());
        }
        table
    };
    numbers.iter().map(one).collect()
}

fn table_of(references: &ReferencesConfig) -> Result<Table, toml::ser::Error> {
    Table::try_from(references)
}

#[cfg(test)]
mod tests {
    use sesqui_reason::refine::Search;

    use super::*;

    fn parse(text: &str) -> Result<Variant, Misuse> {
        let mut all = Variant::parse(text, &ReferencesConfig::default())?;
        assert_eq!(all.len(), 1, "{text}");
        Ok(all.remove(0))
    }

    fn search(change: impl FnOnce(&mut Search)) -> Contrastive {
        let mut search = Search::default();
        change(&mut search);
        Contrastive::Search(search)
    }

    #[test]
    fn short_forms_are_the_long_ones() {
        let blend = |alpha, norm| Residual::Blend {
            alpha,
            norm,
            start: 1,
        };
        let refine = |residual, contrastive, order| RefineConfig {
            residual,
            contrastive,
            order,
        };
        let (off, first) = (Residual::Off, Order::ResidualFirst);
        let cases = [
            (
                "residual=0.05",
                refine(blend(0.05, Norm::Free), Contrastive::Off, first),
                "residual 0.05",
            ),
            (
                "residual = 1",
                refine(blend(1.0, Norm::Free), Contrastive::Off, first),
                "residual 1",
            ),
            (
                "contrastive=-0.03",
                refine(off, search(|s| s.size = -0.03), first),
                "contrastive -0.03",
            ),
            (
                r#"residual={ alpha=0.5, norm="kept" }, contrastive={ size=1, sign="printed", scaling="mean" }, order="contrastive-first""#,
                refine(
                    blend(0.5, Norm::Kept),
                    search(|s| (s.size, s.sign, s.scaling) = (1.0, Sign::Printed, Scaling::Mean)),
                    Order::ContrastiveFirst,
                ),
                "residual 0.5, norm kept, contrastive 1 of the mean, printed sign, contrastive first",
            ),
            (
                r#"contrastive={ size=0.3, direction=0.9, context="shared", inner_steps=2, start=0 }"#,
                refine(
                    off,
                    search(|s| {
                        (s.size, s.context, s.inner_steps, s.start) = (0.3, Context::Shared, 2, 0);
                        s.direction = Direction::Gated { variance: 0.9 };
                    }),
                    first,
                ),
                "contrastive 0.3, gated 0.9, shared context, 2 times, from latent 0",
            ),
            (
                r#"contrastive={ direction="differentiated", context="none" }"#,
                refine(
                    off,
                    search(|s| {
                        (s.direction, s.context) = (Direction::Differentiated, Context::None);
                    }),
                    first,
                ),
                "contrastive 0.03, differentiated, no context",
            ),
            (
                r#"contrastive={ direction={ kind="mean" } }"#,
                refine(off, search(|s| s.direction = Direction::Mean), first),
                "contrastive 0.03, mean direction",
            ),
        ];
        for (text, expected, label) in cases {
            let found = parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.refine, expected, "{text}");
            assert_eq!(found.label(), label);
            assert_eq!(found.references, ReferencesConfig::default());
        }
    }

    #[test]
    fn references_of_a_variant_go_over_those_configured() {
        let base = ReferencesConfig {
            questions: 7,
            ..ReferencesConfig::default()
        };
        let text = r#"contrastive=0.1, references={ weak="runs/a/checkpoints/cot/step-00000250" }"#;
        let found = Variant::parse(text, &base).unwrap().remove(0);
        let expected = ReferencesConfig {
            weak: Reference::Checkpoint {
                path: "runs/a/checkpoints/cot/step-00000250".into(),
            },
            ..base.clone()
        };
        assert_eq!(found.references, expected);
        assert_eq!(found.label(), "contrastive 0.1, weak step-00000250");
        let band = "contrastive=0.1, references={ weak={ kind=\"early\", low=0.1, high=0.2 } }";
        let found = Variant::parse(band, &base).unwrap().remove(0).references;
        let expected = Reference::Early {
            low: 0.1,
            high: 0.2,
        };
        assert_eq!(found.weak, expected);
    }

    #[test]
    fn lists_are_every_pair() {
        let all = |text: &str| -> Vec<String> {
            let found = Variant::parse(text, &ReferencesConfig::default());
            let found = found.unwrap_or_else(|error| panic!("{error}"));
            found.iter().map(Variant::label).collect()
        };
        assert_eq!(
            all("residual=[0, 0.5], contrastive={ size=[-1, 0.1], direction=\"mean\" }"),
            [
                "residual 0, contrastive -1, mean direction",
                "residual 0, contrastive 0.1, mean direction",
                "residual 0.5, contrastive -1, mean direction",
                "residual 0.5, contrastive 0.1, mean direction",
            ]
        );
        assert_eq!(all("contrastive=[0.3]"), ["contrastive 0.3"]);
        for (text, part) in [
            ("residual=[]", "the list is empty"),
            ("residual=[0.1, 2]", "residual.alpha: 2 is not in [0, 1]"),
            ("residual=[0.1, \"x\"]", "invalid type"),
        ] {
            let error = Variant::parse(text, &ReferencesConfig::default()).unwrap_err();
            assert!(error.0.contains(part), "{}", error.0);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, part) in [
            ("", "names nothing to do"),
            ("residual", "for example residual=0.05"),
            ("residual=2", "residual.alpha: 2 is not in [0, 1]"),
            ("contrastiv=0.1", "unknown field `contrastiv`"),
            ("contrastive={ sized=1 }", "unknown field `sized`"),
            ("contrastive={ sign=\"up\" }", "unknown variant `up`"),
            (
                "contrastive={ direction=0 }",
                "contrastive.direction.variance: 0 is not in (0, 1]",
            ),
            (
                "contrastive=1, references={ weak={ kind=\"early\", low=0.7, high=0.6 } }",
                "references.weak: 0.7 to 0.6",
            ),
            ("contrastive=1, references=3", "references must be a table"),
        ] {
            let error = parse(text).map(|found| found.label()).unwrap_err();
            assert!(error.0.contains(part), "{}", error.0);
        }
    }
}
