//! What the targets have in common.

/// The features that a device offers, as far as LLVM could lower them.
pub mod lowered_features {
    use cubecl_core::ir::DeviceProperties;

    /// The kind of GPU that features are narrowed for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GpuTarget {
        /// NVIDIA.
        Nvptx,
    }

    /// Changes nothing: CubeCL asks only when LLVM is its code generator, and then the first
    /// kernel is refused.
    pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
}
