//! From flags to devices. The only place that names a backend.

use burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn::tensor::DeviceType;
use sesqui_kernels::cores;

use crate::misuse::Misuse;

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// The best that is compiled in and present: CUDA, then a GPU through wgpu, then the CPU.
    Auto,
    /// The processor, through burn-flex; bit-reproducible.
    Cpu,
    /// NVIDIA GPUs; needs a build with `--features cuda`.
    Cuda,
    /// GPUs through wgpu; needs a build with `--features wgpu`.
    Wgpu,
    /// Devices of a machine that runs `serve`; needs a build with `--features remote`.
    Remote,
}

/// The devices that a command line asks for.
#[derive(Clone, Debug)]
pub struct Place {
    backend: Backend,
    devices: Vec<Device>,
    /// Whether devices were named one by one.
    named: bool,
    description: String,
}

impl Backend {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Remote => "remote",
        }
    }

    /// Opens `devices` of this backend, by number; none named: the first. On the CPU a number stands for a
    /// worker, a core. `host` is the address of a remote server.
    ///
    /// # Errors
    ///
    /// When the backend is not compiled in, or has not these devices, saying what to do.
    pub fn open(self, devices: &[usize], host: Option<&str>) -> Result<Place, Misuse> {
        if let Some(twice) = (1..devices.len()).find(|&at| devices[..at].contains(&devices[at])) {
            return Err(Misuse(format!(
                "--devices: {} is named twice",
                devices[twice]
            )));
        }
        if host.is_some() && self != Self::Remote {
            return Err(Misuse(format!(
                "--host: --backend {} computes on this machine; add --backend remote",
                self.name()
            )));
        }
        let (backend, why) = self.settled();
        let there = match backend {
            Self::Auto | Self::Cpu => cpu(devices),
            Self::Cuda => cuda()?,
            Self::Wgpu => wgpu()?,
            Self::Remote => remote(host)?,
        };
        let chosen = match devices {
            [] if backend == Self::Cpu => there.clone(),
            [] => vec![backend.first(&there)],
            _ => devices
                .iter()
                .map(|&device| match there.get(device) {
                    Some(found) => Ok(found.clone()),
                    None => Err(Misuse(format!(
                        "--devices: {} has {} device{}, counted from 0; there is no {device}",
                        backend.name(),
                        there.len(),
                        if there.len() == 1 { "" } else { "s" },
                    ))),
                })
                .collect::<Result<_, _>>()?,
        };
        let mut description = described(backend, &chosen, devices);
        if let Some(why) = why {
            description.push_str(&format!(" ({why})"));
        }
        Ok(Place {
            backend,
            devices: chosen,
            named: !devices.is_empty(),
            description,
        })
    }

    /// What `auto` stands for, and why; any other backend itself.
    fn settled(self) -> (Self, Option<String>) {
        if self != Self::Auto {
            return (self, None);
        }
        let mut absent = Vec::new();
        for candidate in [Self::Cuda, Self::Wgpu] {
            let name = candidate.name();
            match candidate.absent() {
                None => {
                    absent.push(format!("{name} is there"));
                    return (candidate, Some(absent.join("; ")));
                }
                Some(reason) => absent.push(format!("{name}: {reason}")),
            }
        }
        (Self::Cpu, Some(absent.join("; ")))
    }

    /// Why `auto` does not take this backend.
    fn absent(self) -> Option<String> {
        let found = match self {
            Self::Cuda if !cfg!(feature = "cuda") => return Some("not compiled in".to_owned()),
            Self::Wgpu if !cfg!(feature = "wgpu") => return Some("not compiled in".to_owned()),
            Self::Cuda => cuda(),
            Self::Wgpu => wgpu(),
            Self::Auto | Self::Cpu | Self::Remote => return None,
        };
        match found {
            Err(Misuse(text)) => {
                let reason = text.split_once(": ").map_or(&*text, |(_, reason)| reason);
                let reason = reason.split(';').next().unwrap_or_default();
                Some(reason.to_owned())
            }
            Ok(devices) if devices.iter().all(is_software) => {
                Some("a software device only".to_owned())
            }
            Ok(_) => None,
        }
    }

    /// The device that is taken where none is named, of those that are `there`.
    fn first(self, there: &[Device]) -> Device {
        match self {
            // The driver knows which is the fast one; the list is in no order.
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
            _ => there[0].clone(),
        }
    }
}

impl Place {
    /// The backend's name on the command line; what `auto` stands for.
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// Backend, devices, and why `auto` took them, on one line.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Where weights live and questions are answered, without autodiff.
    pub fn home(&self) -> &Device {
        &self.devices[0]
    }

    /// Where the parts of a training step are computed, home first: a worker for each device, on the CPU for
    /// each core or each that was named.
    pub fn workers(&self) -> &[Device] {
        &self.devices
    }

    /// What keeps devices from taking part in steps of `parts` parts, if anything does.
    pub fn idle(&self, parts: u64) -> Option<String> {
        let devices = self.devices.len() as u64;
        (self.named && parts < devices).then(|| {
            format!(
                "a step has {parts} part{}, so {parts} of {devices} devices compute; raise training.accumulation",
                if parts == 1 { "" } else { "s" }
            )
        })
    }
}

/// Tells Burn to fall back on the CPU. Its own choice is the first backend that was compiled in, present or not, and
/// loading an optimizer asks for it; moments go on to where their weights are with the next step.
///
/// Must be called before any thread is started and any tensor made.
pub fn settle() {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    {
        #[allow(unsafe_code)]
        // SAFETY: called first thing in `main`, while this is the only thread.
        unsafe {
            std::env::set_var("BURN_DEVICE", "flex");
        }
    }
}

