//! Stand-in for `cubecl-llvm` 0.11.3: the types that `cubecl-cuda` names, without LLVM behind them.
//!
//! CubeCL's CUDA runtime carries two code generators and links both. This workspace uses the one
//! that writes CUDA C++ and hands it to NVRTC (feature `cuda-cpp` of `cubecl`). The other needs
//! this crate, and the published one fetches a compiler from the internet while it is built. Here
//! every kernel sent down the LLVM route comes back as a compilation error that names the feature
//! to switch on. The README has the reasons and the limits.
//!
//! Types that only a working LLVM route could produce have no values, so that the compiler proves
//! that nothing of it runs.

#[cfg(feature = "nvptx")]
mod compiler;
#[cfg(feature = "nvptx")]
pub mod nvptx;
#[cfg(feature = "nvptx")]
pub mod shared;

#[cfg(feature = "nvptx")]
pub use compiler::{LlvmTarget, NvptxModule, PlironArtifact, PlironCompiler, PlironOptions};
