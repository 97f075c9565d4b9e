//! The staircase one slot after another over the cache: layers that a slot skips do not run.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_model::{KvCache, LatentTransformer};

use crate::config::KeyValueRule;
use crate::plan::{EntryPosition, Landing};
use crate::router::HostRouter;
use crate::shortcuts::Shortcuts;

/// When a slot leaves early. The last slot of a row never does.
#[derive(Clone, Copy)]
pub enum ExitRule<'a> {
    /// Never: every slot runs all layers, as in the plain latent student.
    Full,
    /// Where the router of the boundary says more than `threshold`. One host read for all rows per
    /// boundary.
    Routers {
        /// Adapters for the slots that enter above the bottom.
        shortcuts: &'a Shortcuts,
        /// The routers of `shortcuts`, with their weights on the host.
        hosts: &'a [HostRouter],
        /// The exit threshold (the paper's `lambda_depth`); 1 is never exceeded.
        threshold: f64,
    },
    /// Where a plan says so. No host read.
    Plan {
        /// Adapters for the slots that enter above the bottom; without them the state is handed on
        /// as it is.
        shortcuts: Option<&'a Shortcuts>,
        /// Whether `(row, slot, boundary)` leaves, asked wherever a slot may leave.
        leaves: &'a (dyn Fn(usize, usize, usize) -> bool + Sync),
    },
}

impl<'a> ExitRule<'a> {
    /// Whether every slot runs every layer.
    pub fn never(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Routers { threshold, .. } => *threshold >= 1.0,
            Self::Plan { .. } => false,
        }
    }

    /// The adapters, where the rule has some.
    pub fn shortcuts(&self) -> Option<&'a Shortcuts> {
        match self {
            Self::Full => None,
            Self::Routers { shortcuts, .. } => Some(shortcuts),
            Self::Plan { shortcuts, .. } => *shortcuts,
        }
    }
}

/// Of which rows a slot is the last one, which runs to the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last<'a> {
    /// Of all, or of none.
    All(bool),
    /// Row by row. Slots after a row's last one are last ones too, so that its staircase stays
    /// legal beside rows that have more.
    Rows(&'a [bool]),
}

impl Last<'_> {
    fn of(self, row: usize) -> bool {
        match self {
            Self::All(last) => last,
            Self::Rows(last) => last[row],
        }
    }
}

/// What one row did in one slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotTrace {
    /// Boundary at which it entered.
    pub enter: usize,
    /// Boundary at which it left; the layers `enter..leave` ran.
    pub leave: usize,
    /// Boundaries at which a router was asked, and its weight `w`.
    pub weights: Vec<(usize, f32)>,
}

impl SlotTrace {
    /// Number of layers that ran.
    pub fn layer_calls(&self) -> usize {
        self.leave - self.enter
    }
}

/// Latent reasoning under way, all rows in step, slot by slot.
pub struct Walk<'a> {
    model: &'a LatentTransformer,
    rule: ExitRule<'a>,
    key_values: KeyValueRule,
    landing: Landing,
    entry_position: EntryPosition,
    cache: KvCache,
    device: Device,
    /// `[batch, 1, d_model]`: the state of each prompt's last column after the final norm.
    first: Tensor<3>,
    /// `[batch, 1, d_model]`: the newest state of each row after the final norm.
    states: Tensor<3>,
    inputs: Vec<Tensor<3>>,
    /// By the boundary at which they enter next: rows that left early, and their states. Rows in
    /// none of them enter at the bottom.
    waiting: Vec<Option<Group>>,
    handed: Vec<Vec<Handed>>,
    slots: Vec<Vec<SlotTrace>>,
    /// Rows that take no further slot.
    stopped: Vec<bool>,
    reads: usize,
}

/// Rows that left a slot early at one boundary.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The rows, ascending.
    pub rows: Vec<usize>,
    /// Their states there, `[rows, 1, d_model]`, before any norm or adapter.
    pub states: Tensor<3>,
}

/// Rows, ascending, and their states `[rows, 1, d_model]`.
struct Group {
    rows: Vec<usize>,
    hidden: Tensor<3>,
}

