//! The rows of a running stage. Each carries its schema version as the first field.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Row;

/// The version of a file format as a field: always written as `V`, and reading any other number is an
/// error. It costs no memory and cannot be set wrong.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Schema<const V: u32>;

impl<const V: u32> fmt::Debug for Schema<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Schema<{V}>")
    }
}

impl<const V: u32> Serialize for Schema<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(V)
    }
}

impl<'de, const V: u32> Deserialize<'de> for Schema<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = u32::deserialize(deserializer)?;
        if found == V {
            Ok(Schema)
        } else {
            Err(D::Error::custom(format!("schema {found}, expected {V}")))
        }
    }
}

/// One logging interval of training, or one validation pass. Lines of `metrics.jsonl`.
///
/// Numbers that are not finite are written as `"NaN"`, `"inf"`, `"-inf"`: a diverged loss is a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Version of this row.
    pub schema: Schema<1>,
    /// Name of the stage, unique within the run.
    pub stage: String,
    /// Optimizer steps finished in this stage; the first row of training has step 1 or more.
    pub step: u64,
    /// `train`, `validation`, or the name of a test set.
    pub split: String,
    /// Mean loss over the interval or the split, in nats where it is a cross-entropy.
    #[serde(
        default,
        with = "optional_float",
        skip_serializing_if = "Option::is_none"
    )]
    pub loss: Option<f64>,
    /// Learning rate of the last step of the interval.
    #[serde(
        default,
        with = "optional_float",
        skip_serializing_if = "Option::is_none"
    )]
    pub learning_rate: Option<f64>,
    /// L2 norm of all gradients before clipping, mean over the interval.
    #[serde(
        default,
        with = "optional_float",
        skip_serializing_if = "Option::is_none"
    )]
    pub gradient_norm: Option<f64>,
    /// Tokens without padding seen since the start of the stage (training) or in this pass.
    pub tokens: u64,
    /// Tokens without padding per second over the interval.
    #[serde(
        default,
        with = "optional_float",
        skip_serializing_if = "Option::is_none"
    )]
    pub tokens_per_second: Option<f64>,
    /// Seconds of work since the start of the stage, pauses between resumes left out.
    pub elapsed_seconds: f64,
    /// Everything else by name, for example the terms of the loss.
    #[serde(
        default,
        with = "float_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub values: BTreeMap<String, f64>,
}

impl MetricRow {
    /// A row with its place filled in and nothing measured yet.
    #[must_use]
    pub fn new(stage: &str, step: u64, split: &str) -> Self {
        MetricRow {
            stage: stage.to_owned(),
            step,
            split: split.to_owned(),
            ..MetricRow::default()
        }
    }
}

impl Row for MetricRow {
    fn place(&self) -> Option<(&str, u64)> {
        Some((&self.stage, self.step))
    }
}

/// Something that happened once. Lines of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Version of this row.
    pub schema: Schema<1>,
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// What.
    pub event: EventKind,
    /// The stage it belongs to; absent for the run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Optimizer steps finished in the stage; absent for the run as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Facts for programs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
}

impl EventRow {
    /// An event of the run as a whole; `time` is RFC 3339 in UTC.
    #[must_use]
    pub fn of_run(time: &str, event: EventKind) -> Self {
        EventRow {
            schema: Schema,
            time: time.to_owned(),
            event,
            stage: None,
            step: None,
            message: String::new(),
            details: BTreeMap::new(),
        }
    }

    /// An event of one stage; `time` is RFC 3339 in UTC.
    #[must_use]
    pub fn at_step(time: &str, event: EventKind, stage: &str, step: u64) -> Self {
        EventRow {
            stage: Some(stage.to_owned()),
            step: Some(step),
            ..EventRow::of_run(time, event)
        }
    }
}

impl Row for EventRow {
    fn place(&self) -> Option<(&str, u64)> {
        Some((self.stage.as_deref()?, self.step?))
    }
}

