//! Where latent steps leave, by what they are about: for metrics, and for reading.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use sesqui_distill::latent::SlotLabel;
use sesqui_eval::{Evaluation, Task};

use crate::measure::Measured;
use crate::trained::Latent;

/// Exits and router weights of all latent steps of an evaluation, by label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exits {
    /// Label → how many steps left at each boundary, `0..=L`.
    pub left: BTreeMap<SlotLabel, Vec<u64>>,
    /// Label → boundary → sum and number of router weights seen.
    pub weights: BTreeMap<SlotLabel, BTreeMap<usize, (f64, u64)>>,
    /// Layers run and layers that full depth would have run.
    pub calls: (u64, u64),
}

impl Exits {
    /// Counts the latent steps of `found`, the evaluation of `latent` on `task`.
    pub fn count(latent: &Latent, task: &Task<'_>, found: &Evaluation) -> Self {
        let layers = latent.model.backbone.layers.len();
        let mut exits = Self::default();
        for (problem, slots) in task.encoded.iter().zip(&found.traces) {
            let labels = latent.settings.latents.labels(problem, slots.len());
            // The first output is that of the question itself.
            for (slot, label) in slots.iter().zip(&labels[1..]) {
                let left = exits
                    .left
                    .entry(*label)
                    .or_insert_with(|| vec![0; layers + 1]);
                left[slot.leave] += 1;
                let weights = exits.weights.entry(*label).or_default();
                for &(boundary, weight) in &slot.weights {
                    let (sum, count) = weights.entry(boundary).or_default();
                    *sum += f64::from(weight);
                    *count += 1;
                }
                exits.calls.0 += slot.layer_calls() as u64;
                exits.calls.1 += layers as u64;
            }
        }
        exits
    }

    /// Mean boundary at which steps of a label left.
    pub fn mean_depth(&self, label: SlotLabel) -> Option<f64> {
        let left = self.left.get(&label)?;
        let count: u64 = left.iter().sum();
        let sum: u64 = left.iter().zip(0..).map(|(n, boundary)| n * boundary).sum();
        (count > 0).then(|| sum as f64 / count as f64)
    }

    /// Share of layer calls that full depth would have made and these steps did not.
    pub fn saved(&self) -> f64 {
        let (run, full) = self.calls;
        1.0 - run as f64 / full.max(1) as f64
    }

    /// As named values: share of layer calls saved; by label the mean exit depth and the share that left at
    /// each boundary; by label and boundary the mean router weight.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::new();
        values.insert("layer_calls_saved".to_owned(), self.saved());
        for label in SlotLabel::ALL {
            let name = label.name();
            if let Some(depth) = self.mean_depth(label) {
                values.insert(format!("exit_depth/{name}"), depth);
            }
            if let Some(left) = self.left.get(&label) {
                let all: u64 = left.iter().sum();
                for (boundary, count) in left.iter().enumerate().skip(1) {
                    let share = *count as f64 / all.max(1) as f64;
                    values.insert(format!("left_at/{boundary}/{name}"), share);
                }
            }
            for (boundary, (sum, count)) in self.weights.get(&label).into_iter().flatten() {
                values.insert(
                    format!("router/{boundary}/{name}"),
                    sum / (*count).max(1) as f64,
                );
            }
        }
        values
    }
}

/// [`Exits::values`] of an evaluation; none of a model without routers.
pub fn summary(latent: &Latent, task: &Task<'_>, found: &Evaluation) -> BTreeMap<String, f64> {
    match latent.shortcuts {
        Some(_) => Exits::count(latent, task, found).values(),
        None => BTreeMap::new(),
    }
}

