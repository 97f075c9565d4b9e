//! Stepwise internalization (arXiv 2405.14838): tokens of the chain of thought are taken away, a few more
//! every so many updates, until the answer follows the question.
//!
//! The model is trained as under supervised fine-tuning, on what is left. Positions count on without a
//! gap.

use serde::{Deserialize, Serialize};
use sesqui_dataset::encode::EncodedProblem;

use crate::curriculum::ResetOptimizer;
use crate::rollout::{generator, uniform};

/// Stepwise internalization as a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IcotConfig {
    /// Which end of the chain of thought goes first.
    pub side: Side,
    /// Tokens that go together.
    pub remove_per: usize,
    /// Updates between two removals.
    pub updates: u64,
    /// Once so many tokens are removed, all are; 0: as many as the longest chain of thought of the training
    /// split has.
    pub remove_all_beyond: usize,
    /// `lambda`: in each row `o` tokens more are removed, with a probability proportional to
    /// `exp(-lambda o)`, from 0 to [`MOST_OFFSET`]; `inf`: none.
    pub removal_smoothing: f64,
    /// When the optimizer forgets its moments; a stage is what lies between two removals.
    pub reset_optimizer: ResetOptimizer,
}

/// The greatest number of tokens by which [`IcotConfig::removal_smoothing`] runs ahead.
pub const MOST_OFFSET: usize = 99;

/// An end of the chain of thought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The first tokens.
    #[default]
    Left,
    /// The last tokens.
    Right,
}

impl Default for IcotConfig {
    fn default() -> Self {
        Self {
            side: Side::default(),
            remove_per: 1,
            updates: 50,
            remove_all_beyond: 0,
            removal_smoothing: 4.0,
            reset_optimizer: ResetOptimizer::default(),
        }
    }
}

impl IcotConfig {
    /// What is wrong with the settings, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let fail = |key: &str, reason: String| Some((key.to_owned(), reason));
        let at_least_one = [
            ("remove_per", self.remove_per as u64),
            ("updates", self.updates),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return fail(key, "must be at least 1".to_owned());
            }
        }
        // Not a number is none of them either.
        match self.removal_smoothing > 0.0 {
            true => None,
            false => fail(
                "removal_smoothing",
                format!(
                    "{} is not above 0; inf removes no token ahead of time",
                    self.removal_smoothing
                ),
            ),
        }
    }

    /// The removals on `problems`.
    pub fn plan<'a>(&self, problems: impl IntoIterator<Item = &'a EncodedProblem>) -> IcotPlan {
        let tokens = |problem: &EncodedProblem| problem.steps.iter().map(Vec::len).sum::<usize>();
        IcotPlan {
            all_from: match self.remove_all_beyond {
                0 => problems.into_iter().map(tokens).max().unwrap_or(0),
                tokens => tokens,
            },
            config: self.clone(),
        }
    }

    /// Settings that are counted in updates, for a training of `now` updates instead of `before`.
    pub fn rescale(&mut self, before: u64, now: u64) {
        if self.updates > 0 {
            self.updates = (self.updates * now / before.max(1)).max(1);
        }
    }
}

/// Stepwise internalization, settled for a training split.
#[derive(Clone, Debug, PartialEq)]
pub struct IcotPlan {
    config: IcotConfig,
    /// Tokens from which on all are removed.
    all_from: usize,
}

/// Tokens that are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// So many.
    Tokens(usize),
    /// The whole chain of thought.
    All,
}

impl IcotPlan {
    /// What is removed in update `update`, counted from 0.
    pub fn removed(&self, update: u64) -> Removed {
        let times = usize::try_from(update / self.config.updates).unwrap_or(usize::MAX);
        match times.saturating_mul(self.config.remove_per) {
            tokens if tokens >= self.all_from => Removed::All,
            tokens => Removed::Tokens(tokens),
        }
    }

    /// What was removed in the last of `updates` updates.
    pub fn removed_after(&self, updates: u64) -> Removed {
        self.removed(updates.saturating_sub(1))
    }

    /// Tokens removed by schedule in the last of `updates` updates; where all are, those of the longest
    /// chain.
    pub fn tokens_after(&self, updates: u64) -> usize {
        match self.removed_after(updates) {
            Removed::Tokens(tokens) => tokens,
            Removed::All => self.all_from,
        }
    }

    /// Whether the optimizer forgets its moments before update `update`.
    pub fn resets(&self, update: u64) -> bool {
        match self.config.reset_optimizer {
            ResetOptimizer::Never => false,
            ResetOptimizer::AtStages => {
                update > 0 && self.removed(update) != self.removed(update - 1)
            }
        }
    }

    /// What is removed from the `rows` rows of update `update`: a function of the seed.
    pub fn removed_of_rows(&self, seed: u64, update: u64, rows: usize) -> Vec<Removed> {
        let further = (-self.config.removal_smoothing).exp();
        let mut draws = generator(seed, update, b"internal");
        // A geometric distribution, whose tail falls on the last.
        let mut offset = || {
            let mut offset = 0;
            while offset < MOST_OFFSET && uniform(&mut draws) < further {
                offset += 1;
            }
            offset
        };
        let scheduled = self.removed(update);
        let removed = |offset: usize| match scheduled {
            Removed::Tokens(tokens) => Removed::Tokens(tokens + offset),
            Removed::All => Removed::All,
        };
        (0..rows).map(|_| removed(offset())).collect()
    }

    /// `problem` without what is removed from its chain of thought.
    pub fn cut(&self, problem: &EncodedProblem, removed: Removed) -> EncodedProblem {
        let tokens = problem.steps.iter().map(Vec::len).sum::<usize>();
        let gone = match removed {
            Removed::Tokens(gone) => gone.min(tokens),
            Removed::All => tokens,
        };
        let kept = match self.config.side {
            Side::Left => gone..tokens,
            Side::Right => 0..tokens - gone,
        };
        let mut cut = EncodedProblem {
            steps: Vec::new(),
            critical: Vec::new(),
            ..problem.clone()
        };
        let mut begin = 0;
        for (step, critical) in problem.steps.iter().zip(&problem.critical) {
            let end = begin + step.len();
            let (from, to) = (begin.max(kept.start), end.min(kept.end));
            if from < to {
                cut.steps.push(step[from - begin..to - begin].to_vec());
                cut.critical.push(*critical);
            }
            begin = end;
        }
        cut
    }
}
