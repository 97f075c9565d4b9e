//! A study as jobs for a scheduler: one for each run, all in one study directory.

use std::path::Path;

use super::plan::Plan;
use crate::provenance;

/// As text: a Slurm array whose tasks take a run each, and below it a line that does the same on one machine.
/// `words` is the command line without what asked for this, `directory` the study directory that it names.
pub fn script(name: &str, plan: &Plan, words: &[String], directory: &Path, at: &Path) -> String {
    let runs: Vec<&str> = plan.runs.iter().map(|run| &*run.name).collect();
    let command = provenance::line(words);
    let at = provenance::quoted(&at.display().to_string());
    let log = directory.join("slurm-%a.log");
    let last = runs.len().saturating_sub(1);
    format!(
        "#!/bin/sh\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --array=0-{last}\n\
         #SBATCH --requeue\n\
         #SBATCH --open-mode=append\n\
         #SBATCH --signal=B:INT@120\n\
         #SBATCH --output={log}\n\
         # One run for each task. Two minutes before its time is up a task is asked to save and stop; one \
         that\n\
         # stopped or died goes on from its last checkpoint when it is \
         submitted again;\n\
         # whoever finishes last writes the whole table. Add what the cluster wants, such as --gres=gpu:1 and \
         --time.\n\
         set -eu\n\
         cd {at}\n\
         set -- {runs}\n\
         shift \"$SLURM_ARRAY_TASK_ID\"\n\
         exec {command} --only \"$1\"\n\
         \n\
         # Without a scheduler, as many at a time as -P says:\n\
         # cd {at} && printf '%s\\n' {runs} | xargs -P 2 -I{{}} {command} --only {{}}\n",
        log = log.display(),
        runs = runs.join(" "),
    )
}