/// A worker for each core, or as many as the greatest number in `devices` asks for.
fn cpu(devices: &[usize]) -> Vec<Device> {
    let most = devices.iter().max();
    let count = most.map_or_else(cores, |most| most.saturating_add(1).min(MOST_WORKERS));
    vec![Device::flex(); count]
}

/// Workers on the CPU that a command line may name.
const MOST_WORKERS: usize = 1024;

#[cfg(feature = "cuda")]
fn cuda() -> Result<Vec<Device>, Misuse> {
    let devices: Vec<Device> = Device::enumerate(DeviceType::Cuda).into_iter().collect();
    if devices.is_empty() {
        return Err(Misuse(
            "--backend cuda: no CUDA device found; is the NVIDIA driver installed? --backend cpu \
             always works"
                .to_owned(),
        ));
    }
    if !cuda_headers().is_some_and(|folder| folder.join("cuda_fp16.h").is_file()) {
        return Err(Misuse(
            "--backend cuda: a device is there, but not CUDA's headers with which kernels are compiled; \
             install the toolkit, 12.8 or newer, and set CUDA_PATH to it"
                .to_owned(),
        ));
    }
    Ok(devices)
}

/// Where the compiler of kernels will look for headers, in its order; it panics where there is none of these.
#[cfg(feature = "cuda")]
fn cuda_headers() -> Option<std::path::PathBuf> {
    use std::path::Path;
    if let Some(named) = std::env::var_os("CUDA_PATH") {
        return Some(Path::new(&named).join("include"));
    }
    let installed = ["/usr/local/cuda", "/opt/cuda"].map(Path::new);
    if let Some(found) = installed.into_iter().find(|folder| folder.exists()) {
        return Some(found.join("include"));
    }
    Path::new("/usr/bin/nvcc")
        .exists()
        .then(|| Path::new("/usr/include").to_owned())
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Vec<Device>, Misuse> {
    Err(not_compiled("cuda"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Vec<Device>, Misuse> {
    let devices: Vec<Device> = Device::enumerate(DeviceType::Wgpu).into_iter().collect();
    if devices.is_empty() {
        return Err(Misuse(
            "--backend wgpu: no graphics adapter found; install a Vulkan driver, or use --backend \
             cpu"
            .to_owned(),
        ));
    }
    Ok(devices)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Vec<Device>, Misuse> {
    Err(not_compiled("wgpu"))
}

/// Whether a processor stands in for the GPU.
#[cfg(feature = "wgpu")]
fn is_software(device: &Device) -> bool {
    *device == Device::wgpu(burn::tensor::DeviceKind::Cpu)
}

#[cfg(not(feature = "wgpu"))]
fn is_software(_: &Device) -> bool {
    false
}

#[cfg(feature = "remote")]
fn remote(host: Option<&str>) -> Result<Vec<Device>, Misuse> {
    let Some(host) = host else {
        return Err(Misuse(
            "--backend remote: name the server, for example --host ws://gpu:3000".to_owned(),
        ));
    };
    let host = match host.contains("://") {
        true => host.to_owned(),
        false => format!("ws://{host}"),
    };
    let found = burn::remote::RemoteHost::websocket(&host).devices();
    let devices = found.map_err(|error| {
        Misuse(format!(
            "--host {host}: {error}; does `serve` run there, and is the port open?"
        ))
    })?;
    Ok(devices.into_iter().collect())
}

#[cfg(not(feature = "remote"))]
fn remote(_: Option<&str>) -> Result<Vec<Device>, Misuse> {
    Err(not_compiled("remote"))
}

#[cfg(not(all(feature = "cuda", feature = "wgpu", feature = "remote")))]
fn not_compiled(feature: &str) -> Misuse {
    Misuse(format!(
        "--backend {feature} is not compiled in; build with `cargo run --release --features \
         {feature} --bin train -- --backend {feature}`"
    ))
}

fn described(backend: Backend, chosen: &[Device], numbers: &[usize]) -> String {
    let mut text = backend.name().to_owned();
    if !numbers.is_empty() {
        let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
        text.push_str(&format!(" {}", numbers.join(", ")));
    }
    let names = names(chosen);
    if !names.is_empty() {
        text.push_str(&format!(": {}", names.join(", ")));
    }
    text
}

/// What the devices call themselves.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn names(devices: &[Device]) -> Vec<String> {
    let identities = devices.iter().filter_map(Device::identity);
    let mut names: Vec<String> = identities.map(|identity| identity.name).collect();
    names.dedup();
    names
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn names(_: &[Device]) -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_devices_are_workers_and_auto_says_why() {
        let named = Backend::Cpu.open(&[0, 2, 1], None).unwrap();
        assert_eq!(named.workers().len(), 3);
        assert_eq!(named.description(), "cpu 0, 2, 1");
        assert!(named.idle(2).unwrap().contains("2 of 3 devices"));
        assert_eq!(named.idle(3), None);
        let all = Backend::Cpu.open(&[], None).unwrap();
        assert_eq!((all.idle(1), all.description()), (None, "cpu"));

        let auto = Backend::Auto.open(&[], None).unwrap();
        assert_ne!(auto.name(), "auto");
        assert!(auto.description().contains("cuda"), "{auto:?}");
    }

    #[test]
    fn devices_that_are_not_there_are_refused() {
        let refused = |backend: Backend, devices: &[usize], host| {
            backend
                .open(devices, host)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(Backend::Cpu, &[0, 1, 0], None).contains("0 is named twice"));
        assert!(refused(Backend::Cpu, &[99_999], None).contains("has 1024 devices"));
        assert!(refused(Backend::Cpu, &[], Some("ws://gpu:1")).contains("--backend remote"));
    }
}
