//! The readers, labels and manifests against the published files, and against malformed ones.
//!
//! Tests on published files need the data root in `SESQUI_DATA`. Without it they are skipped with a
//! message, except under `CI`, where they fail.

// A test that cannot read its own files should fail loudly, in helper functions too.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sesqui_dataset::derive;
use sesqui_dataset::generate::perturb;
use sesqui_dataset::read::{self, ALL, Availability, BadRows};
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_dataset::{
    AnswerKind, DatasetConfig, DatasetError, LabelSource, Problem, manifest, split,
};

/// Path, problems, steps and, where steps are labelled, critical ones. The first number is the
/// published or pinned one; the others were counted by a separate program.
const FILES: &[(&str, usize, usize, Option<usize>)] = &[
    ("gsm8k/train.jsonl", 7473, 23_716, Some(13_115)),
    ("gsm8k/test.jsonl", 1319, 4282, Some(2403)),
    ("gsm8k-aug/train_noaug.txt", 6973, 22_143, Some(12_233)),
    ("gsm8k-aug/valid.txt", 500, 1573, Some(882)),
    ("gsm8k-aug/test.txt", 1319, 4282, Some(2403)),
    ("gsm-hard/gsmhardv2.jsonl", 1319, 0, None),
    ("math-word-problems/svamp.jsonl", 1000, 0, None),
    ("math-word-problems/mawpsaddsub.jsonl", 395, 0, None),
    ("math-word-problems/mawpsmultiarith.jsonl", 600, 0, None),
    ("math-word-problems/mawpssingleeq.jsonl", 508, 0, None),
    ("math-word-problems/mawpssingleop.jsonl", 562, 0, None),
    ("prosqa/prosqa_valid.json", 300, 1126, None),
    ("prosqa/prosqa_test.json", 500, 1891, None),
    ("prontoqa/prontoqa_train.jsonl", 9000, 54_000, None),
    ("prontoqa/prontoqa_valid.jsonl", 200, 1200, None),
    ("prontoqa/prontoqa_test.jsonl", 800, 4800, None),
    ("strategyqa/train.json", 2061, 6046, Some(2696)),
    ("strategyqa/dev.json", 229, 674, Some(303)),
    ("mathqa/dev.json", 4475, 19_614, Some(12_337)),
    ("mathqa/test.json", 2985, 13_002, Some(8201)),
    ("mathqa/challenge_test.json", 604, 2813, Some(1806)),
    ("aqua-rat/dev.json", 254, 1307, None),
    ("aqua-rat/test.json", 254, 1285, None),
    ("multiplication/4x4_valid.txt", 1000, 4000, None),
    ("multiplication/4x4_test_bigbench.txt", 1000, 4000, None),
    ("multiplication/5x5_valid.txt", 1000, 5000, None),
    ("multiplication/5x5_test_bigbench.txt", 1000, 5000, None),
    ("multiplication/7x7_test_bigbench.txt", 1000, 7000, None),
    ("multiplication/9x9_test_bigbench.txt", 1000, 9000, None),
];

#[allow(clippy::print_stderr, clippy::disallowed_methods)]
fn data_root() -> Option<PathBuf> {
    match std::env::var_os("SESQUI_DATA") {
        Some(root) => Some(root.into()),
        None => {
            assert!(
                std::env::var_os("CI").is_none(),
                "SESQUI_DATA must be set under CI"
            );
            eprintln!("skipped: SESQUI_DATA does not name a data root");
            None
        }
    }
}

fn problems(root: &Path, relative: &str) -> Vec<Problem> {
    let rows = read::read_file(root, relative, BadRows::Fail).unwrap();
    assert!(rows.skipped.is_empty(), "{relative}");
    rows.problems
}

fn critical_steps(problem: &Problem) -> usize {
    let labels = problem.steps.iter().filter_map(|step| step.criticality);
    labels.filter(|label| label.critical).count()
}