/// Where the latent steps of models with routers left, as a table: by label their number, the mean boundary,
/// and the mean router weight at the first boundary that was asked. `None` where no model has routers.
pub fn table(measured: &[Measured]) -> Option<String> {
    let rows = || {
        let exits = |found: &'_ Measured| found.exits.is_some();
        measured.iter().filter(move |found| exits(found))
    };
    let any = |label: &SlotLabel| {
        let mut all = rows().filter_map(|found| found.exits.as_ref());
        all.any(|exits| exits.left.contains_key(label))
    };
    let labels: Vec<SlotLabel> = SlotLabel::ALL.into_iter().filter(any).collect();
    rows().next()?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let names = labels.iter().map(|label| label.name().to_owned());
    let header = ["where steps left", "split"].map(str::to_owned).into_iter();
    table.set_header(header.chain(names));
    for found in rows() {
        let exits = found.exits.as_ref()?;
        let cell = |label: &SlotLabel| match (exits.mean_depth(*label), exits.left.get(label)) {
            (Some(depth), Some(left)) => {
                let weight = exits.weights.get(label).and_then(|all| all.iter().next());
                let weight = weight.map(|(boundary, (sum, count))| {
                    let mean = sum / (*count).max(1) as f64;
                    format!("\nrouter {boundary}: {mean:.3}")
                });
                let steps: u64 = left.iter().sum();
                format!("{depth:.2} of {steps}{}", weight.unwrap_or_default())
            }
            _ => "–".to_owned(),
        };
        let summary = &found.summary;
        let start = [summary.method.clone(), summary.split.clone()].into_iter();
        table.add_row(start.chain(labels.iter().map(cell)));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let note = "Mean boundary at which latent steps left, of so many, and the mean weight of the lowest \
                router asked, by what the data set says of the steps.";
    Some(format!("{table}\n{note}"))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use sesqui_dataset::encode::{EncodedProblem, PositionLayout, TextFormat};
    use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
    use sesqui_distill::LatentConfig;
    use sesqui_eval::Timing;
    use sesqui_model::latent::LatentTransformer;
    use sesqui_model::{Feedback, ModelConfig, Transformer};
    use sesqui_run::SummaryRow;
    use sesqui_shortcut::{ShortcutConfig, Shortcuts, SlotTrace};

    use super::*;
    use crate::trained::LatentSettings;

    /// Three layers, four latent steps, with shortcuts or without.
    fn latent(shortcuts: bool) -> Latent {
        let device = Device::flex();
        let config = ModelConfig {
            layers: 3,
            d_model: 8,
            heads: 2,
            context: 16,
            ..ModelConfig::default()
        };
        let backbone = Transformer::new(&config, 12, 1, &device).unwrap();
        let shortcuts =
            shortcuts.then(|| Shortcuts::new(&ShortcutConfig::default(), &config, 1, &device));
        let settings = LatentSettings {
            latents: LatentConfig::default(),
            count: 4,
            key_values: Default::default(),
            landing: Default::default(),
            entry_position: None,
            shortcuts: None,
            continuation: Default::default(),
            order: sesqui_model::LatentOrder::Sequential,
            growth: Vec::new(),
        };
        let model = LatentTransformer::new(backbone, &Feedback::default(), 0, &device);
        Latent::new(model, shortcuts, settings)
    }

    fn problem(critical: Vec<Option<bool>>) -> EncodedProblem {
        EncodedProblem {
            id: "p".to_owned(),
            question: vec![1, 2],
            question_end: 1,
            steps: vec![vec![3]; critical.len()],
            answer_start: vec![4],
            answer: vec![5],
            critical,
        }
    }

    fn left(enter: usize, leave: usize, weights: &[(usize, f32)]) -> SlotTrace {
        SlotTrace {
            enter,
            leave,
            weights: weights.to_vec(),
        }
    }

    /// The output of a question is about its first step, so that of its first latent step is about the
    /// second.
    #[test]
    fn exits_are_counted_by_what_each_step_is_about() {
        let encoded = [
            // Latent steps: critical, unlabelled, padding, padding.
            problem(vec![Some(false), Some(true), None]),
            // Independent, then padding.
            problem(vec![Some(true), Some(false)]),
        ];
        let found = Evaluation {
            rows: Vec::new(),
            traces: vec![
                vec![
                    left(0, 3, &[(1, 0.25), (2, 0.5)]),
                    left(0, 1, &[(1, 0.75)]),
                    left(1, 1, &[(1, 0.875)]),
                    left(1, 3, &[]),
                ],
                vec![
                    left(0, 2, &[(1, 0.5), (2, 0.75)]),
                    left(2, 2, &[(2, 0.75)]),
                    left(2, 3, &[(2, 0.25)]),
                    left(0, 3, &[]),
                ],
            ],
            timing: Timing::default(),
        };
        let tokenizer =
            Tokenizer::from_config(&TokenizerConfig::default(), "".as_ref(), ["12345"]).unwrap();
        let task = Task {
            dataset: "by hand",
            split: "validation",
            problems: &[],
            encoded: &encoded,
            tokenizer: &tokenizer,
            format: &TextFormat::default(),
            layout: PositionLayout::Contiguous,
        };

        let exits = Exits::count(&latent(true), &task, &found);
        let expected = [
            (SlotLabel::Critical, vec![0, 0, 0, 1], 3.0),
            (SlotLabel::Independent, vec![0, 0, 1, 0], 2.0),
            (SlotLabel::Unlabelled, vec![0, 1, 0, 0], 1.0),
            // 1, 3, 2, 3, 3.
            (SlotLabel::Padding, vec![0, 1, 1, 3], 2.4),
        ];
        for (label, histogram, depth) in expected {
            assert_eq!(exits.left[&label], histogram, "{label:?}");
            assert_eq!(exits.mean_depth(label), Some(depth), "{label:?}");
        }
        // Three and one, two, nothing and one, two and three of eight times three.
        assert_eq!(exits.calls, (12, 24));
        assert_eq!(exits.saved(), 0.5);

        let values = summary(&latent(true), &task, &found);
        let by_hand = [
            ("exit_depth/critical", 3.0),
            ("exit_depth/independent", 2.0),
            ("exit_depth/padding", 2.4),
            ("exit_depth/unlabelled", 1.0),
            ("layer_calls_saved", 0.5),
            ("left_at/1/critical", 0.0),
            ("left_at/1/independent", 0.0),
            ("left_at/1/padding", 0.2),
            ("left_at/1/unlabelled", 1.0),
            ("left_at/2/critical", 0.0),
            ("left_at/2/independent", 1.0),
            ("left_at/2/padding", 0.2),
            ("left_at/2/unlabelled", 0.0),
            ("left_at/3/critical", 1.0),
            ("left_at/3/independent", 0.0),
            ("left_at/3/padding", 0.6),
            ("left_at/3/unlabelled", 0.0),
            ("router/1/critical", 0.25),
            ("router/1/independent", 0.5),
            ("router/1/padding", 0.875),
            ("router/1/unlabelled", 0.75),
            ("router/2/critical", 0.5),
            ("router/2/independent", 0.75),
            ("router/2/padding", 0.5),
        ];
        let by_hand = by_hand.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(values, BTreeMap::from(by_hand));
        // Without routers nobody could have left.
        assert_eq!(summary(&latent(false), &task, &found), BTreeMap::new());

        let measured = |exits: Option<Exits>| Measured {
            reads: None,
            summary: SummaryRow {
                method: "system15".to_owned(),
                ..SummaryRow::default()
            },
            answers: Vec::new(),
            exits,
        };
        assert_eq!(table(&[measured(None)]), None);
        let shown = table(&[measured(None), measured(Some(exits))]).unwrap();
        for part in [
            "3.00 of 1",
            "router 1: 0.250",
            "2.40 of 5",
            "router 1: 0.875",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
