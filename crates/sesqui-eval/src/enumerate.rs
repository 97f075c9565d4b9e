//! How many latent steps a question needs: every number of them, tried.

use sesqui_kernels::read;
use sesqui_reason::HaltConfig;

use crate::answer;
use crate::evaluate::{EvaluationError, prompt_error};
use crate::latent::LatentMethod;
use crate::task::Task;

/// What trying every number of latent steps showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Enumerated {
    /// For each question the smallest number of steps after which its answer is right; where none is, the
    /// most that were tried.
    pub smallest: Vec<usize>,
    /// States after the final norm of the questions' last tokens, before the first latent step,
    /// `[questions, d_model]` row-major.
    pub states: Vec<f32>,
    /// Questions answered rightly after 1, 2, … steps.
    pub right: Vec<usize>,
    /// Questions that no number of steps answers rightly.
    pub unsolved: usize,
}

/// Answers every question of `task`, `batch_size` at a time, after each number of latent steps from 1 to
/// `most`, as `method` does; its own number of steps, its halting and its refinement play no part. `progress`
/// hears how many of the `most` rounds over the questions are done, times questions.
///
/// # Errors
///
/// When a question fits neither layout nor model.
pub fn enumerate(
    method: &LatentMethod<'_>,
    task: &Task<'_>,
    most: usize,
    batch_size: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Enumerated, EvaluationError> {
    let never = HaltConfig::Never;
    let questions = task.problems.len();
    let mut found = Enumerated::default();
    let mut smallest: Vec<Option<usize>> = vec![None; questions];
    for steps in 1..=most {
        let fixed = LatentMethod {
            latent_steps: steps,
            refinement: None,
            halt: (&never, None),
            ..method.clone()
        };
        let (mut start, mut right) = (0, 0);
        while start < questions {
            let end = (start + batch_size.max(1)).min(questions);
            let prompt = task.prompt(start..end)?;
            let decoded = fixed
                .decode(&prompt)
                .map_err(|source| prompt_error(task, source))?;
            for (index, row) in (start..end).zip(&decoded.rows) {
                let problem = &task.problems[index];
                let text = task.tokenizer.decode(&row.tokens)?;
                let predicted =
                    answer::extract(&text, &task.format.answer_start, problem.answer_kind);
                let is_right = predicted.is_some_and(|predicted| {
                    answer::matches(&predicted, &problem.answer, problem.answer_kind)
                });
                if is_right {
                    right += 1;
                    smallest[index].get_or_insert(steps);
                }
            }
            if let (1, Some(first)) = (steps, decoded.states.into_iter().next()) {
                found.states.extend(read(first).iter::<f32>());
            }
            start = end;
            progress((steps - 1) * questions + end);
        }
        found.right.push(right);
    }
    found.unsolved = smallest.iter().filter(|steps| steps.is_none()).count();
    found.smallest = smallest
        .into_iter()
        .map(|steps| steps.unwrap_or(most))
        .collect();
    Ok(found)
}