fn texts(problem: &Problem) -> Vec<&str> {
    problem
        .steps
        .iter()
        .map(|step| step.text.as_str())
        .collect()
}

#[test]
fn every_published_file_is_read_completely() {
    let pinned: Vec<_> = ALL
        .iter()
        .filter(|file| file.availability == Availability::Pinned)
        .map(|file| (file.relative, file.records))
        .collect();
    let expected: Vec<_> = FILES
        .iter()
        .map(|&(path, records, ..)| (path, records))
        .collect();
    assert_eq!(pinned, expected);
    assert_eq!(FILES.len(), 29);

    let Some(root) = data_root() else { return };
    let mut total = 0;
    for &(relative, records, steps, critical) in FILES {
        let problems = problems(&root, relative);
        assert_eq!(problems.len(), records, "{relative}");
        total += problems.len();
        let ids: BTreeSet<_> = problems.iter().map(|problem| &problem.id).collect();
        assert_eq!(ids.len(), records, "{relative}: ids are unique");

        let (mut found, mut found_critical, mut labelled) = (0, 0, 0);
        for problem in &problems {
            found += problem.steps.len();
            found_critical += critical_steps(problem);
            labelled += problem
                .steps
                .iter()
                .filter(|step| step.criticality.is_some())
                .count();
            let id = &problem.id;
            let filled = |text: &str| !text.is_empty() && text == text.trim();
            assert!(filled(&problem.question) && filled(&problem.answer), "{id}");
            assert!(problem.steps.iter().all(|step| filled(&step.text)), "{id}");
            let normal = match problem.answer_kind {
                AnswerKind::Number => {
                    read::normalise_number(&problem.answer).as_ref() == Some(&problem.answer)
                }
                AnswerKind::YesNo => matches!(problem.answer.as_str(), "yes" | "no"),
                AnswerKind::Choice => true,
            };
            assert!(normal, "{id}: `{}`", problem.answer);
        }
        assert_eq!(found, steps, "{relative}: steps");
        assert_eq!(
            found_critical,
            critical.unwrap_or(0),
            "{relative}: critical steps"
        );
        assert_eq!(
            labelled,
            if critical.is_some() { steps } else { 0 },
            "{relative}: labels"
        );
    }
    assert_eq!(total, 49_630);
}

#[test]
fn manifests_verify() {
    let Some(root) = data_root() else { return };
    let mut right = 0;
    for manifest in manifest::all().unwrap() {
        let report = manifest.verify(&root).unwrap();
        for file in &report.files {
            right += usize::from(file.status == manifest::Status::Ok);
        }
        assert!(report.is_ok(), "{report:#?}");
    }
    // The 29 readable files, two word lists of MathQA and two files of the tokenizer.
    assert_eq!(right, 33);
}

#[test]
fn an_empty_data_root_is_reported_file_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut missing = 0;
    for manifest in manifest::all().unwrap() {
        let report = manifest.verify(folder.path()).unwrap();
        assert!(!report.is_ok());
        for file in report.files {
            let said = file.status.to_string();
            missing += usize::from(said.contains("https://github.com/"));
        }
    }
    // As above, and the four training splits that cannot be pinned.
    assert_eq!(missing, 33 + 4);
}

