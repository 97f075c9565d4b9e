//! A batch on the CPU, cut into parts that cores answer side by side.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use sesqui_kernels::{cores, is_here, on_one_core};
use sesqui_reason::{Prompt, PromptError};

use crate::method::Responses;

/// Rows that one core answers together, of a batch of so many: half of them, but at least 16, for which the weights
/// are worth reading, and at most 32. Not a function of the number of cores: how many rows a matrix product has may
/// decide the last bit of each, and results should not depend on the machine.
fn rows_together(batch: usize) -> usize {
    batch.div_ceil(2).clamp(16, 32)
}

/// What `answer` makes of `prompt` on `device`: on the CPU in parts of 16 to 32 rows, each on a core, elsewhere as one.
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
    let next = AtomicUsize::new(0);
    let answered = Mutex::new(Vec::with_capacity(parts.len()));
    std::thread::scope(|scope| {
        for _ in 0..cores().min(parts.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(part) = parts.get(index) else {
                        break;
                    };
                    let found = on_one_core(|| answer(part));
                    if let Ok(mut answered) = answered.lock() {
                        answered.push((index, found));
                    }
                }
            });
        }
    });
    // A thread that panicked has made the scope panic.
    let mut answered = answered.into_inner().unwrap_or_default();
    answered.sort_by_key(|(index, _)| *index);
    let mut whole = Responses {
        rows: Vec::with_capacity(prompt.batch),
        prefill: Duration::ZERO,
        reasoning: Duration::ZERO,
        answer: Duration::ZERO,
    };
    for (index, found) in answered {
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
