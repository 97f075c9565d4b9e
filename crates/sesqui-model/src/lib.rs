//! Decoder-only transformers whose seams are public.
//!
//! In here: the GPT-2 and Llama families behind one [`ModelConfig`], the operations that latent
//! reasoning is made of (embed, run layers `a..b` on a hidden state, final norm, head), a per-layer
//! key/value cache in which layers may hold different positions, how wide products are, frozen copies on
//! every device that asks, and import and export of Hugging Face safetensors.
//!
//! Must never be in here: a data set, a loss, a training loop, the choice of a device, or file
//! access outside [`huggingface`].
//!
//! Tensors name no backend: the device they are created on decides (Burn 0.22). Shapes are written
//! `[batch, seq, d_model]`.

pub mod attention;
pub mod cache;
pub mod config;
pub mod flops;
pub mod frozen;
pub mod huggingface;
pub mod initialize;
pub mod latent;
pub mod layer;
pub mod layer_norm;
pub mod mask;
pub mod parameters;
pub mod precision;
pub mod transformer;

pub use cache::KvCache;
pub use config::{Family, Initialization, ModelConfig, ModelConfigError, RopeScaling};
pub use frozen::Frozen;
pub use latent::{Continuation, Feedback, LatentOrder, LatentTransformer};
pub use mask::Visibility;
pub use precision::Precision;
pub use transformer::{SequenceContext, Transformer};
