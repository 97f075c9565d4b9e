//! The compiler that refuses, with its options and its result.

use std::convert::Infallible;
use std::ffi::c_char;
use std::fmt;

use cubecl_core::Compiler;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

use crate::nvptx::ptx_version::PtxVersion;

const REFUSAL: &str = "this build has no LLVM code generator for CUDA kernels: \
    enable the feature `cuda-cpp` of `cubecl`, which compiles them with NVRTC";

/// What the kernel would have been compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA GPUs, the one target whose callers this workspace builds.
    #[default]
    Nvptx,
}

/// A code generator that compiles nothing and says how to get one that does.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// The target that was asked for.
    pub target: LlvmTarget,
}

/// What `cubecl-cuda` tells the compiler about the device; accepted and not read.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// AMD architecture: always `None`, as this crate has no type for one.
    pub arch: Option<Infallible>,
    /// NVIDIA architecture of the device.
    pub sm_arch: Option<SmArch>,
    /// PTX version that the driver accepts.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars travel in the kernel's parameter block.
    pub grid_constants: bool,
}

/// A compiled kernel. It has no values: see [`PlironCompiler`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// PTX for the NVIDIA driver.
    NvptxCode(NvptxModule),
}

/// PTX with what a launch needs to know of it. It has no values: see [`PlironCompiler`].
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX text with its closing NUL.
    pub ptx: Vec<c_char>,
    /// LLVM's intermediate form, for logs.
    pub ir: String,
    /// Shared memory of one launch, in bytes.
    pub shared_memory_size: usize,
    /// How the kernel uses each buffer, in binding order.
    pub io: Vec<BufferIOAttr>,
    never: Infallible,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlironArtifact::NvptxCode(module) = self;
        match module.never {}
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: REFUSAL.to_string(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
