//! A batch on the CPU, cut into parts that cores answer side by side.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use sesqui_kernels::{is_here, side_by_side};
use sesqui_reason::{Prompt, PromptError};

use crate::method::Responses;

/// Rows that one core answers together, of a batch of so many: half of them, but at least 16, for which the weights
/// are worth reading, and at most 32. Not a function of the number of cores: how many rows a matrix product has may
/// decide the last bit of each, and results should not depend on the machine.
fn rows_together(batch: usize) -> usize {
    batch.div_ceil(2).clamp(16, 32)
}

/// What `answer` makes of `prompt` on `device`: on the CPU in parts of at most 32 rows, each on a core, elsewhere as one.
/// Times are those of the whole, divided as the parts' own are.
///
/// # Errors
///
/// That of the first part that has one.
pub fn in_parts(
    prompt: &Prompt,
    device: &Device,
    answer: impl Fn(&Prompt) -> Result<Responses, PromptError> + Sync,
) -> Result<Responses, PromptError> {
    let together = rows_together(prompt.batch);
    if prompt.batch <= together || !is_here(device) {
        return answer(prompt);
    }
    let begun = Instant::now();
    let parts = prompt.parts(together)?;
    let answered = side_by_side(parts.len(), |index| answer(&parts[index]));
    let mut whole = Responses {
        rows: Vec::with_capacity(prompt.batch),
        prefill: Duration::ZERO,
        reasoning: Duration::ZERO,
        answer: Duration::ZERO,
    };
    for (index, found) in answered.into_iter().enumerate() {
        let found = found.map_err(|error| error.after(together * index))?;
        whole.rows.extend(found.rows);
        whole.prefill += found.prefill;
        whole.reasoning += found.reasoning;
        whole.answer += found.answer;
    }
    let own = whole.prefill + whole.reasoning + whole.answer;
    if !own.is_zero() {
        let share = begun.elapsed().as_secs_f64() / own.as_secs_f64();
        for phase in [&mut whole.prefill, &mut whole.reasoning, &mut whole.answer] {
            *phase = phase.mul_f64(share);
        }
    }
    Ok(whole)
}
