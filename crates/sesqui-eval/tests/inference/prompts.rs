//! Prompts that do not fit are refused before anything is computed.

use sesqui_reason::{Decoding, Prompt, PromptError, greedy};

use crate::support::{FAMILIES, VOCABULARY, model, plain, prompt, questions};

const CONTEXT: usize = 16;

#[test]
fn misfits_are_named() {
    let good = prompt(&questions(&[2, 4, 3], &[0, 0, 0]), 4, 0);
    let model = model(FAMILIES[0], CONTEXT, 1, &plain());
    let shape = |what, found| PromptError::Shape {
        batch: 3,
        seq: 4,
        what,
        found,
    };
    let range = |what, value, row, limit| PromptError::Range {
        what,
        value,
        row,
        limit,
    };
    type Damage = fn(&mut Prompt);
    let table: Vec<(Damage, PromptError, &str)> = vec![
        (
            |prompt| prompt.ids.truncate(11),
            shape("ids", 11),
            "a prompt of 3 x 4 holds 11 ids",
        ),
        (
            |prompt| prompt.positions.push(0),
            shape("positions", 13),
            "a prompt of 3 x 4 holds 13 positions",
        ),
        (
            |prompt| prompt.real.clear(),
            shape("pad flags", 0),
            "a prompt of 3 x 4 holds 0 pad flags",
        ),
        (
            |prompt| prompt.next_position.truncate(2),
            shape("next positions", 2),
            "a prompt of 3 x 4 holds 2 next positions",
        ),
        (
            |prompt| prompt.ids[5] = 20,
            range("token", 20, 1, VOCABULARY),
            "token 20 of row 1 is outside 0..20",
        ),
        (
            |prompt| prompt.ids[8] = -1,
            range("token", -1, 2, VOCABULARY),
            "token -1 of row 2 is outside 0..20",
        ),
        (
            |prompt| prompt.positions[7] = 16,
            range("position", 16, 1, CONTEXT),
            "position 16 of row 1 is outside 0..16",
        ),
        (
            |prompt| prompt.next_position[0] = -1,
            range("next position", -1, 0, CONTEXT + 1),
            "next position -1 of row 0 is outside 0..17",
        ),
        (
            |prompt| prompt.real[8..12].fill(false),
            PromptError::Empty { row: 2 },
            "row 2 is empty",
        ),
        (
            |prompt| prompt.real[7] = false,
            PromptError::PaddedRight { row: 1 },
            "row 1 ends in padding; pads go on the left",
        ),
        (
            |prompt| *prompt = nothing(),
            PromptError::NoRows,
            "a prompt of no rows",
        ),
    ];
    let decoding = Decoding {
        stop: 1,
        max_tokens: 2,
    };
    assert_eq!(good.validate(VOCABULARY, CONTEXT), Ok(()));
    for (damage, expected, message) in table {
        let mut bad = good.clone();
        damage(&mut bad);
        assert_eq!(bad.validate(VOCABULARY, CONTEXT), Err(expected.clone()));
        assert_eq!(expected.to_string(), message);
        assert_eq!(greedy(&model, &bad, decoding, &plain()), Err(expected));
    }
}

fn nothing() -> Prompt {
    prompt(&Vec::new(), 0, 0)
}
