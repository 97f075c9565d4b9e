//! What latent reasoning is said to cost against what it ran.

use sesqui_eval::{LatentMethod, Method};
use sesqui_model::latent::{Continuation, SlotPositions};
use sesqui_reason::{Decoding, HaltConfig};
use sesqui_shortcut::{EntryPosition, ExitRule, KeyValueRule, Landing};

use crate::alone::{LAYERS, Leave, alone, latent_model};
use crate::support::{FAMILIES, VOCABULARY, plain, prompt, questions};

/// Operations of a layer for one position, one matrix at a time: a multiplication and an addition
/// per element. `heads` of 4, and 4 or 2 for keys and values, each 4 wide.
pub fn layer(llama: bool, keys: usize) -> u64 {
    let (d, joint, width) = if llama {
        (16, 16 + 2 * 8, 48)
    } else {
        (16, 48, 64)
    };
    let matrices = if llama { 3 } else { 2 };
    let mut operations = 2 * d * joint + 2 * d * d + matrices * 2 * d * width;
    for _head in 0..4 {
        for _key in 0..keys {
            // A score and a share of the sum.
            operations += 2 * 4 + 2 * 4;
        }
    }
    operations
}

#[test]
fn flops_and_layer_calls_are_what_ran() {
    let asked = questions(&[1, 7, 4], &[0, 2, 0]);
    let starts: Vec<i32> = asked.iter().map(|(_, at)| at[at.len() - 1] + 1).collect();
    let told = |row: usize, slot: usize, boundary: usize| (row + slot + boundary).is_multiple_of(3);
    for family in FAMILIES {
        let llama = family == FAMILIES[1];
        for hidden in [0, 5] {
            let (model, shortcuts) = latent_model(family, 8, hidden);
            let hosts = shortcuts.routers_on_host();
            let rules = [
                ExitRule::Full,
                ExitRule::Routers {
                    shortcuts: &shortcuts,
                    hosts: &hosts,
                    threshold: 0.55,
                },
                ExitRule::Plan {
                    shortcuts: Some(&shortcuts),
                    leaves: &told,
                },
            ];
            for (rule, key_values) in rules
                .into_iter()
                .flat_map(|rule| [(rule, KeyValueRule::Holes), (rule, KeyValueRule::Fill)])
            {
                let method = LatentMethod {
                    model: &model,
                    device: &plain(),
                    latent_steps: 4,
                    order: sesqui_model::LatentOrder::Sequential,
                    trained_latents: 5,
                    positions: SlotPositions::Strided {
                        offset: 1,
                        stride: 3,
                    },
                    rule,
                    key_values,
                    landing: Landing::SameBoundary,
                    entry_position: EntryPosition::EveryEntry,
                    refinement: None,
                    halt: (&HaltConfig::Never, None),
                    continuation: Continuation::Answer,
                    answer_start: &[11, 4],
                    decoding: Decoding {
                        stop: 7,
                        max_tokens: 5,
                    },
                };
                let found = method.respond(&prompt(&asked, 7, 0)).unwrap();
                let plan = sesqui_reason::LatentDecoding {
                    latent_steps: 4,
                    order: sesqui_model::LatentOrder::Sequential,
                    slot_positions: starts
                        .iter()
                        .map(|start| [1, 4, 7, 10].map(|gap| start + gap).to_vec())
                        .collect(),
                    answer_position: starts.iter().map(|start| start + 15).collect(),
                    answer_start: &[11, 4],
                    landing: Landing::SameBoundary,
                    entry_position: EntryPosition::EveryEntry,
                    decoding: method.decoding,
                };
                for (row, response) in found.rows.iter().enumerate() {
                    let told = |slot: usize, boundary: usize| told(row, slot, boundary);
                    let (leave, used) = match rule {
                        ExitRule::Full => (Leave::Never, None),
                        ExitRule::Routers { threshold, .. } => {
                            (Leave::Above(threshold), Some(&shortcuts))
                        }
                        ExitRule::Plan { .. } => (Leave::Told(&told), Some(&shortcuts)),
                    };
                    let expected =
                        alone(&model, used, (leave, key_values), &asked[row], &plan, row);
                    assert_eq!(response.tokens, expected.tokens);
                    assert_eq!(response.latent_steps, 4);
                    assert_eq!(response.layer_calls, expected.seen[1].len());
                    let ranges: Vec<[usize; 2]> = response
                        .slots
                        .iter()
                        .map(|slot| [slot.enter, slot.leave])
                        .collect();
                    assert_eq!(ranges, expected.slots);

                    let [question, reasoning, answer] = expected
                        .seen
                        .map(|seen| seen.iter().map(|&keys| layer(llama, keys)).sum::<u64>());
                    let pair = if llama { 2 * 8 } else { 2 * 16 };
                    let reasoning = reasoning + (expected.filled * 2 * 16 * pair) as u64;
                    assert_eq!(response.reason_flops, reasoning as f64);
                    let router = if hidden == 0 { 16 } else { 16 * 5 + 5 };
                    let around = expected.fed_back * 2 * 16 * 16
                        + expected.adapted * 2 * (2 * 3 * 16)
                        + expected.asked * 2 * router
                        + expected.chosen * 2 * 16 * VOCABULARY;
                    let all = question + reasoning + answer + around as u64;
                    assert_eq!(response.flops, all as f64);
                    if matches!(rule, ExitRule::Full) {
                        assert_eq!(response.layer_calls, 4 * LAYERS);
                    }
                }
            }
        }
    }
}

#[test]
fn positions_of_slots() {
    let contiguous = SlotPositions::Contiguous;
    assert_eq!(
        [0, 1, 5].map(|slot| contiguous.slot_position(9, slot)),
        [9, 10, 14]
    );
    assert_eq!(contiguous.answer_position(9, 6), 15);
    // Results of steps of 7 tokens, `<< 3 + 5 = 8 >>`: the answer comes after the steps.
    let strided = SlotPositions::Strided {
        offset: 5,
        stride: 7,
    };
    assert_eq!(
        [0, 1, 5].map(|slot| strided.slot_position(37, slot)),
        [42, 49, 77]
    );
    assert_eq!(strided.answer_position(37, 6), 79);
    assert_eq!(strided.slot_position(1, usize::MAX >> 8), i32::MAX);
}
