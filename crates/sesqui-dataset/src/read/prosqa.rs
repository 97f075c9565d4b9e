//! ProsQA (Hao et al., "Coconut", arXiv 2412.06769): is a person one thing or another?
//!
//! One JSON array; every record has `question`, `steps`, `answer` and the graph behind them: the
//! symbols, directed edges "from is a to", the person asked about (`root`), the right option
//! (`target`) and the wrong one (`neg_target`).

use std::collections::VecDeque;
use std::path::Path;

use serde::Deserialize;

use super::prontoqa::plain_steps;
use super::rows::{Rows, filled, json_array};
use super::{BadRows, ReadRows};
use crate::error::{BadRow, DatasetError};
use crate::problem::{AnswerKind, Problem};

/// The graph that a ProsQA question spells out. All numbers index `symbols`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Names of persons and concepts.
    pub symbols: Vec<String>,
    /// `[from, to]`: the first is a case of the second.
    pub edges: Vec<[usize; 2]>,
    /// The person asked about.
    pub root: usize,
    /// The right option, reachable from the root.
    pub target: usize,
    /// The wrong option, not reachable from the root.
    pub distractor: usize,
}

impl Graph {
    /// Number of edges on a shortest path from the root to `node`; `None` where there is no path.
    pub fn distance(&self, node: usize) -> Option<usize> {
        let mut distances = vec![None; self.symbols.len()];
        *distances.get_mut(self.root)? = Some(0);
        let mut queue = VecDeque::from([(self.root, 0)]);
        while let Some((here, distance)) = queue.pop_front() {
            for &[_, to] in self.edges.iter().filter(|&&[from, _]| from == here) {
                if let Some(unseen @ None) = distances.get_mut(to) {
                    *unseen = Some(distance + 1);
                    queue.push_back((to, distance + 1));
                }
            }
        }
        distances.get(node).copied().flatten()
    }
}

/// What [`read_with_graphs`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadGraphs {
    /// Problems with their graphs, in the order of the file.
    pub rows: Vec<(Problem, Graph)>,
    /// The rows left out, as in [`ReadRows::skipped`].
    pub skipped: Vec<BadRow>,
}

#[derive(Deserialize)]
struct Record {
    question: String,
    answer: String,
    steps: Vec<String>,
    idx_to_symbol: Vec<String>,
    edges: Vec<[usize; 2]>,
    root: usize,
    target: usize,
    neg_target: usize,
}

/// Reads a ProsQA file.
///
/// The answer is the sentence of the file without its full stop, for example `Eve is a bompus`.
/// Steps keep theirs and carry no label.
///
/// # Errors
/// See [`super::Reader`]. A row is bad if the graph and the text disagree: an index out of range, an
/// answer other than "root is a target", a number of steps other than the length of the shortest
/// path, or a wrong option that can be reached.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    let ReadGraphs { rows, skipped } = read_with_graphs(path, policy)?;
    let problems = rows.into_iter().map(|(problem, _)| problem).collect();
    Ok(ReadRows { problems, skipped })
}

/// As [`read`], with the graph of every problem.
///
/// # Errors
/// As [`read`].
pub fn read_with_graphs(path: &Path, policy: BadRows) -> Result<ReadGraphs, DatasetError> {
    let Rows { good, skipped } = json_array(path, policy, problem)?;
    Ok(ReadGraphs {
        rows: good,
        skipped,
    })
}

fn problem(id: String, record: Record) -> Result<(Problem, Graph), String> {
    let graph = Graph {
        symbols: record.idx_to_symbol,
        edges: record.edges,
        root: record.root,
        target: record.target,
        distractor: record.neg_target,
    };
    let nodes = [graph.root, graph.target, graph.distractor];
    if let Some(node) = graph
        .edges
        .iter()
        .flatten()
        .chain(&nodes)
        .find(|&&node| node >= graph.symbols.len())
    {
        return Err(format!("node {node} has no name in `idx_to_symbol`"));
    }
    let steps = plain_steps(&record.steps)?;
    let length = graph.distance(graph.target);
    if length != Some(steps.len()) {
        let length = length.map_or("no path".to_owned(), |length| format!("{length} edges"));
        return Err(format!(
            "{} steps, but {length} from `root` to `target`",
            steps.len()
        ));
    }
    if graph.distance(graph.distractor).is_some() {
        return Err("`neg_target` can be reached from `root`".to_owned());
    }
    let answer = filled("answer", record.answer.trim().trim_end_matches('.'))?;
    let expected = format!(
        "{} is a {}",
        graph.symbols[graph.root], graph.symbols[graph.target]
    );
    if answer != expected {
        return Err(format!(
            "the answer is `{answer}`, but the graph says `{expected}`"
        ));
    }
    let problem = Problem {
        id,
        question: filled("question", &record.question)?,
        steps,
        answer,
        answer_kind: AnswerKind::Choice,
    };
    Ok((problem, graph))
}