/// What an [`EventRow`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The run began.
    Started,
    /// The run goes on from a checkpoint.
    Resumed,
    /// A stage began.
    StageStarted,
    /// A stage reached its last step.
    StageFinished,
    /// A checkpoint is on disk.
    CheckpointSaved,
    /// A checkpoint was deleted under the retention policy.
    CheckpointRemoved,
    /// A validation metric is the best so far.
    Improved,
    /// A stage ended before its last step, on its stopping rule.
    StoppedEarly,
    /// Rows beyond the checkpoint resumed from, or a torn line, were cut off.
    RowsTruncated,
    /// Something deserves attention but did not stop the run.
    Warning,
    /// The user or the system asked the run to stop.
    Interrupted,
    /// The run ended with an error.
    Failed,
    /// Every stage and every evaluation is done.
    Finished,
}

/// One question answered during training or evaluation. Lines of `samples.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    /// Version of this row.
    pub schema: Schema<1>,
    /// Name of the stage.
    pub stage: String,
    /// Optimizer steps finished in this stage.
    pub step: u64,
    /// The split the question is from.
    pub split: String,
    /// The problem's id.
    pub problem: String,
    /// The question as given to the model.
    pub question: String,
    /// Everything the model wrote, special tokens included.
    pub generated: String,
    /// The answer found in it; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<String>,
    /// The right answer.
    pub answer: String,
    /// Whether the two match.
    pub correct: bool,
    /// Latent steps taken before the answer.
    pub latent_steps: u64,
}

impl Row for SampleRow {
    fn place(&self) -> Option<(&str, u64)> {
        Some((&self.stage, self.step))
    }
}

/// A float as JSON can hold it: the number, or the name of what is not a finite number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Float {
    Finite(f64),
    Named(String),
}

impl From<f64> for Float {
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Float::Finite(value)
        } else {
            Float::Named(value.to_string())
        }
    }
}

impl TryFrom<Float> for f64 {
    type Error = String;

    fn try_from(value: Float) -> Result<Self, String> {
        match value {
            Float::Finite(value) => Ok(value),
            Float::Named(name) => match name.as_str() {
                "NaN" => Ok(f64::NAN),
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                _ => Err(format!("`{name}` is not a number, NaN, inf or -inf")),
            },
        }
    }
}

mod optional_float {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Float::from).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Option<f64>, D::Error> {
        let value: Option<Float> = Option::deserialize(source)?;
        value
            .map(f64::try_from)
            .transpose()
            .map_err(D::Error::custom)
    }
}

mod float_map {
    use super::*;

    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            values
                .iter()
                .map(|(name, &value)| (name, Float::from(value))),
        )
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        source: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values: BTreeMap<String, Float> = BTreeMap::deserialize(source)?;
        values
            .into_iter()
            .map(|(name, value)| Ok((name, f64::try_from(value).map_err(D::Error::custom)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_row_is_written_as_documented() {
        let row = MetricRow {
            loss: Some(f64::NAN),
            learning_rate: Some(1e-4),
            tokens: 12,
            elapsed_seconds: 0.5,
            values: BTreeMap::from([("route".to_owned(), f64::NEG_INFINITY)]),
            ..MetricRow::new("align", 7, "train")
        };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(
            text,
            r#"{"schema":1,"stage":"align","step":7,"split":"train","loss":"NaN","learning_rate":0.0001,"tokens":12,"elapsed_seconds":0.5,"values":{"route":"-inf"}}"#
        );
        let back: MetricRow = serde_json::from_str(&text).unwrap();
        assert!(back.loss.unwrap().is_nan() && back.gradient_norm.is_none());
        assert_eq!(back.values, row.values);
    }

    #[test]
    fn floats_survive_exactly() {
        for value in [0.1, -0.0, 5e-324, f64::MAX, 1.0 / 3.0, f64::INFINITY] {
            let row = MetricRow {
                gradient_norm: Some(value),
                ..MetricRow::default()
            };
            let text = serde_json::to_string(&row).unwrap();
            let back: MetricRow = serde_json::from_str(&text).unwrap();
            assert_eq!(back.gradient_norm.map(f64::to_bits), Some(value.to_bits()));
        }
        let wrong = r#"{"schema":1,"stage":"","step":0,"split":"","loss":"high","tokens":0,"elapsed_seconds":0}"#;
        let error = serde_json::from_str::<MetricRow>(wrong).unwrap_err();
        assert!(error.to_string().starts_with("`high` is not a number"));
    }
}
