//! Shapes of routers and adapters.

use serde::{Deserialize, Serialize};

/// What is added to a backbone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShortcutConfig {
    /// One per boundary.
    pub router: RouterConfig,
    /// One per boundary.
    pub adapter: AdapterConfig,
}

/// `R(h) = sigmoid(f(norm(h)))` (Eq. 2). The norm has no parameters: the map after it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Width of a hidden layer with ReLU; 0 for a linear router.
    pub hidden: usize,
    /// Bias of the output at the start: sigmoid(0.85) = 0.70, so that gates start open.
    pub bias: f64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            hidden: 0,
            bias: 0.85,
        }
    }
}

/// `g(h) = h + (alpha / rank) B A h`, with `B = 0` at the start: the identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterConfig {
    /// Rank of the update.
    pub rank: usize,
    /// Scale of the update, times its rank.
    pub alpha: f64,
    /// Probability with which training hides a value from A; 0.1 in the paper (appendix B).
    pub dropout: f64,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 32.0,
            dropout: 0.0,
        }
    }
}

/// What the layers that a slot skips hold of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyValueRule {
    /// Nothing: a layer holds a slot only if the slot ran that layer.
    #[default]
    Holes,
    /// Keys and values of the state in which the slot left, as CALM does (arXiv 2207.07061). No
    /// layer call, but the cost of the key and value maps.
    Fill,
}

impl ShortcutConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.adapter.rank == 0 {
            return Some(("adapter.rank", "must be at least 1".to_owned()));
        }
        let dropout = self.adapter.dropout;
        if !(0.0..1.0).contains(&dropout) {
            let reason = format!("{dropout} is not in [0, 1); 0 hides nothing");
            return Some(("adapter.dropout", reason));
        }
        [
            ("router.bias", self.router.bias),
            ("adapter.alpha", self.adapter.alpha),
        ]
        .into_iter()
        .find(|(_, value)| !value.is_finite())
        .map(|(key, value)| (key, format!("{value} is not a number to compute with")))
    }
}