impl<'a> Walk<'a> {
    /// Starts after a prompt that is in `cache`; `states` `[batch, 1, d_model]` are those of its
    /// last column after the final norm. Every step takes at most one entry of the cache's capacity.
    pub fn new(
        model: &'a LatentTransformer,
        cache: KvCache,
        states: Tensor<3>,
        rule: ExitRule<'a>,
        key_values: KeyValueRule,
    ) -> Self {
        Self {
            waiting: model.backbone.layers.iter().map(|_| None).collect(),
            slots: vec![Vec::new(); cache.batch()],
            stopped: vec![false; cache.batch()],
            model,
            rule,
            key_values,
            landing: Landing::default(),
            entry_position: EntryPosition::default(),
            cache,
            device: states.device(),
            first: states.clone(),
            states,
            inputs: Vec::new(),
            handed: Vec::new(),
            reads: 0,
        }
    }

    /// Goes on elsewhere after an exit than at the same boundary.
    pub fn with_landing(mut self, landing: Landing) -> Self {
        self.landing = landing;
        self
    }

    /// Says whether slots that enter above the bottom are given their learned position.
    pub fn with_entry_position(mut self, entry_position: EntryPosition) -> Self {
        self.entry_position = entry_position;
        self
    }

    /// Ends `rows`: from now on no layer runs for them. Rows that wait above the bottom, whose last slot
    /// left early, go on.
    pub fn stop(&mut self, rows: &[usize]) {
        for &row in rows {
            self.stopped[row] |= self.at_top(row);
        }
    }

    /// Whether a row's newest state came from the top: of its last slot, or of the prompt.
    pub fn at_top(&self, row: usize) -> bool {
        let slot = self.slots[row].last();
        slot.is_none_or(|slot| slot.leave == self.waiting.len())
    }

    /// Whether a row takes no further slot.
    pub fn has_stopped(&self, row: usize) -> bool {
        self.stopped[row]
    }

    /// Whether there is no row left that takes further slots.
    pub fn is_over(&self) -> bool {
        self.stopped.iter().all(|&stopped| stopped)
    }

    /// One slot for every row that was not stopped, at `positions`, one per row; where it is the `last`
    /// one it runs to the top.
    ///
    /// # Panics
    ///
    /// If `positions` or `last` are fewer than rows, the cache is full, or routers or adapters are
    /// missing.
    pub fn step(&mut self, positions: &[i32], last: Last<'_>) {
        self.inputs.push(self.states.clone());
        self.handed.push(Vec::new());
        if self.rule.never() && !self.stopped.contains(&true) {
            return self.step_in_full(positions);
        }
        let layers = self.waiting.len();
        let mut standing: Option<Group> = None;
        // Apart from those that still wait to enter this slot.
        let mut left: Vec<Option<Group>> = (0..layers).map(|_| None).collect();
        for boundary in 0..layers {
            let entering = self.enter(boundary, positions);
            standing = self.join(standing, entering);
            if self.landing.exits(layers).contains(&boundary) {
                let group = standing.take();
                let (stayed, gone) = group.map_or((None, None), |group| {
                    self.leave(group, boundary, positions, last)
                });
                standing = stayed;
                left[self.landing.resume(boundary, layers)] = gone;
            }
            if let Some(Group { rows, hidden }) = standing {
                let at = self.column(&rows, positions);
                let model = &self.model.backbone;
                let hidden = model.run_layer_rows(boundary, hidden, at, &rows, &mut self.cache);
                standing = Some(Group { rows, hidden });
            }
        }
        self.waiting = left;
        if let Some(group) = standing {
            self.finish(group);
        }
    }

    fn step_in_full(&mut self, positions: &[i32]) {
        let (batch, layers) = (self.slots.len(), self.waiting.len());
        let rows: Vec<usize> = (0..batch).collect();
        let at = self.column(&rows, positions);
        let fed = self.model.fed(&self.first, &self.states).clone();
        let hidden = self.model.latent_inputs(fed, at.clone());
        let real = vec![true; batch];
        let model = &self.model.backbone;
        let hidden = model.run_layers_cached(0..layers, hidden, at, &real, &mut self.cache);
        for slots in &mut self.slots {
            slots.push(SlotTrace::default());
        }
        self.finish(Group { rows, hidden });
    }

