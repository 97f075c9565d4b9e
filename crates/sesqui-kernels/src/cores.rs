//! The cores of this process, shared out.

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Whether tensors of `device` lie in this process's memory and are computed by its threads.
pub fn is_here(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// How many threads may compute at once: as many as there are cores, or as `RAYON_NUM_THREADS` says.
pub fn cores() -> usize {
    rayon::current_num_threads()
}

/// Runs `work` with matrix products that are not spread over other threads: where every core has work of its own,
/// spreading each product over all of them makes them wait for each other. Results are the same to the bit.
pub fn on_one_core<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread_local! {
        static POOL: Option<ThreadPool> = ThreadPoolBuilder::new().num_threads(1).build().ok();
    }
    POOL.with(|pool| match pool {
        Some(pool) => pool.install(work),
        // The system has no more threads: this one it is.
        None => work(),
    })
}
