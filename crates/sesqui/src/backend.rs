//! From a flag to a device. The only place that names a backend.

use burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn::tensor::DeviceType;

use crate::misuse::Misuse;

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// The processor, through burn-flex; bit-reproducible.
    Cpu,
    /// NVIDIA GPUs; needs a build with `--features cuda`.
    Cuda,
    /// GPUs through wgpu; needs a build with `--features wgpu`.
    Wgpu,
}

impl Backend {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        }
    }

    /// The device, without autodiff.
    ///
    /// # Errors
    ///
    /// When the backend is not compiled in or finds no device, saying what to do.
    pub fn device(self) -> Result<Device, Misuse> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda => cuda(),
            Self::Wgpu => wgpu(),
        }
    }

    /// Where the parts of a training step are computed, `device` first: on the CPU one worker for
    /// each core.
    pub fn workers(self, device: &Device) -> Vec<Device> {
        let count = match self {
            Self::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
            Self::Cuda | Self::Wgpu => 1,
        };
        vec![device.clone(); count]
    }

    /// Tells Burn which device to fall back on. Burn's own choice is the first backend that was
    /// compiled in, present or not, and loading an optimizer asks for it.
    ///
    /// Must be called before any thread is started and any tensor made.
    pub fn settle(self) {
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        {
            let name = match self {
                Self::Cpu => "flex",
                Self::Cuda => "cuda",
                Self::Wgpu => "wgpu",
            };
            #[allow(unsafe_code)]
            // SAFETY: called first thing in `main`, while this is the only thread.
            unsafe {
                std::env::set_var("BURN_DEVICE", name);
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device, Misuse> {
    if Device::enumerate(DeviceType::Cuda).is_empty() {
        return Err(Misuse(
            "--backend cuda: no CUDA device found; is the NVIDIA driver installed? --backend cpu \
             always works"
                .to_owned(),
        ));
    }
    Ok(Device::cuda(0))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Device, Misuse> {
    Err(not_compiled("cuda"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device, Misuse> {
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        return Err(Misuse(
            "--backend wgpu: no graphics adapter found; install a Vulkan driver, or use --backend \
             cpu"
            .to_owned(),
        ));
    }
    Ok(Device::wgpu(Default::default()))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Device, Misuse> {
    Err(not_compiled("wgpu"))
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn not_compiled(feature: &str) -> Misuse {
    Misuse(format!(
        "--backend {feature} is not compiled in; build with `cargo run --release --features \
         {feature} --bin train -- --backend {feature}`"
    ))
}