    /// The rows that enter at `boundary`, if any, with the states on which its layer is to run.
    fn enter(&mut self, boundary: usize, positions: &[i32]) -> Option<Group> {
        let group = if boundary == 0 {
            let waits = |row: &usize| self.waiting.iter().flatten().any(|g| g.rows.contains(row));
            let enters = |row: &usize| !self.stopped[*row] && !waits(row);
            let rows: Vec<usize> = (0..self.slots.len()).filter(enters).collect();
            if rows.is_empty() {
                return None;
            }
            let at = self.column(&rows, positions);
            let fed = self.model.fed(&self.first, &self.states).clone();
            let states = self.pick(fed, &rows);
            Group {
                hidden: self.model.latent_inputs(states, at),
                rows,
            }
        } else {
            let Group { rows, hidden } = self.waiting[boundary].take()?;
            let adapted = match self.rule.shortcuts() {
                Some(shortcuts) => {
                    shortcuts.adapters[self.landing.left_at(boundary)].forward(hidden)
                }
                None => hidden,
            };
            let hidden = match self.entry_position {
                EntryPosition::EveryEntry => {
                    let at = self.column(&rows, positions);
                    self.model.backbone.with_positions(adapted, at)
                }
                EntryPosition::CycleStart => adapted,
            };
            Group { rows, hidden }
        };
        for &row in &group.rows {
            self.slots[row].push(SlotTrace {
                enter: boundary,
                ..SlotTrace::default()
            });
        }
        Some(group)
    }

    fn join(&self, standing: Option<Group>, entering: Option<Group>) -> Option<Group> {
        let (standing, entering) = match (standing, entering) {
            (Some(standing), Some(entering)) => (standing, entering),
            (one, other) => return one.or(other),
        };
        let rows = [standing.rows, entering.rows].concat();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_unstable_by_key(|&index| rows[index]);
        let hidden = Tensor::cat(vec![standing.hidden, entering.hidden], 0);
        Some(Group {
            hidden: self.pick(hidden, &order),
            rows: order.iter().map(|&index| rows[index]).collect(),
        })
    }

    /// Parts `group` into those who stay and those who leave at `boundary`.
    fn leave(
        &mut self,
        group: Group,
        boundary: usize,
        positions: &[i32],
        last: Last<'_>,
    ) -> (Option<Group>, Option<Group>) {
        let leaves = self.decide(&group, boundary, last);
        let which = |wanted: bool| -> Vec<usize> {
            (0..leaves.len())
                .filter(|&index| leaves[index] == wanted)
                .collect()
        };
        let (stay, go) = (which(false), which(true));
        if go.is_empty() {
            return (Some(group), None);
        }
        let part = |of: &[usize]| Group {
            rows: of.iter().map(|&index| group.rows[index]).collect(),
            hidden: self.pick(group.hidden.clone(), of),
        };
        let (gone, stayed) = (part(&go), (!stay.is_empty()).then(|| part(&stay)));
        for &row in &gone.rows {
            if let Some(slot) = self.slots[row].last_mut() {
                slot.leave = boundary;
            }
        }
        if let Some(handed) = self.handed.last_mut() {
            handed.push(Handed {
                rows: gone.rows.clone(),
                states: gone.hidden.clone(),
            });
        }
        if self.key_values == KeyValueRule::Fill {
            let above = boundary..self.waiting.len();
            let at = self.column(&gone.rows, positions);
            let (model, hidden) = (&self.model.backbone, gone.hidden.clone());
            model.fill_rows(above, hidden, at, &gone.rows, &mut self.cache);
        }
        (stayed, Some(gone))
    }

