use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Experiment {
    training: Training,
    seed: u64,
    rate: f32,
    device: Device,
    stages: Vec<Stage>,
    objective: Objective,
    limit: Option<u32>,
    weights: BTreeMap<String, f64>,
}

impl Default for Experiment {
    fn default() -> Self {
        Experiment {
            training: Training::default(),
            seed: 1,
            rate: 0.1,
            device: Device::Cpu,
            stages: Vec::new(),
            objective: Objective::Codi {
                alpha: 1.0,
                turns: 2,
            },
            limit: None,
            weights: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Training {
    batch_size: u32,
    dropout: f64,
    betas: Vec<f64>,
    shuffle: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    name: String,
    steps: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Device {
    Cpu,
    Cuda { index: usize },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Objective {
    Codi { alpha: f64, turns: u32 },
    Coconut { thoughts: u32 },
}

/// Names and contents; the last one is loaded.
type Files<'a> = &'a [(&'a str, &'a str)];

const BASE: &str = "seed = 7\n\
    [training]\nbatch-size = 8\nbetas = [0.9, 0.95]\n\
    [objective]\nkind = \"codi\"\nalpha = 0.5\nturns = 3\n\
    [[stages]]\nname = \"cot\"\nsteps = 100\n\
    [[stages]]\nname = \"short.cut\"\nsteps = 50\n";

/// Writes the files and loads the last one; paths in errors are shortened to file names.
fn resolve(files: Files, set: &[&str]) -> Result<Resolved<Experiment>, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let source = match files.last() {
        None => ConfigSource::Defaults,
        Some((name, _)) => ConfigSource::File(folder.path().join(name)),
    };
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    let prefix = format!("{}/", folder.path().display());
    load(source, &set).map_err(|error| error.to_string().replace(&prefix, ""))
}

/// One value of the frozen text.
fn frozen(resolved: &Resolved<Experiment>, path: &str) -> String {
    let root = Value::Table(toml::from_str(&resolved.text).unwrap());
    let path: Vec<String> = path.split('.').map(str::to_owned).collect();
    layer::get(&root, &path).map_or_else(|| "(absent)".to_owned(), Value::to_string)
}

#[test]
fn layers_and_overrides_apply_in_order() {
    let child = "extends = \"base.toml\"\n[training]\nbatch-size = 16\nbetas = [0.8]\n";
    let method = "extends = \"base.toml\"\n[objective]\nkind = \"coconut\"\nthoughts = 2\n";
    let same = "extends = \"base.toml\"\n[objective]\nkind = \"codi\"\nalpha = 2.0\n";
    let table: &[(Files, &[&str], &str, &str)] = &[
        (&[], &[], "seed", "1"),
        (&[], &[], "rate", "0.1"),
        (&[], &[], "limit", "(absent)"),
        (&[], &["limit=4"], "limit", "4"),
        (&[], &["seed=2", "seed = 3"], "seed", "3"),
        (&[], &["training.dropout=1"], "training.dropout", "1.0"),
        (&[], &["training.dropout=1e-3"], "training.dropout", "0.001"),
        (
            &[],
            &["training.betas=[1,2]"],
            "training.betas",
            "[1.0, 2.0]",
        ),
        (&[], &["training.shuffle=true"], "training.shuffle", "true"),
        (&[], &["device=cpu"], "device", "\"cpu\""),
        (&[], &["device={cuda={index=1}}"], "device.cuda.index", "1"),
        (&[], &["device={cuda={index=2}}"], "device.cuda.index", "2"),
        (&[], &["weights.answer=2"], "weights.answer", "2.0"),
        (
            &[],
            &["stages=[{name='a b', steps=1}]"],
            "stages.0.name",
            "\"a b\"",
        ),
        (
            &[],
            &["objective={kind='coconut',thoughts=5}"],
            "objective.thoughts",
            "5",
        ),
        // Another kind leaves the settings of the old one behind.
        (
            &[("base.toml", BASE)],
            &["objective.kind=coconut", "objective.thoughts=4"],
            "objective.thoughts",
            "4",
        ),
        (&[("base.toml", BASE)], &[], "training.batch-size", "8"),
        (
            &[("base.toml", BASE), ("a.toml", child)],
            &[],
            "training.batch-size",
            "16",
        ),
        (
            &[("base.toml", BASE), ("a.toml", child)],
            &[],
            "training.betas",
            "[0.8]",
        ),
        (&[("base.toml", BASE), ("a.toml", child)], &[], "seed", "7"),
        (
            &[("base.toml", BASE), ("a.toml", method)],
            &[],
            "objective.thoughts",
            "2",
        ),
        (
            &[("base.toml", BASE), ("a.toml", method)],
            &[],
            "objective.alpha",
            "(absent)",
        ),
        (
            &[("base.toml", BASE), ("a.toml", same)],
            &[],
            "objective.turns",
            "3",
        ),
        (
            &[("base.toml", BASE)],
            &["stages.cot.steps=5"],
            "stages.0.steps",
            "5",
        ),
        (
            &[("base.toml", BASE)],
            &["stages.1.steps=5"],
            "stages.1.steps",
            "5",
        ),
        (
            &[("base.toml", BASE)],
            &["stages.1.name=last one"],
            "stages.1.name",
            "\"last one\"",
        ),
        (
            &[("base.toml", BASE)],
            &["objective.alpha=3"],
            "objective.alpha",
            "3.0",
        ),
    ];
    for (files, set, path, expected) in table {
        let resolved = resolve(files, set).unwrap();
        assert_eq!(frozen(&resolved, path), *expected, "{set:?} {path}");
    }
}

#[test]
fn the_frozen_text_is_a_config_with_the_same_hash() {
    let first = resolve(&[("base.toml", BASE)], &["rate=0.3", "device.cuda.index=0"]).unwrap();
    let again = resolve(&[("config.toml", &first.text)], &[]).unwrap();
    assert_eq!(
        (&again.value, &again.text, &again.hash),
        (&first.value, &first.text, &first.hash)
    );
    assert_eq!(first.hash.len(), 8);
    let other = resolve(&[("base.toml", BASE)], &["rate=0.4"]).unwrap();
    assert_ne!(other.hash, first.hash);
    let defaults = resolve(&[], &[]).unwrap();
    assert_eq!(
        (defaults.hash.as_str(), defaults.files.len()),
        (digest(&defaults.text).as_str(), 0)
    );
}

#[test]
fn digests_are_sha_256() {
    // FIPS 180-4 example: SHA-256 of "abc".
    assert_eq!(digest("abc"), "ba7816bf");
}

#[test]
fn parents_end_somewhere() {
    let chain = |count: usize| -> Vec<(String, String)> {
        let link = |at: usize| format!("extends = \"{}.toml\"\n", at - 1);
        (0..count)
            .map(|at| {
                (
                    format!("{at}.toml"),
                    if at == 0 {
                        "seed = 9".to_owned()
                    } else {
                        link(at)
                    },
                )
            })
            .collect()
    };
    let load_chain = |count: usize| {
        let files = chain(count);
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(n, t)| (n.as_str(), t.as_str()))
            .collect();
        resolve(&files, &[])
    };
    let resolved = load_chain(EXTENDS_LIMIT + 1).unwrap();
    assert_eq!(
        (resolved.value.seed, resolved.files.len()),
        (9, EXTENDS_LIMIT + 1)
    );
    assert!(resolved.files[0].ends_with("2.toml") && resolved.files[2].ends_with("0.toml"));
    assert_eq!(
        load_chain(EXTENDS_LIMIT + 2).unwrap_err(),
        "1.toml:1: `extends = \"0.toml\"` is one parent too many: at most 2 may stand above a file"
    );
    let table: &[(Files, &str)] = &[
        (
            &[
                ("a.toml", "extends = \"b.toml\""),
                ("b.toml", "\nextends = \"a.toml\""),
            ],
            "a.toml:1: `extends = \"b.toml\"` goes in a circle",
        ),
        (
            &[("a.toml", "extends = \"a.toml\"")],
            "a.toml:1: `extends = \"a.toml\"` goes in a circle",
        ),
        (
            &[("a.toml", "seed = 1\nextends = [\"b.toml\"]")],
            "a.toml:2: `extends` must be one path, relative to this file, as a string",
        ),
        (
            &[("a.toml", "extends = \"nowhere.toml\"")],
            "a.toml:1: cannot read the parent nowhere.toml: No such file or directory (os error 2)",
        ),
    ];
    for (files, expected) in table {
        assert_eq!(resolve(files, &[]).unwrap_err(), *expected);
    }
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let base = ("base.toml", BASE);
    let table: &[(Files, &[&str], &str)] = &[
        (
            &[
                base,
                (
                    "a.toml",
                    "extends = \"base.toml\"\n\n[training]\nbatch_size = 3\n",
                ),
            ],
            &[],
            "a.toml:4: unknown key `training.batch_size`; did you mean `training.batch-size`?\n  \
             valid keys in `training`: batch-size, betas, dropout, shuffle",
        ),
        (
            &[base],
            &["stages.cot.stesp=3"],
            "--set stages.cot.stesp=3: unknown key `stages.0.stesp`; did you mean `stages.0.steps`?\n  \
             valid keys in `stages.0`: name, steps",
        ),
        (
            &[],
            &["dropout=3"],
            "--set dropout=3: unknown key `dropout`; did you mean `training.dropout`?\n  \
             valid keys at the top level: device, limit, objective, rate, seed, stages, training, weights",
        ),
        (
            &[],
            &["trainer.dropout=3"],
            "--set trainer.dropout=3: unknown key `trainer`; did you mean `training`?\n  \
             valid keys at the top level: device, limit, objective, rate, seed, stages, training, weights",
        ),
        (
            &[base],
            &["objective.alhpa=3"],
            "--set objective.alhpa=3: unknown key `objective.alhpa`; did you mean `objective.alpha`?\n  \
             valid keys in `objective`: alpha, turns",
        ),
        (
            &[("a.toml", "seed = 1\n[training]\nbatch-size = \"many\"")],
            &[],
            "a.toml:3: `training.batch-size` must be a whole number from 0 to 4294967295, but is the string \"many\"",
        ),
        (
            &[("a.toml", "[training]\nbetas = [0.1,\n true]")],
            &[],
            "a.toml:3: `training.betas.1` must be a number, but is true",
        ),
        (
            &[base],
            &["stages.0.steps=-1"],
            "--set stages.0.steps=-1: `stages.0.steps` must be a whole number, 0 or more, but is -1",
        ),
        (
            &[base],
            &["stages.0.steps=1.0"],
            "--set stages.0.steps=1.0: `stages.0.steps` must be a whole number, 0 or more, but is 1.0",
        ),
        (
            &[base],
            &["objective.turns=few"],
            "--set objective.turns=few: `objective.turns` must be a whole number from 0 to 4294967295, but is the string \"few\"",
        ),
        (
            &[],
            &["training=1"],
            "--set training=1: `training` must be a table, but is 1",
        ),
        (
            &[],
            &["training.shuffle=1"],
            "--set training.shuffle=1: `training.shuffle` must be true or false, but is 1",
        ),
        (
            &[("a.toml", "device = \"cup\"")],
            &[],
            "a.toml:1: `device` cannot be `cup`; did you mean `cpu`?\n  valid values: cpu, cuda",
        ),
        (
            &[],
            &["objective.kind=icot"],
            "--set objective.kind=icot: `objective.kind` cannot be `icot`\n  valid values: coconut, codi",
        ),
        (
            &[("a.toml", "seed = 2\n[[stages]]\nname = \"x\"")],
            &[],
            "a.toml:2: `stages.0`: missing field `steps`",
        ),
        (
            &[("a.toml", "seed = 2\nseed = 3")],
            &[],
            "a.toml:2: not valid TOML: duplicate key",
        ),
        (
            &[("a.toml", "seed =\n")],
            &[],
            "a.toml:1: not valid TOML: string values must be quoted, expected literal string",
        ),
        (
            &[],
            &["seed"],
            "--set seed: has no value; write `KEY=VALUE`",
        ),
        (
            &[],
            &["seed="],
            "--set seed=: has no value; for an empty string write `KEY=\"\"`",
        ),
        (
            &[],
            &["a..b=1"],
            "--set a..b=1: `a..b` is not a key; write `a.b.c=VALUE`",
        ),
        (
            &[],
            &["training.betas=[1"],
            "--set training.betas=[1: the value is not valid TOML: unclosed array, expected `]`",
        ),
        (
            &[],
            &["seed=1\nrate=2"],
            "--set seed=1\nrate=2: is more than one value",
        ),
        (
            &[base],
            &["seed.x=1"],
            "--set seed.x=1: `seed` is of type integer and has no key `x`",
        ),
        (
            &[base],
            &["stages.cto.steps=1"],
            "--set stages.cto.steps=1: `stages` has no element `cto`; did you mean `cot`?",
        ),
        (
            &[base],
            &["stages.2.steps=1"],
            "--set stages.2.steps=1: `stages` has no element `2`; use one of cot, short.cut, or an index from 0 to 1",
        ),
        (
            &[base],
            &["training.betas.2=1"],
            "--set training.betas.2=1: `training.betas` has no element `2`; use an index from 0 to 1",
        ),
        (
            &[base, ("a.toml", "stages = []")],
            &["stages.0.steps=1"],
            "--set stages.0.steps=1: `stages` has no element `0`; it is empty here, so give the whole array",
        ),
    ];
    let (found, expected): (Vec<String>, Vec<String>) = table
        .iter()
        .map(|(files, set, expected)| (resolve(files, set).unwrap_err(), (*expected).to_owned()))
        .filter(|(found, expected)| found != expected)
        .unzip();
    assert_eq!(found, expected, "only the rows that differ are shown");
}

#[test]
fn unreadable_files_are_named() {
    let source = ConfigSource::File("no/such.toml".into());
    assert_eq!(source.variant(), "such");
    let error = load::<Experiment>(source, &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot read no/such.toml: No such file or directory (os error 2)"
    );
}
