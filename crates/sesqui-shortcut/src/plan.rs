//! Which layers each latent step runs: the staircase of System-1.5 Reasoning (section 2.1).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Where the slot after an exit goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landing {
    /// At the boundary that the slot before left: `h_{l,t-1}` becomes `h_{l,t}` (Eq. 4). No layer
    /// is lost.
    #[default]
    SameBoundary,
    /// One boundary above: the adapter stands in for the layer between (Eq. 3 read as an exit).
    /// Every exit saves a layer. Leaving just below the top is not allowed, since the adapter would
    /// then have to finish the cycle.
    NextBoundary,
}

impl Landing {
    /// Boundaries at which a slot other than the last may leave early, of `layers` layers.
    pub fn exits(self, layers: usize) -> Range<usize> {
        let end = match self {
            Self::SameBoundary => layers,
            Self::NextBoundary => layers.saturating_sub(1),
        };
        1..end.max(1)
    }

    /// Where the slot enters that follows one which left at `leave`; after a finished cycle at the
    /// bottom.
    pub fn resume(self, leave: usize, layers: usize) -> usize {
        match self {
            _ if leave == layers => 0,
            Self::SameBoundary => leave,
            Self::NextBoundary => leave + 1,
        }
    }

    /// Where the slot left after which the next one enters at `enter > 0`.
    pub(crate) fn left_at(self, enter: usize) -> usize {
        match self {
            Self::SameBoundary => enter,
            Self::NextBoundary => enter - 1,
        }
    }
}

/// Whether a slot that enters above the bottom is given a learned position embedding there, in families
/// that have one (D4). Without effect on rotary positions, which act inside the layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryPosition {
    /// Yes: that of its own position id, on top of what the state handed on has from where its cycle
    /// began.
    #[default]
    EveryEntry,
    /// No: a learned position is added where a cycle begins, and nowhere else, as in Eq. 5.
    CycleStart,
}

/// The boundaries between which one slot runs layers `enter..leave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Boundary at which it enters, `0..layers`.
    pub enter: usize,
    /// Boundary at which it leaves, `enter..=layers`; equal to `enter` for a slot that entered
    /// above the bottom and runs no layer.
    pub leave: usize,
}

impl Slot {
    /// Number of layers that it runs.
    pub fn layer_calls(self) -> usize {
        self.leave - self.enter
    }
}

/// Entering and leaving boundaries of all latent steps of a batch; always a legal staircase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitPlan {
    /// Row-major `[batch, slots]`.
    cells: Vec<Slot>,
    batch: usize,
    slots: usize,
    layers: usize,
    landing: Landing,
    entry_position: EntryPosition,
}

/// Rows that are no staircase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The rows are no rectangle.
    #[error("row {row} has {found} slots, the first has {expected}")]
    Ragged {
        /// The row, from 0.
        row: usize,
        /// Its number of slots.
        found: usize,
        /// That of the first row.
        expected: usize,
    },
    /// A slot enters elsewhere than where the one before it left.
    #[error(
        "slot {slot} of row {row} enters at boundary {found}; the steps before it lead to {expected}"
    )]
    Enter {
        /// The row, from 0.
        row: usize,
        /// The slot, from 0.
        slot: usize,
        /// Where it enters.
        found: usize,
        /// Where it has to enter.
        expected: usize,
    },
    /// A slot leaves where it may not.
    #[error(
        "slot {slot} of row {row} leaves at boundary {found} after entering at {enter}; allowed are {layers} and, for all but the last slot, {exits:?} from there on"
    )]
    Leave {
        /// The row, from 0.
        row: usize,
        /// The slot, from 0.
        slot: usize,
        /// Where it entered.
        enter: usize,
        /// Where it leaves.
        found: usize,
        /// The number of layers, the boundary at the top.
        layers: usize,
        /// Boundaries of early exits.
        exits: Range<usize>,
    },
}

impl ExitPlan {
    /// Every slot runs every layer.
    pub fn full(batch: usize, slots: usize, layers: usize) -> Self {
        Self::from_exits(batch, slots, layers, Landing::default(), |_, _, _| false)
    }

