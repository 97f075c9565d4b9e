//! A batch that is cut into parts: every row gets what its part gets alone, in the order of rows, and what is wrong
//! with a row is said with its number in the batch.

use sesqui_eval::{Method, TokenDecoding};
use sesqui_model::Family;
use sesqui_reason::{Decoding, Prompt, PromptError, TokenExit};

use crate::support::{model, plain, prompt, questions};

const PAD: i32 = 18;
const WIDTH: usize = 9;

/// `rows` questions of 3 to 9 tokens.
fn asked(rows: usize) -> Prompt {
    let lengths: Vec<usize> = (0..rows).map(|row| 3 + (row * 5) % (WIDTH - 2)).collect();
    prompt(&questions(&lengths, &vec![0; rows]), WIDTH, PAD)
}

#[test]
fn rows_get_what_their_part_gets_alone() {
    for family in [Family::Gpt2, Family::Llama] {
        let (model, device) = (model(family, 32, 4, &plain()), plain());
        let method = TokenDecoding {
            model: &model,
            device: &device,
            decoding: Decoding {
                stop: 7,
                max_tokens: 12,
            },
            exit: TokenExit::Never,
            answer_start: &[2],
        };
        // Halves, full parts with a rest, and a single part.
        for (rows, together) in [(40, 20), (70, 32), (16, 16)] {
            let whole = asked(rows);
            let found = method.respond(&whole).unwrap();
            let parts = whole.parts(together).unwrap();
            let alone: Vec<_> = parts
                .iter()
                .flat_map(|part| method.respond(part).unwrap().rows)
                .collect();
            assert_eq!(found.rows, alone, "{family:?}, {rows} rows");
            assert!(found.rows.iter().any(|row| row != &found.rows[0]));
            assert_eq!(parts.iter().map(|part| part.batch).sum::<usize>(), rows);
        }
    }
}

#[test]
fn a_row_that_does_not_fit_is_named_by_its_number_in_the_batch() {
    let (model, device) = (model(Family::Gpt2, 32, 4, &plain()), plain());
    let method = TokenDecoding {
        model: &model,
        device: &device,
        decoding: Decoding {
            stop: 7,
            max_tokens: 2,
        },
        exit: TokenExit::Never,
        answer_start: &[],
    };
    let mut wrong = asked(70);
    let last = 66 * WIDTH - 1;
    wrong.ids[last] = 99;
    let found = method.respond(&wrong).unwrap_err();
    assert!(
        matches!(found, PromptError::Range { row: 65, .. }),
        "{found:?}"
    );
    wrong.real.pop();
    let found = method.respond(&wrong).unwrap_err();
    assert!(matches!(found, PromptError::Shape { .. }), "{found:?}");
}
