//! A study as jobs for a scheduler: one for each run, all in one study directory.

use std::path::Path;

use crate::provenance::{line, quoted};

/// As text: a Slurm array whose tasks take a run each, and below it a line that does the same on one machine.
/// `words` is the command line that works on all of the study, to be run in the folder `at`.
pub fn script(name: &str, runs: &[&str], words: &[String], at: &Path) -> String {
    let command = line(words);
    let folder = quoted(&at.display().to_string());
    // Slurm makes no folder for what a task says, so it goes where the command runs. It expands % in the name of a log.
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let log = at.display().to_string().replace('%', "%%");
    let log = Path::new(&log).join(format!("{name}-%A_%a.log"));
    let last = runs.len().saturating_sub(1);
    format!(
        "#!/bin/sh\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --array=0-{last}\n\
         #SBATCH --requeue\n\
         #SBATCH --open-mode=append\n\
         #SBATCH --signal=B:INT@120\n\
         #SBATCH --output=\"{log}\"\n\
         # One run for each task. Two minutes before its time is up a task is asked to save and stop; one that\n\
         # stopped or died goes on from its last checkpoint when it is submitted again, and whoever finishes last\n\
         # writes the whole table. Add what the cluster wants, such as --gres=gpu:1 and --time.\n\
         set -eu\n\
         cd {folder}\n\
         set -- {runs}\n\
         shift \"$SLURM_ARRAY_TASK_ID\"\n\
         exec {command} --only \"$1\"\n\
         \n\
         # Without a scheduler, as many at a time as -P says:\n\
         # cd {folder} && printf '%s\\n' {runs} | xargs -P 2 -n 1 {command} --only\n",
        log = log.display(),
        runs = runs.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_folders_are_quoted_and_the_log_lies_outside_the_study() {
        let words = ["train", "--study", "a b.toml", "--set", "x={ y = 'z' }"].map(str::to_owned);
        let text = script(
            "rivals on 2%",
            &["d_seed-1"],
            &words,
            Path::new("/my 5% runs"),
        );
        for part in [
            "#SBATCH --job-name=rivals-on-2-\n",
            "#SBATCH --array=0-0\n",
            "#SBATCH --output=\"/my 5%% runs/rivals-on-2--%A_%a.log\"\n",
            "cd '/my 5% runs'\nset -- d_seed-1\n",
            "exec train --study 'a b.toml' --set 'x={ y = '\\''z'\\'' }' --only \"$1\"\n",
            "printf '%s\\n' d_seed-1 | xargs -P 2 -n 1 train --study 'a b.toml'",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // What stands below is a comment, line by line.
        let rest = text.split("--only \"$1\"\n").nth(1).unwrap();
        assert!(
            rest.lines()
                .all(|line| line.is_empty() || line.starts_with('#'))
        );
    }
}
