//! All routers and adapters of a model.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
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
    /// For each adapter what it may see of the slots of one batch; everything where there are none.
    #[module(skip)]
    masks: Vec<Tensor<3>>,
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
            masks: Vec::new(),
        }
    }

    /// The same for one training batch, with dropout: `masks` hold for each adapter 0 or `1 / (1 - p)`
    /// for every value of the slots' states, `[batch, slots, d_model]`.
    ///
    /// What an adapter makes of a slot's state goes to the depth shortcut of this slot and to the step
    /// shortcut of the next: there is one mask for both.
    ///
    /// # Panics
    ///
    /// If there are not as many masks as adapters.
    pub fn dropped(self, masks: Vec<Tensor<3>>) -> Self {
        assert_eq!(masks.len(), self.adapters.len(), "masks and adapters");
        Self { masks, ..self }
    }

    /// `g_l` of boundary `boundary` on `states` of `slots`, `[batch, slots.len(), d_model]`, with
    /// dropout where masks were given.
    pub fn adapt(&self, boundary: usize, states: Tensor<3>, slots: Range<usize>) -> Tensor<3> {
        let adapter = &self.adapters[boundary];
        match self.masks.get(boundary) {
            Some(mask) => {
                let mask = mask.clone().narrow(1, slots.start, slots.len());
                adapter.forward_dropped(states, mask)
            }
            None => adapter.forward(states),
        }
    }

    /// The routers, with their weights on the host.
    pub fn routers_on_host(&self) -> Vec<HostRouter> {
        self.routers.iter().map(Router::on_host).collect()
    }
}