    /// Which rows of `group` leave at `boundary`. Nothing is read where all take their last slot.
    fn decide(&mut self, group: &Group, boundary: usize, last: Last<'_>) -> Vec<bool> {
        match self.rule {
            _ if group.rows.iter().all(|&row| last.of(row)) => vec![false; group.rows.len()],
            _ if self.rule.never() => vec![false; group.rows.len()],
            ExitRule::Full => vec![false; group.rows.len()],
            ExitRule::Plan { leaves, .. } => {
                let slot = self.inputs.len() - 1;
                let ask = |&row: &usize| !last.of(row) && leaves(row, slot, boundary);
                group.rows.iter().map(ask).collect()
            }
            ExitRule::Routers {
                hosts, threshold, ..
            } => {
                let d_model = group.hidden.dims()[2];
                let states = self.read(&group.hidden);
                let rows = group.rows.iter().zip(states.chunks_exact(d_model));
                rows.map(|(&row, state)| {
                    if last.of(row) {
                        return false;
                    }
                    let weight = hosts[boundary].weight(state);
                    if let Some(slot) = self.slots[row].last_mut() {
                        slot.weights.push((boundary, weight));
                    }
                    f64::from(weight) > threshold
                })
                .collect()
            }
        }
    }

    /// The only way from the device to the host while a walk is under way.
    fn read(&mut self, states: &Tensor<3>) -> Vec<f32> {
        self.reads += 1;
        sesqui_kernels::read(states.clone()).iter::<f32>().collect()
    }

    /// Takes over the states of rows that reached the top.
    fn finish(&mut self, group: Group) {
        let (batch, layers) = (self.slots.len(), self.waiting.len());
        for &row in &group.rows {
            if let Some(slot) = self.slots[row].last_mut() {
                slot.leave = layers;
            }
        }
        let fresh = self.model.backbone.final_norm(group.hidden);
        self.states = if group.rows.len() == batch {
            fresh
        } else {
            let mut order: Vec<usize> = (0..batch).collect();
            for (new, &row) in (batch..).zip(&group.rows) {
                order[row] = new;
            }
            self.pick(Tensor::cat(vec![self.states.clone(), fresh], 0), &order)
        };
    }

    /// Rows `order` of `states` `[rows, 1, d_model]`.
    fn pick(&self, states: Tensor<3>, order: &[usize]) -> Tensor<3> {
        if order.len() == states.dims()[0] && order.is_sorted() {
            return states;
        }
        let order: Vec<i32> = order.iter().map(|&row| row as i32).collect();
        let order = Tensor::<1, Int>::from_data(order.as_slice(), &self.device);
        states.select(0, order)
    }

    /// Positions of `rows`, `[rows, 1]`.
    fn column(&self, rows: &[usize], positions: &[i32]) -> Tensor<2, Int> {
        let at: Vec<i32> = rows.iter().map(|&row| positions[row]).collect();
        Tensor::from_data(TensorData::new(at, [rows.len(), 1]), &self.device)
    }

    /// Feeds `states` `[batch, 1, d_model]` instead of the rows' own newest ones to those that enter next
    /// at the bottom, if the model feeds those at all.
    pub fn replace_states(&mut self, states: Tensor<3>) {
        self.states = states;
    }

    /// `[batch, 1, d_model]`: the newest state of each row after the final norm; after the last
    /// step that of the last slot. A row that has left early still shows an older one.
    pub fn states(&self) -> Tensor<3> {
        self.states.clone()
    }

    /// For each step so far the states `[batch, 1, d_model]` that were fed to rows which entered at
    /// the bottom. At other rows: what they were fed last or would have been fed.
    pub fn inputs(&self) -> &[Tensor<3>] {
        &self.inputs
    }

    /// For each step so far the states with which rows left it early, one entry per boundary.
    pub fn handed(&self) -> &[Vec<Handed>] {
        &self.handed
    }

    /// How often the walk has read from the device.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// What each row did, slot by slot.
    pub fn slots(&self) -> &[Vec<SlotTrace>] {
        &self.slots
    }

    /// The model that walks.
    pub fn model(&self) -> &'a LatentTransformer {
        self.model
    }

    /// The cache so far.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The cache, with the slots in it.
    pub fn into_cache(self) -> KvCache {
        self.cache
    }

    /// The cache and what each row did.
    pub fn into_parts(self) -> (KvCache, Vec<Vec<SlotTrace>>) {
        (self.cache, self.slots)
    }
}
