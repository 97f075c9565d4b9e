//! Which templates are used, and their variants in turns.

use std::collections::{BTreeSet, VecDeque};

use super::Template;
use crate::error::DatasetError;
use crate::generate::random::Random;
use crate::problem::Problem;
use crate::split::{Part, question_hash};

/// A template that fails to give a new valid row this many times in a row is exhausted.
const MOST_DRAWS_IN_VAIN: usize = 300;

/// What a template and its variants have to keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest steps.
    pub min_steps: usize,
    /// Most steps.
    pub max_steps: Option<usize>,
    /// Greatest drawn number and greatest result of an operation.
    pub greatest_number: Option<u64>,
}

/// The distinct variants of the templates of one split, none of them an original.
///
/// Templates take turns, so that each gives about as many rows as the others while it has any left.
/// Rows drawn in two calls are those that one call would have drawn.
#[derive(Clone, Debug)]
pub struct Variants<'a> {
    part: Part,
    turns: VecDeque<Source<'a>>,
    seen: BTreeSet<u64>,
    drawn: usize,
}

#[derive(Clone, Debug)]
struct Source<'a> {
    template: &'a Template,
    random: Random,
    made: usize,
}

impl<'a> Variants<'a> {
    /// Nothing drawn yet, from the templates of `part` as their original questions have it
    /// ([`Part::of`]).
    pub fn new(templates: &'a [Template], part: Part, seed: u64) -> Self {
        Self::of(templates.iter().filter(|it| it.part == part), part, seed)
    }

    /// As [`new`](Self::new), with only the `count` templates of the smallest hash among those that
    /// have their even share of `rows` variants; they take turns in the order of `templates`.
    ///
    /// Without that condition a few templates with many variants would fill most of training, while
    /// a test drawn in turns would ask most about the others.
    ///
    /// # Errors
    /// [`DatasetError::Config`] when there are fewer such templates.
    pub fn first(
        templates: &'a [Template],
        part: Part,
        count: usize,
        rows: usize,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        let share = rows.div_ceil(count.max(1));
        let mut by_hash: Vec<&Template> = templates.iter().filter(|it| it.part == part).collect();
        by_hash.sort_unstable_by_key(|template| template.hash);
        let chosen: BTreeSet<u64> = by_hash
            .iter()
            .filter(|template| Source::new(template, seed).gives(share))
            .take(count)
            .map(|template| template.hash)
            .collect();
        if chosen.len() < count {
            return Err(DatasetError::Config(format!(
                "data set gsm8k-perturbed: data.templates is {count}, but of {} {} templates within \
                 the bounds only {} have {share} variants, an even share of the rows; ask for fewer \
                 rows or templates, or widen the bounds",
                by_hash.len(),
                part.name(),
                chosen.len(),
            )));
        }
        let used = templates.iter().filter(|it| chosen.contains(&it.hash));
        Ok(Self::of(used, part, seed))
    }

    fn of(templates: impl Iterator<Item = &'a Template>, part: Part, seed: u64) -> Self {
        let turns: VecDeque<Source<'a>> = templates
            .map(|template| Source::new(template, seed))
            .collect();
        let seen = turns.iter().map(|source| source.template.hash).collect();
        Self {
            part,
            turns,
            seen,
            drawn: 0,
        }
    }

    /// Templates that may have variants left.
    pub fn templates(&self) -> usize {
        self.turns.len()
    }

    /// Gives up the templates that no row was drawn from.
    pub fn keep_used(&mut self) {
        self.turns.retain(|source| source.made > 0);
    }

    /// The next `rows` variants, ids `gsm8k-perturbed/<name>/<row of the template>-<k>`, k counting
    /// the rows of a template from 0 over all calls.
    ///
    /// # Errors
    /// [`DatasetError::Config`] when there are not so many.
    pub fn draw(&mut self, name: &str, rows: usize) -> Result<Vec<Problem>, DatasetError> {
        let asked = self.drawn + rows;
        let mut problems = Vec::with_capacity(rows);
        while problems.len() < rows
            && let Some(mut source) = self.turns.pop_front()
        {
            let Some(mut problem) = source.fresh(&mut self.seen) else {
                continue;
            };
            let row = &source.template.row;
            problem.id = format!("gsm8k-perturbed/{name}/{row}-{}", source.made);
            problems.push(problem);
            source.made += 1;
            self.drawn += 1;
            self.turns.push_back(source);
        }
        if self.drawn < asked {
            return Err(DatasetError::Config(format!(
                "data set gsm8k-perturbed: the {} templates have only about {} variants, fewer than \
                 the {asked} rows asked for; ask for fewer",
                self.part.name(),
                self.drawn,
            )));
        }
        Ok(problems)
    }
}

impl<'a> Source<'a> {
    fn new(template: &'a Template, seed: u64) -> Self {
        Self {
            template,
            random: Random::stream(seed, "gsm8k-perturbed", template.hash),
            made: 0,
        }
    }

    /// Whether it has `rows` variants.
    fn gives(mut self, rows: usize) -> bool {
        let mut seen = BTreeSet::from([self.template.hash]);
        (0..rows).all(|_| self.fresh(&mut seen).is_some())
    }

    /// A variant that is not in `seen`, put there; `None` where none was found.
    fn fresh(&mut self, seen: &mut BTreeSet<u64>) -> Option<Problem> {
        (0..MOST_DRAWS_IN_VAIN).find_map(|_| {
            let problem = self.template.draw(&mut self.random)?;
            seen.insert(question_hash(&problem.question))
                .then_some(problem)
        })
    }
}
