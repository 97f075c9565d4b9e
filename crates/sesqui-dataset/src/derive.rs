//! Files that no repository holds and that are made of published ones.

use std::collections::HashSet;
use std::path::Path;

use crate::error::DatasetError;
use crate::problem::Problem;
use crate::read::{BadRows, read_file};

/// `gsm8k-aug/train_noaug.txt`: GSM8K's training problems reduced to their equations, in the order of
/// `gsm8k/train.jsonl`, without those whose question is in `gsm8k-aug/valid.txt`, both below `root`.
///
/// # Errors
/// [`DatasetError::Missing`] where one of the two is not there, [`DatasetError::Row`] at a row that is not in its format.
pub fn gsm8k_equations(root: &Path) -> Result<String, DatasetError> {
    let train = read_file(root, "gsm8k/train.jsonl", BadRows::Fail)?;
    let validation = read_file(root, "gsm8k-aug/valid.txt", BadRows::Fail)?;
    let validation = validation.problems.iter();
    let held_out: HashSet<&str> = validation.map(|held| held.question.as_str()).collect();
    let kept = train.problems.iter();
    let kept = kept.filter(|problem| !held_out.contains(problem.question.as_str()));
    Ok(kept.map(line).collect())
}

fn line(problem: &Problem) -> String {
    let steps: Vec<&str> = problem
        .steps
        .iter()
        .map(|step| step.text.as_str())
        .collect();
    let (question, answer) = (&problem.question, &problem.answer);
    format!("{question}||{} #### {answer}\n", steps.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_stay_and_what_validation_asks_goes() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "gsm8k/train.jsonl",
            "{\"question\": \"Two and  three?\", \"answer\": \"It is <<2+3=5>>5, so \
             <<5*1000=5000>>5000.\\n#### 5,000\"}\n\
             {\"question\": \"Held out?\", \"answer\": \"<<1+1=2>>2\\n#### 2\"}\n\
             {\"question\": \"At once?\", \"answer\": \"#### 7\"}\n",
        );
        write("gsm8k-aug/valid.txt", "Held out?||<<1+1=2>> #### 2\n");
        let found = gsm8k_equations(root.path()).unwrap();
        let expected = "Two and  three?||<<2+3=5>> <<5*1000=5000>> #### 5000\nAt once?|| #### 7\n";
        assert_eq!(found, expected);
        let missing = gsm8k_equations(&root.path().join("nowhere")).unwrap_err();
        assert!(missing.to_string().contains("train.jsonl"), "{missing}");
    }
}
