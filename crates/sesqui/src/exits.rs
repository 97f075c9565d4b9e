//! Where latent steps leave, by what they are about: for metrics, and for reading.

use std::collections::BTreeMap;

use sesqui_distill::latent::SlotLabel;
use sesqui_eval::{Evaluation, Task};

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
}

/// The same as named values: share of layer calls saved; by label the mean exit depth and the share
/// that left at each boundary; by label and boundary the mean router weight.
pub fn summary(latent: &Latent, task: &Task<'_>, found: &Evaluation) -> BTreeMap<String, f64> {
    let exits = Exits::count(latent, task, found);
    let mut values = BTreeMap::new();
    if latent.shortcuts.is_none() {
        return values;
    }
    values.insert("layer_calls_saved".to_owned(), exits.saved());
    for label in SlotLabel::ALL {
        let name = label.name();
        if let Some(depth) = exits.mean_depth(label) {
            values.insert(format!("exit_depth/{name}"), depth);
        }
        if let Some(left) = exits.left.get(&label) {
            let all: u64 = left.iter().sum();
            for (boundary, count) in left.iter().enumerate().skip(1) {
                let share = *count as f64 / all.max(1) as f64;
                values.insert(format!("left_at/{boundary}/{name}"), share);
            }
        }
        for (boundary, (sum, count)) in exits.weights.get(&label).into_iter().flatten() {
            values.insert(
                format!("router/{boundary}/{name}"),
                sum / (*count).max(1) as f64,
            );
        }
    }
    values
}