#[test]
fn operand_match_labels_gsm8k() {
    let Some(root) = data_root() else { return };
    let test = problems(&root, "gsm8k-aug/test.txt");
    let steps = test.iter().flat_map(|problem| &problem.steps);
    assert!(
        steps
            .flat_map(|step| step.criticality)
            .all(|it| it.source == LabelSource::OperandMatch)
    );
    // 2403 of 4282 steps are critical, 56.1 %. Comparing operands as text instead of by value gives
    // the 54.7 % sometimes quoted: it takes `.5` and `0.5`, or `2.50` and `2.5`, for different numbers.
    let none: Vec<_> = test
        .iter()
        .filter(|problem| critical_steps(problem) == 0)
        .collect();
    let without_steps = none
        .iter()
        .filter(|problem| problem.steps.is_empty())
        .count();
    assert_eq!((none.len(), without_steps), (107, 18));
    let first = test
        .iter()
        .flat_map(|problem| problem.steps.first())
        .filter_map(|it| it.criticality);
    assert_eq!(first.filter(|label| label.critical).count(), 0);

    // The equation file is the test split of GSM8K, row by row.
    let official = problems(&root, "gsm8k/test.jsonl");
    let same = |(ours, theirs): (&Problem, &Problem)| {
        (&ours.question, &ours.steps, &ours.answer)
            == (&theirs.question, &theirs.steps, &theirs.answer)
    };
    assert_eq!(
        test.iter()
            .zip(&official)
            .filter(|&pair| same(pair))
            .count(),
        1319
    );
}

#[test]
fn answers_are_normalised() {
    let Some(root) = data_root() else { return };
    // Thousands commas, negative numbers and floats; row from 1.
    let cases: &[(&str, usize, &str)] = &[
        ("gsm8k-aug/valid.txt", 193, "5000"),
        ("gsm8k-aug/valid.txt", 202, "30000"),
        ("gsm8k-aug/valid.txt", 208, "27200"),
        ("gsm8k-aug/valid.txt", 353, "3380"),
        ("gsm8k-aug/test.txt", 490, "-10"),
        ("gsm8k-aug/test.txt", 612, "1450000"),
        ("gsm8k-aug/train_noaug.txt", 5461, "-47"),
        ("gsm-hard/gsmhardv2.jsonl", 1, "-9867630"),
        ("math-word-problems/svamp.jsonl", 1, "51"),
        ("math-word-problems/mawpsmultiarith.jsonl", 1, "39"),
        ("prontoqa/prontoqa_valid.jsonl", 1, "yes"),
        ("prosqa/prosqa_valid.json", 1, "Tom is a lempus"),
        ("strategyqa/dev.json", 1, "no"),
        ("mathqa/dev.json", 1, "c"),
        ("aqua-rat/dev.json", 1, "A"),
        ("multiplication/4x4_valid.txt", 1, "5 5 6 0 8 2 0 1"),
    ];
    for &(relative, row, answer) in cases {
        assert_eq!(
            problems(&root, relative)[row - 1].answer,
            answer,
            "{relative}:{row}"
        );
    }
    let hard = problems(&root, "gsm-hard/gsmhardv2.jsonl");
    let fractions = hard
        .iter()
        .filter(|problem| problem.answer.contains('.'))
        .count();
    let negative = hard
        .iter()
        .filter(|problem| problem.answer.starts_with('-'))
        .count();
    assert_eq!((fractions, negative), (303, 146));
    for (relative, yes) in [
        ("prontoqa/prontoqa_train.jsonl", 4431),
        ("prontoqa/prontoqa_valid.jsonl", 89),
        ("prontoqa/prontoqa_test.jsonl", 397),
        ("strategyqa/train.json", 964),
        ("strategyqa/dev.json", 107),
    ] {
        let found = problems(&root, relative)
            .iter()
            .filter(|it| it.answer == "yes")
            .count();
        assert_eq!(found, yes, "{relative}");
    }
}

#[test]
fn joined_steps_are_the_chain_of_the_file() {
    let Some(root) = data_root() else { return };
    let mut rows = 0;
    for (relative, ..) in FILES.iter().filter(|(path, ..)| path.ends_with(".txt")) {
        let text = std::fs::read_to_string(root.join(relative)).unwrap();
        for (problem, line) in problems(&root, relative).iter().zip(text.lines()) {
            let chain = texts(problem).join(" ");
            let answer = line.rsplit_once("#### ").unwrap().1;
            let rebuilt = format!("{}||{chain} #### {answer}", problem.question);
            assert_eq!(rebuilt, line.trim_start(), "{}", problem.id);
            rows += 1;
        }
    }
    assert_eq!(rows, 6973 + 500 + 1319 + 6 * 1000);
}

