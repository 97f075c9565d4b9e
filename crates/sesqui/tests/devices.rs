//! Devices besides this process's CPU: a server's over loopback, and wgpu on whatever driver there is, in
//! continuous integration a software one.
//!
//! One process asks wgpu for everything: trying out kernels takes most of the time.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
#[cfg(feature = "remote")]
use std::io::{BufRead, BufReader};
use std::path::Path;
#[cfg(feature = "remote")]
use std::process::{Child, Stdio};
use std::process::{Command, Output};

use sesqui::backend::Backend;
use sesqui::parity::{Check, compare, table};
use sesqui_run::{Invocation, MetricRow};

#[test]
fn wgpu_computes_what_the_cpu_computes() {
    let place = Backend::Wgpu.open(&[], None).unwrap();
    println!("{}", place.description());
    let checks = compare(&place).unwrap();
    println!("{}", table(&checks));
    assert!(checks.iter().all(Check::holds));
    assert!(
        checks.iter().any(|check| check.difference > 0.0),
        "the CPU beside itself"
    );
}

/// A server on a free port, stopped when dropped.
#[cfg(feature = "remote")]
struct Server {
    process: Child,
    address: String,
}

#[cfg(feature = "remote")]
impl Server {
    fn new() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_serve"))
            .args(["--listen", "127.0.0.1:0", "--devices", "0,1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(address.starts_with("ws://127.0.0.1:"), "{line}");
        Self { process, address }
    }
}

#[cfg(feature = "remote")]
impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[cfg(feature = "remote")]
#[test]
fn a_server_computes_what_the_cpu_computes() {
    let server = Server::new();
    let place = Backend::Remote.open(&[1], Some(&server.address)).unwrap();
    assert_eq!(place.name(), "remote");
    let checks = compare(&place).unwrap();
    println!("{}", table(&checks));
    assert!(checks.iter().all(Check::holds));
}

/// Losses by stage and step.
fn losses(run: &Path) -> Vec<(String, u64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<MetricRow>(line).unwrap());
    let losses = rows
        .filter(|row| row.split == "train")
        .map(|row| (row.stage.clone(), row.step, row.loss.unwrap()));
    losses.collect()
}

fn train(run: &Path, arguments: &[&str]) {
    let said = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(["--smoke", "--renderer", "none", "--run"])
        .arg(run)
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{arguments:?}: {error}");
}

/// All stages of the quick start in small, on the CPU and with `arguments`. A loss is a mean over some thousand
/// 32-bit numbers, so that 1e-6 of it is rounding, which 20 steps and the stages before make a few times more; a wrong
/// gradient makes it a hundredth within three steps.
fn learns_the_same(name: &str, arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    train(&at("cpu"), &[]);
    train(&at(name), arguments);
    let starts = Invocation::read(&at(name).join("invocation.json")).unwrap();
    assert_eq!(starts[0].backend, name);
    let (expected, found) = (losses(&at("cpu")), losses(&at(name)));
    assert_eq!(expected.len(), 4 * 20);
    assert_eq!(found.len(), expected.len(), "{name}");
    let mut most = BTreeMap::new();
    for ((stage, _, loss), (_, _, other)) in expected.iter().zip(&found) {
        let difference = (loss - other).abs() / loss;
        let most: &mut f64 = most.entry(stage).or_default();
        *most = most.max(difference);
    }
    println!("{name}, greatest difference of a loss: {most:?}");
    assert!(most.values().all(|most| *most <= 1e-5), "{name}: {most:?}");
}

#[cfg(feature = "remote")]
#[test]
fn the_quick_start_learns_the_same_on_two_devices_of_a_server() {
    let server = Server::new();
    let arguments = ["--backend", "remote", "--devices", "0,1", "--host"];
    learns_the_same("remote", &[&arguments[..], &[&server.address]].concat());
}

#[test]
fn the_quick_start_learns_the_same_on_wgpu() {
    learns_the_same("wgpu", &["--backend", "wgpu"]);
}

#[cfg(feature = "remote")]
#[test]
fn a_server_that_is_not_there_is_a_sentence() {
    let said = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(["--backend", "remote", "--host", "ws://127.0.0.1:9"])
        .output()
        .unwrap();
    let error = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(2), "{error}");
    assert!(error.contains("does `serve` run there"), "{error}");
}

/// `train` with `arguments` where neither Vulkan, EGL nor CUDA finds a driver.
fn without_drivers(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    for loader in [
        "VK_DRIVER_FILES",
        "VK_ICD_FILENAMES",
        "__EGL_VENDOR_LIBRARY_FILENAMES",
    ] {
        command.env(loader, "/nonexistent");
    }
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.args(arguments).output().unwrap()
}

#[test]
fn a_missing_driver_is_a_sentence() {
    let mut refusals = vec![("wgpu", "no graphics adapter found; install a Vulkan driver")];
    if cfg!(feature = "cuda") {
        refusals.push((
            "cuda",
            "no CUDA device found; is the NVIDIA driver installed?",
        ));
    }
    for (backend, sentence) in refusals {
        let said = without_drivers(&["--smoke", "--backend", backend]);
        let error = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(2), "{error}");
        assert!(error.contains(sentence), "{error}");
    }
}

/// Where a processor stands in for the GPU, or there is none at all, `auto` computes on the CPU itself and says why.
#[test]
fn auto_takes_a_gpu_and_nothing_less() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("run");
    let arguments = [
        "--smoke",
        "--renderer",
        "plain",
        "--backend",
        "auto",
        "--run",
    ];
    let arguments = [&arguments[..], &[at.to_str().unwrap()]].concat();
    let said = String::from_utf8(without_drivers(&arguments).stdout).unwrap();
    assert!(said.contains("backend    cpu ("), "{said}");
    assert!(said.contains("wgpu: no graphics adapter found"), "{said}");

    let there = Backend::Wgpu.open(&[], None).unwrap();
    if there.description().contains("llvmpipe") {
        let auto = Backend::Auto.open(&[], None).unwrap();
        assert_eq!(auto.name(), "cpu", "{}", auto.description());
        assert!(
            auto.description().contains("wgpu: a software device only"),
            "{}",
            auto.description()
        );
    } else {
        println!("{} is no software device", there.description());
    }
}
