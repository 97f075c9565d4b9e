//! The system allocator, tuned for tensors.
//!
//! glibc gives every large block back to the kernel and asks for it anew, zeroed page by page: on
//! the quick start a quarter of all processor time. Keeping freed memory in the process costs a
//! higher resident size, at most the peak. Other C libraries are left as they are.

/// Keeps freed memory for reuse. To be called first in `main`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code)]
        // SAFETY: `mallopt` takes plain integers and only changes parameters of the allocator.
        unsafe {
            // Blocks up to this size come from the heap instead of their own mapping.
            // Before 2.34 nothing above 32 MiB was accepted, hence two calls.
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            // The top of the heap is not trimmed below this size.
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
