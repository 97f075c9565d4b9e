//! Stopping before the last latent step, as the programs show it.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use serde_json::Value;
use sesqui::opened::Opened;
use sesqui::trained::Trained;

use crate::support::{run, succeed};

const HALTING: &str = "experiments/arith-dag/halting.toml";

/// The rows of the `.halt.jsonl` that a command says it wrote.
fn rows(out: &str) -> Vec<Value> {
    let mut written = out
        .lines()
        .filter_map(|line| line.strip_prefix("written: "));
    let file = written.find(|line| line.ends_with(".halt.jsonl")).unwrap();
    let picture = std::fs::read_to_string(file.replace(".jsonl", ".svg")).unwrap();
    assert!(picture.contains("plain latent steps"), "{picture}");
    let text = std::fs::read_to_string(file).unwrap();
    let row = |line: &str| serde_json::from_str(line).unwrap();
    text.lines().map(row).collect()
}

fn methods(rows: &[Value]) -> Vec<&str> {
    let names = rows.iter().map(|row| row["summary"]["method"].as_str());
    names.map(Option::unwrap).collect()
}

/// Every rule on a model with shortcuts; nothing is trained for two of them.
pub fn rules(at: &Path) {
    let path = at.to_str().unwrap();
    let stage = [path, "--stage", "system15", "--split", "validation"];
    let few = ["--questions", "8", "--timing-questions", "2"];
    let halts = [
        "--halt",
        "entropy=[-1, 0.5, inf]",
        "--halt",
        "samples={ samples=3, noise=0.2 }",
    ];
    let steps = ["--latent-steps", "1,6"];
    let out = succeed("evaluate", &[&stage[..], &few, &halts, &steps].concat());
    let found = rows(&out);
    assert_eq!(
        methods(&found),
        [
            "system15 latent_steps=1",
            "system15 latent_steps=6",
            "system15, entropy -1",
            "system15, entropy 0.5",
            "system15, entropy inf",
            "system15, 3 samples 0, noise 0.2",
        ]
    );
    let number = |row: usize, key: &str| found[row][key].as_f64().unwrap();
    let summary = |row: usize, key: &str| found[row]["summary"][key].as_f64().unwrap();
    // Looking without stopping: the answers of all steps, and what the looks cost beside.
    assert_eq!(summary(2, "accuracy"), summary(1, "accuracy"));
    assert_eq!((number(2, "steps"), number(1, "steps")), (6.0, 6.0));
    let looks = number(2, "probe_layer_calls");
    assert!((summary(2, "layer_calls") - summary(1, "layer_calls") - looks).abs() < 1e-9);
    assert_eq!(number(1, "probe_layer_calls"), 0.0);
    assert!(number(4, "steps") <= number(3, "steps") && number(3, "steps") <= 6.0);
    // All trajectories are counted.
    let trajectories = summary(5, "latent_steps") / number(5, "steps");
    assert!((trajectories - 3.0).abs() < 1e-9, "{out}");
    for part in [
        "validation: thresholds may be chosen by this",
        "McNemar's exact test",
        "of these to decide",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }

    // Beside refinement, and with several exit thresholds.
    let both = [
        &stage[..],
        &["--questions", "8", "--timing-questions", "0"],
        &["--halt", "entropy=0.5", "--refine", "residual=0.1"],
        &["--exit-threshold", "0.3,1"],
    ];
    let out = succeed("evaluate", &both.concat());
    for part in [
        "system15 exit_threshold=0.3, entropy 0.5",
        "system15, residual 0.1 exit_threshold=1, entropy 0.5",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }

    let asked = [path, "--stage", "latent", "--question", "a=3+5;b=a*2;"];
    let out = succeed(
        "generate",
        &[&asked[..], &["--halt", "entropy=-1"]].concat(),
    );
    assert_eq!(out.matches("   entropy ").count(), 5, "{out}");
    let out = succeed(
        "generate",
        &[&asked[..], &["--halt", "entropy=inf"]].concat(),
    );
    assert!(out.contains("; 1 latent steps"), "{out}");
    let out = succeed("generate", &[&asked[..], &["--halt", "samples"]].concat());
    assert!(
        out.contains("samples           5 trajectories; number "),
        "{out}"
    );

    for (arguments, part) in [
        (
            &["--halt", "entropy=[1,2]"][..],
            "--halt: 2 ways of halting; ",
        ),
        (
            &["--halt", "learned"],
            "--halt learned: none of the models has a head",
        ),
        (&["--halt", "entropy=0.1, begin=2"], "unknown field `begin`"),
        (
            &["--halt", "samples", "--refine", "residual=0.5"],
            "samples cannot be refined",
        ),
        (
            &["--halt", r#"entropy={ over=[1, 4000] }"#],
            "over.ids: the model has no token 4000",
        ),
    ] {
        let refused = run("generate", &[&asked[..], arguments].concat());
        assert_ne!(refused.code, Some(0), "{}", refused.out);
        assert!(refused.error.contains(part), "{}", refused.error);
    }
    let words = [
        path,
        "--stage",
        "cot",
        "--question",
        "?",
        "--halt",
        "entropy",
    ];
    let refused = run("generate", &words);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    let part =
        "there are no latent steps to stop; name a stage with objective align, shortcut, joint or";
    assert!(refused.error.contains(part), "{}", refused.error);
}

/// Every parameter, by path.
fn parameters(model: &impl Module) -> Vec<(String, Vec<u32>)> {
    struct Visitor(Vec<String>, Vec<(String, Vec<u32>)>);
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data();
            let bits = data.iter::<f32>().map(f32::to_bits).collect();
            self.1.push((self.0.join("."), bits));
        }
    }
    let mut visitor = Visitor(Vec::new(), Vec::new());
    model.visit(&mut visitor);
    visitor.1
}

