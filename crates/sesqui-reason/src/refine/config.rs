//! What is done to a latent before it is fed, as settings.

use serde::{Deserialize, Serialize};

/// Refinement of latents after training (arXiv 2506.08552). Off by default; the parts can be combined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefineConfig {
    /// Residual embedding refinement (Eq. 4).
    pub residual: Residual,
    /// Contrastive reasoning feedback search (Eq. 3).
    pub contrastive: Contrastive,
    /// Which of the two comes first.
    pub order: Order,
}

/// Blending a latent with the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Residual {
    /// Latents are fed as they come.
    #[default]
    Off,
    /// `alpha` of the latent that was fed before, `1 - alpha` of the new one.
    Blend {
        /// The memory rate, in [0, 1]: 0 is plain decoding, at 1 every step is fed the same vector.
        alpha: f64,
        /// What becomes of the norm, which a mean of two states makes smaller.
        #[serde(default)]
        norm: Norm,
        /// First latent that is blended, from 0; the first latent of all has nothing before it.
        #[serde(default = "second")]
        start: usize,
    },
}

/// What becomes of the norm of a blended latent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// What comes out; the paper mentions nothing else.
    #[default]
    Free,
    /// That of the new latent before blending.
    Kept,
}

/// Moving a latent with the help of a strong and a weak model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Contrastive {
    /// No search.
    #[default]
    Off,
    /// Steps along the gradient of `MSE(strong, latent) - MSE(weak, latent)`.
    Search(Search),
}

/// How the search goes: `h + step * direction`, each row by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    /// Step size; below 0 it goes the other way, at 0 there is no search.
    pub size: f64,
    /// What `size` multiplies.
    pub scaling: Scaling,
    /// Whether the gradient is subtracted or added.
    pub sign: Sign,
    /// The direction, for the intended sign.
    pub direction: Direction,
    /// What the strong and the weak model see beside the latent.
    pub context: Context,
    /// Steps for each latent; the direction is taken anew for each.
    pub inner_steps: usize,
    /// First latent that is moved, from 0.
    pub start: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            size: 0.03,
            scaling: Scaling::default(),
            sign: Sign::default(),
            direction: Direction::default(),
            context: Context::default(),
            inner_steps: 1,
            start: 1,
        }
    }
}

/// What the step size multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// The direction itself: `strong - weak` where both are constant.
    #[default]
    Direct,
    /// The gradient of mean squared errors, as printed: `2 / d_model` of the direction.
    Mean,
}

/// What is done with the gradient of `MSE(strong, latent) - MSE(weak, latent)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// Subtracted: towards the strong model, as the text says and the released code does.
    #[default]
    Intended,
    /// Added, as Eq. 3 is printed: towards the weak model.
    Printed,
}

/// Along what a latent is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Direction {
    /// `strong - weak`: both outputs are constants, nothing is propagated back.
    #[default]
    Constant,
    /// Half the descent direction of the squared errors, through both models.
    Differentiated,
    /// `strong - weak` projected onto a calibrated subspace and weighted with the share of its norm
    /// that lies there (TILR, arXiv 2606.29164).
    Gated {
        /// Share of the squared norm that the subspace holds of what it was calibrated on, in (0, 1].
        variance: f64,
    },
    /// The mean of `strong - weak` over what was calibrated on: no other model runs at inference.
    Mean,
}

/// What the strong and the weak model see of question and earlier latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Context {
    /// A cache of their own over the question and the refined latents.
    #[default]
    Own,
    /// The student's keys and values.
    Shared,
    /// Nothing but the latent.
    None,
}

/// Which part of the refinement comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Blend, then search.
    #[default]
    ResidualFirst,
    /// Search, then blend.
    ContrastiveFirst,
}

fn second() -> usize {
    1
}

impl RefineConfig {
    /// Whether latents are fed as they come.
    pub fn is_off(&self) -> bool {
        let still = match self.residual {
            Residual::Off => true,
            Residual::Blend { alpha, .. } => alpha == 0.0,
        };
        still && self.search().is_none()
    }