/// The row of the template in the id of a perturbed problem.
fn template(problem: &Problem) -> &str {
    let name = problem.id.rsplit('/').next().unwrap();
    name.split('-').next().unwrap()
}

#[test]
fn seen_templates_have_new_numbers() {
    let Some(root) = data_root() else { return };
    let text = "kind = 'gsm8k-perturbed'
        templates = 16
        min_steps = 2
        max_steps = 4
        greatest_number = 50
        train_rows = 1600
        validation_rows = 80
        validation = 'seen-templates'
        tests = [{ kind = 'perturbed-seen', rows = 160 }, { kind = 'perturbed-heldout', rows = 40 },
            { kind = 'gsm8k-test', most_rows = 40 }, { kind = 'gsm-hard', most_rows = 7 },
            { kind = 'svamp' }, { kind = 'multiarith', most_rows = 5 }]";
    let config: DatasetConfig = toml::from_str(text).unwrap();
    let mut corpus = config.load(Some(&root), 1, BadRows::Fail).unwrap();
    assert!(corpus.skipped.is_empty());
    let names: Vec<&str> = corpus.tests.iter().map(|test| &*test.name).collect();
    let published = ["gsm8k-test", "gsm-hard", "svamp", "multiarith"];
    assert_eq!(
        names,
        [&["perturbed-seen", "perturbed-heldout"], &published[..]].concat()
    );
    let rows: Vec<usize> = corpus
        .tests
        .iter()
        .map(|test| test.problems.len())
        .collect();
    assert_eq!(rows[2..], [40, 7, 1_000, 5]);
    corpus.tests.truncate(3);

    // The same 16 texts in training, validation and the seen test, evenly, and none of them held out.
    let count = |problems: &[Problem]| {
        let mut rows = BTreeMap::new();
        for problem in problems {
            *rows.entry(template(problem).to_owned()).or_insert(0) += 1;
        }
        rows
    };
    let train = count(&corpus.train);
    assert_eq!(train.len(), 16);
    assert!(train.values().all(|rows| *rows == 100), "{train:?}");
    for (problems, share) in [(&corpus.validation, 5), (&corpus.tests[0].problems, 10)] {
        let seen = count(problems);
        assert!(seen.keys().eq(train.keys()) && seen.values().all(|rows| *rows == share));
    }
    assert!(
        count(&corpus.tests[1].problems)
            .keys()
            .all(|it| !train.contains_key(it))
    );

    // No combination of numbers twice, and every number within the bound unless it is a constant.
    let perturbed = || {
        let tests = corpus.tests[..2].iter().flat_map(|test| &test.problems);
        corpus.train.iter().chain(&corpus.validation).chain(tests)
    };
    let questions: BTreeSet<&str> = perturbed().map(|it| &*it.question).collect();
    assert_eq!(questions.len(), 1600 + 80 + 160 + 40);
    for problem in perturbed() {
        perturb::check(problem).unwrap();
        assert!((2..=4).contains(&problem.steps.len()), "{}", problem.id);
        for step in texts(problem) {
            let result = step.trim_end_matches(">>").rsplit_once('=').unwrap().1;
            assert!(result.parse::<f64>().unwrap() <= 50.0, "{step}");
        }
    }

    // The whole-number tokenizer on these rows: nearly every result is one token.
    let tokenizer: TokenizerConfig =
        toml::from_str("kind = 'trained'\nmodel = 'byte-pair-numbers'\nvocab_size = 1024").unwrap();
    let train_texts = corpus.train.iter().flat_map(|problem| {
        let ends = [&*problem.question, &*problem.answer];
        texts(problem).into_iter().chain(ends)
    });
    let tokenizer = Tokenizer::from_config(&tokenizer, &root, train_texts).unwrap();
    let answers: Vec<usize> = corpus.tests[0]
        .problems
        .iter()
        .map(|it| tokenizer.encode(&it.answer).unwrap().len())
        .collect();
    let one = answers.iter().filter(|tokens| **tokens == 1).count();
    assert!(one * 10 >= answers.len() * 9, "{one} of {}", answers.len());

    // The proof of disjointness covers the seen test.
    split::assert_disjoint(&corpus).unwrap();
    let copied = corpus.train[7].question.to_uppercase();
    corpus.tests[0].problems[3].question = copied;
    let message = split::assert_disjoint(&corpus).unwrap_err().to_string();
    assert!(
        message.contains("(train)") && message.contains("(perturbed-seen)"),
        "{message}"
    );
}

