//! NVIDIA specifics.

/// The PTX version, as `cubecl-cuda` asks for it.
pub mod ptx_version {
    use std::fmt;

    /// A PTX version for LLVM to emit. It has no values: nothing here emits PTX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum PtxVersion {}

    impl PtxVersion {
        /// Always `None`: "no preference", whatever the CUDA driver's version (12.8 is `12080`).
        pub fn for_driver(_: i32) -> Option<Self> {
            None
        }
    }

    impl fmt::Display for PtxVersion {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }
}
