//! All routers and adapters of a model.

use burn::module::Module;
use burn::tensor::Device;
use sesqui_model::ModelConfig;
use sesqui_model::initialize::Initializer;

use crate::adapter::Adapter;
use crate::config::ShortcutConfig;
use crate::router::{HostRouter, Router};

/// One router for each boundary before a layer, `0..L`; one adapter for each boundary, `0..=L`.
#[derive(Module, Debug)]
pub struct Shortcuts {
    /// `routers[l]` reads `h_l`, `0 <= l < L`.
    pub routers: Vec<Router>,
    /// `adapters[l]` reads `h_l`, `0 <= l <= L`.
    pub adapters: Vec<Adapter>,
}

impl Shortcuts {
    /// Fresh shortcuts for a backbone of shape `model`, from `seed`.
    pub fn new(config: &ShortcutConfig, model: &ModelConfig, seed: u64, device: &Device) -> Self {
        let mut weights = Initializer::new(model, seed);
        let weights = &mut weights;
        Self {
            routers: (0..model.layers)
                .map(|_| Router::new(&config.router, model.d_model, weights, device))
                .collect(),
            adapters: (0..=model.layers)
                .map(|_| Adapter::new(&config.adapter, model.d_model, weights, device))
                .collect(),
        }
    }

    /// The routers, with their weights on the host.
    pub fn routers_on_host(&self) -> Vec<HostRouter> {
        self.routers.iter().map(Router::on_host).collect()
    }
}