    /// The staircase that follows from asking `leaves(row, slot, boundary)` wherever a slot may
    /// leave: row by row, slot by slot, upwards, and never for the last slot, which always runs to
    /// the top.
    pub fn from_exits(
        batch: usize,
        slots: usize,
        layers: usize,
        landing: Landing,
        mut leaves: impl FnMut(usize, usize, usize) -> bool,
    ) -> Self {
        let exits = landing.exits(layers);
        let mut cells = Vec::with_capacity(batch * slots);
        for row in 0..batch {
            let mut enter = 0;
            for slot in 0..slots {
                let leave = (enter.max(exits.start)..exits.end)
                    .find(|&boundary| slot + 1 < slots && leaves(row, slot, boundary))
                    .unwrap_or(layers);
                cells.push(Slot { enter, leave });
                enter = landing.resume(leave, layers);
            }
        }
        Self {
            cells,
            batch,
            slots,
            layers,
            landing,
            entry_position: EntryPosition::default(),
        }
    }

    /// The staircase given by `rows`, one list of slots per row.
    ///
    /// # Errors
    ///
    /// When the rows differ in length, or a slot enters or leaves where it may not.
    pub fn from_rows(
        rows: Vec<Vec<Slot>>,
        layers: usize,
        landing: Landing,
    ) -> Result<Self, PlanError> {
        let (batch, slots) = (rows.len(), rows.first().map_or(0, Vec::len));
        let exits = landing.exits(layers);
        for (row, cells) in rows.iter().enumerate() {
            if cells.len() != slots {
                return Err(PlanError::Ragged {
                    row,
                    found: cells.len(),
                    expected: slots,
                });
            }
            let mut expected = 0;
            for (slot, &Slot { enter, leave }) in cells.iter().enumerate() {
                if enter != expected {
                    return Err(PlanError::Enter {
                        row,
                        slot,
                        found: enter,
                        expected,
                    });
                }
                let early = slot + 1 < slots && exits.contains(&leave) && leave >= enter;
                if leave != layers && !early {
                    return Err(PlanError::Leave {
                        row,
                        slot,
                        enter,
                        found: leave,
                        layers,
                        exits,
                    });
                }
                expected = landing.resume(leave, layers);
            }
        }
        Ok(Self {
            cells: rows.into_iter().flatten().collect(),
            batch,
            slots,
            layers,
            landing,
            entry_position: EntryPosition::default(),
        })
    }

    /// The same boundaries, with `entry_position` for slots that enter above the bottom.
    pub fn with_entry_position(self, entry_position: EntryPosition) -> Self {
        Self {
            entry_position,
            ..self
        }
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Number of latent steps of each row.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Number of layers of the model that it is for.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Where slots go on after an exit.
    pub fn landing(&self) -> Landing {
        self.landing
    }

    /// What is added to slots that enter above the bottom.
    pub fn entry_position(&self) -> EntryPosition {
        self.entry_position
    }

    /// Slot `slot` of `row`, both from 0.
    pub fn slot(&self, row: usize, slot: usize) -> Slot {
        self.cells[row * self.slots + slot]
    }

    /// All slots, row-major `[batch, slots]`.
    pub fn cells(&self) -> &[Slot] {
        &self.cells
    }

    /// Whether `slot` of `row` runs `layer`, `0..layers`.
    pub fn runs(&self, row: usize, slot: usize, layer: usize) -> bool {
        let Slot { enter, leave } = self.slot(row, slot);
        (enter..leave).contains(&layer)
    }

    /// Layers that the latent steps of `row` run in all.
    pub fn layer_calls(&self, row: usize) -> usize {
        self.cells[row * self.slots..(row + 1) * self.slots]
            .iter()
            .map(|slot| slot.layer_calls())
            .sum()
    }

    /// Whether every slot runs every layer.
    pub fn is_full(&self) -> bool {
        self.cells
            .iter()
            .all(|slot| slot.enter == 0 && slot.leave == self.layers)
    }
}