#[test]
fn bounds_and_tests_leave_other_rows_as_they_are() {
    let Some(root) = data_root() else { return };
    let load = |rest: &str| {
        let text = format!("kind = 'gsm8k-perturbed'\nvalidation_rows = 10\n{rest}");
        let config: DatasetConfig = toml::from_str(&text).unwrap();
        config.load(Some(&root), 1, BadRows::Fail)
    };
    let plain = load("train_rows = 200\ntests = []").unwrap();
    let tested =
        load("train_rows = 200\ntests = [{ kind = 'perturbed-seen', rows = 50 }]").unwrap();
    // Fewer rows than templates: only templates with a training row are tested.
    assert_eq!(
        (&plain.train, &plain.validation),
        (&tested.train, &tested.validation)
    );
    let trained: BTreeSet<&str> = plain.train.iter().map(template).collect();
    let seen = &tested.tests[0].problems;
    assert!(seen.iter().all(|it| trained.contains(template(it))) && seen.len() == 50);
    for (rest, reason) in [
        ("min_steps = 3\nmax_steps = 2", "data.max_steps"),
        (
            "train_rows = 0\nvalidation = 'seen-templates'",
            "data.train_rows",
        ),
        (
            "tests = [{ kind = 'gsm8k-test' }, { kind = 'gsm8k-test' }]",
            "data.tests",
        ),
        ("templates = 4000", "data.templates"),
    ] {
        let message = load(rest).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn prosqa_graphs_come_along() {
    let Some(root) = data_root() else { return };
    let path = root.join("prosqa/prosqa_test.json");
    let read = read::prosqa::read_with_graphs(&path, BadRows::Fail).unwrap();
    assert_eq!((read.rows.len(), read.skipped.len()), (500, 0));
    for (problem, graph) in &read.rows {
        assert!(
            problem.question.contains(&graph.symbols[graph.distractor]),
            "{}",
            problem.id
        );
    }
}

/// Writes `text` to a file and reads it with `reader` under both policies.
fn read_text(
    reader: read::Reader,
    name: &str,
    text: &[u8],
) -> (Option<DatasetError>, read::ReadRows) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (
        reader(&path, BadRows::Fail).err(),
        reader(&path, BadRows::Skip).unwrap(),
    )
}

#[test]
fn malformed_rows_are_named_and_counted() {
    let equations = "q||<<1+1=2>> <<2*3=6>> #### 6";
    let gsm8k = r#"{"question":"q","answer":"Two: <<1+1=2>>2.\n#### 1,002"}"#;
    let target = r#"{"input":"q","target":9007199254740993}"#;
    let pronto = r#"{"question":"q","steps":["a"],"answer":"False"}"#;
    let prosqa = r#"{"question":"q","answer":"A is a b.","steps":["A is a b."],
        "idx_to_symbol":["A","b","c"],"edges":[[0,1],[2,1]],"root":0,"target":1,"neg_target":2}"#;
    let strategy = r#"{"question":"q","answer":true,"decomposition":["a?","Is #1?"]}"#;
    let mathqa = r#"{"Problem":"q","options":"a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5",
        "correct":"b","linear_formula":"add(n0,n1)|divide(#0,const_2)|"}"#;
    let aqua = r#"{"question":"q","options":["A)1","B)2","C)3","D)4","E)5"],
        "rationale":"one\n\ntwo","correct":"E"}"#
        .replace('\n', "");
    let product = "2 1 * 4 3||8 4 0 + 0 6 3 0 #### 8 0 4 0";
    let long = "1 0 * 1 0 0||1 0 + 0 0 0 ( 1 0 0 ) + 0 0 0 0 #### 1 0 0 0";

    // Reader, a good row, what turns it bad, and a word of the reason.
    let lines: &[(read::Reader, &str, &str, &str, &str)] = &[
        (read::gsm8k_aug::read, equations, "||", "|", "`||`"),
        (
            read::gsm8k_aug::read,
            equations,
            "q||",
            "q||r||",
            "more than one",
        ),
        (read::gsm8k_aug::read, equations, "q||", "||", "question"),
        (read::gsm8k_aug::read, equations, "####", "###", "`####`"),
        (
            read::gsm8k_aug::read,
            equations,
            "#### 6",
            "#### six",
            "six",
        ),
        (
            read::gsm8k_aug::read,
            equations,
            "<<2*3=6>>",
            "<<2*3=6",
            ">>",
        ),
        (
            read::gsm8k_aug::read,
            equations,
            "<<2*3=6>>",
            "<<2*3>>",
            "expression=value",
        ),
        (
            read::gsm8k_aug::read,
            equations,
            ">> <<",
            ">> then <<",
            "then",
        ),
        (read::gsm8k_aug::read, equations, equations, "  ", "blank"),
        (read::gsm8k::read, gsm8k, "question", "text", "question"),
        (read::gsm8k::read, gsm8k, "1,002", "1,02", "1,02"),
        (read::gsm8k::read, gsm8k, "}", "", "EOF"),
        (
            read::input_target::read,
            target,
            "9007199254740993",
            "\"9\"",
            "string",
        ),
        (
            read::input_target::read,
            target,
            "9007199254740993",
            "90071992547409931.0",
            "exact",
        ),
        (read::prontoqa::read, pronto, "False", "Maybe", "Maybe"),
        (read::prontoqa::read, pronto, "\"a\"", "", "no steps"),
        (read::aqua_rat::read, &aqua, "\"E\"", "\"F\"", "`F`"),
        (read::aqua_rat::read, &aqua, ",\"E)5\"", "", "4 options"),
        (read::aqua_rat::read, &aqua, "B)2", "C)2", "`B)`"),
        (
            read::multiplication::read,
            product,
            "0 6 3 0",
            "0 7 3 0",
            "term",
        ),
        (
            read::multiplication::read,
            product,
            "8 0 4 0",
            "8 0 5 0",
            "product",
        ),
        (
            read::multiplication::read,
            product,
            "8 4 0 + ",
            "",
            "1 terms",
        ),
        (read::multiplication::read, product, "2 1 *", "21 *", "`21`"),
        (
            read::multiplication::read,
            product,
            "3 0 ####",
            "3 0 ( 8 0 4 ) ####",
            "out of place",
        ),
        (
            read::multiplication::read,
            long,
            "( 1 0 0 )",
            "( 1 1 0 )",
            "running sum",
        ),
        (
            read::multiplication::read,
            long,
            "( 1 0 0 )",
            "",
            "out of place",
        ),
        (
            read::multiplication::read,
            long,
            " 0 0||",
            &format!("{}||", " 9".repeat(19)),
            "20 digits",
        ),
    ];
    for &(reader, good, from, to, reason) in lines {
        assert!(good.contains(from), "{from}");
        let bad = good.replacen(from, to, 1);
        let (error, rows) = read_text(
            reader,
            "rows.txt",
            format!("{good}\r\n{bad}\n{good}").as_bytes(),
        );
        check_bad_row(error, &rows, reason);
    }

    let arrays: &[(read::Reader, &str, &str, &str, &str)] = &[
        (read::prosqa::read, prosqa, "[2,1]", "[2,3]", "node 3"),
        (read::prosqa::read, prosqa, "[2,1]", "[1,2]", "neg_target"),
        (read::prosqa::read, prosqa, "[0,1]", "[1,0]", "no path"),
        (
            read::prosqa::read,
            prosqa,
            "\"A is a b.\"]",
            "\"x\",\"y\"]",
            "2 steps",
        ),
        (
            read::prosqa::read,
            prosqa,
            "A is a b",
            "A is a c",
            "A is a c",
        ),
        (
            read::prosqa::read,
            prosqa,
            "\"root\":0",
            "\"root\":-1",
            "-1",
        ),
        (
            read::strategyqa::read,
            strategy,
            "true",
            "\"true\"",
            "boolean",
        ),
        (read::strategyqa::read, strategy, "#1", "#2", "#2"),
        (read::mathqa::read, mathqa, "\"b\"", "\"f\"", "`f`"),
        (read::mathqa::read, mathqa, "c ) ", "", "`c ) `"),
        (read::mathqa::read, mathqa, "#0", "#1", "#1"),
        (read::mathqa::read, mathqa, "n1)|", "n1|", "name(arguments)"),
    ];
    for &(reader, good, from, to, reason) in arrays {
        assert!(good.contains(from), "{from}");
        let bad = good.replacen(from, to, 1);
        let text = format!("[{good},\n\n{bad},{good}]");
        let (error, rows) = read_text(reader, "rows.json", text.as_bytes());
        check_bad_row(error, &rows, reason);
    }
    assert_eq!(lines.len() + arrays.len(), 39);

    let text = b"q||#### 1\n\xff\xfe\nq||#### 2\n";
    let (error, rows) = read_text(read::gsm8k_aug::read, "rows.txt", text);
    check_bad_row(error, &rows, "utf-8");
}

