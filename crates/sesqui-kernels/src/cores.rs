//! The cores of this process, shared out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// What `work` makes of each of `0..count`, in that order, a core each and none waiting for another.
pub fn side_by_side<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..cores().min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let found = on_one_core(|| work(index));
                    // Nobody panics while holding it.
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((index, found));
                }
            });
        }
    });
    // A thread that panicked has made the scope panic.
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, found)| found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_once_each_and_comes_back_in_order() {
        let done = AtomicUsize::new(0);
        let squares = side_by_side(100, |index| {
            done.fetch_add(1, Ordering::Relaxed);
            index * index
        });
        let expected: Vec<usize> = (0..100).map(|index| index * index).collect();
        assert_eq!((squares, done.into_inner()), (expected, 100));
        assert!(side_by_side(0, |index| index).is_empty());
    }
}
