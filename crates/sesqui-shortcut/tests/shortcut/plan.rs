//! Staircases, all of them at small sizes.

use sesqui_shortcut::{ExitPlan, Landing, PlanError, Slot};

const LANDINGS: [Landing; 2] = [Landing::SameBoundary, Landing::NextBoundary];

/// Every staircase of one row that decisions can lead to: each number is read as the answers, yes or
/// no, in the order in which they are asked for.
fn all(slots: usize, layers: usize, landing: Landing) -> Vec<ExitPlan> {
    let mut plans: Vec<ExitPlan> = Vec::new();
    for answers in 0..1u32 << (slots * layers) {
        let mut asked = 0;
        let plan = ExitPlan::from_exits(1, slots, layers, landing, |_, _, _| {
            asked += 1;
            answers >> (asked - 1) & 1 == 1
        });
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    plans
}

fn cells(plan: &ExitPlan) -> Vec<Slot> {
    plan.cells().to_vec()
}

/// The rules of the staircase, checked from one slot to the next, and the count of layer calls: no
/// layer is lost where a slot goes on at the same boundary, one per exit where it goes on above.
#[test]
fn decisions_lead_to_legal_staircases_whose_calls_add_up() {
    for landing in LANDINGS {
        for (slots, layers) in [(1, 3), (2, 1), (2, 4), (3, 2), (3, 3), (4, 3), (3, 4)] {
            for plan in all(slots, layers, landing) {
                let what = format!("{plan:?}");
                let (mut finished, mut exits, mut above) = (0, 0, 0);
                for index in 0..slots {
                    let Slot { enter, leave } = plan.slot(0, index);
                    assert_eq!(enter, above, "{what}");
                    assert!(enter <= leave && 1 <= leave && leave <= layers, "{what}");
                    if leave == layers {
                        finished += 1;
                        above = 0;
                    } else {
                        exits += 1;
                        above = leave + usize::from(landing == Landing::NextBoundary);
                        assert!(above < layers, "{what}");
                    }
                }
                assert_eq!(above, 0, "the last slot leaves at the top: {what}");
                let run = (0..slots)
                    .flat_map(|slot| (0..layers).map(move |layer| (slot, layer)))
                    .filter(|&(slot, layer)| plan.runs(0, slot, layer))
                    .count();
                let lost = match landing {
                    Landing::SameBoundary => 0,
                    Landing::NextBoundary => exits,
                };
                assert_eq!(plan.layer_calls(0), run, "{what}");
                assert_eq!(plan.layer_calls(0), layers * finished - lost, "{what}");
                assert_eq!(plan.is_full(), run == slots * layers, "{what}");
            }
        }
    }
}

/// Two steps with one exit between them: the whole stack once, or once less the layer that the
/// adapter stands in for.
#[test]
fn two_steps_with_one_exit() {
    for layers in [3, 4, 12] {
        for (landing, calls) in [
            (Landing::SameBoundary, layers),
            (Landing::NextBoundary, layers - 1),
        ] {
            for exit in landing.exits(layers) {
                let plan =
                    ExitPlan::from_exits(1, 2, layers, landing, |_, _, boundary| boundary == exit);
                assert_eq!(plan.slot(0, 0).leave, exit);
                assert_eq!(plan.layer_calls(0), calls, "{plan:?}");
            }
        }
    }
}

/// The last slot is never asked, nor anyone at the bottom, at the top, or below where it entered.
#[test]
fn only_legal_exits_are_asked_for() {
    for landing in LANDINGS {
        let mut asked = Vec::new();
        let plan = ExitPlan::from_exits(2, 3, 4, landing, |row, slot, boundary| {
            asked.push((row, slot, boundary));
            row == 1 && boundary == 2
        });
        let mut expected = Vec::new();
        for row in 0..2 {
            for slot in 0..2 {
                let Slot { enter, leave } = plan.slot(row, slot);
                let highest = leave.min(landing.exits(4).end - 1);
                expected.extend((enter.max(1)..=highest).map(|boundary| (row, slot, boundary)));
            }
        }
        assert_eq!(asked, expected, "{landing:?}");
    }
}

/// Of all pairs of boundaries for every slot, rows are accepted that decisions can lead to, and no
/// others.
#[test]
fn rows_are_accepted_exactly_if_they_are_staircases() {
    for landing in LANDINGS {
        for (slots, layers) in [(1, 2), (2, 2), (2, 3), (3, 3)] {
            let legal: Vec<Vec<Slot>> = all(slots, layers, landing).iter().map(cells).collect();
            let ends = layers + 2;
            let mut accepted = 0;
            for mut code in 0..(ends * ends).pow(slots as u32) {
                let row: Vec<Slot> = (0..slots)
                    .map(|_| {
                        let slot = Slot {
                            enter: code % ends,
                            leave: code / ends % ends,
                        };
                        code /= ends * ends;
                        slot
                    })
                    .collect();
                let plan = ExitPlan::from_rows(vec![row.clone()], layers, landing);
                assert_eq!(plan.is_ok(), legal.contains(&row), "{row:?}: {plan:?}");
                if let Ok(plan) = plan {
                    assert_eq!(cells(&plan), row);
                    accepted += 1;
                }
            }
            assert_eq!(accepted, legal.len());
        }
    }
}

#[test]
fn refusals_say_where() {
    let full = Slot { enter: 0, leave: 3 };
    let rows = |second: Vec<Slot>| {
        let plan = ExitPlan::from_rows(vec![vec![full; 2], second], 3, Landing::SameBoundary);
        plan.unwrap_err()
    };
    assert!(matches!(
        rows(vec![full]),
        PlanError::Ragged {
            row: 1,
            found: 1,
            expected: 2
        }
    ));
    assert!(matches!(
        rows(vec![Slot { enter: 0, leave: 2 }, full]),
        PlanError::Enter {
            row: 1,
            slot: 1,
            found: 0,
            expected: 2
        }
    ));
    assert_eq!(
        rows(vec![full, Slot { enter: 0, leave: 2 }]).to_string(),
        "slot 1 of row 1 leaves at boundary 2 after entering at 0; \
         allowed are 3 and, for all but the last slot, 1..3 from there on"
    );
}

#[test]
fn full_plans_run_everything() {
    for (batch, slots, layers) in [(1, 1, 1), (3, 2, 4), (2, 0, 3), (0, 2, 3)] {
        let plan = ExitPlan::full(batch, slots, layers);
        assert!(plan.is_full());
        assert_eq!(
            [plan.batch(), plan.slots(), plan.layers()],
            [batch, slots, layers]
        );
        for row in 0..batch {
            assert_eq!(plan.layer_calls(row), slots * layers);
        }
    }
}
