//! The crate table of `docs/architecture.md` against the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::support::{root, said};

/// Crate and what it may use of ours; tests may use more.
const ARROWS: &[(&str, &[&str])] = &[
    ("sesqui-run", &[]),
    ("sesqui-report", &["run"]),
    ("sesqui-kernels", &[]),
    ("sesqui-model", &["kernels"]),
    ("sesqui-shortcut", &["kernels", "model"]),
    ("sesqui-dataset", &[]),
    (
        "sesqui-distill",
        &["kernels", "model", "shortcut", "dataset", "trainer"],
    ),
    ("sesqui-reason", &["kernels", "model", "shortcut"]),
    (
        "sesqui-eval",
        &["kernels", "model", "shortcut", "dataset", "reason", "run"],
    ),
    ("sesqui-trainer", &["kernels", "run"]),
];

/// What may use all of ours, and what is none of ours but lives here.
const FREE: &[&str] = &["sesqui", "sesqui-benches", "cubecl-llvm"];

/// These link no tensor library, not even through others.
const WITHOUT_BURN: &[&str] = &["sesqui-run", "sesqui-dataset", "sesqui-report"];

/// The one version of Burn.
const BURN: &str = "0.22.1";

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn metadata() -> Metadata {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    // What other platforms would need may not have been downloaded.
    let platform = ["--filter-platform", host, "--locked", "--offline"].map(str::to_owned);
    MetadataCommand::new()
        .cargo_path(cargo())
        .manifest_path(root().join("Cargo.toml"))
        .other_options(platform)
        .exec()
        .unwrap()
}

/// Names of the packages that `from` links or builds with, itself included.
fn reachable<'a>(metadata: &'a Metadata, from: &str) -> BTreeSet<&'a PackageId> {
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .as_ref()
        .unwrap()
        .nodes
        .iter()
        .map(|node| (&node.id, node))
        .collect();
    let first = metadata
        .packages
        .iter()
        .find(|package| package.name == from)
        .unwrap();
    let mut seen = BTreeSet::new();
    let mut next = vec![&first.id];
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            let links = nodes[id].deps.iter().filter(|dependency| {
                let kinds = &dependency.dep_kinds;
                kinds
                    .iter()
                    .any(|kind| kind.kind != DependencyKind::Development)
            });
            next.extend(links.map(|dependency| &dependency.pkg));
        }
    }
    seen
}

fn is_burn(name: &str) -> bool {
    name == "burn" || name.starts_with("burn-")
}

#[test]
fn crates_use_only_what_the_table_allows() {
    let metadata = metadata();
    let table: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let members = metadata.workspace_packages();
    for package in &members {
        let name = package.name.as_str();
        if FREE.contains(&name) {
            continue;
        }
        let allowed = table.get(name).unwrap_or_else(|| {
            panic!("{name} is not in the table of docs/architecture.md; enter it there and here")
        });
        for dependency in &package.dependencies {
            let ours = dependency.kind != DependencyKind::Development
                && members
                    .iter()
                    .any(|member| member.name.as_str() == dependency.name);
            let allowed = allowed
                .iter()
                .any(|short| dependency.name == format!("sesqui-{short}"));
            assert!(!ours || allowed, "{name} must not use {}", dependency.name);
        }
    }
}

#[test]
fn data_and_run_directories_link_no_tensor_library() {
    let metadata = metadata();
    for name in WITHOUT_BURN {
        if !metadata
            .workspace_packages()
            .iter()
            .any(|package| package.name == *name)
        {
            continue;
        }
        for id in reachable(&metadata, name) {
            let linked = metadata[id].name.as_str();
            assert!(
                !is_burn(linked) && !linked.starts_with("cubecl"),
                "{name} links {linked}"
            );
        }
    }
}

#[test]
fn the_default_build_compiles_nothing_but_rust() {
    // `cargo metadata` also lists what features that are off would bring; `cargo tree` does not.
    let tree = said(
        Command::new(cargo())
            .args(["tree", "--package", "sesqui", "--edges", "normal,build"])
            .args(["--prefix", "none", "--locked", "--offline"])
            .current_dir(root()),
    );
    assert_eq!(tree.code, Some(0), "{}", tree.error);
    let names: BTreeSet<&str> = tree
        .out
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(
        names.contains("burn") && names.contains("sesqui-trainer"),
        "{names:?}"
    );
    for tool in ["cc", "cmake", "bindgen", "pkg-config"] {
        assert!(
            !names.contains(tool),
            "something builds with {tool}: cargo tree -p sesqui -i {tool}"
        );
    }
}

#[test]
fn burn_is_pinned_to_one_version() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        for dependency in package
            .dependencies
            .iter()
            .filter(|found| is_burn(&found.name))
        {
            let wanted = dependency.req.to_string();
            assert_eq!(
                wanted,
                format!("={BURN}"),
                "{}: {}",
                package.name,
                dependency.name
            );
        }
    }
    let resolved = metadata
        .packages
        .iter()
        .filter(|package| is_burn(&package.name));
    for package in resolved {
        assert_eq!(package.version.to_string(), BURN, "{}", package.name);
    }
}

/// What a latent step runs reads from the device where a router decides, and nowhere else: the count of
/// `Walk::reads` is all there is before the answer.
#[test]
fn latent_steps_read_from_the_device_in_one_place() {
    let reads = |file: &str| {
        let text = std::fs::read_to_string(root().join("crates").join(file)).unwrap();
        let calls = [
            ".into_data",
            ".to_data",
            ".into_scalar",
            ".to_scalar",
            ".try_into_",
        ];
        let calls = calls.map(|call| text.matches(&format!("{call}(")).count());
        calls.iter().sum::<usize>() + text.matches("sesqui_kernels::read").count()
    };
    for (file, expected) in [
        ("sesqui-shortcut/src/walk.rs", 1),
        ("sesqui-shortcut/src/adapter.rs", 0),
        ("sesqui-reason/src/latent.rs", 0),
        ("sesqui-model/src/attention.rs", 0),
        ("sesqui-model/src/cache.rs", 0),
        ("sesqui-model/src/latent.rs", 0),
        ("sesqui-model/src/layer.rs", 0),
        ("sesqui-model/src/transformer.rs", 0),
    ] {
        assert_eq!(reads(file), expected, "{file}");
    }
}