/// The second of three rows is bad, for `reason`.
fn check_bad_row(error: Option<DatasetError>, rows: &read::ReadRows, reason: &str) {
    assert_eq!(
        (rows.problems.len(), rows.skipped.len()),
        (2, 1),
        "{reason}: {rows:?}"
    );
    assert!(
        rows.problems[1].id.ends_with("/rows/3"),
        "{}",
        rows.problems[1].id
    );
    let bad = &rows.skipped[0];
    assert_eq!(bad.line, 2, "{bad}");
    assert!(
        bad.reason.contains(reason),
        "`{}` should mention `{reason}`",
        bad.reason
    );
    match error {
        Some(DatasetError::Row(first)) => {
            assert_eq!((first.line, &first.reason), (bad.line, &bad.reason));
            assert!(first.to_string().contains(":2: "));
        }
        other => panic!("{reason}: {other:?}"),
    }
}

#[test]
fn a_broken_array_fails_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.json");
    for (text, line) in [
        ("[\n{},\n{\"question\": }]", 3),
        ("{}", 1),
        ("[{}", 1),
        ("", 1),
    ] {
        std::fs::write(&path, text).unwrap();
        for policy in [BadRows::Fail, BadRows::Skip] {
            match read::strategyqa::read(&path, policy) {
                Err(DatasetError::Row(bad)) => {
                    assert!(bad.line == line || text.is_empty(), "{text:?}: {bad}");
                    assert!(bad.reason.contains("column"), "{bad}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
    std::fs::write(&path, "[]").unwrap();
    let rows = read::strategyqa::read(&path, BadRows::Fail).unwrap();
    assert_eq!((rows.problems.len(), rows.skipped.len()), (0, 0));
    assert!(matches!(
        read::strategyqa::read(&folder.path().join("none.json"), BadRows::Fail),
        Err(DatasetError::Io { .. })
    ));
}

#[test]
fn the_training_file_of_gsm8k_aug_is_derived_from_published_ones() {
    let Some(root) = data_root() else {
        return;
    };
    let expected = std::fs::read_to_string(root.join("gsm8k-aug/train_noaug.txt")).unwrap();
    assert!(derive::gsm8k_equations(&root).unwrap() == expected);
}
