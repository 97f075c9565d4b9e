//! Batched decoding over the cache against one row at a time without a cache.

use sesqui_model::{Transformer, Visibility};
use sesqui_reason::{DecodedRow, Decoding, greedy};

use crate::support::{
    FAMILIES, Questions, VOCABULARY, integers, model, plain, prompt, questions, values,
};

/// Logits differ between the two routes by rounding, about 1e-6 here; a choice that is closer than
/// this could fall either way and would say nothing.
const MARGIN: f32 = 1e-4;
/// A token that nothing generates.
const NEVER: u32 = 1_000;
const CONTEXT: usize = 40;

/// Decodes one row, computing every token from the whole text anew.
fn recompute(
    model: &Transformer,
    (ids, positions): &(Vec<i32>, Vec<i32>),
    decoding: Decoding,
) -> DecodedRow {
    let (mut ids, mut positions) = (ids.clone(), positions.clone());
    let mut row = DecodedRow::default();
    loop {
        let length = ids.len();
        let logits = values(model.forward(
            integers(&ids, [1, length], &plain()),
            integers(&positions, [1, length], &plain()),
            Visibility::causal(length, &plain()),
        ));
        let last = &logits[(length - 1) * VOCABULARY..];
        let mut order: Vec<usize> = (0..VOCABULARY).collect();
        order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
        assert!(
            last[order[0]] - last[order[1]] > MARGIN,
            "too close; use another seed"
        );
        let token = order[0] as u32;
        let position = positions[length - 1] + 1;
        if token == decoding.stop {
            row.stopped = true;
            return row;
        }
        if row.tokens.len() == decoding.max_tokens || position as usize >= model.config().context {
            return row;
        }
        row.tokens.push(token);
        ids.push(token as i32);
        positions.push(position);
    }
}

/// Decodes `questions` together, each alone, and without a cache: one answer.
fn check(model: &Transformer, questions: &Questions, decoding: Decoding) -> Vec<DecodedRow> {
    let widest = questions.iter().map(|(ids, _)| ids.len()).max().unwrap();
    let run = |questions: &Questions, width: usize, pad: i32| {
        greedy(model, &prompt(questions, width, pad), decoding, &plain()).unwrap()
    };
    let together = run(questions, widest, 0);
    let longest = together
        .rows
        .iter()
        .map(|row| row.tokens.len())
        .max()
        .unwrap();
    assert_eq!(
        together.steps.len(),
        longest,
        "a step per token of the longest row"
    );
    for (row, question) in questions.iter().enumerate() {
        let alone = run(&vec![question.clone()], question.0.len(), 0);
        assert_eq!(
            together.rows[row], alone.rows[0],
            "row {row}: together and alone"
        );
        let anew = recompute(model, question, decoding);
        assert_eq!(
            together.rows[row], anew,
            "row {row}: with the cache and without"
        );
    }
    assert_eq!(
        run(questions, widest + 3, 7).rows,
        together.rows,
        "more pads, another pad"
    );
    let mut reversed = questions.clone();
    reversed.reverse();
    let mut backwards = run(&reversed, widest, 0).rows;
    backwards.reverse();
    assert_eq!(backwards, together.rows, "rows in another order");
    together.rows
}

#[test]
fn together_alone_and_without_a_cache() {
    let questions = questions(&[1, 9, 4, 5, 2], &[0, 0, 0, 3, 6]);
    for family in FAMILIES {
        for seed in [1, 2] {
            let model = model(family, CONTEXT, seed, &plain());
            let rows = check(
                &model,
                &questions,
                Decoding {
                    stop: NEVER,
                    max_tokens: 12,
                },
            );
            assert!(
                rows.iter()
                    .all(|row| row.tokens.len() == 12 && !row.stopped)
            );
            let mut distinct: Vec<u32> = rows.iter().flat_map(|row| row.tokens.clone()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert!(
                distinct.len() > 5,
                "a model that says one thing shows nothing: {distinct:?}"
            );
        }
    }
}

#[test]
fn a_row_ends_at_its_stop_token_and_the_others_go_on() {
    let questions = questions(&[1, 9, 4, 5, 2], &[0, 0, 0, 3, 6]);
    for family in FAMILIES {
        let model = model(family, CONTEXT, 1, &plain());
        let free = check(
            &model,
            &questions,
            Decoding {
                stop: NEVER,
                max_tokens: 12,
            },
        );
        let mut ragged = 0;
        for stop in 0..VOCABULARY as u32 {
            let rows = check(
                &model,
                &questions,
                Decoding {
                    stop,
                    max_tokens: 12,
                },
            );
            for (row, free) in rows.iter().zip(&free) {
                let end = free.tokens.iter().position(|&token| token == stop);
                assert_eq!(row.tokens, free.tokens[..end.unwrap_or(12)]);
                // The thirteenth token may be the stop; it is no part of what was generated.
                assert!(row.stopped || end.is_none());
            }
            let stopped = rows.iter().filter(|row| row.stopped).count();
            ragged += usize::from((1..questions.len()).contains(&stopped));
        }
        assert!(
            ragged >= 3,
            "{ragged} stop tokens end some rows before others"
        );
    }
}

#[test]
fn a_limit_of_tokens() {
    let questions = questions(&[3, 6], &[0, 0]);
    let model = model(FAMILIES[0], CONTEXT, 1, &plain());
    let free = check(
        &model,
        &questions,
        Decoding {
            stop: NEVER,
            max_tokens: 6,
        },
    );
    for max_tokens in 0..6 {
        let rows = check(
            &model,
            &questions,
            Decoding {
                stop: NEVER,
                max_tokens,
            },
        );
        for (row, free) in rows.iter().zip(&free) {
            assert_eq!(row.tokens, free.tokens[..max_tokens]);
            assert!(!row.stopped);
        }
        // A stop token right after the limit still counts as having stopped.
        let stop = free[0].tokens[max_tokens];
        let rows = check(&model, &questions, Decoding { stop, max_tokens });
        assert!(rows[0].stopped);
    }
}

#[test]
fn the_end_of_the_context() {
    // Twelve positions: five, three and no tokens are left.
    let questions = questions(&[7, 4, 3], &[0, 5, 9]);
    for family in FAMILIES {
        let model = model(family, 12, 4, &plain());
        let rows = check(
            &model,
            &questions,
            Decoding {
                stop: NEVER,
                max_tokens: 20,
            },
        );
        let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
        assert_eq!(lengths, [5, 3, 0]);
    }
}