    /// The search, where it moves anything.
    pub fn search(&self) -> Option<&Search> {
        match &self.contrastive {
            Contrastive::Search(search) if search.size != 0.0 => Some(search),
            _ => None,
        }
    }

    /// Whether a strong and a weak model run at inference.
    pub fn needs_references(&self) -> bool {
        self.search()
            .is_some_and(|search| search.direction != Direction::Mean)
    }

    /// Whether the direction has to be calibrated on questions first.
    pub fn needs_calibration(&self) -> bool {
        self.search().is_some_and(|search| {
            matches!(search.direction, Direction::Gated { .. } | Direction::Mean)
        })
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if let Residual::Blend { alpha, start, .. } = self.residual {
            if !(0.0..=1.0).contains(&alpha) {
                return Some((
                    "residual.alpha",
                    format!("{alpha} is not in [0, 1]; 0 is plain decoding"),
                ));
            }
            if start == 0 {
                let reason = "the first latent has none before it; count from 1";
                return Some(("residual.start", reason.to_owned()));
            }
        }
        let Contrastive::Search(search) = &self.contrastive else {
            return None;
        };
        if !search.size.is_finite() {
            let reason = format!("{} is not a number to compute with", search.size);
            return Some(("contrastive.size", reason));
        }
        if search.inner_steps == 0 {
            let reason = "must be at least 1; contrastive = { kind = \"off\" } searches nowhere";
            return Some(("contrastive.inner_steps", reason.to_owned()));
        }
        match search.direction {
            Direction::Gated { variance } if !(variance > 0.0 && variance <= 1.0) => Some((
                "contrastive.direction.variance",
                format!("{variance} is not in (0, 1]"),
            )),
            _ => None,
        }
    }
}

impl Search {
    /// What the direction is multiplied by.
    pub fn step(&self, d_model: usize) -> f64 {
        let size = match self.sign {
            Sign::Intended => self.size,
            Sign::Printed => -self.size,
        };
        match self.scaling {
            Scaling::Direct => size,
            Scaling::Mean => 2.0 * size / d_model as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_scalings() {
        let step = |scaling, sign| {
            let search = Search {
                size: 0.5,
                scaling,
                sign,
                ..Search::default()
            };
            search.step(8)
        };
        assert_eq!(step(Scaling::Direct, Sign::Intended), 0.5);
        assert_eq!(step(Scaling::Direct, Sign::Printed), -0.5);
        assert_eq!(step(Scaling::Mean, Sign::Intended), 0.125);
        assert_eq!(step(Scaling::Mean, Sign::Printed), -0.125);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let search = |change: fn(&mut Search)| {
            let mut search = Search::default();
            change(&mut search);
            RefineConfig {
                contrastive: Contrastive::Search(search),
                ..RefineConfig::default()
            }
        };
        let blend = |alpha, start| RefineConfig {
            residual: Residual::Blend {
                alpha,
                norm: Norm::Free,
                start,
            },
            ..RefineConfig::default()
        };
        let cases = [
            (blend(1.1, 1), "residual.alpha"),
            (blend(f64::NAN, 1), "residual.alpha"),
            (blend(0.5, 0), "residual.start"),
            (search(|s| s.size = f64::INFINITY), "contrastive.size"),
            (search(|s| s.inner_steps = 0), "contrastive.inner_steps"),
            (
                search(|s| s.direction = Direction::Gated { variance: 0.0 }),
                "contrastive.direction.variance",
            ),
        ];
        for (config, key) in cases {
            assert_eq!(config.problem().map(|(key, _)| key), Some(key));
        }
        for fine in [RefineConfig::default(), blend(1.0, 1), search(|_| ())] {
            assert_eq!(fine.problem(), None);
        }
        assert!(blend(0.0, 1).is_off() && search(|s| s.size = 0.0).is_off());
        assert!(!blend(0.1, 1).is_off() && !search(|_| ()).is_off());
        let mean = search(|s| s.direction = Direction::Mean);
        assert!(mean.needs_calibration() && !mean.needs_references());
    }
}
