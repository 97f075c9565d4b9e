//! Modules that nothing trains, on whatever device they are asked for.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::Device;

/// A module off the autodiff tape, with a copy on each device that has asked for it: a teacher that several
/// workers learn from, each on a device of its own, and that is no part of what they train.
#[derive(Clone)]
pub struct Frozen<M> {
    copies: Arc<Mutex<Vec<(Device, M)>>>,
}

impl<M: Module> Frozen<M> {
    /// `module`, all of which is on `home`, without gradients.
    pub fn new(module: &M, home: &Device) -> Self {
        let home = home.clone().without_autodiff();
        Self {
            copies: Arc::new(Mutex::new(vec![(home, module.valid())])),
        }
    }

    /// The module on `device`, without autodiff. The first time a device asks, weights are copied there.
    pub fn on(&self, device: &Device) -> M {
        let device = device.clone().without_autodiff();
        // A copy is pushed whole or not at all, so what a panicking thread left is in order.
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, copy)) = copies.iter().find(|(home, _)| *home == device) {
            return copy.clone();
        }
        let copy = copies[0].1.clone().to_device(&device);
        copies.push((device, copy.clone()));
        copy
    }
}

impl<M> fmt::Debug for Frozen<M> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Frozen")
    }
}