/// A stage that learns when to stop, over each kind of latent model.
pub fn head(at: &Path, folder: &Path) {
    for stage in ["latent", "system15"] {
        let source = at.join(format!("checkpoints/{stage}/step-00000020"));
        let run_at = folder.join(format!("halt-{stage}"));
        let path = run_at.to_str().unwrap();
        let start = format!(
            "stages.halt.initialize={{ kind = \"checkpoint\", path = \"{}\" }}",
            source.display()
        );
        let train = [
            "--smoke",
            "--renderer",
            "plain",
            "--run",
            path,
            "--config",
            HALTING,
            "--set",
            &start,
        ];
        let out = succeed("train", &train);
        for part in [
            "training questions labelled; right after 1, 2, … latent steps: ",
            "halt, learned",
        ] {
            assert!(out.contains(part), "{part}: {out}");
        }
        // Whatever was there before is as it was, bit for bit.
        let device = Device::flex();
        let load = |folder: &Path, stage: &str| {
            let opened = Opened::find(folder, Some(stage)).unwrap();
            match opened.load(&device).unwrap() {
                Trained::Latent(latent) => latent,
                Trained::Tokens(_) => panic!("{stage} has no latents"),
            }
        };
        let (before, after) = (load(at, stage), load(&run_at, "halt"));
        assert!(parameters(&before.model) == parameters(&after.model));
        assert_eq!(before.shortcuts.is_some(), after.shortcuts.is_some());
        if let (Some(before), Some(after)) = (&before.shortcuts, &after.shortcuts) {
            assert!(parameters(before) == parameters(after));
        }
        let head = parameters(after.head.as_ref().unwrap());
        assert!(
            head.iter()
                .all(|(_, bits)| bits.iter().any(|&bits| bits != 0))
        );

        let metrics = std::fs::read_to_string(run_at.join("metrics.jsonl")).unwrap();
        let validations = metrics.lines().filter(|line| line.contains("latent_steps"));
        assert_eq!(validations.count(), 2, "{metrics}");

        let few = ["--questions", "8", "--timing-questions", "0"];
        let halt = ["--halt", "learned=[0.3, 1]", "--halt", "learned"];
        let out = succeed("evaluate", &[&[path][..], &few, &halt].concat());
        let found = rows(&out);
        assert_eq!(
            methods(&found),
            [
                "halt",
                "halt, learned 0.3",
                "halt, learned 1",
                "halt, learned"
            ]
        );
        // All steps, and what says so counted.
        let number = |row: usize, key: &str| found[row][key].as_f64().unwrap();
        assert_eq!(number(2, "steps"), number(0, "steps"));
        assert!(number(2, "probe_flops") > 0.0 && number(2, "probe_layer_calls") == 0.0);
        assert_eq!(
            found[2]["summary"]["accuracy"],
            found[0]["summary"]["accuracy"]
        );
        let out = succeed("generate", &[path, "--question", "a=3+5;b=a*2;"]);
        assert!(out.contains(" steps, of 1: 0."), "{out}");
    }
    // A model that takes no latent steps has nothing to halt.
    let cot = at.join("checkpoints/cot/step-00000020");
    let start = format!(
        "stages.halt.initialize={{ kind = \"checkpoint\", path = \"{}\" }}",
        cot.display()
    );
    let at = folder.join("refused");
    let train = [
        "--smoke",
        "--run",
        at.to_str().unwrap(),
        "--config",
        HALTING,
        "--set",
        &start,
    ];
    let refused = run("train", &train);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    let part = "was trained with objective cot, but when to halt is learned over a model that takes latent \
                steps; give a checkpoint of objective align or shortcut or joint";
    assert!(refused.error.contains(part), "{}", refused.error);
}
